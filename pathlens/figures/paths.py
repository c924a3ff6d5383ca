"""Gradients by path length: the paper's three panels, and the lattice of where the gradient lives."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pathlens.errors import UsageError
from pathlens.figures.style import COLOURS, DOUBLE, INK, MUTED, SINGLE, new_figure, style, to_frame
from pathlens.tables import Table

NEEDED = ("length", "n_paths", "total_norm", "path_norm_mean", "path_norm_rms", "contribution_share", "total_share")
_LATTICE = ("boundary", "length", "norm")
_VISIBLE = 0.05  # percent
_DECADES = 12  # of the lattice's colours; smaller norms are drawn as the smallest


def path_gradients(
    table: Table | pd.DataFrame, width: float = DOUBLE, effective: tuple[int, int] | None = None
) -> Figure:
    """Number of paths, norm of one path and contribution, by length, from the table of ``path-gradients``.

    The panels of Veit, Wilber, Belongie 2016, figure 6, with the exact curve beside the sampled one: shares of the
    norms of the sums over all paths of each length.

    Args:
        table: with at least the columns ``length, n_paths, total_norm, path_norm_mean, path_norm_rms,
            contribution_share, total_share``; columns of methods that were not run are empty.
        width: in inches.
        effective: first and last effective length, to be shaded.

    Raises:
        UsageError: columns are missing, or no method was run.
    """
    frame = to_frame(table, NEEDED, "path-gradients")
    frame = frame.assign(length=frame["length"].astype(int))
    if frame[["total_norm", "path_norm_mean", "path_norm_rms"]].isna().all(axis=None):
        raise UsageError("the table has no norms; give one from path-gradients")
    with style():
        figure = new_figure(width, 3.1)
        axes = list(figure.subplots(1, 3))
        _counts(axes[0], frame)
        _norms(axes[1], frame)
        _shares(axes[2], frame, effective)
        for place, letter in zip(axes, "abc", strict=True):
            place.set_xlabel("path length")
            place.set_title(letter, loc="left", fontweight="bold")
            place.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _counts(axes: Axes, frame: pd.DataFrame) -> None:
    counts = [int(count) for count in frame["n_paths"]]
    # big integers: the shares fit a float, the numbers themselves may not
    shares = [100 * count / sum(counts) for count in counts]
    axes.fill_between(frame["length"], shares, color=COLOURS[0], alpha=0.25, lw=0)
    axes.plot(frame["length"], shares, color=COLOURS[0])
    axes.set_ylabel("share of all paths (%)")
    axes.set_ylim(bottom=0)


def _norms(axes: Axes, frame: pd.DataFrame) -> None:
    def curve(name: str) -> tuple[pd.Series, pd.Series]:
        values = frame[name].astype(float)
        kept = values > 0
        return frame["length"][kept], values[kept]

    if "path_norm_q95" in frame and frame["path_norm_q95"].notna().any():
        low, high = frame["path_norm_q05"].astype(float), frame["path_norm_q95"].astype(float)
        kept = (low > 0) & (high > 0)
        axes.fill_between(
            frame["length"][kept], low[kept], high[kept], color=COLOURS[0], alpha=0.2, lw=0, label="5-95 % of paths"
        )
        axes.plot(*curve("path_norm_median"), color=COLOURS[0], ls=":", label="median")
    if frame["path_norm_mean"].notna().any():
        lengths, means = curve("path_norm_mean")
        axes.plot(lengths, means, color=COLOURS[0], label="mean of sampled paths")
        if {"path_norm_low", "path_norm_high"} <= set(frame):
            low, high = (frame[name].astype(float).loc[means.index] for name in ("path_norm_low", "path_norm_high"))
            sides = [(means - low).clip(lower=0), (high - means).clip(lower=0)]
            axes.errorbar(lengths, means, sides, fmt="none", ecolor=COLOURS[0], elinewidth=0.7)
    if frame["path_norm_rms"].notna().any():
        axes.plot(*curve("path_norm_rms"), color=COLOURS[3], ls="--", label="root mean square")
    axes.set_yscale("log")
    axes.set_ylabel("gradient norm of one path")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_locator(NullLocator())
    if axes.get_legend_handles_labels()[1]:
        _legend_below(axes)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)


def _power(value: float, _position: int | None = None) -> str:
    """``1e-11``: the style shows no formulas, so that names of files and modules are never taken for one."""
    return f"{value:.0e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), borderaxespad=0.1)


def _shares(axes: Axes, frame: pd.DataFrame, effective: tuple[int, int] | None) -> None:
    if effective is not None:
        first, last = effective
        axes.axvspan(first - 0.5, last + 0.5, color=INK, alpha=0.08, lw=0, label=f"effective: {first} to {last}")
    for name, colour, line, words in (
        ("contribution_share", COLOURS[0], "-", "paths x mean norm (sampled)"),
        ("total_share", COLOURS[2], "-", "norm of the sum (exact)"),
    ):
        if frame[name].notna().any():
            axes.plot(frame["length"], 100 * frame[name].astype(float), color=colour, ls=line, label=words)
    if "path_norm_rms" in frame and frame["path_norm_rms"].notna().any():
        logs = np.log10(frame["path_norm_rms"].astype(float).clip(lower=1e-300))
        logs += [np.log10(float(int(count))) for count in frame["n_paths"]]
        weights = np.power(10.0, logs - logs.max())
        axes.plot(
            frame["length"], 100 * weights / weights.sum(), color=COLOURS[3], ls="--", label="paths x root mean square"
        )
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    seen = np.flatnonzero(np.max(curves, axis=0) > _VISIBLE) if curves else np.array([], dtype=int)
    if len(seen):
        # the longest paths contribute nothing that could be seen
        last_seen = max(int(seen[-1]), effective[1] if effective else 0)
        axes.set_xlim(-0.5, min(len(frame) - 1, last_seen + 2) + 0.5)
    axes.set_ylabel("share of contribution (%)")
    axes.set_ylim(bottom=0)
    _legend_below(axes)


def lattice(table: Table | pd.DataFrame, width: float = SINGLE) -> Figure:
    """Norm of the gradient at every place of the network and path length, from the table of ``lattice``.

    Args:
        table: with the columns ``boundary`` (-1 is the input, i is x_i), ``length`` and ``norm``. Zeros stay blank.
        width: in inches.

    Raises:
        UsageError: columns are missing, or every norm is zero.
    """
    frame = to_frame(table, _LATTICE, "lattice")
    places = sorted({int(place) for place in frame["boundary"]})
    lengths = range(int(frame["length"].max()) + 1)
    grid = np.full((len(lengths), len(places)), np.nan)
    column = {place: index for index, place in enumerate(places)}
    for boundary, length, norm in zip(frame["boundary"], frame["length"], frame["norm"], strict=True):
        if norm > 0:
            grid[int(length), column[int(boundary)]] = norm
    if np.isnan(grid).all():
        raise UsageError("every norm of the lattice is zero; give one with gradients")
    top = float(np.nanmax(grid))
    least = max(float(np.nanmin(grid)), top * 10.0**-_DECADES)
    with style():
        figure = new_figure(width, 2.9)
        axes = figure.add_subplot()
        edges = np.arange(places[0] - 0.5, places[-1] + 1.0)
        mesh = axes.pcolormesh(
            edges,
            np.arange(-0.5, len(lengths)),
            np.maximum(grid, least),
            norm=LogNorm(min(least, top / 10), top),
            cmap="viridis",
            rasterized=len(places) > 100,
        )
        bar = figure.colorbar(
            mesh, ax=axes, location="top", aspect=30, extend="min" if np.nanmin(grid) < least else "neither"
        )
        bar.set_label("gradient norm (loss per unit), mean over examples")
        bar.ax.xaxis.set_major_locator(LogLocator(numticks=5))
        bar.ax.xaxis.set_major_formatter(FuncFormatter(_power))
        bar.ax.minorticks_off()
        axes.set_xlabel("boundary i: gradient at x\u1d62 (-1: input)")
        axes.set_ylabel("path length from the loss")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
    return figure
