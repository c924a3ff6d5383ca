"""Pictures of unraveled views: the network as it is, all of its paths, and the lattice of block and path length."""

from __future__ import annotations

from itertools import islice
from typing import Any

import networkx as nx
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from pathlens.errors import UsageError
from pathlens.figures.cells import cell_scale, colour_bar, draw_cells
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SHADE,
    SINGLE,
    block_ticks,
    count_words,
    new_figure,
    new_page,
    style,
    text_inches,
)
from pathlens.graph.cells import LENGTH, PLACE, Cells, lattice_cells
from pathlens.graph.drawing import TEXT, Box, Drawing
from pathlens.graph.place import place

_DRAWN_OUT = 8  # blocks up to which a lattice is drawn as nodes and edges
_TALLEST = 8.5  # inches of a page without its title
_MANY = 100  # skips from which on their lines are thin
_SMALLEST = 3.0  # points of text that is worth its ink
_LINE = 0.13  # inches of a line of the title
_TINTS = [COLOURS[number] for number in (0, 3, 2, 4, 5, 9, 8, 7)]  # neighbours differ also when pale
_SKIPS = {"add": _TINTS[0], "concat": _TINTS[1]}
_WORDS = {
    "branch": "f: branch",
    "shortcut": "S: shortcut",
    "post": "s: post-activation",
    "transition": "T: layers before the block",
}


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
    if kind not in ("dag", "tree", "lattice"):
        raise UsageError(f"a graph of kind {kind!r} cannot be drawn; give one of pathlens.unravel(...)")
    if kind == "lattice":
        return _lattice(graph, width or SINGLE)
    return _drawn(graph, place(graph, layout, (width,) if width else (SINGLE, DOUBLE), _TALLEST), width)


# The network as it is, and all of its paths


def _drawn(graph: nx.DiGraph, drawing: Drawing, width: float | None) -> Figure:
    width = max(width or (SINGLE if drawing.width <= SINGLE else DOUBLE), drawing.width)
    title = _tree_title(graph) if graph.graph["kind"] == "tree" else [_title(graph.graph)]
    skips = [line.skip for line in drawing.edges.values() if line.skip]
    top = 0.1 + _LINE * len(title) + (0.18 if drawing.direction == "down" else 0.0)
    left = (width - drawing.width) / 2 if drawing.direction == "down" else 0.0
    with style():
        figure, axes = new_page(width, top + drawing.height)
        axes.set_xlim(-left, width - left)
        axes.set_ylim(drawing.height, -top)
        lines = 0.6 * drawing.scale
        thin = lines * (1 if not skips else 1.5 if len(skips) <= _MANY else 0.7)
        for line in drawing.edges.values():
            colour = _SKIPS.get(line.skip or "", INK)
            for piece in line.pieces:
                codes = [Path.MOVETO, *[Path.CURVE4 if drawing.curved else Path.LINETO] * (len(piece) - 1)]
                axes.add_patch(PathPatch(Path(piece, codes), facecolor="none", edgecolor=colour, capstyle="round",
                                         lw=thin if line.skip else lines, zorder=2 if line.skip else 1))  # fmt: skip
        axes.add_collection(LineCollection(drawing.stubs, colors=INK, lw=lines, zorder=1))
        axes.plot(*zip(*drawing.dots, strict=True) if drawing.dots else ((), ()), "o", ms=1.8, color=INK, mew=0)
        for box in drawing.nodes.values():
            _draw_box(axes, box)
        for x, y, text in drawing.notes:
            axes.text(x, y, text, size=TEXT, color=MUTED)
        for number, text in enumerate(title):
            at = (0.05 - left, _LINE * number - top + 0.06)
            axes.text(*at, _shortened(text, width), va="top", size=7, color=MUTED)
        if drawing.direction == "down":
            _legend(axes, graph, drawing, 0.05 - left, -_LINE)
    return figure


def _draw_box(axes: Axes, box: Box) -> None:
    x, y, wide, tall, line = box.x, box.y, box.width, box.height, 0.6 * max(0.5, box.scale)
    if box.lines == ("+",):
        arm = 0.3 * wide
        axes.add_patch(Circle((x, y), wide / 2, facecolor="white", edgecolor=INK, lw=line, zorder=3))
        axes.plot([x - arm, x + arm], [y, y], color=INK, lw=line, zorder=4)
        axes.plot([x, x], [y - arm, y + arm], color=INK, lw=line, zorder=4)
        return
    colour = None if box.tint is None else _TINTS[box.tint % len(_TINTS)]
    face = "white" if not box.filled else SHADE if colour is None else _pale(colour)
    axes.add_patch(FancyBboxPatch((x - wide / 2, y - tall / 2), wide, tall, facecolor=face, edgecolor=colour or INK,
                                  boxstyle="round,pad=0,rounding_size=0.03", lw=line, zorder=3,
                                  mutation_scale=box.scale))  # fmt: skip
    if box.scale * TEXT >= _SMALLEST:
        text = "\n".join(box.lines)
        axes.text(x, y + 0.003, text, ha="center", va="center", size=TEXT * box.scale, linespacing=1.05, zorder=4)


