"""How many paths through any graph take how many branches of its blocks."""

from __future__ import annotations

import networkx as nx
from torch import fx

from pathlens.graph.collapse import collapse
from pathlens.graph.counting import count_paths
from pathlens.residual.chain import Chain
from pathlens.residual.polynomials import concatenation_edges
from pathlens.residual.routes import Part, Route


def count_choices(chain: Chain, route: Route, start: fx.Node, concat: bool) -> list[int]:
    """Numbers of paths from a tensor to the output that take 0, 1, ... branches, exact integers of any size.

    Ways part at everything that is a node of the dag of :func:`pathlens.unravel`, and the length of a path is the
    number of blocks whose branch it takes, as for :class:`pathlens.residual.polynomials.GraphLinearisation`.

    Args:
        chain: the network and its blocks.
        route: what is left of each block.
        start: the input, or where a block begins.
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
    while start not in graph:  # copies and conversions are no nodes of their own
        start = start.all_input_nodes[0]
    return count_paths(graph, start, parts[-1].end)
