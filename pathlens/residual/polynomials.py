r"""Gradients by path length on any graph, where blocks need not be a chain.

Reverse-mode differentiation in which every gradient is a polynomial: its coefficient of degree k is the sum over all
paths from the loss to here that take k branches. Passing from a sum into the branch of a block raises the degree by
one; through all other operations a polynomial passes coefficient by coefficient (one vector-Jacobian product of a stack
of cotangents); where a tensor is used several times, polynomials add up. At the input the coefficients are the
:math:`G_k` of :mod:`pathlens.residual.gradients`, and on a chain of blocks the two agree.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.residual.chain import Chain, module_path
from pathlens.residual.discover import concatenations
from pathlens.residual.gradients import boundary_of
from pathlens.residual.losses import Loss, cross_entropy
from pathlens.residual.routes import Part, Route, intact
from pathlens.residual.scaled import Profile, Scaled, chunked, shifted, trimmed
from pathlens.residual.segments import cut
from pathlens.residual.view import ResidualView
from pathlens.residual.vjp import BatchedVJP, is_stackable

aten = torch.ops.aten

MOST_DEGREES = 256
"""Path lengths that a gradient is resolved by at most."""

Edge = tuple[fx.Node, int]
"""A tensor that something is computed from, and by how many branches the way back to it is longer."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Operations between the places where tensors meet or part.

    Attributes:
        nodes: operations, in execution order; the last one gives what the unit gives.
        sources: what it is computed from.
    """

    nodes: tuple[fx.Node, ...]
    sources: tuple[Edge, ...]

    @property
    def end(self) -> fx.Node:
        """The tensor that the unit gives."""
        return self.nodes[-1]


class Flow:
    """What a network computes from one tensor, under a route, as units in execution order.

    Args:
        chain: the network and its blocks.
        route: what is left of each block.
        start: the tensor.
        concat: whether concatenations are choices too.
        end: the last tensor (default: the network's output that is studied).
    """

    def __init__(self, chain: Chain, route: Route, start: fx.Node, concat: bool, end: fx.Node | None = None) -> None:
        self.trace = chain.trace
        links = [(part, chain.links[block]) for part, block in route]
        self.swap = {link.total: link.remainder(part) for part, link in links if part is not Part.BLOCK}
        self._longer = {link.total for part, link in links if part is Part.BRANCH}
        self._raising = {edge for part, link in links if part is Part.BLOCK for edge in link.addition.branch_edges}
        if concat:
            self._raising |= concatenation_edges(chain)
        self.start = start
        self.main, self.forced = self.resolved(end or self.trace.main)
        self.nodes = self._needed()
        self._flowing = self._reached()
        self.units = self._units()

    def resolved(self, node: fx.Node) -> Edge:
        """What stands in a node's place, and how many branches that is."""
        longer = 0
        while node in self.swap:
            longer += node in self._longer
            node = self.swap[node]
        return node, longer

    def edge(self, node: fx.Node, operand: fx.Node) -> Edge:
        """Where an operand of a node comes from."""
        before, longer = self.resolved(operand)
        return before, longer + ((node, operand) in self._raising)

    def _needed(self) -> list[fx.Node]:
        needed: set[fx.Node] = set()
        waiting = [self.main]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += [self.resolved(operand)[0] for operand in node.all_input_nodes]
        return sorted(needed)

    def _reached(self) -> set[fx.Node]:
        """What a gradient can come back from: floats, or tuples of tensors, that are computed from the start."""
        reached = {self.start}
        for node in self.nodes:
            value = self.trace.value(node)
            continuous = value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, (tuple, list))
            if continuous and any(self.resolved(operand)[0] in reached for operand in node.all_input_nodes):
                reached.add(node)
        return reached

    def _units(self) -> tuple[Unit, ...]:
        single = [
            self._single(node)
            for node in self.nodes
            if node in self._flowing and node is not self.start and isinstance(self.trace.value(node), Tensor)
        ]
        uses = Counter(node for unit in single for node, _ in unit.sources)
        units: dict[fx.Node, Unit] = {}
        for unit in single:
            (before, longer), *others = unit.sources
            earlier = units.get(before)
            joins = earlier is not None and len(earlier.sources) == 1 and uses[before] == 1
            if joins and earlier is not None and not longer and not others:
                units[unit.end] = Unit(units.pop(before).nodes + unit.nodes, earlier.sources)
            else:
                units[unit.end] = unit
        return tuple(units.values())

    def _single(self, node: fx.Node) -> Unit:
        """A node that gives a tensor; a tuple in between, as of a split, belongs to whoever takes a part of it."""
        nodes, sources, waiting = {node}, dict[Edge, None](), [node]
        while waiting:
            taker = waiting.pop()
            for operand in taker.all_input_nodes:
                before, longer = self.edge(taker, operand)
                if before not in self._flowing:
                    continue
                if isinstance(self.trace.value(before), Tensor):
                    sources[before, longer] = None
                elif before not in nodes:
                    nodes.add(before)
                    waiting.append(before)
        return Unit(tuple(sorted(nodes)), tuple(sources))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of branches that paths take, ascending; none where no path leads from the start to the end."""
        taken = {self.main: {self.forced}}
        for unit in reversed(self.units):
            for source, longer in unit.sources:
                own = {length + longer for length in taken.get(unit.end, ())}
                taken[source] = taken.get(source, set()) | own
        return tuple(sorted(taken.get(self.start, ())))

    @property
    def longest(self) -> int:
        """Branches of the longest path."""
        return max(self.lengths, default=0)

    def values(self, images: Tensor, start: Tensor | None = None) -> dict[fx.Node, Any]:
        """Everything that the network computes, by node; with a tensor in the place of its start where one is given."""
        names = [node.name for node in self.nodes if node.op == "placeholder" and node is not self.trace.source]
        held = dict(zip(names, self.trace.fetch(tuple(names)), strict=True))
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node is self.start and start is not None:
                values[node] = start
            elif node.op == "placeholder":
                values[node] = images if node is self.trace.source else held[node.name]
            else:
                values[node] = called(node, lambda operand: values[self.resolved(operand)[0]])
        return values

    def compute(self, unit: Unit, tensors: Sequence[Tensor], values: Mapping[fx.Node, Any]) -> Tensor:
        """What a unit gives, from its sources; all else is taken from the values."""
        own: dict[Edge, Any] = dict(zip(unit.sources, tensors, strict=True))
        for node in unit.nodes:

            def given(operand: fx.Node, node: fx.Node = node) -> Any:
                edge = self.edge(node, operand)
                return own[edge] if edge in own else values[edge[0]]

            own[node, 0] = called(node, given)
        result: Tensor = own[unit.end, 0]
        return result


def concatenation_edges(chain: Chain) -> set[tuple[fx.Node, fx.Node]]:
    """Concatenations with the ends of their branches (:func:`pathlens.residual.discover.concatenations`)."""
    return {(node, end) for node, ends in concatenations(chain.trace, chain.discovery).items() for end in ends}


def place_of(chain: Chain, at: str | int) -> fx.Node:
    """The tensor at which a gradient is taken: the input, x_0 or x_I of a chain, else the branch point of block I.

    Raises:
        UsageError: something else, or a place that there is not.
    """
    if not chain.in_series and str(at) == "stem":
        raise UsageError(
            "at 'stem': there is none where blocks are no chain; give input, or block:I for its branch point"
        )
    if not chain.links and str(at) != "input":
        raise UsageError(f"at {at!r}: there are no blocks; give input")
    boundary = boundary_of(at, len(chain.links))
    if boundary < 0:
        return chain.trace.source
    return chain.boundaries[boundary] if chain.in_series else chain.links[boundary].branch_point


class GraphLinearisation:
    """A network's derivative at one batch, and its gradients by path length, on any graph.

    Args:
        view: the network; paths choose at its blocks.
        images: a batch, shape (N, ...), on the model's device.
        labels: shape (N,).
        loss: (logits, labels) -> loss of each example, shape (N,), or their sum.
        at: where the gradient is taken; see :func:`place_of`.
        stacked: carry many cotangents through convolutional parts at once; False asks autograd one by one.
        route: what is left of each block (default: all of it).
        concat: paths choose at concatenations too, of a tensor and something learned from it.

    Raises:
        UsageError: a place outside the network or without a gradient.
        NumericsError: a loss or gradient that is not finite.
    """

    def __init__(
        self,
        view: ResidualView,
        images: Tensor,
        labels: Tensor,
        *,
        loss: Loss = cross_entropy,
        at: str | int = "input",
        stacked: bool = True,
        route: Route | None = None,
        concat: bool = False,
    ) -> None:
        chain = view.chain(images)
        self._loss, self._labels, self._images = loss, labels, images
        self._name = type(view.model).__name__
        flow = self._flow = Flow(chain, route or intact(len(view)), place_of(chain, at), concat)
        if flow.start not in flow.nodes:
            raise UsageError(f"at {at!r}: nothing runs there in the lesioned network; give another place")
        with torch.no_grad():
            values = flow.values(images)
        self._start: Tensor = values[flow.start]
        if not self._start.is_floating_point():
            raise UsageError(f"at {at!r}: there are integers and no gradient; give a later place, block:I")
        self._adjoints = [self._adjoint(unit, values, stacked) for unit in flow.units]
        self._seed = self._seeded(values[flow.main])

    def _adjoint(self, unit: Unit, values: Mapping[fx.Node, Any], stacked: bool) -> Adjoint:
        flow = self._flow
        tensors = [values[source] for source, _ in unit.sources]
        if is_sum(unit, tensors):
            return _through_sum
        if stacked and len(tensors) == 1:
            # what is cut out may need a size or a tensor from elsewhere, which the call below has
            with contextlib.suppress(ModelError):
                segment = cut(flow.trace, unit.sources[0][0], [unit.end], flow.swap)
                if is_stackable(segment.graph):
                    adjoint = BatchedVJP(segment, tensors[0])
                    return lambda cotangents: [chunked(adjoint, cotangents)]
        return _JointVJP(lambda *given: flow.compute(unit, given, values), tensors)

    def _seeded(self, logits: Tensor) -> Tensor:
        """Gradient of each example's loss at the output."""
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            losses = self._loss(logits, self._labels)
            if not bool(losses.isfinite().all()):
                raise NumericsError(
                    "the loss is NaN or infinite, so there is no gradient; check weights and normalisation"
                )
            (seed,) = torch.autograd.grad(losses.sum(), logits)
        return seed

    @cached_property
    def reference(self) -> Tensor:
        """The ordinary gradient by autograd through the network's own operations, shape (N, ...)."""
        with torch.enable_grad():
            start = self._start.detach().requires_grad_()
            losses = self._loss(self._flow.values(self._images, start)[self._flow.main], self._labels)
            (gradient,) = torch.autograd.grad(losses.sum(), start, allow_unused=True, materialize_grads=True)
        return gradient

    def exact(self, max_length: int | None = None, tolerance: float = 0.0) -> Profile:
        """The gradient of every length at the place asked for.

        Args:
            max_length: longer paths are left out; exact for those that are kept.
            tolerance: wherever tensors meet, leave out the shortest and longest lengths whose gradient, in norm over
                the batch, is at most this fraction of the largest.

        Raises:
            UsageError: paths of more lengths than :data:`MOST_DEGREES`, and no shorter length to stop at.
            NumericsError: a gradient that is not finite, or none at all.
        """
        flow = self._flow
        longest = flow.longest if max_length is None else min(max_length, flow.longest)
        if longest > MOST_DEGREES:
            raise UsageError(
                f"paths through {self._name} take up to {flow.longest} branches, and where blocks are no chain, "
                f"gradients are resolved by up to {MOST_DEGREES}; give a longest length of {MOST_DEGREES} or less "
                "(--max-length)"
            )
        arrived: dict[fx.Node, Polynomial] = {flow.main: (flow.forced, Scaled(self._seed.clone().unsqueeze(0), (0,)))}
        for unit, adjoint in zip(reversed(flow.units), reversed(self._adjoints), strict=True):
            polynomial = self._settled(arrived.pop(unit.end, None), unit.end, longest, tolerance)
            if polynomial is None:
                continue
            first, scaled = polynomial
            for (source, longer), rows in zip(unit.sources, adjoint(scaled.rows), strict=True):
                own = first + longer, Scaled(rows, scaled.exponents)
                arrived[source] = summed(arrived[source], own) if source in arrived else own
        result = self._settled(arrived.get(flow.start), flow.start, longest, tolerance)
        if result is None:
            raise NumericsError("the loss does not depend on the place where the gradient is taken: it is zero there")
        return Profile(-1, result[1], result[0])

    def _settled(
        self, polynomial: Polynomial | None, node: fx.Node, longest: int, tolerance: float
    ) -> Polynomial | None:
        """What has arrived at a tensor, without the lengths that are left out; None where nothing has."""
        if polynomial is None or polynomial[0] > longest:
            return None
        first, scaled = polynomial
        most = longest + 1 - first
        try:
            scaled = Scaled(scaled.rows[:most], scaled.exponents[:most]).raised()
        except FloatingPointError:
            module = ".".join(module_path(node))
            where = f"{node.name} in {module}" if module else node.name
            raise NumericsError(
                f"the gradient is NaN or infinite, first at {where}; check the weights or use --dtype float64"
            ) from None
        if tolerance > 0:
            scaled, first = trimmed(scaled, first, tolerance)
        return first, scaled


