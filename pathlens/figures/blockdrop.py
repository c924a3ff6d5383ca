"""Blocks that are chosen for each example: what they cost in error, and which they are."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import offset_copy

from pathlens.errors import UsageError
from pathlens.figures.lesions import error_label, finish, of, whiskers
from pathlens.figures.style import COLOURS, DOUBLE, SINGLE, block_ticks, new_figure, style, to_rows
from pathlens.results.blockdrop import blocks_label, called, example_of, rows_of, usage
from pathlens.results.measured import error_series
from pathlens.tables import Table

_NEEDED = ("network", "sample", "blocks", "error", "error_low", "error_high")
_BESIDE = 7.0
"""Points between the middles of marks at the same number of blocks."""
_APART = 5
"""How many times the policy's error another has to be for an axis that is not linear."""
_TICKS = (0, 1, 2, 5, 10, 20, 50, 100)
_MARKERS = {"policy": "D", "random": "o", "single": "s", "greedy": "^", "tuned": "v"}


def trade_off(table: Table | pd.DataFrame, width: float = SINGLE) -> Figure:
    """Error against the blocks that run: the policy, and networks that run as many for all examples.

    Marks at the same number of blocks are drawn side by side, because they would cover one another.

    Args:
        table: of ``blockdrop``; errors are fractions and drawn in percent.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there is no policy.
    """
    rows = to_rows(table, _NEEDED, "blockdrop")
    if not rows_of(rows, "policy"):
        raise UsageError("the table has no policy; give one of blockdrop")
    drawn = [row for row in rows if row["network"] == "random" and row["sample"] is not None]
    with style():
        figure = new_figure(width, 2.6)
        axes = figure.add_subplot()
        points = {kind: found for kind in _MARKERS if (found := rows_of(rows, kind))}
        counts = [row["blocks"] for found in points.values() for row in found]
        for kind, found in points.items():
            level = [one for one in points if points[one][0]["blocks"] == found[0]["blocks"]]
            aside = _BESIDE * (level.index(kind) - (len(level) - 1) / 2)
            look = {
                "color": COLOURS[list(_MARKERS).index(kind)],
                "mew": 0,
                "transform": offset_copy(axes.transData, figure, aside, units="points"),
            }
            if kind == "random":
                sets = error_series(drawn, "blocks")
                axes.plot(sets["x"], sets["y"], "o", ms=2.6, alpha=0.35, **look)
            series = error_series(found, "blocks")
            look |= {"ms": 4.5, "elinewidth": 0.8, "capsize": 1.5, "label": called(found[0])}
            axes.errorbar(series["x"], series["y"], whiskers(series), fmt=_MARKERS[kind], **look)
        whole = next(iter(rows_of(rows, "intact")), None)
        most = math.inf if whole is None else whole["blocks"] + 0.5
        axes.set_xlim(math.floor(min(counts)) - 1, min(math.ceil(max(counts)) + 1, most))
        axes.xaxis.set_major_locator(block_ticks())
        finish(axes, whole, rows, f"{blocks_label(of(table))}, mean", width, error=error_label(table))
        small = max(points["policy"][0]["error_high"] or 0.0, 0.01)
        if max(row["error"] for row in rows) > _APART * small:
            # linear up to the errors that matter, logarithmic above, where random sets may be far worse
            axes.set_yscale("symlog", linthresh=100 * small)
            axes.set_yticks([tick for tick in _TICKS if tick <= axes.get_ylim()[1]])
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_ylabel(f"{axes.get_ylabel()}\n(logarithmic above {100 * small:.1f})")
    return figure


def choices(table: Table | pd.DataFrame, width: float = DOUBLE) -> Figure:
    """How many blocks run for an example, and for how many examples each block runs.

    Args:
        table: of the choices of ``blockdrop``, a row for each example.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there are no choices.
    """
    rows = to_rows(table, ("blocks", "choice"), "choices of blockdrop")
    shares = usage(rows)
    if not shares:
        raise UsageError("the table has no choices of one network; give blockdrop-choices of blockdrop")
    with style():
        figure = new_figure(width, 2.4)
        left, right = figure.subplots(1, 2)
        counts = pd.Series([row["blocks"] for row in rows]).value_counts().sort_index()
        left.bar(counts.index, counts, color=COLOURS[0], width=0.9)
        left.set_xlim(-0.7, len(shares) + 0.7)
        left.xaxis.set_major_locator(block_ticks())
        examples = f"{example_of(of(table))}s"
        left.set_xlabel(blocks_label(of(table)))
        left.set_ylabel(examples)
        right.bar(range(len(shares)), [100 * share for share in shares], color=COLOURS[0], width=0.9)
        right.xaxis.set_major_locator(block_ticks())
        right.set_ylim(0, 100)
        right.set_xlabel("block")
        right.set_ylabel(f"{examples} for which it runs (%)")
    return figure
