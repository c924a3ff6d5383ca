r"""What theory expects of the moments, from the order of operations in the traced graph.

For wide layers with independent weights of mean zero, three numbers of a tensor are enough to go on with: its second
moment q, its average channel squared mean C, and its mean m over everything. With s the mean over output channels of
the sum of squared weights, and r that of the squared sum of weights (0 for standardised ones):

* a map gives :math:`q' = s (q - m^2) + r m^2`, C likewise, :math:`m' = 0`, and values that are normal;
* an activation of normal values of mean zero gives :math:`q' = E\phi(u)^2` and
  :math:`C' = E\phi(u)\phi(v)` for u, v of correlation C / q, the mean-field equations of Poole et al. 2016 (equations 3
  and 5); for a ReLU q / 2 and, behind a batch norm, C = 1 / (2 pi);
* batch norm with the statistics of the batch gives q = 1 and C = 0;
* a sum of independent tensors adds all of them, and twice the product of their means.

The energy of the gradient (its sum of squares over a tensor) goes back by s through a map, by :math:`E\phi'(u)^2`
through an activation, by one over the variance through a norm, and adds up where a tensor has several users (Schoenholz
et al. 2017, section 4). Borders are left out: zero padding lowers what is measured in small images.

Where an operation has no rule, or an activation is fed with a tensor that is not normal around zero (as in networks
that rectify their sums), nothing is expected until a batch norm starts anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.propagation.measure import Place, Reading, places
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain
from pathlens.residual.simplify import uses_the_batch

aten = torch.ops.aten

_WIDEST = 8.0  # standard deviations that a quadrature covers
_POINTS = 1600  # of it, even since activations have their kink at zero, and of the one in two dimensions a side
_SIDE = 200
_SMALL = 1e-12
_SHIFTING = frozenset({"clone", "alias", "contiguous", "reshape", "view", "flatten", "permute", "transpose", "slice",
                       "unsqueeze", "squeeze", "expand", "_unsafe_view", "unflatten", "getitem", "to", "_to_copy",
                       "roll", "detach", "select"})  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What is expected at one place; None for what theory does not give.

    Attributes:
        squared_mean: average channel squared mean.
        channel_variance: average channel variance.
        variance: over everything.
        second_moment: mean of squares.
        gradient_second_moment: mean of the squares of the gradient.
    """

    squared_mean: float | None = None
    channel_variance: float | None = None
    variance: float | None = None
    second_moment: float | None = None
    gradient_second_moment: float | None = None


@dataclass(frozen=True)
class _Signal:
    """Second moment, channel squared mean, mean, and whether values are normal around zero."""

    q: float
    c: float
    m: float
    centred: bool

    def times(self, factor: float) -> _Signal:
        return replace(self, q=self.q * factor**2, c=self.c * factor**2, m=self.m * factor)


def expect(chain: Chain, readings: dict[Place, Reading]) -> dict[Place, Expected]:
    """What is expected at every block, given what was measured before the first block and behind the last.

    As for what is measured, the gradient at the ends of branch and shortcut is that at their sum.

    Args:
        chain: the traced network, with weights at initialisation; trained ones are not independent.
        readings: of :func:`.measure`.
    """
    field = _Field(chain, readings)
    due = {place: field.at(node) for place, node in places(chain).items()}
    for (index, end), expected in due.items():
        if end in ("branch", "shortcut"):
            backward = due[index, "sum"].gradient_second_moment
            due[index, end] = replace(expected, gradient_second_moment=backward)
    return due


