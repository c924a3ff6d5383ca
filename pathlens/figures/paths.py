"""Gradients by path length: the paper's three panels, and the lattice of where the gradient lives."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pathlens.errors import UsageError
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SINGLE,
    block_ticks,
    legend_outside,
    new_figure,
    style,
    to_frame,
)
from pathlens.tables import Table

NEEDED = (
    "length", "n_paths", "total_norm", "path_norm_mean", "path_norm_low", "path_norm_high", "path_norm_median",
    "path_norm_q05", "path_norm_q95", "path_norm_rms",
)  # fmt: skip
LATTICE = ("boundary", "length", "norm")

_SAMPLED, _SIGNED, _EXACT = COLOURS[0], COLOURS[3], COLOURS[2]
_EFFECTIVE = "#e4e4e4"
_DASHES = (0, (4, 1.5))
_MARKED = 30  # lengths up to which each is marked
_VISIBLE = 0.1  # percent: longer paths that contribute less are left out of the last panel
_DECADES = 12  # of the lattice's colours; smaller norms look like the smallest
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def path_gradients(
    table: Table | pd.DataFrame, width: float | None = None, effective: tuple[int, int] | None = None
) -> Figure:
    """Number of paths, norm of one path, and contribution of all paths, by length: the table of ``path-gradients``.

    The panels of Veit, Wilber, Belongie 2016, figure 6, with what is exact beside what is sampled:

    a. share of all paths that have a length;
    b. gradient norm of one path: mean of the sampled paths with its 95 % interval, their median, the band of 5 to 95 %
       of them, and the root mean square over all paths; left out where neither was measured;
    c. what a length contributes, each curve as a share of its own sum over the lengths of the table: number of paths
       times mean norm (with the interval of the mean; ends beyond the axis are cut off), number of paths times root
       mean square, and the exact norm of the sum of all gradients. Long paths that contribute less than 0.1 % are left
       out.

    Args:
        table: with the columns ``length, n_paths, total_norm, path_norm_mean, path_norm_low, path_norm_high,
            path_norm_median, path_norm_q05, path_norm_q95, path_norm_rms``; those of methods that were not run are
            empty.
        width: in inches; by default the whole page.
        effective: first and last effective length, to be shaded.

    Raises:
        UsageError: columns are missing, or no method was run.
    """
    frame = to_frame(table, NEEDED, "path-gradients").sort_values("length", ignore_index=True)
    counts = [int(count) for count in frame["n_paths"]]  # text where a file had no room for the integer
    frame = frame[list(NEEDED)].drop(columns="n_paths").apply(pd.to_numeric, errors="coerce").astype(float)
    curves = _contributions(frame, counts)
    if not curves:
        raise UsageError("the table of path gradients has no norm above zero; give one from path-gradients")
    single = bool(frame[["path_norm_mean", "path_norm_rms"]].gt(0).any(axis=None))
    width = width or DOUBLE
    with style():
        figure = new_figure(width, 2.7)
        panels: list[Axes] = list(figure.subplots(1, 2 + single))
        shares = _shares_of_paths(frame["length"], counts)
        _paths(panels[0], frame["length"], shares)
        if single:
            _one_path(panels[1], frame)
        _all_paths(panels[-1], frame, curves, effective)
        titles = ["number of paths", *(["one path"] if single else []), "all paths of a length"]
        for axes in panels[:-1]:
            axes.set_xlim(-0.5, frame["length"].max() + 0.5)
        for axes, letter, title in zip(panels, "abc", titles, strict=False):
            axes.set_xlabel("path length (blocks)")
            axes.set_title(f"{letter}  {title}", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
            if effective is not None:
                axes.axvspan(effective[0] - 0.5, effective[1] + 0.5, color=_EFFECTIVE, lw=0, zorder=0)
        if effective is not None:
            inside = frame["length"].between(*effective)
            held = _plain(100 * sum(share for share, here in zip(shares, inside, strict=True) if here))
            label = f"effective lengths, {effective[0]} to {effective[1]}: {held} % of all paths"
            panels[-1].fill_between([], [], color=_EFFECTIVE, lw=0, label=label)
        legend_outside(panels[-1], width)
    return figure


def _contributions(frame: pd.DataFrame, counts: list[int]) -> dict[str, pd.Series]:
    """Percent of what all lengths of the table contribute, by the column that it comes from."""
    found = {}
    logs = pd.Series([_log10(count) for count in counts])  # numbers of paths outgrow floats
    for name, of_one in (("path_norm_mean", True), ("path_norm_rms", True), ("total_norm", False)):
        values = frame[name].where(frame[name] > 0)
        if values.notna().any():
            size = np.log10(values) + (logs if of_one else 0)
            weights = 10 ** (size - size.max())
            found[name] = (100 * weights / weights.sum()).where(frame[name].isna() | (frame[name] > 0), 0.0)
    return found


def _log10(count: int) -> float:
    digits = max(0, count.bit_length() - 60)
    return float(np.log10(count >> digits) + digits * np.log10(2))


def _shares_of_paths(lengths: pd.Series, counts: list[int]) -> list[float]:
    """Fractions of all paths, also where the table leaves long ones out.

    One path chooses no branch where it need not, and as many choose one as there are blocks with a choice.
    """
    blocks = [count for length, count in zip(lengths, counts, strict=True) if length == min(lengths) + 1]
    everything = 2 ** blocks[0] if blocks else sum(counts)
    return [count / everything for count in counts]


def _line(lengths: int) -> dict[str, Any]:
    return {"marker": "o", "ms": 2.4, "mew": 0} if lengths <= _MARKED else {}


def _paths(axes: Axes, lengths: pd.Series, shares: list[float]) -> None:
    percent = [100 * share for share in shares]
    axes.fill_between(lengths, percent, color=MUTED, alpha=0.25, lw=0, zorder=2)
    axes.plot(lengths, percent, color=INK, zorder=3, **_line(len(lengths)))
    axes.set_ylabel("share of all paths (%)")
    axes.set_ylim(bottom=0)


def _one_path(axes: Axes, frame: pd.DataFrame) -> None:
    lengths, marked = frame["length"], _line(len(frame))

    def above_zero(name: str) -> pd.Series:
        return frame[name].where(frame[name] > 0)

    mean = above_zero("path_norm_mean")
    if mean.notna().any():
        low, high = above_zero("path_norm_q05"), above_zero("path_norm_q95")
        axes.fill_between(lengths, low, high, color=_SAMPLED, alpha=0.2, lw=0, zorder=2)
        axes.plot(lengths, above_zero("path_norm_median"), color=_SAMPLED, ls=":", zorder=3)
        ends = _sides(mean, frame["path_norm_low"], frame["path_norm_high"])
        axes.errorbar(lengths, mean, ends, color=_SAMPLED, elinewidth=0.7, zorder=4, **marked)
    axes.plot(lengths, above_zero("path_norm_rms"), color=_SIGNED, ls=_DASHES, zorder=5)
    axes.set_yscale("log")
    axes.set_ylabel("gradient norm of one path\n(loss per unit of input)")
    _powers_of_ten(axes)


def _all_paths(
    axes: Axes, frame: pd.DataFrame, curves: dict[str, pd.Series], effective: tuple[int, int] | None
) -> None:
    top = max(float(curve.max()) for curve in curves.values())
    visible = [int(frame["length"][curve > _VISIBLE].max()) for curve in curves.values()]
    last = min(int(frame["length"].max()), max(visible + ([effective[1]] if effective else [])) + 1)
    marked = _line(last + 1)
    lengths = frame["length"]
    if "path_norm_mean" in curves:
        look: dict[str, Any] = {"color": _SAMPLED, **marked}
        axes.plot([], [], label="mean of sampled paths, 95 % interval", **look)
        axes.plot([], [], color=_SAMPLED, ls=":", label="median of sampled paths")
        axes.fill_between([], [], color=_SAMPLED, alpha=0.2, lw=0, label="5 to 95 % of sampled paths")
        share = curves["path_norm_mean"]
        scale = share / frame["path_norm_mean"].where(frame["path_norm_mean"] > 0)
        ends = _sides(share, scale * frame["path_norm_low"], scale * frame["path_norm_high"])
        axes.errorbar(lengths, share, ends, elinewidth=0.7, zorder=4, **look)
    if "path_norm_rms" in curves:
        label = "root mean square (random signs)"
        axes.plot(lengths, curves["path_norm_rms"], color=_SIGNED, ls=_DASHES, label=label, zorder=5)
    if "total_norm" in curves:
        label = "sum over all paths (exact)"
        axes.plot(lengths, curves["total_norm"], color=_EXACT, lw=1.4, label=label, zorder=6, **marked)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylim(0, 1.15 * top)
    axes.set_ylabel("contribution of a length (%)")


def _sides(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Lengths of the whiskers below and above; none where there is no interval."""
    return [side.fillna(0).clip(lower=0) for side in (middle - low, high - middle)]


