"""Error after blocks are reordered, against the distance from the trained order."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.api.typing import DataFrameGroupBy
from scipy import stats

from pathlens.errors import UsageError
from pathlens.figures.lesions import error_label, intact_line, mean_line, of, one_each, percent_axis
from pathlens.figures.style import COLOURS, MUTED, SINGLE, legend_outside, new_figure, style, to_rows
from pathlens.results.charts import Series
from pathlens.results.measured import distinct, error_series, intact_row
from pathlens.results.reordering import order_rows
from pathlens.results.tasks import are_shares
from pathlens.tables import Table

_FEWEST = 5  # orders of a mean; the interval of two is as wide as the page
NEEDED = ("swaps", "kendall_tau", "sample", "error", "error_low", "error_high")


def reordering(
    table: Table | pd.DataFrame, width: float = SINGLE, bins: int = 10, critical: Collection[int] = ()
) -> Figure:
    """Error of the network with reordered blocks against Kendall's tau, from the table of ``reorder-blocks``.

    One point per distinct order: one that was drawn several times counts once. The line is the mean of the distinct
    orders in bins of equal width of tau, with Student's 95 % interval; a bin of fewer than five orders is pooled with
    its neighbours, and of fewer than five in all no mean is drawn. Tau falls from left to right, so damage grows to the
    right (Veit, Wilber, Belongie 2016, figure 5b).

    Args:
        table: with the columns ``swaps, kendall_tau, sample, error, error_low, error_high``; errors are fractions and
            drawn in percent; the row with 0 swaps is the intact network; rows that summarise samples (several orders,
            no tau) are left out. Rows with the same ``order`` are one order; without that column all are different.
        width: in inches.
        bins: bins between the lowest tau and 1.
        critical: blocks; orders that move one of them are drawn apart, by the column ``blocks``, and the median of each
            kind in bins of its own as those of the mean; the mean, which is over both kinds, is then grey.

    Raises:
        UsageError: columns are missing, there is nothing to draw, or fewer than one bin.
    """
    rows = to_rows(table, (*NEEDED, *(("blocks",) if critical else ())), "reordering")
    if bins < 1:
        raise UsageError(f"{bins} bins were asked for; give at least 1")
    orders = distinct(order_rows(rows), "order")
    intact, points = intact_row(rows), error_series(orders, "kendall_tau", intervals=False)
    if not points["x"]:
        raise UsageError("the table has no reordered network; give one from reorder-blocks with --swaps above 0")
    lowest, means = min(points["x"]), {}
    if len(points["x"]) >= _FEWEST:
        means = _binned(points, bins, are_shares(of(table)))
    with style():
        figure = new_figure(width, 2.6 if critical else 2.4)
        axes = figure.add_subplot()
        one_each(
            axes,
            orders,
            lambda group: error_series(group, "kendall_tau", intervals=False),
            critical,
            "order moves",
            partial(_medians, bins=bins),
        )
        if means:
            label = f"mean in bins of {_FEWEST} or more distinct orders, 95 % interval"
            mean_line(axes, means, label, MUTED if critical else COLOURS[0])
        intact_line(axes, intact)
        reach = 1 - lowest or 1e-3
        axes.set_xlim(1 + 0.04 * reach, 1 - 1.04 * reach)
        ends = [intact["error"], intact["error_high"]] if intact else []
        ends += [value / 100 for value in (*points["y"], *means.get("high", ()))]
        percent_axis(axes, ends, error_label(table))
        axes.set_xlabel("Kendall's tau to the trained order")
        legend_outside(axes, width)
    return figure


def _binned(points: Series, bins: int, shares: bool) -> Series:
    """Means in bins, with Student's interval, of five orders or more."""
    mean = _in_bins(points, bins).agg(x=("x", "mean"), y=("y", "mean"), sem=("y", "sem"), n=("y", "size"))
    half = mean["sem"] * stats.t.ppf(0.975, mean["n"] - 1)
    ends = {"low": (mean["y"] - half).clip(lower=0), "high": (mean["y"] + half).clip(upper=100 if shares else None)}
    return {name: list(values) for name, values in {"x": mean["x"], "y": mean["y"], **ends}.items()}


def _medians(points: Series, bins: int) -> Series:
    """Medians in bins; nothing of fewer than five orders."""
    if len(points["x"]) < _FEWEST:
        return {}
    middle = _in_bins(points, bins).agg(x=("x", "mean"), y=("y", "median"))
    return {name: list(middle[name]) for name in ("x", "y")}


def _in_bins(points: Series, bins: int) -> DataFrameGroupBy:
    """Points in bins of equal width between the lowest tau and 1, from five orders or more."""
    frame = pd.DataFrame({"x": points["x"], "y": points["y"]}, dtype=float)
    edges = np.linspace(min(frame["x"].min(), 1 - 1e-6), 1, bins + 1)
    bin_of = np.digitize(frame["x"], edges[1:-1])
    return frame.groupby(_pooled(np.bincount(bin_of, minlength=bins))[bin_of])


def _pooled(sizes: np.ndarray) -> np.ndarray:
    """The pool of each bin: neighbours, from the trained order outward, until there are enough."""
    pools, pool, in_pool = np.zeros(len(sizes), int), 0, 0
    for number in reversed(range(len(sizes))):
        pools[number], in_pool = pool, in_pool + sizes[number]
        if in_pool >= _FEWEST:
            pool, in_pool = pool + 1, 0
    if in_pool < _FEWEST and pool:  # what is left joins the last pool
        pools[pools == pool] = pool - 1
    return pools
