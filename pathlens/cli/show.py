"""Tables for people: aligned columns that fit the terminal, errors in percent with their interval, and bars."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from pathlens.errors import printable
from pathlens.tables import Table

_BAR = 28
_SHORTEST_BAR = 8
_GAP = 2
_FOLDED = 12
_PIPE_WIDTH = 200
_EIGHTHS = " ▏▎▍▌▋▊▉"

_LEADING = {
    "delete-blocks": ("block", "name", "stage", "kind"),
    "delete-skips": ("block", "name", "stage", "kind"),
    "reorder-blocks": ("swaps", "sample", "kendall_tau", "moved"),
}


@dataclass(frozen=True)
class Shown:
    """One column as it is printed.

    Attributes:
        title: its heading.
        cells: its texts, one for each row, which are made printable.
        left: aligned to the left, as text is; numbers are aligned to the right.
        folds: goes on in a second line where the terminal is narrow.
        gives_way: left out where the terminal is narrow; columns of higher numbers first.
    """

    title: str
    cells: list[str]
    left: bool = False
    folds: bool = False
    gives_way: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", [printable(cell) for cell in self.cells])

    @property
    def width(self) -> int:
        """Characters of its longest text."""
        return max(map(cell_len, (*self.title.split("\n"), *self.cells)))


def show(table: Table, verb: str) -> None:
    """Print a verb's table on stdout."""
    if verb == "path-gradients":
        from pathlens.cli.show_paths import show_paths

        show_paths(table)
        return
    rows: list[dict[str, Any]] = [dict(row) for row in table.rows]
    sets = any(row.get("sample") is not None for row in rows)
    leading = ("count", "sample", "blocks") if sets and verb != "reorder-blocks" else _LEADING[verb]
    columns = [
        Shown(
            name.replace("_", " "),
            [_cell(name, row) for row in rows],
            left=name in ("name", "kind", "blocks"),
            folds=name in ("name", "blocks"),
            gives_way={"name": 1, "kind": 2, "stage": 3, "moved": 1}.get(name, 0),
        )
        for name in leading
    ]
    columns += [
        Shown("error %", [f"{100 * row['error']:.2f}" for row in rows]),
        Shown("95 % interval", [_interval(row) for row in rows]),
        Shown("loss", ["not finite" if row["loss"] is None else f"{row['loss']:.4f}" for row in rows]),
    ]
    print_columns(columns, [row["error"] for row in rows])
    print_dim(summary(table.provenance))


def print_columns(columns: Sequence[Shown], bars: Sequence[float] | None = None) -> None:
    """Print columns on stdout, and a bar for a fraction in each row where there is room for one.

    Numbers are never cut off: where the terminal is narrow, first the bars get shorter and go, then text is folded,
    then columns that may give way are left out.
    """
    console = make_console()
    kept = list(columns)
    while _needed(kept) > console.width and any(column.gives_way for column in kept):
        kept.remove(max(kept, key=lambda column: column.gives_way))
    natural = sum(column.width for column in kept) + _GAP * (len(kept) - 1)
    # the box adds one space between columns to the padding
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
    for column in kept:
        grid.add_column(
            column.title,
            justify="left" if column.left else "right",
            vertical="top",
            no_wrap=not column.folds,
            overflow="fold",
            min_width=min(column.width, _FOLDED) if column.folds else column.width,
        )
    cells = [column.cells for column in kept]
    room = min(_BAR, console.width - natural - _GAP)
    if bars is not None and room >= _SHORTEST_BAR:
        grid.add_column("error", no_wrap=True, min_width=room)
        plain = "utf" not in (console.encoding or "").lower()
        cells.append([bar(fraction, room, plain) for fraction in bars])
    for row in zip(*cells, strict=True):
        grid.add_row(*row)
    with console.capture() as captured:
        console.print(grid, markup=False)
    for line in captured.get().splitlines():
        _print(line.rstrip())
    left_out = [column.title.replace("\n", " ") for column in columns if column not in kept]
    if left_out:
        _print(f"(not shown for want of room: {', '.join(left_out)}; --json and --out have all columns)")


def _needed(columns: Sequence[Shown]) -> int:
    return sum(min(c.width, _FOLDED) if c.folds else c.width for c in columns) + _GAP * (len(columns) - 1)


def print_dim(line: str) -> None:
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


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    intact = row.get("count") == 0 or row.get("swaps") == 0
    if value is None:
        if intact:
            return "intact" if name in ("name", "blocks") else "-"
        return "mean" if name == "sample" else ""
    if name == "blocks":
        return str(value).replace(",", ", ")
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _interval(row: dict[str, Any]) -> str:
    low, high = row["error_low"], row["error_high"]
    return "" if low is None else f"{100 * low:.2f} - {100 * high:.2f}"


def bar(fraction: float, width: int = _BAR, plain: bool = False) -> str:
    """A horizontal bar for a fraction in [0, 1]."""
    part = min(max(fraction, 0.0), 1.0) * width
    if plain:
        return "#" * math.floor(part + 0.5)
    eighths = math.floor(part * 8 + 0.5)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def summary(facts: dict[str, Any]) -> str:
    """One line that says on what the numbers rest."""
    parts = [
        f"{facts.get('model', facts.get('network'))}, weights {facts.get('weights', 'as given')}",
        f"{facts.get('data')} {facts.get('split', '')} {facts.get('images', '')} images".replace("  ", " "),
        f"normalisation {facts.get('normalisation')}",
        f"{facts.get('dtype')} on {facts.get('device')}",
        f"seed {facts.get('seed')}",
        f"{facts.get('seconds')} s",
    ]
    return "; ".join(parts)