Polynomial = tuple[int, Scaled]
"""Length of the first row, and the coefficients of consecutive lengths."""

Adjoint = Callable[[Tensor], Sequence[Tensor]]
"""Cotangents of what a unit gives, shape (K, N, ...) -> those of each of its sources."""


def summed(one: Polynomial, other: Polynomial) -> Polynomial:
    """The sum, where each row takes the smaller of two exponents, so that nothing overflows."""
    first = min(one[0], other[0])
    last = max(start + len(scaled.exponents) for start, scaled in (one, other))
    exponents: list[int | None] = [None] * (last - first)
    for start, scaled in (one, other):
        for place, exponent in enumerate(scaled.exponents, start - first):
            before = exponents[place]
            exponents[place] = exponent if before is None else min(before, exponent)
    most = max(exponent for exponent in exponents if exponent is not None)
    known = tuple(most if exponent is None else exponent for exponent in exponents)  # a length that neither has is zero
    rows = one[1].rows.new_zeros(last - first, *one[1].rows.shape[1:])
    for start, scaled in (one, other):
        places = slice(start - first, start - first + len(scaled.exponents))
        by = [new - old for new, old in zip(known[places], scaled.exponents, strict=True)]
        rows[places] += shifted(scaled.rows, by)
    return first, Scaled(rows, known)