def _legend(axes: Axes, graph: nx.DiGraph, drawing: Drawing, x: float, y: float) -> None:
    """What the colours of lines and boxes say."""
    for skip, words in (("add", "skip that is added"), ("concat", "skip that is concatenated")):
        if graph.graph[f"n_skips_{skip}"]:
            axes.plot([x, x + 0.2], [y, y], color=_SKIPS[skip], lw=0.9)
            axes.text(x + 0.25, y, words, va="center", size=TEXT)
            x += 0.4 + text_inches(words, TEXT)
    branches = (box for node, box in drawing.nodes.items() if graph.nodes[node]["is_branch"])
    for box in islice(branches, 1):
        _draw_box(axes, Box(x + 0.06, y, 0.12, 0.09, (), box.tint, True))
        axes.text(x + 0.17, y, "adds 1 to a path's length", va="center", size=TEXT)


def _title(about: dict[str, Any]) -> str:
    blocks = f"{about['n_blocks']} blocks, " if about["n_blocks"] else ""
    return f"{about['network']}: {blocks}{count_words(about['n_paths'])}"


def _tree_title(graph: nx.DiGraph) -> list[str]:
    about = graph.graph
    blocks = f"blocks {about['first']} to {about['last']}" if about["n_blocks"] > 1 else f"block {about['first']}"
    lengths = ", ".join(map(str, about["n_paths_by_length"]))
    roles = {data["role"] for _, data in graph.nodes(data=True)}
    return [
        f"{about['network']}, {blocks}: {count_words(about['n_paths'])}",
        f"of length 0 to {about['n_blocks']}: {lengths}",
        ", ".join(word for role, word in _WORDS.items() if role in roles),
    ]


def _shortened(text: str, width: float) -> str:
    most = int(width * 19)
    return text if len(text) <= most else text[: most - 1] + "…"


def _pale(colour: str) -> str:
    """Nearly white, so that black text on it is read with ease."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.35 * (255 - part)):02x}" for part in parts)


# The lattice


def _lattice(graph: nx.DiGraph, width: float) -> Figure:
    about, cells = graph.graph, lattice_cells(graph)
    drawn_out = about["n_blocks"] <= _DRAWN_OUT
    with style():
        figure = new_figure(width, 0.86 * width)
        axes = figure.add_subplot()
        what = "in each node, its paths to the output" if drawn_out else count_words(about["n_paths"])
        title = f"{about['network']}: {what}"
        axes.set_title(_shortened(title, width), loc="left", size=7, color=MUTED, pad=4 if drawn_out else 12)
        if drawn_out:
            _nodes(figure, axes, graph, cells)
        else:
            draw_cells(figure, axes, cells)
        axes.set_xlabel(PLACE)
        axes.set_ylabel(LENGTH)
        axes.xaxis.set_major_locator(block_ticks())
        axes.yaxis.set_major_locator(block_ticks())
        axes.legend(loc="upper right", borderaxespad=0.2)
    return figure


def _nodes(figure: Figure, axes: Axes, graph: nx.DiGraph, cells: Cells) -> None:
    about, colours, scale = graph.graph, colormaps["viridis"], cell_scale(cells)
    for role, look in (("shortcut", "-"), ("branch", (0, (3, 1.2)))):
        lines = [[start, end] for start, end, data in graph.edges(data=True) if data["role"] == role]
        label = f"through the {role}"
        axes.add_collection(LineCollection(lines, colors=INK, lw=0.7, linestyles=[look], zorder=1, label=label))
    for (at, length), data in graph.nodes(data=True):
        share = scale(cells.sizes[length, at - cells.first])
        empty = np.isnan(share)  # no norm, or a norm of zero
        axes.add_patch(Circle((at, length), 0.27, facecolor="white" if empty else colours(share), edgecolor=INK, lw=0.5,
                              zorder=3))  # fmt: skip
        axes.text(at, length, str(data["n_paths_out"]), ha="center", va="center", size=6,
                  color=INK if empty or share > 0.55 else "white", zorder=4)  # fmt: skip
    axes.set_xlim(about["first"] - 0.5, about["last"] + 1.5)
    axes.set_ylim(-0.5, about["n_blocks"] + 0.5)
    axes.set_aspect("equal")
    colour_bar(figure, axes, ScalarMappable(scale, colours), cells)
