"""Tables for people: aligned columns, errors in percent with their interval, and a bar for each."""

from __future__ import annotations

import math
import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from pathlens.tables import Table

_BAR = 28
_PIPE_WIDTH = 200
_EIGHTHS = " ▏▎▍▌▋▊▉"

_LEADING = {
    "delete-blocks": ("block", "name", "stage", "kind"),
    "delete-skips": ("block", "name", "stage", "kind"),
    "reorder-blocks": ("swaps", "sample", "kendall_tau", "moved"),
}


def show(table: Table, verb: str) -> None:
    """Print a table of lesions on stdout."""
    console = make_console()
    sets = any(row.get("sample") is not None for row in table.rows)
    leading = ("count", "sample", "blocks") if sets and verb != "reorder-blocks" else _LEADING[verb]
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in leading:
        grid.add_column(
            name, justify="left" if name in ("name", "kind", "blocks") else "right", no_wrap=name != "blocks"
        )
    for name in ("error %", "95 % interval", "loss"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("error", no_wrap=True, min_width=_BAR)
    rows: list[dict[str, Any]] = [dict(row) for row in table.rows]
    for row in rows:
        low, high = row["error_low"], row["error_high"]
        between = "" if low is None else f"{100 * low:.2f} - {100 * high:.2f}"
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        cells = [_cell(name, row) for name in leading]
        grid.add_row(*cells, f"{100 * row['error']:.2f}", between, loss, bar(row["error"]))
    console.print(grid)
    facts = table.provenance
    console.print(summary(facts), style="dim", highlight=False)


def make_console() -> Console:
    """Standard output, wide enough for whole rows when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False)


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    intact = row.get("count") == 0 or row.get("swaps") == 0
    if value is None:
        if intact:
            return "intact" if name in ("name", "blocks") else "-"
        return "mean" if name == "sample" else ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def bar(fraction: float, width: int = _BAR) -> str:
    """A horizontal bar for a fraction in [0, 1]."""
    eighths = math.floor(min(max(fraction, 0.0), 1.0) * width * 8 + 0.5)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def summary(facts: dict[str, Any]) -> str:
    """One line that says on what the numbers rest."""
    parts = [
        f"{facts.get('model', facts.get('network'))} ({facts.get('weights', 'weights as given')})",
        f"{facts.get('data')} {facts.get('split', '')} {facts.get('images', '')} images".replace("  ", " "),
        f"normalisation {facts.get('normalisation')}",
        f"{facts.get('dtype')} on {facts.get('device')}",
        f"seed {facts.get('seed')}",
        f"{facts.get('seconds')} s",
    ]
    return "; ".join(parts)
