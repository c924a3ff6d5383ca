"""Where Graphviz puts the nodes and edges of a graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import networkx as nx

from pathlens.errors import UsageError
from pathlens.graph.export import import_pydot, quoted

_POINTS = 72  # to an inch
Point = tuple[float, float]


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
    edges: dict[tuple[Hashable, Hashable], list[Point]]


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
        found = json.loads(dot.create(prog="dot", format="json"))
    except (AssertionError, OSError, ValueError) as error:
        raise UsageError(f"Graphviz could not lay out {len(graph)} nodes: {' '.join(str(error).split())}") from error
    _, _, width, height = (float(number) / _POINTS for number in found["bb"].split(","))
    by_name = {name: node for node, name in ids.items()}
    places = {item["_gvid"]: item for item in found["objects"]}
    nodes = {by_name[item["name"]]: _point(item["pos"]) for item in places.values()}
    edges = {
        (by_name[places[item["tail"]]["name"]], by_name[places[item["head"]]["name"]]): [
            _point(text) for text in item["pos"].split()
        ]
        for item in found.get("edges", ())
    }
    return Layout(width, height, nodes, edges)


def _point(text: str) -> Point:
    x, y = text.split(",")
    return float(x) / _POINTS, float(y) / _POINTS
