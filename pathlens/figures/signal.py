"""Signal propagation: activations on the left, gradients on the right, block by block."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathlens.errors import UsageError
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
from pathlens.results.result import Row, Rows
from pathlens.results.signal import GRADIENTS, QUANTITIES, curves
from pathlens.tables import Table

_NEEDED = ("network", "weights", "block", "stage", "place", "second_moment", "gradient_second_moment")
_DASHES = (0, (4, 1.5))


def signal_propagation(
    table: Table | pd.DataFrame | Rows, width: float = DOUBLE, quantity: str = "second_moment", place: str = "output"
) -> Figure:
    """A quantity of the activations and of the gradients against the block, on logarithmic axes.

    A line for each scheme or network; what theory expects is dashed (Brock, De, Smith 2021, figure 1; Civitelli et al.
    2021, figures 2 and 6). The first point is the stem, at block -1. The band is a 95 % interval of the logarithm, from
    that of the mean in the table (delta method).

    Args:
        table: of ``signal-propagation``, or the rows of several such tables.
        width: in inches.
        quantity: ``second_moment``, ``variance``, ``channel_variance`` or ``squared_mean``.
        place: of each block: ``output``, ``sum``, ``branch`` or ``shortcut``.

    Raises:
        UsageError: columns are missing, a quantity or place that the table does not have, nothing to draw, or two
            networks or schemes under one name.
    """
    if quantity not in QUANTITIES:
        raise UsageError(f"quantity {quantity!r} is unknown; give one of {', '.join(QUANTITIES)}")
    rows = to_rows(table, (*_NEEDED, quantity, f"gradient_{quantity}"), "signal propagation")
    if not any(row["place"] == place for row in rows):
        raise UsageError(f"the table has no place {place!r}; it has {', '.join(sorted({r['place'] for r in rows}))}")
    by_label = curves(rows, place)
    with style():
        figure = new_figure(width, 2.8)
        left, right = figure.subplots(1, 2)
        for axes, key, words in (
            (left, quantity, f"{quantity.replace('_', ' ')} of activations"),
            (right, f"gradient_{quantity}", f"{quantity.replace('_', ' ')} of gradients"),
        ):
            shade_stages(axes, [row for row in next(iter(by_label.values())) if row["block"] >= 0])
            for index, (label, part) in enumerate(by_label.items()):
                _line(axes, part, key, label, COLOURS[index % len(COLOURS)])
            if axes.has_data():
                axes.set_yscale("log")
                powers_of_ten(axes)
            axes.set_ylabel(words)
            axes.set_xlabel("block")
            axes.xaxis.set_major_locator(block_ticks())
        if any(row.get(f"expected_{quantity}") is not None for part in by_label.values() for row in part):
            left.plot([], [], color=MUTED, ls=_DASHES, lw=0.8, label="expected")
        legend_outside(left if left.get_legend_handles_labels()[1] else right, width)
    return figure


def _line(axes: Axes, rows: list[Row], key: str, label: str, colour: str) -> None:
    """What was measured, with its interval, and what is expected; a logarithmic axis has no place for zero."""
    assert key in QUANTITIES or key in GRADIENTS
    positive = [row for row in rows if row[key] is not None and row[key] > 0]
    if positive:
        blocks = [row["block"] for row in positive]
        axes.plot(blocks, [row[key] for row in positive], color=colour, label=label, marker="o", ms=2)
        banded = [row for row in positive if row.get(f"{key}_high") is not None]
        # of the logarithm, whose standard error is that of the mean over the mean: it never reaches zero
        factors = [math.exp((row[f"{key}_high"] - row[f"{key}_low"]) / (2 * row[key])) for row in banded]
        low, high = ([row[key] * factor**sign for row, factor in zip(banded, factors, strict=True)] for sign in (-1, 1))
        axes.fill_between([row["block"] for row in banded], low, high, color=colour, alpha=0.2, lw=0)
    due = [row for row in rows if row.get(f"expected_{key}") is not None and row[f"expected_{key}"] > 0]
    if due:
        axes.plot(
            [row["block"] for row in due], [row[f"expected_{key}"] for row in due], color=colour, ls=_DASHES, lw=0.8
        )
