"""A forward pass as always, with a backward pass that goes through chosen paths alone.

The head's parameters come before any choice of path (in backward order) and get their ordinary gradient. A parameter of
a branch gets the gradient that reaches its block through the blocks after it, its own block counted; one of a shortcut,
post-activation or transition the same without its own block; those of the stem the whole choice.

In a lesioned network a block without its branch is passed by its shortcut alone, and one without its shortcut by its
branch alone, which makes every path longer by one.

A parameter is here any tensor that the model holds and that requires a gradient, registered or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._autograd import _get_current_graph_task_keep_graph
from torch.autograd.function import once_differentiable

from pathlens.errors import UsageError
from pathlens.residual.chain import Chain
from pathlens.residual.routes import Part, Route, intact
from pathlens.residual.segments import Piece, UpdatingSegment, updating
from pathlens.residual.turns import together
from pathlens.residual.vjp import BatchedVJP, is_stackable

#: up to this many cotangents, the autograd graph of the forward pass is faster than preparing a batched VJP
FEW = 2


@dataclass(frozen=True)
class Choice:
    """Which paths the gradient may take: all of some lengths, or one.

    Attributes:
        lengths: allowed numbers of branches, or None.
        path: blocks whose branch the one path takes, or None.
    """

    lengths: frozenset[int] | None = None
    path: frozenset[int] | None = None


@dataclass(frozen=True, eq=False)
class RestrictedNetwork:
    """A chain cut into the pieces that a restricted backward pass needs."""

    chain: Chain
    route: Route
    stem: UpdatingSegment
    blocks: tuple[tuple[UpdatingSegment, UpdatingSegment, UpdatingSegment], ...]
    head: UpdatingSegment
    names: tuple[str, ...]

    def run(self, images: Tensor, choice: Choice) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs of the network, in the order of the trace's output nodes, and new values of buffers."""
        trace = self.chain.trace
        values = dict(zip(self.names, trace.fetch(self.names), strict=True))
        updates: dict[str, Tensor] = {}
        (x,) = _call(self.stem, images, values, updates)
        trained = [name for name in self.names if values[name].requires_grad]
        tape = _Tape(self, choice, values, trained, updates)
        x = ThroughPaths.apply(tape, x, *(values[name] for name in trained))
        return list(_call(self.head, x, values, updates)), updates


def restricted_chain(chain: Chain, route: Route | None = None) -> RestrictedNetwork:
    """Cut a chain for restricted backward passes.

    Args:
        chain: the network.
        route: what runs at each position (default: the network as it was trained).

    Raises:
        ModelError: an output of the network depends on more than the last block.
    """
    trace = chain.trace
    route = intact(len(chain.links)) if route is None else route
    outputs = tuple(item for item in trace.outputs if isinstance(item, fx.Node))
    pieces = [Piece(trace.source, (chain.boundaries[0],), {})]
    for part, block in route:
        link = chain.links[block]
        pieces.append(Piece(link.start, (link.branch_point,), {}))
        operand_paths = (link.branch, link.shortcut) if part is Part.BLOCK else (link.remainder(part),)
        pieces.append(Piece(link.branch_point, operand_paths, {}))
        pieces.append(Piece(link.total, (link.end,), {}))
    pieces.append(Piece(chain.boundaries[-1], outputs, {}))
    parts = updating(trace, chain.discovery.input_dependent, pieces)
    names = tuple(dict.fromkeys(name for part in parts for name in part.segment.tensor_names))
    inner = parts[1:-1]
    blocks = tuple((inner[i], inner[i + 1], inner[i + 2]) for i in range(0, len(inner), 3))
    return RestrictedNetwork(chain, route, parts[0], blocks, parts[-1], names)


