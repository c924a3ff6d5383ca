r"""Vector-Jacobian products of a piece of a network for a whole stack of cotangents.

A piece is run forward once, at its inputs; then any number of cotangents is carried back through it together. Two ways:

* :class:`SequentialVJP` asks autograd for one cotangent after the other. It works for every operation.
* :class:`BatchedVJP` handles pieces made of convolutions, batch norms in eval mode, activations, additions and
  parameter-free rearrangements. The derivative of such a piece is a chain of convolutions and element-wise factors, so
  that a stack of K cotangents for N examples is one batch of K N images, with batch norms folded into the convolutions.

Both are linearised at the values of the model's own forward pass.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.grad import conv2d_input

from pathlens.residual import engines
from pathlens.residual import operations as ops
from pathlens.residual.segments import Segment
from pathlens.residual.trace import batch_norm_update

aten = torch.ops.aten


class VJP:
    """The transposed derivative of a piece at its inputs.

    Attributes:
        output: what the piece gave, shape (N, ...).
        passes: whether there is a derivative at all; there is none where the piece makes integers of its input.
    """

    output: Tensor
    passes: bool = True

    def __call__(self, cotangents: Tensor) -> Tensor:
        """J^T v for a stack of v.

        Args:
            cotangents: shape (K, N, ...) with the output's shape after K.

        Returns:
            Shape (K, N, ...) with the input's shape after K.
        """
        raise NotImplementedError


class Identity(VJP):
    """A piece that does nothing."""

    def __init__(self, x: Tensor) -> None:
        self.output = x

    def __call__(self, cotangents: Tensor) -> Tensor:
        """The cotangents themselves."""
        return cotangents


class SequentialVJP(VJP):
    """One cotangent after the other through autograd's graph of the piece."""

    def __init__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.enable_grad():
            self._input = x.detach().requires_grad_()
            self._result = call(self._input)
        self.output = self._result.detach()
        self.passes = _depends(self._result, self._input)

    def __call__(self, cotangents: Tensor) -> Tensor:
        """See :class:`VJP`."""
        if not self.passes:
            return cotangents.new_zeros(cotangents.shape[:1] + self._input.shape)
        back = torch.empty(cotangents.shape[:1] + self._input.shape, dtype=self._input.dtype, device=self._input.device)
        for index, cotangent in enumerate(cotangents):
            (grad,) = torch.autograd.grad(
                self._result, self._input, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            back[index] = grad
        return back


def _depends(result: Tensor, start: Tensor) -> bool:
    """Whether autograd's graph leads from a result back to a leaf; parameters that learn are other leaves."""
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is start:
            return True
        waiting += [before for before, _ in node.next_functions]
    return result is start


def linearise(segment: Segment, x: Tensor, stacked: bool = True) -> VJP:
    """Run a piece at ``x`` and return its adjoint.

    Args:
        segment: one input, one output.
        x: where to linearise, shape (N, ...).
        stacked: use :class:`BatchedVJP` where the piece allows it.
    """
    graph = segment.graph
    if not any(node.op == "call_function" for node in graph.nodes):
        return Identity(x)
    if stacked and is_stackable(graph):
        return BatchedVJP(segment, x)
    return SequentialVJP(lambda value: segment(value)[0], x)


def is_stackable(graph: fx.Graph) -> bool:
    """Whether every operation on the way is one that :class:`BatchedVJP` knows."""
    start = next(iter(graph.nodes))
    input_dependent = {start}
    for node in graph.nodes:
        if node.op != "call_function" or not any(operand in input_dependent for operand in node.all_input_nodes):
            continue
        if node.target is aten.sym_size.int:
            return False
        input_dependent.add(node)
        if not _is_known(node, input_dependent):
            return False
    return True


def _is_known(node: fx.Node, input_dependent: set[fx.Node]) -> bool:
    moving = [operand for operand in node.all_input_nodes if operand in input_dependent]
    target = node.target
    if target in (aten.add.Tensor, aten.sub.Tensor):
        # no broadcasting, because the cotangent of a broadcast operand would have to be summed
        return not node.kwargs and all(_shape(operand) == _shape(node) for operand in moving)
    if len(moving) != 1 or node.args[0] is not moving[0]:
        return False
    if target is batch_norm_update or (target is operator.getitem and moving[0].target is batch_norm_update):
        return bool(target is batch_norm_update or node.args[1] == 0)
    if target is aten.batch_norm.default:
        return bool(not node.args[5] and node.args[3] is not None)
    if target is aten.mul.Tensor:
        return not isinstance(node.args[1], fx.Node)
    if target is aten.dropout.default:
        return not node.args[2]
    if target is aten.slice.Tensor and (len(node.args) < 2 or node.args[1] in (0, -len(_shape(node)))):
        return False  # a slice along the batch mixes examples
    if ops.is_pointwise(node):
        return len(node.all_input_nodes) == 1 and target is not aten.rrelu.default
    return target in _KNOWN


def _shape(node: fx.Node) -> list[str]:
    """Sizes of a value; as text, so that comparing symbolic ones adds no guard."""
    return [str(size) for size in node.meta["val"].shape]


#: linear, parameter-free, and the same for every example of a batch
_REARRANGING = (aten.pad.default, aten.constant_pad_nd.default, aten.avg_pool2d.default, aten.clone.default)
_KNOWN = frozenset({aten.conv2d.default, aten.slice.Tensor, *_REARRANGING})


class BatchedVJP(VJP):
    """All cotangents at once, as one large batch of images."""

    def __init__(self, segment: Segment, x: Tensor) -> None:
        graph = segment.graph
        self._start, *tensors = [node for node in graph.nodes if node.op == "placeholder"]
        values: dict[fx.Node, Any] = {self._start: x}
        values.update(zip(tensors, (t.detach() for t in segment.trace.fetch(segment.tensor_names)), strict=True))
        (output,) = [node for node in graph.nodes if node.op == "output"]
        (self._end,) = output.args[0]
        with torch.no_grad():
            for node in graph.nodes:
                if node.op == "call_function":
                    values[node] = node.target(
                        *fx.node.map_arg(node.args, values.__getitem__),
                        **fx.node.map_arg(dict(node.kwargs), values.__getitem__),
                    )
            self._steps = _Compiler(graph, values, self._start).steps
        self.output = values[self._end]

    def __call__(self, cotangents: Tensor) -> Tensor:
        """See :class:`VJP`."""
        stack = cotangents.shape[0]
        flowing: dict[fx.Node, Tensor] = {self._end: cotangents.flatten(0, 1)}
        with torch.no_grad():
            for node, hand_overs in self._steps:
                value = flowing.pop(node, None)
                if value is None:
                    continue
                for source, step in hand_overs:
                    back = step(value, stack)
                    flowing[source] = flowing[source] + back if source in flowing else back
        return flowing[self._start].unflatten(0, (stack, -1))


#: cotangent of a node's output (K N, ...) and K -> cotangent of one of its inputs
Step = Callable[[Tensor, int], Tensor]


class _Compiler:
    """Turns a piece into steps in backward order: a node, and for each operand how its cotangent is made."""

    def __init__(self, graph: fx.Graph, values: dict[fx.Node, Any], start: fx.Node) -> None:
        self._values = values
        self._dependent = {start}
        self.steps: list[tuple[fx.Node, list[tuple[fx.Node, Step]]]] = []
        for node in graph.nodes:
            if node.op == "call_function" and any(operand in self._dependent for operand in node.all_input_nodes):
                self._dependent.add(node)
        absorbed: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            if node.op == "call_function" and node in self._dependent and node not in absorbed:
                self.steps.append((node, self._compile(node, absorbed)))

    def _compile(self, node: fx.Node, absorbed: set[fx.Node]) -> list[tuple[fx.Node, Step]]:
        if node.target in (aten.add.Tensor, aten.sub.Tensor):
            signs = (_same, _negated if node.target is aten.sub.Tensor else _same)
            operands: list[Any] = list(node.args[:2])
            return [(n, sign) for n, sign in zip(operands, signs, strict=True) if n in self._dependent]
        source: Any = node.args[0]
        if node.target is aten.conv2d.default:
            return [(source, self._convolution(node, None))]
        if node.target is aten.batch_norm.default:
            if source.target is aten.conv2d.default and len(source.users) == 1:
                absorbed.add(source)
                return [(source.args[0], self._convolution(source, self._scale(node)))]
            return [(source, _factor(_per_channel(self._scale(node), self._values[node])))]
        if ops.is_pointwise(node):
            slope = _slope(node, self._values[source])
            if source.target is aten.batch_norm.default and len(source.users) == 1 and not _follows_convolution(source):
                # pre-activation: one factor for batch norm and activation together
                absorbed.add(source)
                return [(source.args[0], _factor(slope * _per_channel(self._scale(source), slope)))]
            return [(source, _factor(slope))]
        if node.target is operator.getitem:
            return [(source, _same)]
        if node.target is batch_norm_update:
            return [(source, self._batch_statistics(node))]
        if node.target is aten.mul.Tensor:
            number: Any = node.args[1]
            return [(source, lambda v, _stack: v * number)]
        if node.target in (aten.clone.default, aten.dropout.default):
            return [(source, _same)]
        return [(source, self._rearrangement(node, source))]

    def _scale(self, norm: fx.Node) -> Tensor:
        """What batch norm in eval mode multiplies each channel by."""
        _, weight, _, _, variance, _, _, eps = norm.args[:8]
        scale = torch.rsqrt(self._values[variance].double() + float(eps))  # type: ignore[index,arg-type]
        return scale if weight is None else scale * self._values[weight].double()  # type: ignore[index]

    def _convolution(self, node: fx.Node, scale: Tensor | None) -> Step:
        x, weight, _, stride, padding, dilation, groups = ops.convolution_arguments(node)
        kernel: Tensor = self._values[weight]
        if scale is not None:
            kernel = (kernel.double() * scale[:, None, None, None]).to(kernel.dtype)
        shape = tuple(self._values[x].shape[1:])
        return input_gradient(kernel, shape, stride, padding, dilation, groups)

    def _batch_statistics(self, node: fx.Node) -> Step:
        """Batch norm with the statistics of the batch, differentiated through them (Ioffe and Szegedy 2015)."""
        given: tuple[Any, ...] = node.args
        x: Tensor = self._values[given[0]]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + given[6])
        normal = (x - mean) * scale
        if given[1] is not None:
            scale = scale * _per_channel(self._values[given[1]], x)
        over = [axis + 1 for axis in axes]

        def step(v: Tensor, stack: int) -> Tensor:
            v = v.unflatten(0, (stack, -1))
            back = v - v.mean(over, keepdim=True) - normal * (v * normal).mean(over, keepdim=True)
            return (back * scale).flatten(0, 1)

        return step

    def _rearrangement(self, node: fx.Node, source: fx.Node) -> Step:
        target: Any = node.target
        rest, options = node.args[1:], dict(node.kwargs)
        shape = tuple(self._values[source].shape[1:])

        def step(v: Tensor, _stack: int) -> Tensor:
            # the operation is linear, so its derivative is the same at zero and at the activations
            with torch.enable_grad():
                zero = v.new_zeros((v.shape[0], *shape)).requires_grad_()
                (back,) = torch.autograd.grad(target(zero, *rest, **options), zero, v)
            return back

        return step


