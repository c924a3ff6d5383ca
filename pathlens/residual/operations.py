"""Properties of ATen operations that finding and running residual blocks depends on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from pathlens.residual.simplify import batch_norm_update

aten = torch.ops.aten


def ancestors(ends: Iterable[fx.Node], stop: Callable[[fx.Node], bool] = lambda node: False) -> set[fx.Node]:
    """The nodes that some nodes are computed from, these included.

    Args:
        ends: where to begin.
        stop: whether to leave out a node, and what only it is computed from.
    """
    nodes: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in nodes and not stop(node):
            nodes.add(node)
            waiting += node.all_input_nodes
    return nodes


def _overloads(*names: str) -> frozenset[Any]:
    """All overloads of the named ATen operations that this torch has."""
    overloads: set[Any] = set()
    for name in names:
        packet = getattr(aten, name, None)
        if packet is not None:
            overloads.update(getattr(packet, overload) for overload in packet.overloads())
    return frozenset(overloads)


#: leave the values as they are
PRESERVING = _overloads(
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift_fresh_copy",
    "dropout",
    "feature_dropout",
    "to",
    "_to_copy",
    "_assert_tensor_metadata",
    "positive",
)

#: move, select, pad or average values: parameter-free and linear
_REARRANGING = _overloads(
    "reshape", "view", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze",
    "unsqueeze", "expand", "expand_as", "slice", "select", "narrow", "index", "index_select", "split",
    "split_with_sizes", "chunk", "unbind", "cat", "stack", "pad", "constant_pad_nd", "roll", "flip", "repeat",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d", "mean", "sum", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "neg",
    "zeros_like", "new_zeros", "im2col", "col2im",
)  # fmt: skip

#: make tensors that no gradient reaches
FRESH = _overloads(
    "zeros", "ones", "full", "empty", "arange", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "lift_fresh_copy",
)  # fmt: skip

CONVOLUTIONS = _overloads(
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)
TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
_PRODUCTS = _overloads("linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum", "embedding")

#: operations whose constant operand is a learned map, whether the module calls it parameter or buffer
WEIGHTED = CONVOLUTIONS | _PRODUCTS

NORMS = _overloads(
    "batch_norm", "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm",
    "_fused_rms_norm", "_native_batch_norm_legit",
) | {batch_norm_update}  # fmt: skip

ACTIVATIONS = _overloads(
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardtanh", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "rrelu", "softmax", "_softmax", "log_softmax", "clamp",
    "clamp_min", "threshold", "logsigmoid", "softsign",
)  # fmt: skip

_CONV2D_DEFAULTS: tuple[Any, ...] = (None, None, None, 1, 0, 1, 1)

#: products with a factor, if only one operand depends on the input
SCALINGS = _overloads("mul", "div")
ADDITIONS = frozenset({aten.add.Tensor, aten.sub.Tensor})
CONCATENATIONS = frozenset({aten.cat.default, aten.stack.default})
_AFFINE_SHIFTS = _overloads("add", "sub", "rsub")


def convolution_arguments(node: fx.Node) -> tuple[Any, ...]:
    """Input, weight, bias, stride, padding, dilation and groups of a two-dimensional convolution.

    Stride, padding and dilation are pairs.
    """
    given = (*node.args, *_CONV2D_DEFAULTS[len(node.args) :])
    x, weight, bias, *geometry, groups = given
    pairs = [list(item) if isinstance(item, (list, tuple)) else [item] for item in geometry]
    return x, weight, bias, *((pair[0], pair[-1]) for pair in pairs), groups


def is_linear(node: fx.Node, input_dependent: set[fx.Node]) -> bool:
    """Whether a node is an affine map of the operands that depend on the input.

    Batch norm counts as affine in both modes (it is per channel); layer and group norms do not.
    """
    target = node.target
    if target in PRESERVING or target in _REARRANGING or getattr(target, "__name__", "") == "getitem":
        return True
    if target in (aten.batch_norm.default, batch_norm_update):
        return True
    moving = [operand for operand in node.all_input_nodes if operand in input_dependent]
    if target in _AFFINE_SHIFTS:
        return True
    if target in WEIGHTED or target in SCALINGS:
        return len(moving) == 1 and not (
            target in SCALINGS and node.args[1] in input_dependent and "div" in str(target)
        )
    return False


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node is an element-wise activation."""
    return node.target in ACTIVATIONS and "softmax" not in str(node.target)


def is_scaling(node: fx.Node) -> bool:
    """Whether a node is a tensor times a fixed number, or divided by one."""
    return node.target in SCALINGS and len(node.args) == 2 and not isinstance(node.args[1], fx.Node) and not node.kwargs


def is_norm(node: fx.Node) -> bool:
    """Whether a node is a norm, or the output of a batch norm that also gives new statistics."""
    return node.target in NORMS or (_of_batch_norm(node) and node.args[1] in (0,))


def is_statistics(node: fx.Node) -> bool:
    """Whether a node is a new running mean or variance, which no other operation of the network uses."""
    return _of_batch_norm(node) and node.args[1] not in (0,)


def _of_batch_norm(node: fx.Node) -> bool:
    whole = node.args[0] if node.target is operator.getitem else None
    return isinstance(whole, fx.Node) and whole.target is batch_norm_update


def is_elementwise(node: fx.Node) -> bool:
    """Whether each element of the result comes from the same element of the operands."""
    return node.target in PRESERVING or torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_map(node: fx.Node) -> bool:
    """Whether a node is a linear map or convolution whose weight, its second operand, has output channels first."""
    return node.target is aten.linear.default or (node.target in CONVOLUTIONS and node.target not in TRANSPOSED)


def is_product(node: fx.Node) -> bool:
    """Whether a node is a product of matrices in another form than a linear map, such as ``x @ weight``."""
    return node.target in _PRODUCTS and not is_map(node) and short_name(node) != "embedding"


def is_rearranging(node: fx.Node) -> bool:
    """Whether a node moves, selects, pads or averages values without weights."""
    return node.target in _REARRANGING or node.target in PRESERVING


def short_name(node: fx.Node) -> str:
    """``relu`` for ``aten.relu.default``."""
    target = node.target
    name = getattr(target, "__name__", str(target))
    return name.split(".")[0].lstrip("_").removeprefix("native_").removesuffix("_update")


def shown_name(node: fx.Node) -> str:
    """The short name of a node for readers: of one result among several that of the operation that has them."""
    first = node.args[0] if node.target is operator.getitem else None
    return short_name(first if isinstance(first, fx.Node) else node)
