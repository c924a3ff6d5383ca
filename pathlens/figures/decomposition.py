"""The break-up of a sum, block by block."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    MUTED,
    block_ticks,
    legend_outside,
    new_figure,
    powers_of_ten,
    shade_stages,
    style,
    to_rows,
)
from pathlens.results.decomposition import DECOMPOSE, curves
from pathlens.results.result import Row, Rows
from pathlens.tables import Table

_SUM = (("share", "share of the variance"), ("norm_ratio", "norm over that of the whole"))
_OUTPUT = (("logit", "added to the label's logit"), ("error_through", "error with blocks up to here"))
_FRACTIONS = ("share", "error_through")
_NEEDED = (*DECOMPOSE.needed, "stage", "norm_ratio")
_WIDE = 100  # where the largest norm is this many times the smallest, the axis is logarithmic


def decomposition(table: Table | pd.DataFrame | Rows, width: float = DOUBLE) -> Figure:
    """Share of the variance and norm of each summand; of an output also contribution to the logit, and the error.

    A line for each scheme or network, with its 95 % interval as a band. The first point is the stem, at block -1.

    Args:
        table: of ``decompose``, or the rows of several such tables.
        width: in inches.

    Raises:
        UsageError: columns are missing, there is nothing to draw, or two networks or schemes are under one name.
    """
    rows = to_rows(table, _NEEDED, "decomposition")
    by_label = curves(rows)
    quantities = [*_SUM, *_OUTPUT] if any(row.get("logit") is not None for row in rows) else _SUM
    with style():
        figure = new_figure(width, 2.5 * (len(quantities) // 2))
        panels = figure.subplots(len(quantities) // 2, 2, sharex=True, squeeze=False).flat
        for axes, (key, words) in zip(panels, quantities, strict=True):
            _panel(axes, by_label, key)
            axes.set_ylabel(words)
            axes.xaxis.set_major_locator(block_ticks())
        for axes in list(figure.axes)[-2:]:
            axes.set_xlabel("block")
        if len(by_label) > 1:
            legend_outside(figure.axes[0], width, below=True)
    return figure


def _panel(axes: Axes, by_label: dict[str, list[Row]], key: str) -> None:
    shade_stages(axes, [row for row in next(iter(by_label.values())) if row["block"] >= 0])
    for index, (label, rows) in enumerate(by_label.items()):
        known = [row for row in rows if row.get(key) is not None and (key != "norm_ratio" or row[key] > 0)]
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "label": label, "marker": "o", "ms": 2}
        axes.plot([row["block"] for row in known], [row[key] for row in known], **look)
        banded = [row for row in known if row.get(f"{key}_low") is not None]
        if banded:
            low, high = ([row[f"{key}_{side}"] for row in banded] for side in ("low", "high"))
            axes.fill_between([row["block"] for row in banded], low, high, color=look["color"], alpha=0.2, lw=0)
    values = [row["norm_ratio"] for rows in by_label.values() for row in rows if row["norm_ratio"]]
    if key == "norm_ratio" and values and max(values) > _WIDE * min(values):
        axes.set_yscale("log")
        powers_of_ten(axes)
    else:
        axes.axhline(0, color=MUTED, lw=0.5, zorder=0)
    if key in _FRACTIONS:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
