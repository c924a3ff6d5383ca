"""Loss surfaces: contours and the surface itself, several networks side by side, and lines with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from mpl_toolkits.mplot3d import Axes3D

from pathlens.errors import UsageError
from pathlens.figures.lesions import error_label, of, percent_axis
from pathlens.figures.style import COLOURS, DOUBLE, MUTED, legend_outside, new_figure, style, to_rows
from pathlens.results.result import Row, Rows
from pathlens.results.surface import drawn_losses, draws_of, is_grid, lines_of, lowest
from pathlens.results.tasks import loss_label
from pathlens.results.text import number
from pathlens.tables import Table

_NEEDED = ("draw", "x", "y", "loss", "error")
_LEVELS = 15

Surface: TypeAlias = Table | pd.DataFrame | Rows


def loss_surface(table: Surface, width: float = DOUBLE) -> Figure:
    """The loss around the weights: contours and surface of a grid, or loss and error along a line.

    Losses of a grid are on a logarithmic scale of which 10 nats are the end. Of several draws of a line the mean is
    drawn, with the smallest and the largest as a band; the band of the error of one is its 95 % interval (Li et al.
    2018, figures 1, 2 and 5).

    Args:
        table: of ``loss-surface``.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    rows = to_rows(table, _NEEDED, "loss surface")
    return surfaces({"": table}, width) if is_grid(rows) else _lines(rows, width, table)


def surfaces(tables: Mapping[str, Surface], width: float = DOUBLE) -> Figure:
    """Several grids side by side on one scale: contours above, the surfaces below.

    Args:
        tables: of ``loss-surface`` with two directions, by the words over each.
        width: in inches.

    Raises:
        UsageError: there are no tables, columns are missing, one is no grid, or no loss is finite.
    """
    if not tables:
        raise UsageError("there are no tables of loss-surface to draw; give at least one")
    label = _label(next(iter(tables.values())))
    grids = {words: _grid(to_rows(table, _NEEDED, "loss surface"), label) for words, table in tables.items()}
    least = min(losses.min() for _, _, losses in grids.values())
    most = max(losses.max() for _, _, losses in grids.values())
    levels = np.geomspace(least, max(most, least * 1.01), _LEVELS)
    with style():
        # one surface has its two pictures side by side, several have them below each other
        single = len(grids) == 1
        figure = new_figure(width, width * (0.42 if single else 0.9 / max(len(grids), 2) + 0.25))
        shape = (1, 2) if single else (2, len(grids))
        flats = [figure.add_subplot(*shape, index + 1) for index in range(len(grids))]
        for index, (words, (x, y, losses)) in enumerate(grids.items()):
            filled = _contours(flats[index], x, y, losses, levels)
            flats[index].set_title(words)
            solid = figure.add_subplot(*shape, 2 if single else len(grids) + index + 1, projection="3d")
            _solid(solid, x, y, losses, levels, label)
        bar = figure.colorbar(filled, ax=flats, ticks=levels[::2], format=FuncFormatter(lambda loss, _: number(loss)))
        bar.set_label(label)
    return figure


def _label(table: Surface) -> str:
    """What the axis of losses is called."""
    return loss_label(of(table) if isinstance(table, Table) else {}, "loss (nats)")


def _grid(rows: Sequence[Row], label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of both axes, and the losses as they are drawn, shape (y, x); of several draws the first."""
    if not is_grid(rows) or lowest(rows) is None:
        raise UsageError("this table of loss-surface is no grid with finite losses; give one of two directions")
    part = next(iter(draws_of(rows).values()))
    x, y = (np.unique([row[axis] for row in part]) for axis in ("x", "y"))
    low, high = drawn_losses(part, label)
    losses = np.full((len(y), len(x)), high)
    for row in part:
        value = high if row["loss"] is None else row["loss"]
        losses[np.searchsorted(y, row["y"]), np.searchsorted(x, row["x"])] = min(max(value, low), high)
    return x, y, losses


def _contours(axes: Axes, x: np.ndarray, y: np.ndarray, losses: np.ndarray, levels: np.ndarray) -> QuadContourSet:
    filled = axes.contourf(x, y, losses, levels, cmap="viridis", norm=LogNorm(levels[0], levels[-1]), extend="both")
    axes.contour(x, y, losses, levels, colors="white", linewidths=0.4)
    axes.plot(0, 0, marker="+", color="white", ms=5, mew=0.8)
    axes.set_aspect("equal")
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")
    return filled


def _solid(axes: Any, x: np.ndarray, y: np.ndarray, losses: np.ndarray, levels: np.ndarray, label: str) -> None:
    assert isinstance(axes, Axes3D)
    heights = np.log10(losses)
    low, high = np.log10(levels[0]), np.log10(levels[-1])
    axes.plot_surface(
        *np.meshgrid(x, y), heights, cmap="viridis", vmin=low, vmax=high, rcount=60, ccount=60, lw=0, rasterized=True
    )
    axes.set_zlim(low, high)
    axes.zaxis.set_major_formatter(FuncFormatter(lambda power, _: number(10**power)))
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=5, pad=-2)
    axes.set_zlabel(label, fontsize=6, labelpad=-6)
    axes.set_box_aspect(None, zoom=0.88)  # the labels of the axis are drawn outside of the box
    axes.view_init(elev=30, azim=-60)


def _lines(rows: Rows, width: float, table: Table | pd.DataFrame) -> Figure:
    """Loss and error along a line."""
    label = _label(table)
    losses, errors = lines_of(rows, "loss"), lines_of(rows, "error", 100)
    if lowest(rows) is None:
        raise UsageError("no loss of this table of loss-surface is finite, so there is nothing to draw")
    with style():
        figure = new_figure(width, 2.6)
        left, right = figure.subplots(1, 2)
        for axes, series in ((left, losses), (right, errors)):
            x = series[0]["x"]
            values = np.array([one["y"] for one in series], dtype=float)
            if len(series) > 1:
                axes.fill_between(x, values.min(0), values.max(0), color=COLOURS[0], alpha=0.2, lw=0, label="all draws")
                axes.plot(x, values.mean(0), color=COLOURS[0], label=f"mean of {len(series)} draws")
            else:
                if "low" in series[0]:
                    band = {"label": "95 % interval", "color": COLOURS[0], "alpha": 0.2, "lw": 0}
                    axes.fill_between(x, series[0]["low"], series[0]["high"], **band)
                axes.plot(x, values[0], color=COLOURS[0])
            axes.axvline(0, color=MUTED, lw=0.5, ls=":")
            axes.set_xlabel("coordinate")
        finite = [value for one in losses for value in one["y"] if value is not None]
        high = drawn_losses(rows, label)[1]
        if max(finite) > high:
            left.set_ylim(0, high)
        drawn = ("error", "error_high") if len(errors) == 1 else ("error",)  # several draws have no intervals
        percent_axis(right, [row.get(name) for row in rows for name in drawn])
        left.set_ylabel(label)
        right.set_ylabel(error_label(table))
        legend_outside(right, width)
    return figure