def _call(
    part: UpdatingSegment, x: Tensor, values: dict[str, Tensor], updates: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    tensors = part.segment.graph_module.forward(x, *(values[name] for name in part.segment.tensor_names))
    return part.split(tensors, updates)


@dataclass(eq=False)
class _Record:
    """Tensors of one block's forward pass that its backward pass needs; None for a deleted branch or shortcut."""

    x: Tensor
    transitioned: Tensor
    branch_point: Tensor
    branch: Tensor | None
    shortcut: Tensor | None
    total: Tensor
    end: Tensor
    parts: tuple[UpdatingSegment, UpdatingSegment, UpdatingSegment]


@dataclass(frozen=True, eq=False)
class _Stack:
    """Gradients of consecutive path lengths, one a row; ``first`` is the length of the first."""

    rows: Tensor
    first: int

    def carried(self, result: Tensor, start: Tensor) -> _Stack:
        """The stack carried back through a recorded piece."""
        return _Stack(_carry(result, start, self.rows), self.first)


class _Tape:
    """The blocks' part of one forward pass, and its restricted backward pass."""

    def __init__(
        self,
        network: RestrictedNetwork,
        choice: Choice,
        values: dict[str, Tensor],
        trained: list[str],
        updates: dict[str, Tensor],
    ) -> None:
        self._network = network
        self._choice = choice
        self.trained = trained
        self._updates = updates
        # detached leaves, so that autograd stops at the block
        self._local = {name: value.detach() for name, value in values.items()}
        for name in trained:
            self._local[name].requires_grad_()
        self._records: list[_Record] = []
        self._lower = False

    def forward(self, x: Tensor) -> Tensor:
        """x_n from x_0; every block keeps a graph of its own."""
        self._lower = torch.is_autocast_enabled(x.device.type)
        with torch.enable_grad():
            for (part, _), parts in zip(self._network.route, self._network.blocks, strict=True):
                before, both, after = parts
                x = x.detach().requires_grad_()
                (transitioned,) = _call(before, x, self._local, self._updates)
                branch_point = transitioned.detach().requires_grad_()
                operand_paths = _call(both, branch_point, self._local, self._updates)
                total = (
                    (operand_paths[0] + operand_paths[1] if part is Part.BLOCK else operand_paths[0])
                    .detach()
                    .requires_grad_()
                )
                (end,) = _call(after, total, self._local, self._updates)
                branch = None if part is Part.SHORTCUT else operand_paths[0]
                shortcut = None if part is Part.BRANCH else operand_paths[-1]
                self._records.append(_Record(x, transitioned, branch_point, branch, shortcut, total, end, parts))
                x = end
        return x.detach()

    def backward(self, seed: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradient at x_0 and of the blocks' parameters, through the allowed paths."""
        grads: dict[str, Tensor] = {}
        stack = _Stack(seed.unsqueeze(0), 0)
        with together():
            for position in reversed(range(len(self._records))):
                stack = self._back(position, stack, grads)
        return self._allowed(stack), grads

    def _back(self, position: int, stack: _Stack, grads: dict[str, Tensor]) -> _Stack:
        record = self._records[position]
        before, both, after = record.parts
        self._collect(record.end, after, self._allowed(stack), grads)
        stack = stack.carried(record.end, record.total)
        path, block = self._choice.path, self._network.route[position][1]
        branch, shortcut = record.branch, record.shortcut
        if path is not None and block in path:
            shortcut = None
        elif path is not None:
            branch = None
        if branch is not None:
            self._collect(branch, both, self._allowed(stack, 1), grads)
        if shortcut is not None:
            self._collect(shortcut, both, self._allowed(stack), grads)
        if branch is None:
            assert shortcut is not None
            stack = stack.carried(shortcut, record.branch_point)
        elif shortcut is None:
            stack = self._shortened(_Stack(stack.rows, stack.first + 1)).carried(branch, record.branch_point)
        else:
            stack = self._longer(block, record, stack)
        self._collect(record.transitioned, before, self._allowed(stack), grads)
        return stack.carried(record.transitioned, record.x)

    def _shortened(self, stack: _Stack) -> _Stack:
        """The stack without lengths beyond the longest allowed path."""
        if self._choice.lengths is None:
            return stack
        return _Stack(stack.rows[: max(self._choice.lengths) + 1 - stack.first], stack.first)

    def _longer(self, block: int, record: _Record, stack: _Stack) -> _Stack:
        """The recurrence for one block."""
        assert record.branch is not None
        assert record.shortcut is not None
        fed = self._shortened(_Stack(stack.rows, stack.first + 1)).rows
        count = max(stack.rows.shape[0], fed.shape[0] + 1)
        longer = torch.zeros((count, *record.branch_point.shape), dtype=stack.rows.dtype, device=stack.rows.device)
        longer[: stack.rows.shape[0]] += _carry(record.shortcut, record.branch_point, stack.rows)
        if fed.shape[0]:
            branch = self._network.chain.branch(block)
            # what computes many at once runs the branch again, and would do that in other types than autocast chose
            if fed.shape[0] > FEW and is_stackable(branch.graph) and not self._lower:
                through = BatchedVJP(branch, record.branch_point.detach())(fed)
            else:
                through = _carry(record.branch, record.branch_point, fed)
            longer[1 : fed.shape[0] + 1] += through
        return _Stack(longer, stack.first)

    def _allowed(self, stack: _Stack, shift: int = 0) -> Tensor | None:
        """Sum of the gradients of allowed lengths, counted with ``shift`` more blocks; None where there are none."""
        if self._choice.lengths is None:
            return stack.rows[0]
        rows = [row for row in range(len(stack.rows)) if stack.first + row + shift in self._choice.lengths]
        return stack.rows[rows].sum(0) if rows else None

    def _collect(
        self, result: Tensor, part: UpdatingSegment, cotangent: Tensor | None, grads: dict[str, Tensor]
    ) -> None:
        trained = {name: self._local[name] for name in part.segment.tensor_names if name in self.trained}
        collect(result, trained, cotangent, grads)


def collect(
    result: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor | None, grads: dict[str, Tensor]
) -> None:
    """Add what a cotangent gives the parameters of a recorded piece to their gradients.

    Args:
        result: of the piece.
        parameters: by name; the piece need not have computed with all of them.
        cotangent: of the result, or None for none.
        grads: gradients so far, by name.
    """
    if cotangent is None or not parameters or not result.requires_grad:
        return
    gradients = torch.autograd.grad(result, list(parameters.values()), cotangent, retain_graph=True, allow_unused=True)
    for name, grad in zip(parameters, gradients, strict=True):
        if grad is not None:
            grads[name] = grads[name] + grad if name in grads else grad


def _carry(result: Tensor, start: Tensor, stack: Tensor) -> Tensor:
    """A stack of cotangents through a recorded piece, one after the other."""
    if result is start:
        return stack
    if not result.requires_grad:
        return torch.zeros((stack.shape[0], *start.shape), dtype=stack.dtype, device=stack.device)
    back = [
        torch.autograd.grad(result, start, part, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for part in stack
    ]
    return torch.stack(back)


class ThroughPaths(torch.autograd.Function):
    """The blocks as one operation, whose backward pass is the tape's."""

    @staticmethod
    def forward(ctx: Any, tape: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """The tape's forward pass; the parameters that it trains are inputs, so that they get gradients."""
        ctx.tape = tape
        ctx.count = len(parameters)
        return tape.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        """The tape's backward pass, after which its activations are freed, as those of autograd are.

        Raises:
            UsageError: they are freed already.
        """
        tape = ctx.tape
        if tape is None:
            raise UsageError(
                "the activations of this restricted backward pass are freed by an earlier one; give that one "
                "retain_graph=True, or run the forward pass again"
            )
        if not _get_current_graph_task_keep_graph():
            ctx.tape = None
        x, gradients = tape.backward(seed)
        return (None, x, *(gradients.get(name) for name in tape.trained))
