"""Gradients by path length: the paper's three panels, and the lattice of where the gradient lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pathlens.errors import UsageError
from pathlens.figures.cells import draw_cells
from pathlens.figures.lesions import whiskers
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SINGLE,
    block_ticks,
    legend_outside,
    new_figure,
    powers_of_ten,
    style,
    to_rows,
)
from pathlens.graph.cells import norm_cells
from pathlens.results.charts import Series
from pathlens.results.path_profile import all_paths, contribution_series, one_path_series, path_shares
from pathlens.results.text import with_power
from pathlens.tables import Table

NEEDED = (
    "length", "n_paths", "total_norm", "path_norm_mean", "path_norm_low", "path_norm_high", "path_norm_median",
    "path_norm_q05", "path_norm_q95", "path_norm_rms",
)  # fmt: skip
LATTICE = ("boundary", "length", "norm")

_SAMPLED, _RADEMACHER, _EXACT = COLOURS[0], COLOURS[3], COLOURS[2]
_EFFECTIVE = "#e4e4e4"
_DASHES = (0, (4, 1.5))
_MARKED = 30  # lengths up to which each is marked


def path_gradients(
    table: Table | pd.DataFrame, width: float | None = None, effective: tuple[int, int] | None = None
) -> Figure:
    """Number of paths, norm of one path, and contribution of all paths, by length: the table of ``path-gradients``.

    The panels of Veit, Wilber, Belongie 2016, figure 6, with what is exact beside what is sampled:

    a. share of all paths that have a length: of the number that the table states, else of the paths of a chain where it
       may be one, else of those in the table;
    b. gradient norm of one path: mean of the sampled paths with its 95 % interval, median and band of 5 to 95 % over
       paths and examples, and the root mean square over all paths; left out where neither was measured;
    c. what a length contributes, all curves in one unit: number of paths times mean norm (with the interval of the
       mean), number of paths times root mean square, and the exact norm of the sum of all gradients with its interval.

    Panels b and c have logarithmic axes, to the bottom of which an interval goes that reaches zero. What is 16 powers
    of ten below the largest norm, or 3 below the peak of the lowest curve of c, is left out, which the panel then says.

    Args:
        table: with the columns ``length, n_paths, total_norm, path_norm_mean, path_norm_low, path_norm_high,
            path_norm_median, path_norm_q05, path_norm_q95, path_norm_rms``; those of methods that were not run are
            empty.
        width: in inches; by default the whole page.
        effective: first and last effective length, to be shaded.

    Raises:
        UsageError: columns are missing, or no method was run.
    """
    rows = sorted(to_rows(table, NEEDED, "path-gradients"), key=lambda row: row["length"])
    curves, hidden = contribution_series(rows)
    if not curves:
        raise UsageError("the table of path gradients has no norm above zero; give one from path-gradients")
    norms, unseen = one_path_series(rows)
    one = {series["key"]: series for series in norms}
    width = width or DOUBLE
    stated = all_paths(table.provenance) if isinstance(table, Table) else None
    lengths, percent = [row["length"] for row in rows], path_shares(rows, stated)
    with style():
        figure = new_figure(width, 2.7)
        panels: list[Axes] = list(figure.subplots(1, 3 if norms else 2, sharex=True))
        _paths(panels[0], lengths, percent)
        if norms:
            _one_path(panels[1], one, unseen)
        _all_paths(panels[-1], curves, hidden, one.get("median", {}))
        titles = ["number of paths", *(["one path"] if norms else []), "all paths of a length"]
        panels[0].set_xlim(-0.5, max(lengths) + 0.5)
        for axes, letter, title in zip(panels, "abc", titles, strict=False):
            axes.set_xlabel("path length (blocks)")
            axes.set_title(f"{letter}  {title}", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
            if effective is not None:
                axes.axvspan(effective[0] - 0.5, effective[1] + 0.5, color=_EFFECTIVE, lw=0, zorder=0)
        if effective is not None:
            first, last = effective
            covered = sum(share for length, share in zip(lengths, percent, strict=True) if first <= length <= last)
            label = f"effective lengths, {first} to {last}: {_two_digits(covered)} % of all paths"
            panels[-1].fill_between([], [], color=_EFFECTIVE, lw=0, label=label)
        legend_outside(panels[-1], width)
    return figure


def _line(lengths: int) -> dict[str, Any]:
    return {"marker": "o", "ms": 2.4, "mew": 0} if lengths <= _MARKED else {}


def _paths(axes: Axes, lengths: Sequence[int], percent: Sequence[float]) -> None:
    axes.fill_between(lengths, percent, color=MUTED, alpha=0.25, lw=0, zorder=2)
    axes.plot(lengths, percent, color=INK, zorder=3, **_line(len(lengths)))
    axes.set_ylabel("share of all paths (%)")
    axes.set_ylim(bottom=0)


def _one_path(axes: Axes, norms: dict[str, Series], note: str) -> None:
    if "sampled" in norms:
        axes.plot(*_points(norms["median"]), color=_SAMPLED, ls=":", zorder=3)
        _with_intervals(axes, norms["sampled"])
    if "rms" in norms:
        axes.plot(*_points(norms["rms"]), color=_RADEMACHER, ls=_DASHES, zorder=5)
    _log_axis(axes, "gradient norm of one path\n(loss per unit of input)", note)
    if "sampled" in norms:
        _band(axes, norms["median"], _SAMPLED)


def _all_paths(axes: Axes, curves: dict[str, Series], note: str, median: Series) -> None:
    """Panel c, with the legend of panel b too: of its median and band what is drawn of them."""
    if median and _joined(_points(median)[1]):
        axes.plot([], [], color=_SAMPLED, ls=":", label="median of sampled paths and examples")
    if median and _joined(*_ends(median)):
        axes.fill_between([], [], color=_SAMPLED, alpha=0.2, lw=0, label="5 to 95 % of sampled paths and examples")
    if "sampled" in curves:
        _with_intervals(axes, curves["sampled"], label="mean of sampled paths, 95 % interval")
    if "signed" in curves:
        label = "root mean square (random signs)"
        axes.plot(*_points(curves["signed"]), color=_RADEMACHER, ls=_DASHES, label=label, zorder=5)
    if "exact" in curves:
        label = "sum over all paths (exact)" + (", 95 % interval" if any(curves["exact"]["high"]) else "")
        marked = _line(len(curves["exact"]["x"]))
        axes.plot(*_points(curves["exact"]), color=_EXACT, lw=1.0, label=label, zorder=6, **marked)
    _log_axis(axes, "contribution of a length\n(loss per unit of input)", note)
    if "exact" in curves:
        _band(axes, curves["exact"], _EXACT)


def _points(series: Series, values: str = "y") -> tuple[list[int], list[float]]:
    """Lengths and values; a gap where a value is missing or zero."""
    return series["x"], [value if value and value > 0 else np.nan for value in series[values]]


def _ends(series: Series) -> tuple[list[float], list[float]]:
    """Lower and upper ends of intervals; gaps as of values, but zero where an interval of more than zero reaches it."""
    values, low, high = (_points(series, name)[1] for name in ("y", "low", "high"))
    reaches = [end is not None and end <= 0 < value for end, value in zip(series["low"], values, strict=True)]
    return [0.0 if zero else end for zero, end in zip(reaches, low, strict=True)], high


def _joined(*values: Sequence[float]) -> bool:
    """Whether two neighbouring lengths have all these values, so that something is drawn between them."""
    there = np.isfinite(np.array(values)).all(axis=0)
    return bool(np.any(there[1:] & there[:-1]))


def _band(axes: Axes, series: Series, colour: str) -> None:
    """Between the ends of intervals; drawn last, as zero is at the bottom of the axis."""
    low, high = _ends(series)
    band = axes.fill_between(series["x"], low, high, color=colour, alpha=0.2, lw=0, zorder=2)
    if 0.0 in low:
        bottom = axes.get_ylim()[0]
        band.set_verts([np.maximum(path.vertices, (-np.inf, bottom)) for path in band.get_paths()])


def _with_intervals(axes: Axes, series: Series, **look: Any) -> None:
    lengths, mean = _points(series)
    ends = whiskers({**series, "y": mean})
    axes.errorbar(lengths, mean, ends, color=_SAMPLED, elinewidth=0.7, zorder=4, **_line(len(lengths)), **look)


def _log_axis(axes: Axes, label: str, note: str) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(label)
    powers_of_ten(axes)
    if note:
        axes.text(0.98, 0.98, note, transform=axes.transAxes, ha="right", va="top", size=6, color=MUTED)


def _two_digits(value: float) -> str:
    """As ``96``, ``0.0026`` or ``6.9×10⁻⁶``."""
    return with_power(f"{value:.2g}" if value < 10 else f"{value:.0f}")


def lattice(table: Table | pd.DataFrame, width: float | None = None) -> Figure:
    """Where the gradient lives: its norm at every place of the network and path length, from the table of ``lattice``.

    The line joins the lengths with the largest norm at each place. Colours cover 12 powers of ten; smaller norms look
    like the smallest of them, and lengths that have nothing larger anywhere are left out. Where there is no path, or a
    norm is zero, nothing is drawn.

    Args:
        table: with the columns ``boundary`` (-1 is the input, i is x_i), ``length`` and ``norm``.
        width: in inches; by default one column of a page.

    Raises:
        UsageError: columns are missing, or no norm is above zero.
    """
    rows = to_rows(table, LATTICE, "lattice")
    cells = norm_cells({(row["boundary"], row["length"]): row["norm"] or 0.0 for row in rows})
    with style():
        figure = new_figure(width or SINGLE, 3.0)
        axes = figure.add_subplot()
        draw_cells(figure, axes, cells, marked=cells.sizes.shape[1] <= _MARKED)
        input_too = "\n(−1: input of the network)" if cells.first < 0 else ""
        axes.set_xlabel(f"place i: gradient at xᵢ, the input of block i{input_too}")
        axes.set_ylabel("path length (blocks after the place)")
        axes.xaxis.set_major_locator(block_ticks())
        axes.yaxis.set_major_locator(block_ticks())
        legend_outside(axes, width or SINGLE)
    return figure
