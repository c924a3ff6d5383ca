"""Undo what functionalisation spelled out, so that operations with fast kernels and gradients stay whole.

Everything that adds to a tensor becomes a plain addition: ``addcmul``, ``lerp`` and writes into a slice.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.residual.sizes import may_follow_batch

aten = torch.ops.aten


def batch_norm_update(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with batch statistics: the output, and the updated running mean and variance as new tensors."""
    mean, variance = mean.detach().clone(), variance.detach().clone()
    out = torch.batch_norm(x, weight, bias, mean, variance, True, momentum, eps, torch.backends.cudnn.enabled)
    return out, mean, variance


#: batch norms that return more than their output, with running statistics that they update or without any; their last
#: argument is epsilon
_OF_THE_BATCH = frozenset({batch_norm_update, aten._native_batch_norm_legit.no_stats})


def gives_statistics(node: fx.Node) -> bool:
    """Whether a node is a batch norm that returns statistics of the batch behind its output; epsilon comes last."""
    return node.target in _OF_THE_BATCH


def uses_the_batch(node: fx.Node) -> bool:
    """Whether a node is a batch norm by the statistics of what it is given."""
    args: Any = node.args
    is_plain = node.target is aten.batch_norm.default
    return gives_statistics(node) or (is_plain and bool(args[5] or args[3] is None))


def statistics_after_both(earlier: Tensor, later: Tensor, origin: Tensor, momentum: float) -> Tensor:
    """Running statistics after two updates of one batch norm, each of which started from ``origin``."""
    return later + (1 - momentum) * (earlier - origin)


