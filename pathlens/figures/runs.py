"""Error after runs of blocks or layers are carried out in another way."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from pathlens.errors import UsageError
from pathlens.figures.lesions import error_label, intact_line, percent_axis, whiskers
from pathlens.figures.style import COLOURS, SINGLE, legend_outside, new_figure, style, to_rows
from pathlens.results.measured import error_series, intact_row
from pathlens.results.runs import by_size
from pathlens.tables import Table


def runs(table: Table | pd.DataFrame, width: float = SINGLE) -> Figure:
    """Error against where a run begins, from the table of ``reorder-blocks --runs``.

    A line with 95 % intervals for each size of run, and the intact network dashed.

    Args:
        table: with the columns ``count, first, error, error_low, error_high``; errors are fractions and drawn in
            percent.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    rows = to_rows(table, ("count", "first", "error", "error_low", "error_high"), "reorder-blocks --runs")
    groups = by_size(rows)
    if not groups:
        raise UsageError("the table has no run; give one with rows whose count is above 0")
    intact = intact_row(rows)
    ends = [row[name] for group in groups.values() for row in group for name in ("error", "error_high")]
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        for number, (count, group) in enumerate(groups.items()):
            line = error_series(group, "first")
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(line["x"], line["y"], whiskers(line), color=colour, fmt="o-", ms=2.8, mew=0, lw=0.8,
                          elinewidth=0.6, label=f"runs of {count}", zorder=3)  # fmt: skip
        intact_line(axes, intact)
        percent_axis(axes, [end for end in ends if end is not None], error_label(table))
        axes.set_xlabel("where the run begins")
        legend_outside(axes, width)
    return figure
