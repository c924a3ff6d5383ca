"""How many paths through any graph take how many branches of its blocks, and single ones of them."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import numpy as np
from torch import fx

from pathlens.graph.collapse import Part, collapse
from pathlens.graph.counting import lengths_from
from pathlens.paths import Paths
from pathlens.residual.chain import Chain
from pathlens.residual.flow import Ways, concatenation_edges
from pathlens.residual.routes import Part as Remains
from pathlens.residual.routes import Route


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
    graph, end = _graph(chain, route, concat)
    # backwards, from the output, so that one pass counts from every tensor
    lengths = lengths_from(graph.reverse(copy=False), end)
    return {start: lengths[_in(graph, start)] for start in starts}


class GraphPaths(Paths):
    """Paths from a tensor to the output, each as the numbers of the ways (:func:`ways`) that it takes.

    Args:
        chain: the network and its blocks.
        route: what is left of each block.
        start: the input, or where a block begins.
        concat: whether paths choose at concatenations too.
        shortest: length of the shortest path.
    """

    def __init__(self, chain: Chain, route: Route, start: fx.Node, concat: bool, shortest: int) -> None:
        self._graph, self._end = _graph(chain, route, concat)
        self._start, self._shortest = _in(self._graph, start), shortest
        self._lengths = lengths_from(self._graph, self._start)

    def count(self, longer: int) -> int:
        """See :class:`pathlens.paths.Paths`."""
        return _at(self._lengths[self._end], self._shortest + longer)

    def every(self, longer: int) -> list[frozenset[int]]:
        """See :class:`pathlens.paths.Paths`."""
        return [self._path(longer, number) for number in range(self.count(longer))]

    def sample(self, longer: int, count: int, rng: np.random.Generator) -> list[frozenset[int]]:
        """See :class:`pathlens.paths.Paths`."""
        return [self._path(longer, _below(self.count(longer), rng)) for _ in range(count)]

    def _path(self, longer: int, number: int) -> frozenset[int]:
        """One of the paths of a length, numbered from 0: back from the output, by how many paths lead to each node."""
        node, length, taken = self._end, self._shortest + longer, set()
        while node != self._start:
            length -= bool(self._graph.nodes[node].get("is_branch"))
            for before in self._graph.predecessors(node):
                paths = _at(self._lengths[before], length)
                if number < paths:
                    break
                number -= paths
            taken.add(self._graph.edges[before, node].get("way"))
            node = before
        return frozenset(taken - {None})


def _at(counts: list[int], length: int) -> int:
    return counts[length] if 0 <= length < len(counts) else 0


def _below(number: int, rng: np.random.Generator) -> int:
    """An integer from 0 to below a number of any size, all equally likely."""
    bits = number.bit_length()
    while True:
        drawn = int.from_bytes(rng.bytes(-(-bits // 8)), "little") % (1 << bits)
        if drawn < number:
            return drawn


def ways(chain: Chain) -> Ways:
    """The ways that paths may take where they part, by the operation and its operand.

    Those are the tensors that meet at additions, concatenations and joints of the collapsed graph. One is numbered
    alike in every trace of a network.
    """
    return chain.once(_ways)[0]


def number_of_ways(chain: Chain) -> int:
    """How many there are."""
    return len(chain.once(_ways)[1])


def _ways(chain: Chain) -> tuple[Ways, dict[tuple[fx.Node, fx.Node], int]]:
    """Numbers of the ways by operation and operand, and by what is joined and where it comes from."""
    links = {link.total: link for link in chain.links}
    edges: dict[tuple[fx.Node, fx.Node], int] = {}
    numbers: dict[tuple[fx.Node, fx.Node], int] = {}
    for part in chain.once(collapse):
        for source in dict.fromkeys(part.entering.values()):
            numbers[part.end, source] = len(numbers)
        link = links.get(part.end)
        # a sum may be made of others, and what remains of a block may be put together by operations of its own
        waiting = [part.end, *((link.branch, link.shortcut) if link else ())]
        while waiting:
            node = waiting.pop()
            for operand in node.all_input_nodes if node not in part.entering else ():
                if operand in part.entering:
                    edges[node, operand] = numbers[part.end, part.entering[operand]]
                elif part.kind == "add":
                    waiting.append(operand)
    return edges, numbers


def _graph(chain: Chain, route: Route, concat: bool) -> tuple[nx.DiGraph, fx.Node]:
    """The collapsed graph, with a node of its own for each branch and the number of each way; and its end."""
    blocks = {chain.links[block].total: (remains, chain.links[block].addition.terms) for remains, block in route}
    joined = concatenation_edges(chain) if concat else set()
    numbers = chain.once(_ways)[1]
    graph = nx.DiGraph()
    parts: list[Part] = chain.once(collapse)
    for part in parts:
        graph.add_node(part.end)
        remains, terms = blocks.get(part.end, (Remains.BLOCK, ()))
        for operand, source in (part.entering or {source: source for source in part.sources}).items():
            is_branch = operand in terms or (part.end, operand) in joined
            if remains is (Remains.SHORTCUT if is_branch else Remains.BRANCH):
                continue
            way = numbers.get((part.end, source))
            if is_branch:
                graph.add_node((part.end, source), is_branch=True)
                graph.add_edge(source, (part.end, source))
                graph.add_edge((part.end, source), part.end, way=way)
            else:
                graph.add_edge(source, part.end, way=way)
    return graph, parts[-1].end


def _in(graph: nx.DiGraph, node: fx.Node) -> fx.Node:
    """A tensor's node; copies and conversions are no nodes of their own."""
    while node not in graph:
        node = node.all_input_nodes[0]
    return node
