"""Pictures of unraveled views: the network as it is, all of its paths, and the lattice of block and path length."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pathlens.errors import UsageError
from pathlens.figures.network import draw_network
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SINGLE,
    block_ticks,
    count_words,
    new_figure,
    new_page,
    powers_of_ten,
    style,
)
from pathlens.results.charts import stage_runs
from pathlens.results.text import power_of_ten

_DRAWN_OUT = 8  # blocks up to which a lattice is drawn as nodes and edges
_DECADES = 12  # of gradient norms; smaller ones look like the smallest
_TALLEST = 9.0  # inches of a page
_ROW = 0.17  # inches that a path of a tree has, where there is room


def unraveled(graph: nx.DiGraph, width: float | None = None, layout: str = "auto") -> Figure:
    """Draw what :func:`pathlens.unravel` returns.

    ``dag``: a chain of blocks is written in rows from left to right, with branches above the line of the shortcuts;
    any other network is laid out by Graphviz, or in layers where Graphviz is not installed. ``tree``: as figure 1b of
    Veit, Wilber, Belongie 2016, with the longest path on top. ``lattice``: up to 8 blocks as nodes with the number of
    paths from there to the output, and larger ones as coloured cells; colours are gradient norms where the lattice has
    them, else the number of paths through the node, both on a logarithmic scale.

    Args:
        graph: with ``kind`` dag, tree or lattice.
        width: in inches; by default one column of a page, or the whole page where the drawing needs it.
        layout: of a dag: ``auto``, ``rows`` (only for chains of blocks), ``graphviz`` or ``layers``.

    Raises:
        UsageError: no such graph or layout, or Graphviz is asked for and not installed.
    """
    kind = graph.graph.get("kind")
    if kind == "dag":
        return draw_network(graph, width, layout)
    if kind == "tree":
        return _tree(graph, width)
    if kind == "lattice":
        return _lattice(graph, width)
    raise UsageError(f"a graph of kind {kind!r} cannot be drawn; give one of pathlens.unravel(...)")


# The tree


def _tree(graph: nx.DiGraph, width: float | None) -> Figure:
    facts = graph.graph
    paths = facts["n_paths"]
    row = min(_ROW, _TALLEST / paths)
    columns = columns_of(graph)
    last = max(columns.values())
    column = 0.34
    width = width or (SINGLE if (last + 3) * column <= SINGLE else DOUBLE)
    column = (width - 0.35) / (last + 1.6)
    height = max(1.2, row * paths + 0.5)
    with style():
        figure, axes = new_page(width, height)
        axes.set_xlim(-0.25, width - 0.25)
        axes.set_ylim(-row * paths - 0.12, height - row * paths - 0.12)
        place = {node: (column * (columns[node] + 0.6), -row * (data["row"] + 0.5))
                 for node, data in graph.nodes(data=True)}  # fmt: skip
        source = facts["input"]
        place[source] = (0.0, place[source][1])
        _tree_lines(axes, graph, place, source, row)
        size = min(0.1, 0.42 * row)
        for node, (x, y) in place.items():
            _tree_node(axes, graph.nodes[node], x, y, size, column)
        out = place[facts["output"]]
        axes.plot([out[0], out[0] + 0.7 * column], [out[1]] * 2, color=INK, lw=0.6, zorder=1)
        axes.text(out[0] + 0.75 * column, out[1], "y", va="center", size=8, style="italic")
        blocks = f"blocks {facts['first']} to {facts['last']}" if facts["n_blocks"] > 1 else f"block {facts['first']}"
        lengths = ", ".join(map(str, facts["n_paths_by_length"]))
        text = f"{facts['network']}, {blocks}: {count_words(paths)}; of length 0 to {facts['n_blocks']}: {lengths}"
        roles = {data["role"] for _, data in graph.nodes(data=True)}
        words = ", ".join(word for role, word in _WORDS.items() if role in roles)
        lines = f"{_shortened(text, width)}\n{words}"
        axes.text(-0.2, axes.get_ylim()[1] - 0.06, lines, va="top", size=7, color=MUTED)
    return figure


def columns_of(graph: nx.DiGraph) -> dict[str, int]:
    """The column of each node: the same for all copies of one module, so that modules stand above each other."""
    kinds = {node: (data.get("block", -1), _STEPS[data["role"]]) for node, data in graph.nodes(data=True)}
    order = {kind: place for place, kind in enumerate(sorted(set(kinds.values())))}
    return {node: order[kind] for node, kind in kinds.items()}


_WORDS = {
    "branch": "f: branch",
    "shortcut": "S: shortcut",
    "post": "s: post-activation",
    "transition": "T: layers before the block",
}
_STEPS = {"input": 0, "transition": 1, "branch": 2, "shortcut": 2, "add": 3, "post": 4}


def _tree_lines(axes: Axes, graph: nx.DiGraph, place: dict[str, tuple[float, float]], source: str, row: float) -> None:
    lines = []
    for start, end, data in graph.edges(data=True):
        (x0, y0), (x1, y1) = place[start], place[end]
        if start == source:
            y0 = -row * (data["row"] + 0.5)
        lines.append([(x0, y0), (x1, y0), (x1, y1)])
    ends = [-row * (data["row"] + 0.5) for *_, data in graph.edges(source, data=True)]
    lines.append([(0, min(ends)), (0, max(ends))])
    axes.add_collection(LineCollection(lines, colors=INK, lw=0.6 if row > 0.05 else 0.25, zorder=1, capstyle="round"))


def _tree_node(axes: Axes, data: dict[str, Any], x: float, y: float, size: float, column: float) -> None:
    role = data["role"]
    legible = size > 0.045
    if role == "input":
        axes.text(x - 0.06, y, "x", ha="right", va="center", size=8, style="italic")
    elif role == "add":
        axes.add_patch(Circle((x, y), 0.62 * size, facecolor="white", edgecolor=INK, lw=0.6, zorder=3))
        if legible:
            arm = 0.36 * size
            axes.plot([x - arm, x + arm], [y, y], color=INK, lw=0.6, zorder=4)
            axes.plot([x, x], [y - arm, y + arm], color=INK, lw=0.6, zorder=4)
    else:
        half = min(0.42 * column, 1.5 * size)
        colour = COLOURS[data["block"] % len(COLOURS)] if role == "branch" else "white"
        shape = FancyBboxPatch((x - half, y - 0.72 * size), 2 * half, 1.44 * size, facecolor=colour, edgecolor=INK,
                               boxstyle="round,pad=0,rounding_size=0.02", lw=0.5, zorder=3)  # fmt: skip
        axes.add_patch(shape)
        if legible:
            axes.text(x, y - 0.004, data["label"], ha="center", va="center", size=6 if size > 0.06 else 4.5,
                      color=_ink_on(colour), zorder=5)  # fmt: skip


def _ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    if not colour.startswith("#"):
        return INK
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK


def _shortened(text: str, width: float) -> str:
    most = int(width * 19)
    return text if len(text) <= most else text[: most - 1] + "…"


# The lattice


def _lattice(graph: nx.DiGraph, width: float | None) -> Figure:
    by_norm = any("gradient_norm" in data for _, data in graph.nodes(data=True))
    if graph.graph["n_blocks"] <= _DRAWN_OUT:
        return _drawn_lattice(graph, width or SINGLE, by_norm)
    return _coloured_lattice(graph, width or SINGLE, by_norm)


def _scale(values: list[float], by_norm: bool) -> tuple[Normalize, str]:
    """The colours of values, and what they mean; numbers of paths come as powers of ten."""
    if not by_norm:
        return Normalize(0, max(*values, 1e-9)), "paths through the node"
    top = max(values)
    if not top > 0:
        raise UsageError("every norm of the lattice is zero; give one with gradients")
    least = min(value for value in values if value > 0)
    return LogNorm(
        max(least, top * 10.0**-_DECADES) if least < top else top / 10, top
    ), "gradient norm (loss per unit of xᵢ)"


def _value(data: dict[str, Any], by_norm: bool) -> float | None:
    if by_norm:
        norm = data.get("gradient_norm")
        return norm if norm else None
    return math.log10(data["n_paths"])


def _coloured_lattice(graph: nx.DiGraph, width: float, by_norm: bool) -> Figure:
    facts = graph.graph
    first, end = facts["first"], facts["last"] + 1
    grid = np.full((facts["n_blocks"] + 1, facts["n_blocks"] + 1), np.nan)
    for (place, length), data in graph.nodes(data=True):
        value = _value(data, by_norm)
        if value is not None:
            grid[length, place - first] = value
    scale, words = _scale(grid[~np.isnan(grid)].tolist(), by_norm)
    with style():
        figure = new_figure(width, 0.86 * width)
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(
            np.arange(first, end + 2) - 0.5,
            np.arange(grid.shape[0] + 1) - 0.5,
            np.where(np.isnan(grid), np.nan, np.maximum(grid, scale.vmin or 0)),
            norm=scale,
            cmap="viridis",
            rasterized=True,  # as vectors, viewers show seams between the cells
        )
        middle = [(place, (end - place) / 2) for place in range(first, end + 1)]
        if by_norm:
            middle = [(first + at, float(np.nanargmax(column))) for at, column in enumerate(grid.T)
                      if not np.isnan(column).all()]  # fmt: skip
        axes.plot(*zip(*middle, strict=True), color="white", lw=1.8, solid_capstyle="round")
        label = "largest norm at its place" if by_norm else "half of the blocks that follow"
        axes.plot(*zip(*middle, strict=True), color=INK, lw=0.8, label=label)
        cut = bool(np.nanmin(grid) < (scale.vmin or 0))
        bar = figure.colorbar(mesh, ax=axes, aspect=25, pad=0.02, extend="min" if cut else "neither")
        bar.set_label(words)
        if by_norm:
            powers_of_ten(bar.ax)
        else:
            bar.ax.yaxis.set_major_locator(MaxNLocator(7, integer=True))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda power, _: power_of_ten(power)))
        _stage_lines(axes, facts)
        axes.set_xlabel("place i: xᵢ, the input of block i")
        axes.set_ylabel("branches from there to the output")
        axes.xaxis.set_major_locator(block_ticks())
        axes.yaxis.set_major_locator(block_ticks())
        axes.legend(loc="upper right", borderaxespad=0.2)
        axes.set_title(f"{facts['network']}: {count_words(facts['n_paths'])}", loc="left", size=7, color=MUTED, pad=12)
    return figure


def _stage_lines(axes: Axes, facts: dict[str, Any]) -> None:
    """Where stages part, with their numbers above."""
    stages, first = facts["stages"], facts["first"]
    for run in stage_runs(stages, range(len(stages))):
        if run.first:
            axes.axvline(first + run.first - 0.5, color=MUTED, lw=0.4, ls=":")
        if run.last + 1 - run.first > 0.06 * len(stages):
            place = (first + (run.first + run.last) / 2, 1)
            axes.annotate(f"stage {run.stage}", place, (0, 2), xycoords=axes.get_xaxis_transform(), ha="center",
                          textcoords="offset points", size=6, color=MUTED)  # fmt: skip


def _drawn_lattice(graph: nx.DiGraph, width: float, by_norm: bool) -> Figure:
    facts = graph.graph
    values = {node: _value(data, by_norm) for node, data in graph.nodes(data=True)}
    scale, words = _scale([value for value in values.values() if value is not None], by_norm)
    colours = colormaps["viridis"]
    n = facts["n_blocks"]
    with style():
        figure = new_figure(width, width * (n + 1.2) / (n + 2.4) + 0.1)
        axes = figure.add_subplot()
        for role, look in (("shortcut", "-"), ("branch", (0, (3, 1.2)))):
            lines = [[start, end] for start, end, data in graph.edges(data=True) if data["role"] == role]
            drawn = LineCollection(lines, colors=INK, lw=0.7, linestyles=[look], zorder=1, label=f"through the {role}")
            axes.add_collection(drawn)
        for node, value in values.items():
            colour = "white" if value is None else colours(scale(value))
            axes.add_patch(Circle(node, 0.27, facecolor=colour, edgecolor=INK, lw=0.5, zorder=3))
            light = value is None or scale(value) > 0.55
            axes.text(node[0], node[1], str(graph.nodes[node]["n_paths_out"]), ha="center", va="center", size=6,
                      color=INK if light else "white", zorder=4)  # fmt: skip
        axes.set_xlim(facts["first"] - 0.5, facts["last"] + 1.5)
        axes.set_ylim(-0.5, n + 0.5)
        axes.set_aspect("equal")
        axes.set_xlabel("place i: xᵢ, the input of block i")
        axes.set_ylabel("branches from there to the output")
        axes.xaxis.set_major_locator(block_ticks())
        axes.yaxis.set_major_locator(block_ticks())
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, aspect=25, pad=0.02, shrink=0.9)
        bar.set_label(words)
        if by_norm:
            powers_of_ten(bar.ax)
        else:
            bar.set_ticks([math.log10(2**power) for power in range(n + 1)], labels=[str(2**p) for p in range(n + 1)])
        axes.legend(loc="upper right", borderaxespad=0.2)
        axes.set_title(f"{facts['network']}: in each node, its paths to the output", loc="left", size=7, color=MUTED)
    return figure