def simplify(graph: fx.Graph) -> None:
    """Rewrite a functional graph in place into fewer and larger operations with the same results."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._native_batch_norm_legit_no_training.default:
            _collapse_batch_norm_eval(graph, node)
        elif node.target is aten._native_batch_norm_legit_functional.default:
            x, weight, bias, mean, variance, _training, momentum, eps = node.args
            node.target = batch_norm_update
            node.args = (x, weight, bias, mean, variance, momentum, eps)
            for user in list(node.users):
                position = user.args[1]
                # results 1 and 2 (saved mean and inverse deviation) serve only the backward pass
                if position >= 3:
                    user.args = (node, position - 2)
            _part_statistics(graph, node)
        elif node.target is aten.native_dropout.default:
            _collapse_first(graph, node, aten.dropout.default)
        elif node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.view.default:
            # a view fails on channels-last activations; reshape gives the same values
            node.target = aten.reshape.default
        elif node.target is aten.add.Tensor and node.args[1] == 0 and _same_kind(node, node.args[0]):
            # the zero that Python's sum() starts from; of a comparison it makes integers
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.addcmul.default:
            _split_addcmul(graph, node)
        elif node.target in (aten.lerp.Scalar, aten.lerp.Tensor):
            _split_lerp(graph, node)
        elif node.target is aten.copy.default and _same_kind(*node.args[:2]):
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
        elif node.target in (aten.slice.Tensor, aten.slice_scatter.default):
            _collapse_slice(graph, node)
    for node in list(graph.nodes):
        if node.target is aten.slice_scatter.default:
            _pad_instead(graph, node)
        elif node.target is aten.cat.default:
            _pad_instead_of_parts(graph, node)
    graph.lint()


def _same_kind(node: Any, other: Any) -> bool:
    if not isinstance(other, fx.Node):
        return False
    a, b = node.meta["val"], other.meta["val"]
    return a.dtype == b.dtype and tuple(map(str, a.shape)) == tuple(map(str, b.shape))


def _part_statistics(graph: fx.Graph, node: fx.Node) -> None:
    """Let a batch norm that runs several times in one pass start each time from the statistics before the pass.

    Otherwise its later runs would depend on the earlier ones, and no block between them could be run by itself.
    """
    for position, result in ((3, 1), (4, 2)):
        before: Any = node.args[position]
        earlier = before.args[1] if before.target is statistics_after_both else before
        # those of an instance norm are repeated for each example, and no batch norm's before it
        if earlier.target is not operator.getitem or earlier.args[0].target is not node.target:
            continue
        origin = earlier.args[0].args[position]
        node.args = (*node.args[:position], origin, *node.args[position + 1 :])
        for own in [user for user in node.users if user.args[1] == result]:
            users = list(own.users)
            with graph.inserting_after(own):
                both = graph.call_function(statistics_after_both, (before, own, origin, node.args[5]))
            both.meta = dict(own.meta)
            for user in users:
                user.replace_input_with(own, both)


def _collapse_batch_norm_eval(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, eps = node.args
    with graph.inserting_before(node):
        whole = graph.call_function(
            aten.batch_norm.default,
            (x, weight, bias, mean, variance, False, momentum, eps, torch.backends.cudnn.enabled),
        )
    _replace_first(graph, node, whole)


def _collapse_first(graph: fx.Graph, node: fx.Node, target: Any) -> None:
    with graph.inserting_before(node):
        whole = graph.call_function(target, node.args)
    _replace_first(graph, node, whole)


def _replace_first(graph: fx.Graph, node: fx.Node, whole: fx.Node) -> None:
    """Replace a tuple-valued node, of which only the first element is used, by a tensor-valued one."""
    whole.meta = dict(node.meta)
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        whole.meta["val"] = value[0]
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(whole)
        if not user.users:
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)


def _split_addcmul(graph: fx.Graph, node: fx.Node) -> None:
    """``x + value * a * b`` as an addition, which is what a layer-scaled residual block is."""
    x, a, b = node.args
    value = node.kwargs.get("value", 1)
    with graph.inserting_before(node):
        product = graph.call_function(aten.mul.Tensor, (a, b))
        if value != 1:
            product.meta = dict(node.meta)
            product = graph.call_function(aten.mul.Tensor, (product, value))
        total = graph.call_function(aten.add.Tensor, (x, product))
    product.meta = dict(node.meta)
    total.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _split_lerp(graph: fx.Graph, node: fx.Node) -> None:
    """``lerp(x, y, w)`` as the addition ``x (1 - w) + y w``."""
    x, y, weight = node.args
    with graph.inserting_before(node):
        if isinstance(weight, fx.Node):
            rest: Any = graph.call_function(aten.rsub.Scalar, (weight, 1))
            rest.meta = {**node.meta, "val": weight.meta["val"]}
        else:
            rest = 1 - weight  # type: ignore[operator]
        parts = [graph.call_function(aten.mul.Tensor, pair) for pair in ((x, rest), (y, weight))]
        total = graph.call_function(aten.add.Tensor, tuple(parts))
    for new in (*parts, total):
        new.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _pad_instead(graph: fx.Graph, node: fx.Node) -> None:
    """``out[:, :c] += x`` as ``out + pad(x)``, the padding shortcut that it is."""
    base, total = node.args[:2]
    if isinstance(base, fx.Node) and isinstance(total, fx.Node) and _reads(total.args[0], base):
        read: Any = total.args[0]
        if _window(read, 1) == _window(node, 2):
            _add_padded(graph, node, base, total)


def _pad_instead_of_parts(graph: fx.Graph, node: fx.Node) -> None:
    """``cat([out[:, :c] + x, out[:, c:]])`` as ``out + pad(x)``."""
    parts: Any = node.args[0]
    sums = [part for part in parts if part.target is aten.add.Tensor]
    reads = [part.args[0] if part in sums else part for part in parts]
    if (
        len(sums) != 1
        or len(parts) < 2
        or not isinstance(reads[0], fx.Node)
        or reads[0].target is not aten.slice.Tensor
    ):
        return
    base: Any = reads[0].args[0]
    size, position = base.meta["val"].shape, 0
    along: Any = node.args[1] if len(node.args) > 1 else 0
    for read in reads:
        if not _reads(read, base):
            return
        dim, start, end, step = _window(read, 1)
        if start != position or step != 1 or not isinstance(end, int) or dim != along % len(size):
            return
        position = end
    if dim != 0 and not may_follow_batch(size[dim]) and position >= size[dim]:
        _add_padded(graph, node, base, sums[0])


def _reads(node: Any, base: fx.Node) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.slice.Tensor and node.args[0] is base


def _add_padded(graph: fx.Graph, node: fx.Node, base: fx.Node, total: fx.Node) -> None:
    """Put ``base + pad(x)`` in the place of a node that has the sum of a window of ``base`` and ``x`` written in."""
    if total.target is not aten.add.Tensor:
        return
    read: Any
    x: Any
    read, x = total.args[:2]
    dim, start, end, step = _window(read, 1)
    shape = base.meta["val"].shape
    # only a window of channels (not of the batch), and no broadcasting
    if not isinstance(x, fx.Node) or not _same_kind(read, x) or dim == 0 or step != 1 or set(total.users) != {node}:
        return
    if not isinstance(end, int) or may_follow_batch(shape[dim]) or start < 0 or end < 0:
        return
    widths = [0, 0] * (len(shape) - dim - 1) + [start, shape[dim] - min(end, shape[dim])]
    with graph.inserting_before(node):
        padded = graph.call_function(aten.constant_pad_nd.default, (x, widths, 0))
        whole = graph.call_function(aten.add.Tensor, (base, padded), dict(total.kwargs))
    # with the metadata of the original addition, so that it belongs to the same module
    padded.meta, whole.meta = dict(node.meta), {**total.meta, "val": node.meta["val"]}
    node.replace_all_uses_with(whole)
    for unused in (node, total, read):
        if not unused.users:
            graph.erase_node(unused)


def _collapse_slice(graph: fx.Graph, node: fx.Node) -> None:
    """Drop slices of everything, and read what was just written: how ``out[:, :c] += x`` looks when functional."""
    given = 1 if node.target is aten.slice.Tensor else 2
    base, window = node.args[0], _window(node, given)
    assert isinstance(base, fx.Node)
    same: object = None
    if _is_whole(base, window):
        same = node.args[given - 1]
    elif base.target is aten.slice_scatter.default and _window(base, 2) == window:
        if given == 1:
            same = base.args[1]
        elif base.args[1] is node.args[1]:
            same = base
    if isinstance(same, fx.Node):
        node.replace_all_uses_with(same)
        graph.erase_node(node)


def _window(node: fx.Node, skip: int) -> tuple[Any, ...]:
    given = list(node.args[skip:]) + [None] * 4
    dim, start, end, step = (node.kwargs.get(name, given[i]) for i, name in enumerate(("dim", "start", "end", "step")))
    base: Any = node.args[0]
    return ((dim or 0) % base.meta["val"].dim(), start or 0, end, step or 1)


def _is_whole(base: fx.Node, window: tuple[Any, ...]) -> bool:
    dim, start, end, step = window
    if start != 0 or step != 1:
        return False
    if end is None or (isinstance(end, int) and end == sys.maxsize):
        return True
    size = base.meta["val"].shape[dim]
    return isinstance(end, int) and not may_follow_batch(size) and end >= size
