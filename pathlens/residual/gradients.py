r"""A network linearised at a batch, and gradients through its paths.

With D_i the derivative of the post-activation, A_i = J(S_i)^T D_i and B_i = J(F_i)^T D_i, the gradient through one path
p is the product of B_i (i in p) and A_i (i not in p) applied to g_n = dL/dx_n, from block n down to block 1 (Veit,
Wilber, Belongie 2016, section 5). The sum over all paths of length k obeys

.. math:: G^{(n)}_0 = g_n, \qquad G^{(i-1)}_k = A_i G^{(i)}_k + B_i G^{(i)}_{k-1},

like the coefficients of a product of polynomials, so that all 2^n paths cost n(n+1)/2 products with B. In a lesioned
network a block without its branch is A_i alone, and one without its shortcut B_i alone, which makes every path longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.errors import NoResidualBlocksError, NumericsError, UsageError
from pathlens.residual.losses import Loss, cross_entropy
from pathlens.residual.operations import ancestors
from pathlens.residual.routes import Part, Route, intact, path_blocks
from pathlens.residual.scaled import Profile, Scaled, chunk_of, chunked, in_parts, paths_at_once, shifted, trimmed
from pathlens.residual.segments import Segment
from pathlens.residual.simplify import uses_the_batch
from pathlens.residual.trace import Trace
from pathlens.residual.view import ResidualView
from pathlens.residual.vjp import VJP, linearise

aten = torch.ops.aten


def require_rows(trace: Trace, node: fx.Node, value: Tensor, examples: int, where: str, remedy: str) -> None:
    """Raise where a value has no row for each example: pieces of them are in the batch, or sequences come first.

    Args:
        trace: of the network.
        node: whose value it is.
        value: at some batch.
        examples: of the batch.
        where: in words.
        remedy: in words, which end the message.

    Raises:
        UsageError: naming the shape.
    """
    if trace.batch_axis(node) or value.shape[0] != examples:
        raise UsageError(
            f"{where} the network computes with shape {tuple(value.shape)}, which has no row for each of {examples} "
            f"examples; {remedy}"
        )


def mixes_examples(trace: Trace) -> bool:
    """Whether batch norms use the statistics of the batch, so that the loss of an example depends on the others.

    They do in train mode, and in any mode where they keep no running statistics.

    Args:
        trace: of the network, in the mode that is asked about.
    """
    normalised: list[Any] = [node.args[0] for node in trace.graph.nodes if uses_the_batch(node)]
    # weights may be standardised by a batch norm, and an instance norm be written as one in which every example has
    # channels of its own
    return any(trace.source in ancestors([x]) and trace.batch_axis(x) != 1 for x in normalised)


def seed_at(x: Tensor, loss: Callable[[Tensor], Tensor], where: str) -> Tensor:
    """The gradient of each example's loss at a tensor.

    Args:
        x: the tensor.
        loss: the tensor -> the loss of each example, or their sum.
        where: the tensor in words.

    Raises:
        NumericsError: a loss that is not finite, or that does not depend on the tensor.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        losses = loss(x)
        if not bool(losses.isfinite().all()):
            raise NumericsError("the loss is NaN or infinite, so there is no gradient; check weights and normalisation")
        seed = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if seed is None or not bool(seed.any()):
        raise NumericsError(
            f"the loss does not depend on {where}: its gradient there is zero; where no target of a batch is counted, "
            "leave its images out or give larger batches"
        )
    return seed


@dataclass(frozen=True)
class _BlockAdjoints:
    transition: VJP
    shortcut: VJP
    branch: VJP
    post: VJP


@dataclass(frozen=True)
class _LesionAdjoint:
    """A block with one side, from x_i to x_{i-1}, and how much longer it makes a path."""

    post: VJP
    longer: int


