"""Places of all that a drawing of a network, or of its paths, shows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import networkx as nx

from pathlens.errors import UsageError
from pathlens.graph.drawing import Box, Drawing, Line, Piece, Point, shape_of, shortened, text_width
from pathlens.graph.layout import Layout, graphviz_layout, has_graphviz, layered_layout
from pathlens.graph.rows import is_chain, place_rows

LAYOUTS = ("auto", "rows", "graphviz", "layers")
_TALL = 40  # nodes, one after the other, beyond which skips are easier to follow as arcs beside a column
_SMALLEST = 0.5  # scale of text below which a drawing grows beyond the page instead of shrinking further
_LEGIBLE = 0.85  # scale down to which a drawing is shrunk before it is put on a wider page
_STRETCHED = 1.6  # factor by which a tree is widened at most to fill a page
_BRANCH, _CONCAT = 2, 1  # numbers of colours
_MARGIN = 0.05  # inches
_COLUMN, _ROW = 0.36, 0.19  # inches, of a tree
_MANY = 64  # number of paths beyond which the columns of a tree are widened
_STEPS = {"input": 0, "transition": 1, "branch": 2, "shortcut": 2, "add": 3, "post": 4}


def place(graph: nx.DiGraph, layout: str = "auto", widths: Sequence[float] = (), height: float = math.inf) -> Drawing:
    """The drawing of a dag or a tree, in inches.

    A chain of blocks is written in rows from left to right, with branches above the line of the shortcuts; any other
    network is laid out by Graphviz, or in layers where Graphviz is not installed. A tree is drawn as in Veit, Wilber,
    Belongie 2016, figure 1b, with the longest path on top.

    Args:
        graph: a dag or a tree, as :func:`pathlens.unravel` returns them.
        layout: of a dag: ``auto``, ``rows`` (only for chains of blocks), ``graphviz`` or ``layers``.
        widths: of the pages that it may take, narrow ones first, in inches: it is fitted to the first one on which it
            needs no break and hardly shrinks, else to the last. Without any, it is as wide as suits a screen.
        height: of the page, in inches. Drawings of large networks can be larger than the page.

    Raises:
        UsageError: another graph, an unknown layout, rows for something else than a chain, or Graphviz is asked for and
            not installed.
    """
    kind = graph.graph.get("kind")
    if kind == "tree":
        return _tree(graph, widths, height)
    if kind != "dag":
        raise UsageError(f"a graph of kind {kind!r} has no places; give a dag or a tree of pathlens.unravel(...)")
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown; give one of {', '.join(LAYOUTS)}")
    chain = is_chain(graph)
    if layout == "rows" and not chain:
        raise UsageError(
            f"{graph.graph['network']} is no chain of blocks, which rows could show; give layout graphviz or layers"
        )
    if chain and layout in ("auto", "rows"):
        return place_rows(graph, widths)
    tall = len(graph) > _TALL and nx.dag_longest_path_length(graph, weight=None) == len(graph) - 1
    boxes = {node: _box(data) for node, data in graph.nodes(data=True)}
    sizes: dict[Hashable, Point] = {node: (box.width, box.height) for node, box in boxes.items()}
    layered = layout == "layers" or (layout == "auto" and (tall or not has_graphviz()))
    return _laid_out(graph, boxes, (layered_layout if layered else graphviz_layout)(graph, sizes), widths, height)


def _fitting(needed: float, widths: Sequence[float]) -> float:
    """How much wider a drawing becomes on the first page on which it hardly shrinks, or on the last one."""
    room = next((width for width in widths if width >= _LEGIBLE * needed), widths[-1]) if widths else needed
    return room / needed


# Laid out


def _box(data: dict[str, object]) -> Box:
    """The box of a node, at no place yet."""
    role = data["role"]
    if role == "add":
        return Box(0, 0, 0.13, 0.13, ("+",))
    lines = tuple(line for line in (shortened(data["label"]), shape_of(data)) if line)
    tint = _BRANCH if data["is_branch"] else _CONCAT if role == "concat" else None
    filled = tint is not None or role in ("joint", "input")
    return Box(0, 0, max(map(text_width, lines)) + 0.1, 0.09 * len(lines) + 0.07, lines, tint, filled)


def _laid_out(
    graph: nx.DiGraph, boxes: dict[Hashable, Box], layout: Layout, widths: Sequence[float], height: float
) -> Drawing:
    wide = _fitting(layout.width + 2 * _MARGIN, widths)
    scale = max(_SMALLEST, min(1.0, wide, (height - 2 * _MARGIN) / layout.height))

    def turned(point: Point) -> Point:
        return scale * point[0] + _MARGIN, scale * (layout.height - point[1]) + _MARGIN

    drawing = Drawing("down", *turned((layout.width + _MARGIN / scale, -_MARGIN / scale)), curved=True, scale=scale)
    for node, point in layout.nodes.items():
        box, (x, y) = boxes[node], turned(point)
        drawing.nodes[node] = replace(box, x=x, y=y, width=scale * box.width, height=scale * box.height, scale=scale)
    for edge, points in layout.edges.items():
        drawing.edges[edge] = Line([list(map(turned, points))], graph.edges[edge].get("skip"))
    return drawing


# Trees


def _tree(graph: nx.DiGraph, widths: Sequence[float], height: float) -> Drawing:
    source, paths = graph.graph["input"], graph.graph["n_paths"]
    columns = _columns(graph)
    growth = 1.1 if paths > _MANY else 1.0  # later blocks join what is farther apart
    across = [0.6 * _COLUMN]
    for column in range(max(columns.values()) + 1):
        across.append(across[-1] + _COLUMN * growth**column)
    row, wide = min(_ROW, height / paths), min(_STRETCHED, _fitting(across[-1], [width - 0.1 for width in widths]))
    size = min(row / _ROW, wide, 1.0)
    drawing = Drawing("right", wide * across[-1] + 0.1, row * paths + 0.1, scale=max(0.3, size))

    def level(data: dict[str, float]) -> float:
        return row * (data["row"] + 0.5) + 0.05

    for node, data in graph.nodes(data=True):
        x, y = wide * across[columns[node]], level(data)
        if node == source:
            drawing.nodes[node] = Box(0.12, y, 0.2, 0.13, (data["label"],), filled=True)
        elif data["role"] == "add":
            drawing.nodes[node] = Box(x, y, 0.11 * size, 0.11 * size, ("+",), scale=size)
        else:
            branch = data["role"] == "branch"
            tint = data["block"] if branch else None
            drawing.nodes[node] = Box(x, y, 0.27 * size, 0.13 * size, (data["label"],), tint, branch, size)
    for start, end, data in graph.edges(data=True):
        one, two = drawing.nodes[start], drawing.nodes[end]
        drawing.edges[start, end] = Line([_joined(one, two, level(data) if start == source else one.y)])
    last = drawing.nodes[graph.graph["output"]]
    right = last.x + last.width / 2
    drawing.stubs.append([(right, last.y), (drawing.width - 0.1, last.y)])
    drawing.notes.append((drawing.width - 0.08, last.y + 0.03, "y"))
    return drawing


def _columns(graph: nx.DiGraph) -> dict[str, int]:
    """The column of each node: the same for all copies of one module, so that modules stand above each other."""
    kinds = {node: (data.get("block", -1), _STEPS[data["role"]]) for node, data in graph.nodes(data=True)}
    order = {kind: place for place, kind in enumerate(sorted(set(kinds.values())))}
    return {node: order[kind] for node, kind in kinds.items()}


def _joined(one: Box, two: Box, level: float) -> Piece:
    """From the right side of a box along a level, and up or down into another."""
    right = one.x + one.width / 2
    begins = [(right, one.y), (right, level)] if level != one.y else [(right, level)]
    if abs(level - two.y) <= 1e-9:
        return [*begins, (two.x - two.width / 2, level)]
    return [*begins, (two.x, level), (two.x, two.y - math.copysign(two.height / 2, two.y - level))]