def input_gradient(
    kernel: Tensor,
    shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Step:
    """Gradient of a two-dimensional convolution with respect to its input, for many cotangents.

    With stride 1 it is itself a convolution, with the kernel turned around and its channels exchanged, for which
    forward kernels exist that are faster than the general backward ones.

    Args:
        kernel: shape (out channels, in channels / groups, height, width).
        shape: of the convolution's input, without the batch.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
    """
    turned = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel.shape[2:], padding, strict=True))
    if stride != (1, 1) or groups != 1 or min(turned) < 0:
        return lambda v, _stack: conv2d_input((v.shape[0], *shape), kernel, v, stride, padding, dilation, groups)
    back = kernel.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
    if engines.packs(kernel.device, kernel.dtype):
        return _packed(back, turned, dilation)
    if engines.widens(kernel.device, kernel.dtype):
        return lambda v, _stack: engines.in_float32(torch.conv2d, v, back, None, 1, turned, dilation)
    return lambda v, _stack: torch.conv2d(v, back, None, 1, turned, dilation)


def _packed(kernel: Tensor, padding: tuple[int, ...], dilation: tuple[int, int]) -> Step:
    """The same convolution with weights packed for oneDNN, for the size of stack that it first sees."""
    run = torch.ops.mkldnn._convolution_pointwise.default
    geometry = (list(padding), [1, 1], list(dilation))

    @functools.cache
    def weight(shape: torch.Size) -> Tensor:
        return engines.pack(kernel, geometry, 1, shape)

    def convolve(v: Tensor, _stack: int) -> Tensor:
        return run(v, weight(v.shape), None, *geometry, 1, "none", [], "")

    return convolve


def _same(v: Tensor, _stack: int) -> Tensor:
    return v


def _negated(v: Tensor, _stack: int) -> Tensor:
    return -v


def _factor(slope: Tensor) -> Step:
    """Multiply the cotangents of each example by that example's derivative."""

    def step(v: Tensor, stack: int) -> Tensor:
        return (v.unflatten(0, (stack, -1)) * slope).flatten(0, 1)

    return step


def _slope(node: fx.Node, x: Tensor) -> Tensor:
    """Derivative of an element-wise activation at its input, as autograd defines it."""
    if node.target is aten.relu.default:
        return (x > 0).to(x.dtype)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        target: Any = node.target
        (slope,) = torch.autograd.grad(target(x, *node.args[1:], **node.kwargs).sum(), x)
    return slope


def _per_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.to(like.dtype).reshape(1, -1, *([1] * (like.dim() - 2)))


def _follows_convolution(norm: fx.Node) -> bool:
    source = norm.args[0]
    return isinstance(source, fx.Node) and source.target is aten.conv2d.default and len(source.users) == 1
