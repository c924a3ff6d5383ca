"""Coloured cells of place and path length, and the bar that says what their colours are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pathlens.figures.style import INK, MUTED
from pathlens.graph.cells import Cells
from pathlens.results.text import number, power_of_ten

_READ = 2.0  # powers of ten from which on their names alone are a scale


def draw_cells(figure: Figure, axes: Axes, cells: Cells, marked: bool = False) -> None:
    """Cells, the line through them, where stages part, and the bar of colours.

    Args:
        figure: of the axes.
        axes: where.
        cells: what.
        marked: put a mark on each point of the line.
    """
    sizes = cells.sizes[: cells.longest + 1]
    places = cells.first + np.arange(sizes.shape[1] + 1)
    mesh = axes.pcolormesh(
        places - 0.5,
        np.arange(len(sizes) + 1) - 0.5,
        np.ma.masked_invalid(sizes).clip(cells.floor),
        norm=cell_scale(cells),
        cmap="viridis",
        rasterized=True,  # as vectors, viewers show seams between the cells
    )
    axes.plot(*zip(*cells.ridge, strict=True), color="white", lw=1.8, solid_capstyle="round")
    marks: dict[str, Any] = {"marker": "o", "ms": 2.4, "mew": 0} if marked else {}
    axes.plot(*zip(*cells.ridge, strict=True), color=INK, lw=0.8, label=cells.ridge_label, **marks)
    for name, first, last in cells.stages if len(cells.stages) > 1 else ():
        if last < places[-2]:
            axes.axvline(last + 0.5, color=MUTED, lw=0.4, ls=":")
        if last + 1 - first > 0.06 * len(places):
            axes.annotate(name, ((first + last) / 2, 1), (0, 2), xycoords=axes.get_xaxis_transform(), ha="center",
                          textcoords="offset points", size=6, color=MUTED)  # fmt: skip
    colour_bar(figure, axes, mesh, cells)


def cell_scale(cells: Cells) -> Normalize:
    """From sizes to shares of the scale of colours; a single size has the lightest colour."""
    return Normalize(cells.floor if cells.floor < cells.top else cells.top - 1, cells.top)


def colour_bar(figure: Figure, axes: Axes, colours: ScalarMappable, cells: Cells) -> None:
    """The bar of colours beside the axes, with numbers that people read."""
    bar = figure.colorbar(colours, ax=axes, aspect=25, pad=0.02, extend="min" if cells.is_cut else "neither")
    bar.set_label("gradient norm (loss per unit of xᵢ)" if cells.by_norm else "paths through the node")
    axis = bar.ax.yaxis
    if cells.top - cells.floor >= _READ:
        axis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 3, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda power, _: power_of_ten(power)))
    else:
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda power, _: number(10**power)))
