"""Searches among sets of blocks: error of the best next deletion, and pairs against the sum of their blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pathlens.errors import UsageError
from pathlens.figures.lesions import error_label, finish, mean_line, of
from pathlens.figures.style import DOUBLE, SINGLE, block_ticks, new_figure, style, to_rows
from pathlens.results.measured import error_series, intact_row, lesioned, members
from pathlens.results.result import Rows
from pathlens.results.tasks import loss_label
from pathlens.tables import Table

_STEPS = ("count", "block", "error", "error_low", "error_high")
_PAIRS = ("count", "blocks", "interaction", "loss_interaction", "error")


def greedy(table: Table | pd.DataFrame, width: float = SINGLE) -> Figure:
    """Error against the number of blocks that a greedy search deleted, with 95 % intervals.

    Args:
        table: of ``delete-blocks-greedy``; errors are fractions and drawn in percent.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    return _steps(table, width, "greedy", "a greedy search", "best next block, 95 % interval")


def influence(table: Table | pd.DataFrame, width: float = SINGLE) -> Figure:
    """Error against the number of blocks that were deleted in the order of their influence, with 95 % intervals.

    Args:
        table: of ``delete-blocks-influence``.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    return _steps(table, width, "influence", "deletion by influence", "least influence first, 95 % interval")


def _steps(table: Table | pd.DataFrame, width: float, search: str, what: str, label: str) -> Figure:
    rows = to_rows(table, _STEPS, what)
    steps = lesioned(rows)
    if not steps:
        raise UsageError(f"the table has no deleted blocks; give one from delete-blocks --search {search}")
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        mean_line(axes, error_series(steps, "count"), label)
        axes.xaxis.set_major_locator(block_ticks())
        finish(axes, intact_row(rows), steps, "number of deleted blocks", width, error=error_label(table))
    return figure


def interactions(table: Table | pd.DataFrame, width: float = DOUBLE) -> Figure:
    """What deleting two blocks costs beyond the sum of deleting each: error on the left, loss on the right.

    Args:
        table: of ``delete-blocks-exhaustive``.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there are no pairs.
    """
    rows = [row for row in to_rows(table, _PAIRS, "an exhaustive search") if row["count"] == 2]
    if not rows:
        raise UsageError("the table has no pairs of blocks; give one from delete-blocks --search exhaustive")
    with style():
        figure = new_figure(width, 0.42 * width)
        for axes, (name, factor, words) in zip(
            figure.subplots(1, 2),
            (
                ("interaction", 100, "error beyond the sum (points)"),
                ("loss_interaction", 1, loss_label(of(table), "loss beyond the sum (nats)")),
            ),
            strict=True,
        ):
            values = factor * matrix(rows, name)
            top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
            image = axes.imshow(values, cmap="RdBu_r", vmin=-top or -1, vmax=top or 1, interpolation="nearest")
            bar = figure.colorbar(image, ax=axes)
            bar.set_label(words)
            bar.outline.set_linewidth(0)
            axes.set_xlabel("block")
            axes.set_ylabel("block")
            axes.xaxis.set_major_locator(block_ticks())
            axes.yaxis.set_major_locator(block_ticks())
    return figure


def matrix(rows: Rows, name: str) -> np.ndarray:
    """A column of the pairs as a symmetric matrix; NaN where there is no value, and on the diagonal.

    Args:
        rows: of pairs.
        name: of the column.
    """
    pairs = [members(row) for row in rows]
    values = np.full((max(map(max, pairs)) + 1,) * 2, np.nan)
    for (first, second), row in zip(pairs, rows, strict=True):
        values[first, second] = values[second, first] = np.nan if row[name] is None else row[name]
    return values
