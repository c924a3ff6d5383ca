"""Plain (VGG-style) networks as chains of layers, so that the same lesions can be done to them.

Veit et al. 2016, section 4.1: a layer of a plain network is deleted by replacing it with the identity. Where its
output has another shape than its input, the input is subsampled and its channels are zero-padded or truncated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pathlens.errors import NoResidualBlocksError
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain, Link
from pathlens.residual.discover import Addition, discover
from pathlens.residual.trace import Trace

aten = torch.ops.aten


def match_shape(x: Tensor, shape: tuple[int, ...], channels: int = 1) -> Tensor:
    """Fit a tensor to a shape without weights: subsample positions, zero-pad or truncate channels.

    Args:
        x: shape (N, C, ...).
        shape: wanted (C', ...), with as many dimensions after the batch as ``x``.
        channels: dimension of the channels; -1 where they are last, as of linear maps.

    Returns:
        A tensor of shape (N, *shape).
    """
    axis = channels % x.dim()
    for dimension in range(1, x.dim()):
        have, want = x.shape[dimension], shape[dimension - 1]
        if have != want and dimension != axis:
            x = x.index_select(dimension, torch.arange(want, device=x.device) * have // want)
    missing = shape[axis - 1] - x.shape[axis]
    if missing > 0:
        return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, missing])
    return x.narrow(axis, 0, shape[axis - 1]) if missing < 0 else x


def build_layers(trace: Trace, otherwise: NoResidualBlocksError) -> Chain:
    """Arrange the layers of a plain network into a chain.

    A layer is a convolution or linear map with the norm and activation that follow it. The last one, which makes the
    output, cannot be deleted and belongs to the head.

    Raises:
        NoResidualBlocksError: ``otherwise``, when the network is not a plain chain of layers.
    """
    discovery = discover(trace)
    input_dependent = discovery.input_dependent
    dominators = discovery.dominators
    learned = [
        n
        for n in trace.graph.nodes
        if n in input_dependent and n.target in ops.WEIGHTED and _has_weight(n, input_dependent)
    ]
    if (
        discovery.off_trunk
        or discovery.nested
        or any(node not in dominators for node in learned)
        or not _is_chain(input_dependent)
    ):
        raise otherwise
    if len(learned) < 2:
        raise otherwise
    links: list[Link] = []
    start: fx.Node | None = None
    for layer in learned[:-1]:
        position = dominators.index(layer)
        branch_point = dominators[position - 1]
        end = layer
        for node in dominators[position + 1 :]:
            if not ops.is_norm(node) and not ops.is_pointwise(node):
                break
            end = node
        links.append(
            _link(trace, start or branch_point, branch_point, end, dominators[position : dominators.index(end) + 1])
        )
        start = end
    return Chain(trace, discovery, tuple(links))


def _has_weight(node: fx.Node, input_dependent: set[fx.Node]) -> bool:
    return any(operand not in input_dependent for operand in node.all_input_nodes)


def _is_chain(input_dependent: set[fx.Node]) -> bool:
    return all(sum(operand in input_dependent for operand in node.all_input_nodes) <= 1 for node in input_dependent)


def _link(trace: Trace, start: fx.Node, branch_point: fx.Node, end: fx.Node, nodes: tuple[fx.Node, ...]) -> Link:
    before, after = trace.value(branch_point).shape[1:], trace.value(end).shape[1:]
    resized = tuple(before) != tuple(after)
    bypass = branch_point
    if resized:
        wanted = tuple(int(size) for size in after)
        channels = 1 if nodes[0].target in ops.CONVOLUTIONS else -1
        with trace.graph.inserting_after(branch_point):
            bypass = trace.graph.call_function(match_shape, (branch_point, wanted, channels))
        bypass.meta = dict(end.meta)
    addition = Addition(
        node=end,
        branch_point=branch_point,
        shortcut=bypass,
        terms=(end,),
        branch_nodes=nodes,
        shortcut_nodes=(),
        kind="layer-resized" if resized else "layer",
    )
    return Link(
        addition=addition,
        start=start,
        branch_point=branch_point,
        branch=end,
        shortcut=bypass,
        total=end,
        end=end,
        post=(),
        bypass=bypass,
    )
