r"""Gradients by path length on any graph, where blocks need not be a chain.

Reverse-mode differentiation in which every gradient is a polynomial: its coefficient of degree k is the sum over all
paths from the loss to here that take k branches. Passing from a sum into the branch of a block raises the degree by
one; through all other operations a polynomial passes coefficient by coefficient (one vector-Jacobian product of a stack
of cotangents); where a tensor is used several times, polynomials add up. At the input the coefficients are the
:math:`G_k` of :mod:`pathlens.residual.gradients`, and on a chain of blocks the two agree.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.residual.chain import Chain, module_path
from pathlens.residual.flow import Flow, Unit, Ways, blocks_at, is_sum, place_of
from pathlens.residual.gradients import boundary_of, require_rows, seed_at
from pathlens.residual.losses import Loss, cross_entropy
from pathlens.residual.routes import Route, intact
from pathlens.residual.scaled import Profile, Scaled, chunked, in_parts, paths_at_once, shifted, trimmed
from pathlens.residual.segments import cut
from pathlens.residual.view import ResidualView
from pathlens.residual.vjp import BatchedVJP, is_stackable

aten = torch.ops.aten

MOST_DEGREES = 256
"""Path lengths that a gradient is resolved by at most."""


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
        ways: which of a chain are told apart, for :meth:`through` and signs (:func:`pathlens.graph.choices.ways`).

    Raises:
        UsageError: a place outside the network or without a gradient.
        NumericsError: a loss or gradient that is not finite, or a loss that does not depend on the output.
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
        ways: Callable[[Chain], Ways] = lambda chain: {},
    ) -> None:
        chain = view.chain(images)
        self._loss, self._labels, self._images = loss, labels, images
        self._name = type(view.model).__name__
        flow = self._flow = Flow(chain, route or intact(len(view)), place_of(chain, at), concat, ways=ways(chain))
        self._places = blocks_at(chain, concat)
        self._boundary = boundary_of(at, len(view)) if str(at) != "input" else -1
        if flow.start not in flow.nodes:
            raise UsageError(f"at {at!r}: nothing runs there in the lesioned network; give another place")
        with torch.no_grad():
            values = flow.values(images)
        self._start: Tensor = values[flow.start]
        if not self._start.is_floating_point():
            raise UsageError(f"at {at!r}: there are integers and no gradient; give a later place, block:I")
        require_rows(flow.trace, flow.start, self._start, len(images), f"at {at!r}", "give --at input")
        largest = max(value.numel() for value in values.values() if isinstance(value, Tensor))
        self._at_once = paths_at_once(largest, self._start.device)
        self._adjoints = [self._adjoint(unit, values, stacked) for unit in flow.units]
        self._seed = seed_at(values[flow.main], lambda logits: loss(logits, labels), "the output of the network")

    def _adjoint(self, unit: Unit, values: Mapping[fx.Node, Any], stacked: bool) -> Adjoint:
        flow = self._flow
        tensors = [values[source] for source, *_ in unit.sources]
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

    @cached_property
    def reference(self) -> Tensor:
        """The ordinary gradient by autograd through the network's own operations, shape (N, ...)."""
        with torch.enable_grad():
            start = self._start.detach().requires_grad_()
            losses = self._loss(self._flow.values(self._images, start)[self._flow.main], self._labels)
            (gradient,) = torch.autograd.grad(losses.sum(), start, allow_unused=True, materialize_grads=True)
        return gradient

    def exact(self, max_length: int | None = None, tolerance: float = 0.0, signs: Tensor | None = None) -> Profile:
        """The last of :meth:`profiles`: the gradients at the place asked for."""
        return deque(self.profiles(max_length, tolerance, signs), maxlen=1).pop()

    def profiles(
        self, max_length: int | None = None, tolerance: float = 0.0, signs: Tensor | None = None
    ) -> Iterator[Profile]:
        """The gradient of every length at the places of :func:`.blocks_at`, and last at the place asked for.

        Each is to be used before the next one is asked for. Places that no gradient reaches, and those that do not run
        in a lesioned network, are left out.

        Args:
            max_length: longer paths are left out; exact for those that are kept.
            tolerance: wherever tensors meet, leave out the shortest and longest lengths whose gradient, in norm over
                the batch, is at most this fraction of the largest.
            signs: factors of each way and example, shape (ways, N): random signs give the second moment, since paths
                that part take different ones there.

        Raises:
            UsageError: paths of more lengths than :data:`MOST_DEGREES`, and no shorter length to stop at; or signs,
                where a tensor at which paths part has no row for each example.
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
            for boundary in self._places.get(unit.end, ()):
                yield Profile(boundary, scaled, first)
            for (source, longer, way), rows in zip(unit.sources, adjoint(scaled.rows), strict=True):
                signed = rows if signs is None or way is None else self._signed(rows, signs[way], source)
                own = first + longer, Scaled(signed, scaled.exponents)
                arrived[source] = summed(arrived[source], own) if source in arrived else own
        result = self._settled(arrived.get(flow.start), flow.start, longest, tolerance)
        if result is None:
            raise NumericsError("the loss does not depend on the place where the gradient is taken: it is zero there")
        beside = [place for place in self._places.get(flow.start, ()) if place != self._boundary]
        for boundary in (*beside, self._boundary):
            yield Profile(boundary, result[1], result[0])

    def _signed(self, rows: Tensor, signs: Tensor, node: fx.Node) -> Tensor:
        if rows.dim() < 2 or rows.shape[1] != len(signs) or self._flow.trace.batch_axis(node):
            raise UsageError(
                f"paths part at {node.name}, of shape {tuple(rows.shape[1:])}, which has no row for each of "
                f"{len(signs)} images to take a random sign; give --method exact or sampled"
            )
        return rows * signs.reshape(-1, *[1] * (rows.dim() - 2))

    def through(self, paths: Sequence[Collection[int]]) -> Scaled:
        """Gradients through single paths, one row each; zero where a path has no derivative.

        Args:
            paths: each the ways that it takes wherever paths part (:mod:`pathlens.graph.choices`).

        Raises:
            NumericsError: a gradient that is not finite.
        """
        return in_parts(self._through, paths, self._at_once)

    def _through(self, paths: Sequence[Collection[int]]) -> Scaled:
        flow, count = self._flow, len(paths)
        seeds = self._seed.unsqueeze(0).repeat(count, *[1] * self._seed.dim())
        arrived: dict[fx.Node, Keyed] = {flow.main: (range(count), Scaled(seeds, (0,) * count))}
        for unit, adjoint in zip(reversed(flow.units), reversed(self._adjoints), strict=True):
            if unit.end not in arrived:
                continue
            here, scaled = arrived.pop(unit.end)
            scaled = self._raised(scaled, unit.end)
            for (source, _, way), rows in zip(unit.sources, adjoint(scaled.rows), strict=True):
                on = [row for row, path in enumerate(here) if way is None or way in paths[path]]
                if not on:
                    continue
                own = [here[row] for row in on], Scaled(rows[on], tuple(scaled.exponents[row] for row in on))
                parts = [own, arrived[source]] if source in arrived else [own]
                keys = sorted({key for present, _ in parts for key in present})
                arrived[source] = keys, combined(keys, parts)
        if flow.start not in arrived:
            return Scaled(self._start.new_zeros(count, *self._start.shape), (0,) * count)
        return self._raised(combined(range(count), [arrived[flow.start]]), flow.start)

    def _raised(self, scaled: Scaled, node: fx.Node) -> Scaled:
        try:
            return scaled.raised()
        except FloatingPointError:
            module = ".".join(module_path(node))
            where = f"{node.name} in {module}" if module else node.name
            raise NumericsError(
                f"the gradient is NaN or infinite, first at {where}; check the weights or use --dtype float64"
            ) from None

    def _settled(
        self, polynomial: Polynomial | None, node: fx.Node, longest: int, tolerance: float
    ) -> Polynomial | None:
        """What has arrived at a tensor, without the lengths that are left out; None where nothing has."""
        if polynomial is None or polynomial[0] > longest:
            return None
        first, scaled = polynomial
        most = longest + 1 - first
        scaled = self._raised(Scaled(scaled.rows[:most], scaled.exponents[:most]), node)
        if tolerance > 0:
            scaled, first = trimmed(scaled, first, tolerance)
        return first, scaled


Polynomial = tuple[int, Scaled]
"""Length of the first row, and the coefficients of consecutive lengths."""

Adjoint = Callable[[Tensor], Sequence[Tensor]]
"""Cotangents of what a unit gives, shape (K, N, ...) -> those of each of its sources."""


Keyed = tuple[Sequence[int], Scaled]
"""What each row stands for, a length or a path, and the rows."""


def summed(one: Polynomial, other: Polynomial) -> Polynomial:
    """The sum of two polynomials."""
    parts = [(range(first, first + len(scaled.exponents)), scaled) for first, scaled in (one, other)]
    lengths = range(min(own.start for own, _ in parts), max(own.stop for own, _ in parts))
    return lengths.start, combined(lengths, parts)


def combined(keys: Sequence[int], parts: Sequence[Keyed]) -> Scaled:
    """The sum of rows that stand for the same; each takes the smallest exponent, so that nothing overflows.

    Args:
        keys: what the rows of the sum are to stand for.
        parts: of the sum.
    """
    places = {key: place for place, key in enumerate(keys)}
    exponents: dict[int, int] = {}
    for own, scaled in parts:
        for key, exponent in zip(own, scaled.exponents, strict=True):
            exponents[key] = min(exponent, exponents.get(key, exponent))
    most = max(exponents.values())
    known = tuple(exponents.get(key, most) for key in keys)  # a row that no part has is zero
    first = parts[0][1].rows
    rows = first.new_zeros(len(keys), *first.shape[1:])
    for own, scaled in parts:
        by = [exponents[key] - old for key, old in zip(own, scaled.exponents, strict=True)]
        rows[[places[key] for key in own]] += shifted(scaled.rows, by)
    return Scaled(rows, known)


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
