"""How many paths through any graph take how many branches of its blocks."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
from torch import fx

from pathlens.graph.collapse import collapse
from pathlens.graph.counting import lengths_from
from pathlens.residual.chain import Chain
from pathlens.residual.flow import concatenation_edges
from pathlens.residual.routes import Part, Route


def count_choices(chain: Chain, route: Route, start: fx.Node, concat: bool) -> list[int]:
    """Numbers of paths of length 0, 1, ... from one tensor to the output, as :func:`count_choices_from`."""
    return count_choices_from(chain, route, [start], concat)[start]


def count_choices_from(chain: Chain, route: Route, starts: Iterable[fx.Node], concat: bool) -> dict[fx.Node, list[int]]:
    """Numbers of paths from tensors to the output that take 0, 1, ... branches, exact integers of any size.

    Ways part at everything that is a node of the dag of :func:`pathlens.unravel`, and the length of a path is the
    number of blocks whose branch it takes, as for :class:`pathlens.residual.polynomials.GraphLinearisation`.

    Args:
        chain: the network and its blocks.
        route: what is left of each block.
        starts: the input, or where blocks begin.
        concat: whether paths choose at concatenations too.
    """
    blocks = {chain.links[block].total: (part, chain.links[block].addition.terms) for part, block in route}
    joined = concatenation_edges(chain) if concat else set()
    graph = nx.DiGraph()
    parts = collapse(chain)
    for part in parts:
        graph.add_node(part.end)
        remains, terms = blocks.get(part.end, (Part.BLOCK, ()))
        for operand, source in (part.entering or {source: source for source in part.sources}).items():
            is_branch = operand in terms or (part.end, operand) in joined
            if remains is (Part.SHORTCUT if is_branch else Part.BRANCH):
                continue
            if is_branch:
                graph.add_node((part.end, operand), is_branch=True)
                nx.add_path(graph, [source, (part.end, operand), part.end])
            else:
                graph.add_edge(source, part.end)
    # backwards, from the output, so that one pass counts from every tensor
    lengths = lengths_from(graph.reverse(copy=False), parts[-1].end)
    return {start: lengths[_in(graph, start)] for start in starts}


def _in(graph: nx.DiGraph, node: fx.Node) -> fx.Node:
    """A tensor's node; copies and conversions are no nodes of their own."""
    while node not in graph:
        node = node.all_input_nodes[0]
    return node