class _Field:
    """The signal of each node from x_0 on, and the gradient's energy from x_n back."""

    def __init__(self, chain: Chain, readings: dict[Place, Reading]) -> None:
        self._chain = chain
        self._moving = chain.discovery.input_dependent
        self._constants: dict[fx.Node, Any] = {}
        self._signals: dict[fx.Node, _Signal | None] = {}
        self._energy: dict[fx.Node, float | None] = {}
        start, end = chain.boundaries[0], chain.boundaries[-1]
        nodes = [node for node in chain.trace.graph.nodes if node in self._moving]
        behind = nodes[nodes.index(start) + 1 : nodes.index(end) + 1]
        gains: dict[fx.Node, dict[fx.Node, float | None]] = {}
        with torch.no_grad():
            self._signals[start] = self._beginning(start, readings[-1, "stem"])
            for node in behind:
                self._signals[node], gains[node] = self._step(node)
        last = readings[len(chain.links) - 1, "output"].backward
        self._energy[end] = None if last is None else last.second_moment * self._size(end)
        for node in reversed(behind):
            if node in self._energy:
                for operand, gain in gains[node].items():
                    self._add(operand, gain, self._energy[node])

    def _add(self, operand: fx.Node, gain: float | None, energy: float | None) -> None:
        before = self._energy.get(operand, 0.0)
        unknown = gain is None or energy is None or before is None
        self._energy[operand] = None if unknown else before + gain * energy  # type: ignore[operator]

    def at(self, node: fx.Node) -> Expected:
        """What is expected of a node."""
        signal, energy = self._signals.get(node), self._energy.get(node)
        backward = None if energy is None else energy / self._size(node)
        if signal is None:
            return Expected(gradient_second_moment=backward)
        q, c, m = signal.q, signal.c, signal.m
        return Expected(c, max(0.0, q - c), max(0.0, q - m**2), q, backward)

    def _beginning(self, start: fx.Node, reading: Reading) -> _Signal | None:
        """x_0 as measured; normal around zero where a map or norm gives it."""
        if reading.forward is None:
            return None
        whole = reading.forward
        mean = math.sqrt(max(0.0, whole.second_moment - whole.variance))
        return _Signal(whole.second_moment, whole.squared_mean, mean, ops.is_map(start) or ops.is_norm(start))

    def _size(self, node: fx.Node) -> int:
        return math.prod(self._chain.trace.shape(node)[1:])

    def _constant(self, node: Any) -> Any:
        """The value of what does not depend on the input."""
        if not isinstance(node, fx.Node):
            return node
        if node not in self._constants:
            if node.op == "placeholder":
                (self._constants[node],) = self._chain.trace.fetch((node.name,))
            else:
                args = fx.node.map_arg(node.args, self._constant)
                kwargs = fx.node.map_arg(node.kwargs, self._constant)
                target: Any = node.target
                self._constants[node] = target(*args, **kwargs)
        return self._constants[node]

    def _step(self, node: fx.Node) -> tuple[_Signal | None, dict[fx.Node, float | None]]:
        """The signal of a node, and by operand what the gradient's energy is multiplied by."""
        operands = [operand for operand in node.all_input_nodes if operand in self._moving]
        signals = [self._signals.get(operand) for operand in operands]
        if node.target in ops.ADDITIONS and len(operands) == 2 and node.args[0] is not node.args[1]:
            factor = float(node.kwargs.get("alpha", 1)) * (-1 if node.target is aten.sub.Tensor else 1)  # type: ignore[arg-type]
            left, right = operands if node.args[0] is operands[0] else operands[::-1]
            return _summed(self._signals.get(left), self._signals.get(right), factor), {left: 1.0, right: factor**2}
        if len(operands) != 1:
            return None, dict.fromkeys(operands)
        signal, gain = self._alone(node, operands[0], signals[0])
        return signal, {operands[0]: gain}

    def _alone(self, node: fx.Node, operand: fx.Node, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
        if ops.is_map(node):
            return self._mapped(node, signal)
        if node.target in ops.NORMS:
            return self._normed(node, signal)
        if node.target in ops.SCALINGS:
            return self._scaled(node, operand, signal)
        name = ops.short_name(node)
        if "dropout" in name:
            args: Any = node.args
            acts = len(args) > 2 and args[2] and args[1] > 0
            return (None, None) if acts else (signal, 1.0)
        if ops.is_pointwise(node):
            return _activated(node, signal)
        if name in ("pad", "constant_pad_nd") and signal is not None:
            share = self._size(operand) / self._size(node)
            return replace(signal, q=signal.q * share, c=signal.c * share, m=signal.m * share), share
        return (signal, 1.0) if name in _SHIFTING else (None, None)

    def _varies(self, *operands: Any) -> bool:
        """Whether values or sizes of some depend on the input, as in the square ``x * x``, whose factor is ``x``."""
        nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
        return self._chain.trace.source in ops.ancestors(nodes)

    def _mapped(self, node: fx.Node, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
        if self._varies(*node.args[1:3]):
            return None, None
        weight = self._constant(node.args[1]).double().flatten(1)
        bias = self._constant(node.args[2]) if len(node.args) > 2 else None
        shift = 0.0 if bias is None else float(bias.double().square().mean())
        s, r = float(weight.square().sum(1).mean()), float(weight.sum(1).square().mean())
        if signal is None:
            return None, s
        common = r * signal.m**2 + shift
        q, c = (s * max(0.0, part - signal.m**2) + common for part in (signal.q, signal.c))
        return _Signal(q, c, 0.0, True), s

    def _normed(self, node: fx.Node, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
        name = ops.short_name(node)
        args: Any = node.args
        if "batch_norm" not in name:
            return self._layer_normed(node, name, signal)
        if self._varies(*args[1:5]):  # an instance norm, written as one with channels for each example
            return None, None
        weight, bias, mean, variance = (self._constant(item) for item in args[1:5])
        square = 1.0 if weight is None else float(weight.double().square().mean())
        shifts = [0.0, 0.0] if bias is None else [float(bias.double().square().mean()), float(bias.double().mean())]
        if uses_the_batch(node):
            spread = None if signal is None else signal.q - signal.c
            gain = None if spread is None or spread < _SMALL else square / spread
            centred = signal is not None and signal.centred and not any(shifts)
            return _Signal(square + shifts[0], shifts[0], shifts[1], centred), gain
        if signal is None or mean is None or float(mean.abs().max()) > 0 or any(shifts):
            return None, None  # statistics of training
        scale = float(((1.0 if weight is None else weight.double().square()) / (variance.double() + args[7])).mean())
        return signal.times(math.sqrt(scale)), scale

    def _layer_normed(self, node: fx.Node, name: str, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
        args: Any = node.args
        at = {"layer_norm": (2, 3), "group_norm": (2, 3)}.get(name)
        if signal is None or at is None or signal.q - signal.m**2 < _SMALL:
            return None, None
        weight, bias = (self._constant(args[i]) if len(args) > i else None for i in at)
        if bias is not None and float(bias.abs().max()) > 0:
            return None, None
        square = 1.0 if weight is None else float(weight.double().square().mean())
        spread = signal.q - signal.m**2
        c = square * max(0.0, signal.c - signal.m**2) / spread
        return _Signal(square, c, 0.0, signal.centred), square / spread

    def _scaled(self, node: fx.Node, operand: fx.Node, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
        args: Any = node.args
        if len(args) < 2 or node.kwargs or (args[1] is operand and "div" in str(node.target)):
            return None, None
        other = args[0] if args[1] is operand else args[1]
        if self._varies(other):
            return None, None
        factor = torch.as_tensor(self._constant(other)).double()
        if "div" in str(node.target):
            factor = factor.reciprocal()
        square = float(factor.square().mean())
        sign = 1.0 if float(factor.mean()) >= 0 else -1.0
        return (None if signal is None else signal.times(sign * math.sqrt(square))), square


def _summed(left: _Signal | None, right: _Signal | None, factor: float) -> _Signal | None:
    if left is None or right is None:
        return None
    right = right.times(factor)
    both = 2 * left.m * right.m
    return _Signal(left.q + right.q + both, left.c + right.c + both, left.m + right.m, left.centred and right.centred)


def _activated(node: fx.Node, signal: _Signal | None) -> tuple[_Signal | None, float | None]:
    """Moments of an activation of normal values: of a ReLU in closed form, else by quadrature with the operation."""
    if signal is None or not signal.centred or len(node.all_input_nodes) != 1:
        return None, None
    if ops.short_name(node) == "relu":
        return _rectified(signal), 0.5
    target: Any = node.target

    def phi(x: Tensor) -> Tensor:
        return target(x, *node.args[1:], **node.kwargs)

    size = math.sqrt(signal.q)
    u, weights = _normal(_POINTS)
    with torch.enable_grad():
        x = (size * u).requires_grad_()
        y = phi(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    y = y.detach()
    q, m, gain = (float((weights * value).sum()) for value in (y.square(), y, slope.square()))
    correlation = min(1.0, signal.c / signal.q) if signal.q > 0 else 0.0
    first, outer = _normal(_SIDE)
    mixed = correlation * first[:, None] + math.sqrt(1 - correlation**2) * first[None, :]
    pairs = phi(size * first)[:, None] * phi(size * mixed)
    c = float((outer[:, None] * outer[None, :] * pairs).sum())
    return _Signal(q, min(c, q), m, False), gain


def _rectified(signal: _Signal) -> _Signal:
    """Behind a ReLU, by the arc-cosine kernel (Cho and Saul 2009, equation 6)."""
    cosine = min(1.0, signal.c / signal.q) if signal.q > 0 else 0.0
    kernel = (math.sqrt(1 - cosine**2) + cosine * (math.pi - math.acos(cosine))) / (2 * math.pi)
    return _Signal(signal.q / 2, signal.q * kernel, math.sqrt(signal.q / (2 * math.pi)), False)


def _normal(points: int) -> tuple[Tensor, Tensor]:
    """Places and weights of a sum that stands for an expectation over a standard normal variable."""
    u = torch.linspace(-_WIDEST, _WIDEST, points, dtype=torch.float64)
    density = torch.exp(-u.square() / 2)
    return u, density / density.sum()
