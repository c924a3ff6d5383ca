"""Progress on stderr with the time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pathlens.errors import LONGEST, printable

Report = Callable[[int, int], None]

_SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print one line on stderr, with control characters escaped."""
    print(f"pathlens: {printable(text, LONGEST)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_bar(what: str, shown: bool, notes: Sequence[str] = ()) -> Iterator[Report | None]:
    """A function to call with (done, total); None where nothing is to be shown.

    Notes are printed when the work begins, so that a command that fails before prints only its error.
    """
    if not shown:
        yield None
        return
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        begun: list[Report] = []

        def report(done: int, total: int) -> None:
            if not begun:
                for note in notes:
                    say(note)
                begun.append(stack.enter_context(_bar(what, console) if console.is_terminal else _lines(what)))
            begun[0](done, total)

        yield report


@contextlib.contextmanager
def waiting(what: str, shown: bool) -> Iterator[None]:
    """Show on a terminal what the command waits for, and erase it afterwards."""
    console = Console(stderr=True)
    line = escape(f"pathlens: {printable(what)}")
    with console.status(line) if shown and console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _bar(what: str, console: Console) -> Iterator[Report]:
    with Progress(
        TextColumn("pathlens: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # it would undo the redirection of foreign_output
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextlib.contextmanager
def _lines(what: str) -> Iterator[Report]:
    began = said = time.monotonic()
    first: int | None = None
    last = (0, 0)

    def report(done: int, total: int) -> None:
        nonlocal said, first, last
        now = time.monotonic()
        first = done if first is None else first
        last = done, total
        if now - said >= _SECONDS_BETWEEN_LINES and first < done < total:
            said = now
            left = (now - began) / (done - first) * (total - done)
            say(f"{what}: {done} of {total}, {_clock(left)} left")

    yield report
    took = _clock(time.monotonic() - began)
    say(f"{what}: {last[0]} of {last[1]} in {took}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
