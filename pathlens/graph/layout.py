"""Places by Graphviz, or in layers where it is not installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import networkx as nx

from pathlens.errors import UsageError, one_line
from pathlens.graph.drawing import Edge, Piece, Point
from pathlens.graph.export import import_pydot, quoted

_POINTS = 72  # to an inch
_BETWEEN, _LAYER = 0.12, 0.42  # inches between neighbours, and from layer to layer


@dataclass(frozen=True)
class Layout:
    """Places on paper, in inches from the lower left corner.

    Attributes:
        width: of all together.
        height: of all together.
        nodes: centre of each node.
        edges: points of a cubic Bezier spline for each edge: its start, then two control points and an end for each
            piece; the head is where the last piece ends.
    """

    width: float
    height: float
    nodes: dict[Hashable, Point]
    edges: dict[Edge, Piece]


def has_graphviz() -> bool:
    """Whether both the binding (pydot) and the program (dot) are there."""
    try:
        import_pydot()
    except UsageError:
        return False
    return shutil.which("dot") is not None


def graphviz_layout(
    graph: nx.DiGraph, sizes: Mapping[Hashable, Point], direction: str = "TB", separation: Point = (0.12, 0.16)
) -> Layout:
    """A layered layout by Graphviz' ``dot``, through pydot.

    Args:
        graph: of any kind.
        sizes: width and height of each node, in inches.
        direction: ``TB`` for the input above, ``LR`` for the input on the left.
        separation: least distance of neighbours, and of layers, in inches.

    Raises:
        UsageError: pydot or Graphviz is not installed, or Graphviz failed.
    """
    pydot = import_pydot()
    if shutil.which("dot") is None:
        raise UsageError(
            "a layout by Graphviz needs its program dot, which is not installed: apt-get install graphviz, or "
            "brew install graphviz"
        )
    ids = {node: f"n{number}" for number, node in enumerate(graph)}
    between, layers = separation
    dot = pydot.Dot(graph_type="digraph", rankdir=direction, nodesep=str(between), ranksep=str(layers))
    for node, name in ids.items():
        width, height = sizes[node]
        dot.add_node(pydot.Node(name, label=quoted(""), shape="box", fixedsize="true", width=f"{width:.4f}",
                                height=f"{height:.4f}"))  # fmt: skip
    for start, end in graph.edges:
        dot.add_edge(pydot.Edge(ids[start], ids[end], arrowhead="none"))
    try:
        result = json.loads(dot.create(prog="dot", format="json"))
    except (AssertionError, OSError, ValueError) as error:
        raise UsageError(f"Graphviz could not lay out {len(graph)} nodes: {one_line(error)}") from error
    _, _, width, height = (float(number) / _POINTS for number in result["bb"].split(","))
    by_name = {name: node for node, name in ids.items()}
    places = {item["_gvid"]: item for item in result["objects"]}
    nodes = {by_name[item["name"]]: _point(item["pos"]) for item in places.values()}
    edges = {
        (by_name[places[item["tail"]]["name"]], by_name[places[item["head"]]["name"]]): [
            _point(text) for text in item["pos"].split()
        ]
        for item in result.get("edges", ())
    }
    return Layout(width, height, nodes, edges)


def layered_layout(graph: nx.DiGraph, sizes: Mapping[Hashable, Point]) -> Layout:
    """Without Graphviz: the longest way from the input as the layer, and neighbours side by side."""
    layers = [list(layer) for layer in nx.topological_generations(graph)]
    wide = [sum(sizes[node][0] + _BETWEEN for node in layer) for layer in layers]
    height = _LAYER * (len(layers) - 1) + 0.4
    nodes: dict[Hashable, Point] = {}
    for depth, (layer, needed) in enumerate(zip(layers, wide, strict=True)):
        x = (max(wide) - needed) / 2
        for node in layer:
            nodes[node] = (x + (_BETWEEN + sizes[node][0]) / 2, height - 0.2 - _LAYER * depth)
            x += sizes[node][0] + _BETWEEN
    edges: dict[Edge, Piece] = {}
    width = max(wide)
    for start, end in graph.edges:
        (x0, y0), (x1, y1) = nodes[start], nodes[end]
        drop, bend = y0 - y1, 0.0
        if drop > 1.1 * _LAYER:  # long edges go around what lies between
            bend = 0.3 * drop**0.8
            x0, x1 = x0 + sizes[start][0] / 2, x1 + sizes[end][0] / 2
        width = max(width, max(x0, x1) + 0.8 * bend)
        edges[start, end] = [(x0, y0), (x0 + bend, y0 - drop / 3), (x1 + bend, y1 + drop / 3), (x1, y1)]
    return Layout(width, height, nodes, edges)


def _point(text: str) -> Point:
    x, y = text.split(",")
    return float(x) / _POINTS, float(y) / _POINTS