def called(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """What an operation gives, with the values of its operands."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value)
    target: Any = node.target
    return target(*args, **kwargs)


def is_sum(unit: Unit, tensors: Sequence[Tensor]) -> bool:
    """Whether a unit is a sum of its sources and nothing else."""
    (node, *more) = unit.nodes
    return (
        not more
        and node.target is aten.add.Tensor
        and not node.kwargs
        and len(tensors) == 2
        and tensors[0].shape == tensors[1].shape
        and tensors[0].dtype == tensors[1].dtype
    )


def _through_sum(cotangents: Tensor) -> list[Tensor]:
    return [cotangents, cotangents.clone()]  # rows are scaled in place later


class _JointVJP:
    """One cotangent after the other through autograd's graph of a piece with several inputs."""

    def __init__(self, call: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
        with torch.enable_grad():
            self._inputs = [tensor.detach().requires_grad_() for tensor in tensors]
            self._result = call(*self._inputs)

    def __call__(self, cotangents: Tensor) -> list[Tensor]:
        stacks = [cotangents.new_zeros(len(cotangents), *item.shape) for item in self._inputs]
        if self._result.requires_grad:
            for row, cotangent in enumerate(cotangents):
                gradients = torch.autograd.grad(
                    self._result, self._inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for stack, gradient in zip(stacks, gradients, strict=True):
                    stack[row] = gradient
        return stacks
