"""Views as graphs: the network as it is, unraveled into all of its paths, and as a lattice of block and path length."""

from __future__ import annotations

from pathlens.graph.drawing import Drawing
from pathlens.graph.equation import equation
from pathlens.graph.export import from_dot, from_graphml, from_json, to_dot, to_graphml, to_json
from pathlens.graph.layout import Layout, graphviz_layout, has_graphviz
from pathlens.graph.place import place
from pathlens.graph.unravel import as_view, unravel

__all__ = [
    "Drawing",
    "Layout",
    "as_view",
    "equation",
    "from_dot",
    "from_graphml",
    "from_json",
    "graphviz_layout",
    "has_graphviz",
    "place",
    "to_dot",
    "to_graphml",
    "to_json",
    "unravel",
]