def _plain(number: float) -> str:
    """Two digits, as ``96``, ``0.0026`` or ``6.9×10⁻⁶``."""
    digits, _, exponent = (f"{number:.2g}" if number < 10 else f"{number:.0f}").partition("e")
    return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else digits


def _power(value: float, _position: int | None = None) -> str:
    """``10⁻¹¹``, without a formula: the style draws none, so that names of modules are never taken for one."""
    return f"10{str(round(np.log10(value))).translate(_SUPERSCRIPT)}" if value > 0 and isfinite(value) else ""


def _powers_of_ten(axes: Axes) -> None:
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    axes.yaxis.set_minor_locator(NullLocator())


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
    frame = to_frame(table, LATTICE, "lattice")
    grid = frame.astype({"norm": float}).pivot_table("norm", "length", "boundary", dropna=False)
    grid = grid.where(grid > 0)
    if grid.isna().all(axis=None):
        raise UsageError("every norm of the lattice is zero; give one with gradients")
    top, least = float(grid.max(axis=None)), float(grid.min(axis=None))
    floor = max(least, top * 10.0**-_DECADES)
    longest = int(grid.index[grid.ge(floor).any(axis=1)].max())
    places, lengths = range(int(min(grid)), int(max(grid)) + 1), range(longest + 1)
    grid = grid.reindex(index=lengths, columns=places)
    with style():
        figure = new_figure(width or SINGLE, 3.0)
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            np.arange(places.start, places.stop + 1) - 0.5,
            np.arange(len(lengths) + 1) - 0.5,
            grid.clip(lower=floor).to_numpy(),
            norm=LogNorm(min(floor, top / 10), top),
            cmap="viridis",
            rasterized=True,  # as vectors, viewers show seams between the cells
        )
        ridge = grid.dropna(axis=1, how="all").idxmax()
        axes.plot(ridge.index, ridge, color="white", lw=1.6, solid_capstyle="round")
        axes.plot(ridge.index, ridge, color=INK, lw=0.8, label="largest at its place", **_line(len(places)))
        bar = figure.colorbar(mesh, ax=axes, aspect=25, extend="min" if least < floor else "neither", pad=0.02)
        bar.set_label("gradient norm (loss per unit of xᵢ)")
        _powers_of_ten(bar.ax)
        axes.set_xlabel(_places(places))
        axes.set_ylabel("path length (blocks after the place)")
        axes.xaxis.set_major_locator(block_ticks())
        axes.yaxis.set_major_locator(block_ticks())
        legend_outside(axes, width or SINGLE)
    return figure


def _places(places: range) -> str:
    input_too = "\n(−1: input of the network)" if places.start < 0 else ""
    return f"place i: gradient at xᵢ, the input of block i{input_too}"