class Linearisation:
    """A network's derivative at one batch, in the train/eval mode that the model is in.

    In eval mode every example has a gradient of its own. In train mode batch norms use the statistics of the batch and
    are differentiated through them, as are those without running statistics in any mode: the losses are summed, and an
    example's gradient then holds its influence on all.

    Args:
        view: the network.
        images: a batch, shape (N, ...), on the model's device.
        labels: shape (N,).
        loss: (logits, labels) -> loss of each example, shape (N,), or their sum.
        at: ``input``, ``stem`` (x_0), or a boundary i for x_i; only blocks after it count for lengths.
        stacked: carry many cotangents through convolutional blocks at once; False asks autograd one by one.
        route: what runs at each position (default: the network as it was trained); boundaries count positions.

    Raises:
        NoResidualBlocksError: a plain network.
        UsageError: a boundary outside the network, or the gradient at an input of integers.
        NumericsError: a loss or gradient that is not finite, or a loss that does not depend on the input.
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
    ) -> None:
        if view.is_plain:
            raise NoResidualBlocksError(
                f"{type(view.model).__name__} is a plain network: it has a single path, so there are no path lengths"
            )
        self.view = view
        self.boundary = boundary_of(at, len(view))
        self._stacked = stacked
        self._loss = loss
        self._labels = labels
        if stacked and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.boundary < 0 and not images.is_floating_point():
            raise UsageError("the input is of integers and has no gradient; give --at stem")
        self._images = images
        chain = self._chain = view.chain(images)
        self.route = intact(len(view)) if route is None else route
        self._blocks: dict[int, _BlockAdjoints | _LesionAdjoint] = {}
        stem = chain.stem
        if self.boundary < 0:
            self._stem: VJP | None = linearise(stem, images, stacked)
            x = self._stem.output
        else:
            self._stem = None
            with torch.no_grad():
                x = stem(images)[0]
        self._start = images if self.boundary < 0 else x
        if self._stem is not None and not self._stem.passes:
            raise UsageError(
                f"{type(view.model).__name__} makes integers of its input before block 0 or cuts the gradient, so "
                "that there is none at the input; give --at stem"
            )
        for index in range(len(view)):
            if index < self.boundary:
                with torch.no_grad():
                    x = self._whole(index)(x)[0]
                self._start = x
                continue
            parts = self._linearise_block(index, x)
            self._blocks[index] = parts
            x = parts.post.output
        self._end = x
        if self.boundary >= 0:
            place = chain.boundaries[self.boundary]
            require_rows(chain.trace, place, self._start, len(images), f"at {at!r}", "give --at input")
        self.seed = seed_at(x, lambda end: loss(self._chain.head(end)[0], labels), "the output of the last block")

    @property
    def blocks(self) -> range:
        """The positions that count, which are those after the place where the gradient is taken."""
        return range(max(0, self.boundary), len(self.view))

    def _whole(self, position: int) -> Segment:
        return self._chain.step(*self.route[position])

    def _linearise_block(self, position: int, x: Tensor) -> _BlockAdjoints | _LesionAdjoint:
        chain = self._chain
        part, block = self.route[position]
        where = f"block {block} ({self.view[block].name})"
        if not x.is_floating_point():
            raise UsageError(f"the input of {where} is of integers and has no gradient; give --at a later block")
        refused = UsageError(
            f"no gradient goes through {where}: integers are made of its input (or the gradient is cut); "
            "give --at a later block"
        )
        if part is not Part.BLOCK:
            whole = linearise(self._whole(position), x, self._stacked)
            if not whole.passes:
                raise refused
            return _LesionAdjoint(whole, int(part is Part.BRANCH))
        transition = linearise(chain.transition(block), x, self._stacked)
        branch_point = transition.output
        branch = linearise(chain.branch(block), branch_point, self._stacked)
        shortcut = linearise(chain.shortcut(block), branch_point, self._stacked)
        post = linearise(chain.post(block), branch.output + shortcut.output, self._stacked)
        if not (transition.passes and (branch.passes or shortcut.passes) and post.passes):
            raise refused
        return _BlockAdjoints(transition, shortcut, branch, post)

    @cached_property
    def reference(self) -> Tensor:
        """The ordinary gradient by autograd through the model's own operations, shape (N, ...)."""
        with torch.enable_grad():
            start = self._start.detach().requires_grad_()
            chain = self._chain
            x = start
            if self.boundary < 0:
                x = chain.stem(x)[0]
            if self.route == intact(len(self.view)):
                x = chain.run(self.blocks.start, len(self.view))(x)[0]
            else:
                for position in self.blocks:
                    x = self._whole(position)(x)[0]
            losses = self._loss(chain.head(x)[0], self._labels)
            (gradient,) = torch.autograd.grad(losses.sum(), start)
        return gradient

    def profiles(
        self, max_length: int | None = None, tolerance: float = 0.0, signs: Tensor | None = None
    ) -> Iterator[Profile]:
        """The gradient of every length at x_n, x_{n-1}, ..., down to the place asked for.

        Args:
            max_length: longer paths are left out; exact for those that are kept.
            tolerance: at each block, leave out the shortest and longest lengths whose gradient, in norm over the batch,
                is at most this fraction of the largest. What is left out shows in ``Profile.lengths`` and as a
                difference between ``Profile.total()`` and :attr:`reference`.
            signs: factors of each block's B and example, shape (blocks, N): random signs give the second moment.

        Raises:
            UsageError: a length below that of the shortest path, a tolerance outside [0, 1), or signs where a block
                has no row for each example.
            NumericsError: a gradient that is not finite, with the block at which it first appears.
        """
        if signs is not None:
            self._require_signs(signs.shape[1])
        shortest = self._forced(self.blocks.start, len(self.view))
        if max_length is not None and max_length < shortest:
            raise UsageError(f"no path has {max_length} blocks; give a longest length of {shortest} or more")
        if not 0 <= tolerance < 1:
            raise UsageError(f"tolerance {tolerance} is outside [0, 1); give the fraction that may be left out")
        stack = self._raised(Scaled(self.seed.clone().unsqueeze(0), (0,)), len(self.view))
        first = 0
        yield Profile(len(self.view), stack, first)
        for index in reversed(self.blocks):
            sign = None if signs is None else signs[self.route[index][1]]
            stack = self._back(index, stack, sign)
            parts = self._blocks[index]
            first += parts.longer if isinstance(parts, _LesionAdjoint) else 0
            # without lengths above max_length, counting branches that every remaining path must take
            most = None if max_length is None else max_length + 1 - first - self._forced(self.blocks.start, index)
            if most is not None and most < len(stack.exponents):
                stack = Scaled(stack.rows[:most], stack.exponents[:most])
            stack = self._raised(stack, index)
            if tolerance > 0:
                stack, first = trimmed(stack, first, tolerance)
            yield Profile(index, stack, first)
        if self.boundary < 0:
            yield Profile(-1, self._to_input(stack), first)

    def _require_signs(self, examples: int) -> None:
        for position, parts in self._blocks.items():
            if isinstance(parts, _BlockAdjoints):
                block = self.route[position][1]
                where, node = f"in block {block} ({self.view[block].name})", self._chain.links[block].branch
                remedy = "no random sign can be taken; give --method exact or sampled"
                require_rows(self._chain.trace, node, parts.branch.output, examples, where, remedy)

    def _forced(self, start: int, stop: int) -> int:
        """How many of the blocks at some positions every path takes."""
        return len(path_blocks(self.route[start:stop])[1])

    def exact(self, max_length: int | None = None, tolerance: float = 0.0, signs: Tensor | None = None) -> Profile:
        """The last of :meth:`profiles`: the gradients at the place asked for."""
        return deque(self.profiles(max_length, tolerance, signs), maxlen=1).pop()

    def along(self, paths: Sequence[Sequence[int]]) -> Tensor:
        """Gradients through single paths, shape (P, N, ...). Arguments and errors as :meth:`through`."""
        return self.through(paths).values()

    def through(self, paths: Sequence[Sequence[int]]) -> Scaled:
        """Gradients through single paths, one row each.

        Args:
            paths: each the indices of the blocks whose branch it takes.

        Raises:
            UsageError: a block that does not count here, or no path.
            NumericsError: a gradient that is not finite, with the block at which it first appears.
        """
        if not len(paths):
            raise UsageError("no path was given")
        free, forced = path_blocks(self.route, self.blocks.start)
        for path in paths:
            if not {*free, *forced}.issuperset(path) or len(set(path)) != len(path):
                raise UsageError(f"path {tuple(path)} is no subset of the blocks {_named((*free, *forced))}")
            if not set(forced).issubset(path):
                raise UsageError(f"path {tuple(path)} must take the blocks without a shortcut, {_named(forced)}")
        return in_parts(self._through, paths, self._at_once)

    @cached_property
    def _at_once(self) -> int:
        """How many paths go through the network together."""
        outputs = (parts.post.output for parts in self._blocks.values())
        return paths_at_once(max(value.numel() for value in (self._start, *outputs)), self.seed.device)

    def _through(self, paths: Sequence[Sequence[int]]) -> Scaled:
        """The same of so few paths that their cotangents stay in the cache."""
        stack = Scaled(self.seed.unsqueeze(0).repeat(len(paths), *[1] * self.seed.dim()), (0,) * len(paths))
        for index in reversed(self.blocks):
            parts = self._blocks[index]
            if isinstance(parts, _LesionAdjoint):
                stack = self._raised(Scaled(chunked(parts.post, stack.rows), stack.exponents), index)
                continue
            taken = torch.tensor([self.route[index][1] in path for path in paths], device=self.seed.device)
            through = chunked(parts.post, stack.rows)
            onward = self._new(len(paths), parts.transition)
            for chosen, adjoint in ((taken, parts.branch), (~taken, parts.shortcut)):
                rows = chosen.nonzero().flatten()
                if len(rows):
                    onward[rows] = chunked(adjoint, through[rows])
            stack = self._raised(Scaled(chunked(parts.transition, onward), stack.exponents), index)
        if self.boundary < 0:
            stack = self._to_input(stack)
        return stack

    def _to_input(self, stack: Scaled) -> Scaled:
        assert self._stem is not None
        rows = chunked(self._stem, stack.rows)
        if rows is stack.rows:  # the stem is the identity
            return stack
        return self._raised(Scaled(rows, stack.exponents), -1)

    def _back(self, index: int, stack: Scaled, sign: Tensor | None) -> Scaled:
        """One step of the recurrence: from x_{i} to x_{i-1}; one length more where paths may choose."""
        parts = self._blocks[index]
        if isinstance(parts, _LesionAdjoint):
            return Scaled(chunked(parts.post, stack.rows), stack.exponents)
        count = len(stack.exponents)
        # each new row is a sum of two rows; it takes the smaller of their exponents, so that nothing overflows
        below = [stack.exponents[0], *stack.exponents]
        above = [*stack.exponents, stack.exponents[-1]]
        exponents = tuple(min(pair) for pair in zip(below, above, strict=True))
        longer = self._new(count + 1, parts.transition)
        size = chunk_of(longer)
        for start in range(0, count, size):
            stop = min(start + size, count)
            rows = range(start, stop)
            through = parts.post(stack.rows[start:stop])
            past = parts.shortcut(through)
            taken = parts.branch(through)
            if sign is not None:
                taken = taken * sign.reshape(-1, *([1] * (taken.dim() - 2)))
            past = shifted(past, [exponents[row] - stack.exponents[row] for row in rows])
            taken = shifted(taken, [exponents[row + 1] - stack.exponents[row] for row in rows])
            if start:
                longer[start] += past[0]
            else:
                longer[0] = past[0]
            torch.add(past[1:], taken[:-1], out=longer[start + 1 : stop])
            longer[stop] = taken[-1]
        return Scaled(chunked(parts.transition, longer), exponents)

    def _new(self, rows: int, transition: VJP) -> Tensor:
        """An empty stack of cotangents at a branch point, channels-last where the activations are."""
        branch_point = transition.output
        shape = (rows, *branch_point.shape)
        if branch_point.dim() == 4 and branch_point.is_contiguous(memory_format=torch.channels_last):
            flat = torch.empty(
                (rows * shape[1], *shape[2:]),
                dtype=branch_point.dtype,
                device=branch_point.device,
                memory_format=torch.channels_last,
            )
            return flat.unflatten(0, (rows, -1))
        return branch_point.new_empty(shape)

    def _raised(self, stack: Scaled, index: int) -> Scaled:
        try:
            return stack.raised()
        except FloatingPointError:
            where = {-1: "in the stem", len(self.view): "at the output of the last block"}.get(index)
            if where is None:
                block = self.view[self.route[index][1]]
                where = f"at block {block.index} ({block.name})"
            raise NumericsError(
                f"the gradient is NaN or infinite, first {where}; check the weights or use --dtype float64"
            ) from None


def _named(blocks: Sequence[int]) -> str:
    """``0 to 4``, or the blocks one by one."""
    first, last = min(blocks, default=0), max(blocks, default=-1)
    whole = len(blocks) == last - first + 1 > 1
    return f"{first} to {last}" if whole else ", ".join(map(str, sorted(blocks))) or "none"


def boundary_of(at: str | int, blocks: int) -> int:
    """Boundary index of ``input`` (-1), ``stem`` (0), ``block:I`` or I.

    Raises:
        UsageError: something else, or a boundary that leaves no block.
    """
    text = str(at)
    if text == "input":
        return -1
    if text == "stem":
        return 0
    number = text.removeprefix("block:")
    if not number.isdecimal() or int(number) >= blocks:
        raise UsageError(f"at {at!r}: give input, stem or block:I with I from 0 to {blocks - 1}")
    return int(number)
