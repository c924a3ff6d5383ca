"""A prepared network whose blocks are no chain: each route is one graph with some sums replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain
from pathlens.residual.routes import Part, Route
from pathlens.residual.segments import Segment, cut

aten = torch.ops.aten

Instead = Callable[[Part, int], Tensor]
"""(How a branch is replaced, block) -> its mean, shape (1, ...), or for each image the one whose branch it gets."""


class Rewritten:
    """The intact network as one graph, which is rewritten for every route.

    What a route leaves out is not computed.

    Args:
        chain: the network and its blocks.
        lower: prepares a piece.
    """

    def __init__(self, chain: Chain, lower: Callable[[Segment], fx.GraphModule]) -> None:
        self._chain = chain
        parts = (n for link in chain.links for n in (link.total, link.branch, link.shortcut, link.bypass))
        ends = sorted({chain.trace.main, *parts})
        self._places = {node: place for place, node in enumerate(ends)}
        self._module = lower(cut(chain.trace, chain.trace.source, ends))

    def route(self, route: Route, instead: Instead | None) -> Callable[[Tensor], Tensor]:
        """From a prepared batch to the logits.

        Args:
            route: what runs of each block.
            instead: of branches that are replaced, if there are any.
        """
        graph, copies = self._copied()
        last = graph.output((copies[self._chain.trace.main],))
        links = [(part, block, self._chain.links[block]) for part, block in route if part is not Part.BLOCK]
        # from the last sum to the first, because what remains of one may be another
        for part, block, link in sorted(links, key=lambda item: self._places[item[2].total], reverse=True):
            total = copies[link.total]
            if part in (Part.MEAN, Part.RESAMPLED):
                assert instead is not None
                given: fx.Node | Tensor = instead(part, block)
                with graph.inserting_before(total):
                    if part is Part.RESAMPLED:
                        given = graph.call_function(aten.index_select.default, (copies[link.branch], 0, given))
                    rest = graph.call_function(aten.add.Tensor, (copies[link.shortcut], given))
            else:
                rest = copies[link.remainder(part)]
            total.replace_all_uses_with(rest)
        call = self._call(graph, last)
        return lambda x: call(x)[0]

    def branches(self, blocks: Sequence[int], take: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Sequence[Tensor]]:
        """From a prepared batch to what is taken of some branches of the intact network.

        Args:
            blocks: which.
            take: what is kept of a branch, which itself is forgotten as soon as nothing needs it.
        """
        graph, copies = self._copied()
        taken = [graph.call_function(take, (copies[self._chain.links[block].branch],)) for block in blocks]
        return self._call(graph, graph.output(tuple(taken)))

    def _copied(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """A copy of the graph without its output, and where the parts of the blocks are in it."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self._module.graph, copies)
        (output,) = [node for node in self._module.graph.nodes if node.op == "output"]
        ends: Any = output.args[0]
        return graph, {node: copies[ends[place]] for node, place in self._places.items()}

    def _call(self, graph: fx.Graph, last: fx.Node) -> Callable[[Tensor], Any]:
        """A graph as a function, without what its output does not need."""
        needed = ops.ancestors([last])
        for node in reversed(graph.nodes):
            if node not in needed and node.op != "placeholder":
                graph.erase_node(node)
        return lambda x: fx.Interpreter(self._module, graph=graph).run(x)
