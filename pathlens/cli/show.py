"""Tables on stdout: aligned columns that fit the terminal, with bars, or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from pathlens.errors import printable
from pathlens.results import Shown, named
from pathlens.results.result import Row, Rows
from pathlens.results.tasks import SHOWN
from pathlens.tables import Table

_BAR = 28
_SHORTEST_BAR = 8
_GAP = 2
_FOLDED = 12
_PIPE_WIDTH = 200
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class _Printed:
    """One column with its texts, one for each row, which are made printable."""

    title: str
    cells: list[str]
    how: Shown

    @classmethod
    def of(cls, name: str, how: Shown, rows: Rows) -> _Printed:
        text = how.text or _plain
        return cls(how.title or name.replace("_", " "), [printable(text(row, name)) for row in rows], how)

    @property
    def width(self) -> int:
        """Characters of its longest text."""
        return max(map(cell_len, (*self.title.split("\n"), *self.cells)))


def show(table: Table, name: str, as_json: bool = False) -> None:
    """Print a table on stdout: as its result declares it, or as one JSON object.

    Args:
        table: that a verb just made.
        name: of its result.
        as_json: whether to print JSON.
    """
    if as_json:
        print(json.dumps(table.to_json_object(), allow_nan=False))
        return
    result = named(name)
    rows = result.listed(table.rows)
    printed = {**result.printed(rows), **{name: how for name, how in SHOWN.items() if name in table.types}}
    _print_columns([_Printed.of(*column, rows) for column in printed.items()], result.bars(rows), result.bars_title)
    if len(rows) < len(table.rows):
        _print_dim(f"{len(rows)} of {len(table.rows)} rows; --json and --out have all")
    for line in result.notes(table.provenance):
        _print_dim(line)


def _print_columns(columns: Sequence[_Printed], bars: Sequence[float] | None, title: str) -> None:
    """Print columns on stdout, and a bar for a fraction in each row where there is room for one.

    Numbers are never cut off: where the terminal is narrow, first the bars get shorter and go, then text is folded,
    then columns that may give way are left out.
    """
    console = make_console()
    fitting = list(columns)
    while _needed(fitting) > console.width and any(column.how.gives_way for column in fitting):
        fitting.remove(max(fitting, key=lambda column: column.how.gives_way))
    console.width = max(console.width, _needed(fitting))  # lines that are too long are wrapped by the terminal
    natural = sum(column.width for column in fitting) + _GAP * (len(fitting) - 1)
    # the box adds one space between columns to the padding
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
    for column in fitting:
        grid.add_column(
            column.title,
            justify="left" if column.how.left else "right",
            vertical="top",
            no_wrap=not column.how.folds,
            overflow="fold",
            min_width=min(column.width, _FOLDED) if column.how.folds else column.width,
        )
    cells = [column.cells for column in fitting]
    room = min(_BAR, console.width - natural - _GAP)
    if bars is not None and room >= _SHORTEST_BAR:
        grid.add_column(title, no_wrap=True, min_width=room)
        plain = "utf" not in (console.encoding or "").lower()
        cells.append([bar(fraction, room, plain) for fraction in bars])
    for row in zip(*cells, strict=True):
        grid.add_row(*row)
    with console.capture() as captured:
        console.print(grid, markup=False)
    for line in captured.get().splitlines():
        _print(line.rstrip())
    left_out = [column.title.replace("\n", " ") for column in columns if column not in fitting]
    if left_out:
        _print(f"(not shown for want of room: {', '.join(left_out)}; --json and --out have all columns)")


def _plain(row: Row, name: str) -> str:
    return "" if row[name] is None else str(row[name])


def _needed(columns: Sequence[_Printed]) -> int:
    return sum(min(c.width, _FOLDED) if c.how.folds else c.width for c in columns) + _GAP * (len(columns) - 1)


def _print_dim(line: str) -> None:
    """A line that matters less than the table; it is wrapped on terminals and whole elsewhere."""
    console = make_console()
    if console.is_terminal:
        console.print(printable(line), style="dim", markup=False)
    else:
        _print(printable(line))


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))


def make_console() -> Console:
    """Standard output, wide enough for whole rows when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False, emoji=False)


def bar(fraction: float, width: int = _BAR, plain: bool = False) -> str:
    """A horizontal bar for a fraction in [0, 1]."""
    part = min(max(fraction, 0.0), 1.0) * width
    if plain:
        return "#" * math.floor(part + 0.5)
    eighths = math.floor(part * 8 + 0.5)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
