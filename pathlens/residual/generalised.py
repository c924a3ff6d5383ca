"""One graph for every batch size, from those of two."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.residual import operations as ops
from pathlens.residual.aliases import Unsure
from pathlens.residual.sizes import STAND_IN, may_follow_batch

aten = torch.ops.aten


def generalise(small: fx.Graph, graph: fx.Graph, batch: int) -> None:
    """Let a graph that was recorded with ``STAND_IN`` examples compute its sizes from its input.

    Args:
        small: the same network, recorded with ``batch`` examples.
        graph: to be changed; a number in it that differs from ``small`` is a multiple of the batch size.
        batch: another batch size.

    Raises:
        Unsure: the two differ in anything else, or the batch is not the first dimension of what is added.
    """
    pairs = list(zip(small.nodes, graph.nodes, strict=False))
    if len(small.nodes) != len(graph.nodes):
        raise Unsure("other operations for another batch size")
    partner = dict(pairs)
    sizes = _Sizes(graph, batch)
    for one, other in pairs:
        if one.op != other.op or one.target != other.target:
            raise Unsure("other operations for another batch size")
        _check_values(one.meta.get("val"), other.meta.get("val"), batch)
        if other.target in ops.ADDITIONS and any(may_follow_batch(size) for size in other.meta["val"].shape[1:]):
            raise Unsure("an addition of tensors with the batch in another place than the first")
        args = sizes.merged(one.args, other.args, partner)
        kwargs = sizes.merged(one.kwargs, other.kwargs, partner)
        if sizes.used:
            other.args, other.kwargs = args, kwargs
            sizes.used = False


class _Sizes:
    """Nodes for the multiples of the batch size."""

    def __init__(self, graph: fx.Graph, batch: int) -> None:
        self._graph = graph
        self._batch = batch
        self._nodes: dict[int, fx.Node] = {}
        (*_, self._source) = [node for node in graph.nodes if node.op == "placeholder"]
        self.used = False

    def merged(self, one: Any, other: Any, partner: dict[fx.Node, fx.Node]) -> Any:
        """The arguments of a node, with sizes in the place of the numbers that differ."""
        if type(one) is not type(other):
            raise Unsure("other arguments for another batch size")
        if isinstance(one, fx.Node):
            if partner[one] is not other:
                raise Unsure("other operands for another batch size")
            return other
        if isinstance(one, (tuple, list)) and len(one) == len(other):
            return type(other)(self.merged(a, b, partner) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict) and list(one) == list(other):
            return {key: self.merged(one[key], other[key], partner) for key in one}
        if one == other or (one != one and other != other):  # noqa: PLR0124
            return other
        factor = _factor(one, other, self._batch)
        if factor is None:
            raise Unsure("a number that is no multiple of the batch size")
        self.used = True
        return self._node(factor)

    def _node(self, factor: int) -> fx.Node:
        node = self._nodes.get(factor)
        if node is None:
            if factor == 1:
                with self._graph.inserting_after(self._source):
                    node = self._graph.call_function(aten.sym_size.int, (self._source, 0))
            else:
                one = self._node(1)
                with self._graph.inserting_after(one):
                    node = self._graph.call_function(operator.mul, (one, factor))
            node.meta = {"val": STAND_IN * factor}
            self._nodes[factor] = node
        return node


def _factor(one: Any, other: Any, batch: int) -> int | None:
    """k, where two numbers are k times their batch size."""
    if type(one) is not int or type(other) is not int or other <= 0:
        return None
    factor, rest = divmod(other, STAND_IN)
    return factor if rest == 0 and one == factor * batch else None


def _check_values(one: Any, other: Any, batch: int) -> None:
    """Raise where sizes differ by anything but the batch, or where a fixed one could be taken for a multiple of it."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dim() != other.dim() or one.dtype != other.dtype:
            raise Unsure("another kind of tensor for another batch size")
        for a, b in zip(one.shape, other.shape, strict=True):
            if may_follow_batch(b) if a == b else _factor(a, b, batch) is None:
                raise Unsure("a size that is no multiple of the batch size")
