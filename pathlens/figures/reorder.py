"""Error after blocks are reordered, against the distance from the trained order."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from pathlens.errors import UsageError
from pathlens.figures.lesions import intact_line, percent_axis, whiskers
from pathlens.figures.style import COLOURS, SINGLE, legend_outside, new_figure, style, to_frame
from pathlens.tables import Table

NEEDED = ("swaps", "kendall_tau", "sample", "error", "error_low", "error_high")


def reordering(table: Table | pd.DataFrame, width: float = SINGLE, bins: int = 10) -> Figure:
    """Error of the network with reordered blocks against Kendall's tau, from the table of ``reorder-blocks``.

    One point per order. The line is the mean in bins of equal width of tau, with Student's 95 % interval where a bin
    has at least two orders. Tau falls from left to right, so damage grows to the right (Veit, Wilber, Belongie 2016,
    figure 5b).

    Args:
        table: with the columns ``swaps, kendall_tau, sample, error, error_low, error_high``; errors are fractions and
            drawn in percent; the row with 0 swaps is the intact network; rows that summarise samples (several orders,
            no tau) are left out.
        width: in inches.
        bins: bins between the lowest tau and 1.

    Raises:
        UsageError: columns are missing, there is nothing to draw, or fewer than one bin.
    """
    frame = to_frame(table, NEEDED, "reordering")
    if bins < 1:
        raise UsageError(f"{bins} bins were asked for; give at least 1")
    intact = frame[frame["swaps"] == 0]
    points = frame[(frame["swaps"] > 0) & frame["kendall_tau"].notna() & frame["sample"].notna()]
    if points.empty:
        raise UsageError("the table has no reordered network; give one from reorder-blocks with --swaps above 0")
    tau = points["kendall_tau"].astype(float)
    edges = np.linspace(min(tau.min(), 1 - 1e-6), 1, bins + 1)
    groups = points.assign(tau=tau).groupby(np.digitize(tau, edges[1:-1]))
    mean = groups.agg(tau=("tau", "mean"), error=("error", "mean"), sem=("error", "sem"), n=("error", "size"))
    half = mean["sem"] * stats.t.ppf(0.975, (mean["n"] - 1).clip(lower=1))
    mean = mean.assign(error_low=(mean["error"] - half).clip(lower=0), error_high=(mean["error"] + half).clip(upper=1))
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        axes.plot(tau, 100 * points["error"], "o", color=COLOURS[0], ms=2.6, mew=0, alpha=0.3, label="one order")
        axes.errorbar(
            mean["tau"],
            100 * mean["error"],
            whiskers(mean),
            fmt="o-",
            color=COLOURS[0],
            ms=3,
            elinewidth=0.8,
            capsize=1.5,
            label="mean in bins, 95 % interval",
        )
        intact_line(axes, intact)
        reach = 1 - float(tau.min()) or 1e-3
        axes.set_xlim(1 + 0.04 * reach, 1 - 1.04 * reach)
        percent_axis(axes, [intact, points[["error"]].assign(error_high=np.nan), mean])
        axes.set_xlabel("Kendall's tau to the trained order")
        legend_outside(axes, width)
    return figure
