"""Parallel branches of a block: what the branch is a sum of."""

from __future__ import annotations

import torch
from torch import fx

from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain

aten = torch.ops.aten

_RANDOM = ("aten.rand.", "aten.rand_like.")


def parallel_branches(chain: Chain, index: int) -> tuple[tuple[fx.Node, float], ...]:
    """The branches that a block adds up, each with the number that it is multiplied by before it enters the sum.

    Args:
        chain: the network.
        index: of the block.

    Returns:
        Two, where the branch is a sum of two, neither of which is computed from the other and each with parameters that
        the other one does not use; else the whole branch alone, times 1.
    """
    link = chain.links[index]
    terms = _terms(link.branch, 1.0, chain.discovery.input_dependent)
    if len(terms) == 2:
        first, second = (ops.ancestors([node], lambda item: item is link.branch_point) for node, _ in terms)
        ours, theirs = (
            {node for node in nodes if chain.trace.tensors.get(node.name, ("",))[0] == "parameter"}
            for nodes in (first, second)
        )
        if terms[0][0] not in second and terms[1][0] not in first and ours - theirs and theirs - ours:
            return terms
    return ((link.branch, 1.0),)


def draws_at_random(chain: Chain, index: int) -> bool:
    """Whether a block draws numbers itself, as shake-shake networks do in train mode."""
    link = chain.links[index]
    inside = ops.ancestors([link.branch], lambda node: node is link.branch_point)
    return any(str(node.target).startswith(_RANDOM) for node in inside)


def _terms(node: fx.Node, factor: float, input_dependent: set[fx.Node]) -> tuple[tuple[fx.Node, float], ...]:
    """What a node is a weighted sum of."""
    operands = node.args[:2]
    number = next((item for item in operands if isinstance(item, int | float)), None)
    if node.target is aten.mul.Tensor and number is not None:
        (other,) = (item for item in operands if isinstance(item, fx.Node))
        return _terms(other, factor * number, input_dependent)
    if node.target is aten.div.Tensor and number is operands[1] and isinstance(operands[0], fx.Node) and number:
        return _terms(operands[0], factor / number, input_dependent)
    if node.target in ops.ADDITIONS and all(item in input_dependent for item in operands):
        first, second = operands
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        alpha = node.kwargs.get("alpha", 1)
        assert isinstance(alpha, int | float)
        sign = -alpha if node.target is aten.sub.Tensor else alpha
        return (*_terms(first, factor, input_dependent), *_terms(second, factor * sign, input_dependent))
    return ((node, factor),)
