"""Concatenations as blocks: the new channels of a layer, beside all features before it (DenseNets, U-Nets).

A layer may be concatenated many times: in torchvision's DenseNet each layer takes a list of all features before it.
Its new channels are one tensor all the same. It is given a node of its own, through which every concatenation takes it,
and zeros of the same shape, which are what remains when it is deleted.
"""

from __future__ import annotations

import torch
from torch import fx

from pathlens.residual import operations as ops
from pathlens.residual.discover import (
    CONCATENATION,
    Addition,
    Discovery,
    concatenations,
    discover,
    immediate_dominators,
    same_size,
    tensor_before,
)
from pathlens.residual.trace import Trace

aten = torch.ops.aten


def concatenated(trace: Trace) -> tuple[Discovery, tuple[Addition, ...]]:
    """What :func:`.discover` finds, and the new channels of concatenations, in the order in which they are computed.

    Args:
        trace: the graph; nodes for the new channels and for zeros are put into it.
    """
    discovery = discover(trace)
    zeros = _separated(trace, discovery)
    if not zeros:
        return discovery, ()
    discovery = discover(trace)
    immediate = immediate_dominators(trace, discovery.order, discovery.input_dependent)
    takers: dict[fx.Node, fx.Node] = {}
    for taker, learned in concatenations(trace, discovery).items():
        for gate in zeros.keys() & set(learned):
            takers.setdefault(gate, taker)
    return discovery, tuple(
        _described(trace, discovery, immediate, gate, takers[gate], rest) for gate, rest in zeros.items()
    )


def _separated(trace: Trace, discovery: Discovery) -> dict[fx.Node, fx.Node]:
    """A node for the new channels of each layer, by which all concatenations take them -> zeros of their shape."""
    immediate = immediate_dominators(trace, discovery.order, discovery.input_dependent)
    taken: dict[fx.Node, fx.Node] = {}
    for node, learned in concatenations(trace, discovery).items():
        for new in learned:
            if _is_of_channels(trace, node, new):
                taken.setdefault(new, tensor_before(trace, immediate, node))
    zeros: dict[fx.Node, fx.Node] = {}
    for new, branch_point in sorted(taken.items()):
        takers = [node for node in new.users if node.target in ops.CONCATENATIONS]
        with trace.graph.inserting_after(new):
            gate = trace.graph.call_function(aten.alias.default, (new,))
        gate.meta = dict(new.meta)
        with trace.graph.inserting_before(gate):
            zeros[gate] = _zeros(trace, new, branch_point)
        for node in takers:
            node.replace_input_with(new, gate)
    return zeros


def _is_of_channels(trace: Trace, node: fx.Node, new: fx.Node) -> bool:
    """Whether a concatenation is along another dimension than the batch, which comes first and is not folded."""
    place = node.args[1] if len(node.args) > 1 else 0
    first, *others = trace.value(new).shape
    if place == 0 or any(trace.follows_batch(size) for size in others):
        return False
    return same_size(first, trace.value(trace.source).shape[0])


def _zeros(trace: Trace, new: fx.Node, branch_point: fx.Node) -> fx.Node:
    """Zeros shaped like the new channels, for which these need not be computed."""
    value = trace.value(new)
    batch = trace.graph.call_function(aten.sym_size.int, (branch_point, 0))
    batch.meta = {"val": trace.value(branch_point).shape[0]}
    zeros = trace.graph.call_function(
        aten.new_zeros.default, (branch_point, [batch, *map(int, value.shape[1:])]), {"dtype": value.dtype}
    )
    zeros.meta = dict(new.meta)
    return zeros


def _described(
    trace: Trace,
    discovery: Discovery,
    immediate: dict[fx.Node, fx.Node],
    gate: fx.Node,
    taker: fx.Node,
    zeros: fx.Node,
) -> Addition:
    """The block of some new channels, of which ``taker`` is the first concatenation."""
    (new,) = gate.all_input_nodes
    earlier = {immediate[taker], *(operand for operand in taker.all_input_nodes if operand is not gate)}
    # what is concatenated may also be used as it is
    earlier |= {operand.all_input_nodes[0] for operand in earlier if operand.target is aten.alias.default}

    def is_earlier(node: fx.Node) -> bool:
        moving = [operand for operand in node.all_input_nodes if operand in discovery.input_dependent]
        put_together = node.target in ops.CONCATENATIONS and earlier.issuperset(moving)
        return node in earlier or put_together or node not in discovery.input_dependent

    branch = ops.ancestors([new], is_earlier)
    start = tensor_before(trace, immediate, gate)
    while start in branch:
        start = tensor_before(trace, immediate, start)
    return Addition(
        node=gate,
        branch_point=start,
        shortcut=zeros,
        terms=(new,),
        branch_nodes=tuple(sorted(branch)),
        shortcut_nodes=(),
        kind=CONCATENATION,
    )
