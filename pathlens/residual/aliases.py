"""Which tensors of a recorded pass look at the same memory, so that a write in place becomes an ordinary operation."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_RESHAPING = (
    aten.view.default, aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default
)  # fmt: skip


class Unsure(Exception):  # noqa: N818
    """The recorder met something that only the exporter is known to trace correctly."""


@dataclass(eq=False)
class Base:
    """Memory of its own.

    Attributes:
        node: what it holds now.
        kind: ``input``, ``parameter``, ``buffer``, ``constant``, or ``computed`` by an operation.
        version: how often it was written to.
        shared: another base has the same memory, so that a write to either is not surely known.
    """

    node: fx.Node
    kind: str
    version: int = 0
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One operation that makes a view: ``target(before, *args)`` (or element ``index`` of it) is ``after``."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    index: int | None
    before: Tensor
    after: Tensor


@dataclass(eq=False)
class Value:
    """A tensor that the pass made: a view of a base, and the node with its values as of a version of the base."""

    tensor: Tensor
    base: Base
    steps: tuple[Step, ...]
    node: fx.Node
    version: int


class Aliases:
    """All tensors of a pass, by identity."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._values: dict[int, Value] = {}
        self._memory: dict[int, Base] = {}

    def find(self, tensor: Tensor) -> Value | None:
        """What is known of a tensor."""
        return self._values.get(id(tensor))

    def own(self, tensor: Tensor, node: fx.Node, kind: str = "computed") -> Value:
        """A tensor with memory of its own."""
        base = Base(node, kind)
        other = self._memory.setdefault(memory_of(tensor), base)
        if other is not base:
            if kind == "computed":
                raise Unsure("an operation whose result looks at an operand, and does not say so")
            base.shared = other.shared = True
        return self._add(Value(tensor, base, (), node, 0))

    def view(self, tensor: Tensor, node: fx.Node, of: Value, step: Step) -> Value:
        """A tensor that looks at the memory of another."""
        if memory_of(tensor) != memory_of(of.tensor):
            raise Unsure("a view with memory of its own")
        return self._add(Value(tensor, of.base, (*of.steps, step), node, of.base.version))

    def _add(self, value: Value) -> Value:
        if id(value.tensor) in self._values:
            raise Unsure("an operation that returns its operand")
        self._values[id(value.tensor)] = value
        return value

    def read(self, value: Value) -> fx.Node:
        """The node that holds a tensor's present values: after a write to its base the view is taken again."""
        if value.version != value.base.version:
            value.node = self._through(value.base.node, value.steps)[-1]
            value.version = value.base.version
        return value.node

    def write(self, value: Value, node: fx.Node) -> None:
        """Let a tensor, and the base that it is a view of, hold new values."""
        base = value.base
        if base.shared or base.kind in ("parameter", "constant"):
            raise Unsure(f"a write to a {base.kind}")
        views = self._through(base.node, value.steps[:-1]) if value.steps else []
        whole = node
        for step, before in zip(reversed(value.steps), reversed(views), strict=True):
            whole = self._undo(step, before, whole)
        base.node = whole
        base.version += 1
        value.node, value.version = node, base.version

    def _through(self, node: fx.Node, steps: tuple[Step, ...]) -> list[fx.Node]:
        """A base's node, and each view of it in turn."""
        nodes = [node]
        for step in steps:
            view = self._emit(step.target, (nodes[-1], *step.args), step.kwargs, step.after)
            if step.index is not None:
                view = self._emit(operator.getitem, (view, step.index), {}, step.after)
            nodes.append(view)
        return nodes

    def _emit(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> fx.Node:
        node = self._graph.call_function(target, args, dict(kwargs))
        node.meta = {"val": value}
        return node

    def _undo(self, step: Step, before: fx.Node, new: fx.Node) -> fx.Node:
        """What a view was taken from, with the new values of the view in it."""
        target, args, shape = step.target, step.args, step.before.shape
        if step.kwargs:
            raise Unsure(f"a write through {target} with named arguments")
        inverse: tuple[Any, tuple[Any, ...]]
        if target is aten.alias.default:
            return new
        if target in _RESHAPING:
            inverse = aten.view.default, (new, list(shape))
        elif target is aten.unsqueeze.default:
            inverse = aten.squeeze.dim, (new, *args)
        elif target in (aten.transpose.int, aten.t.default):
            inverse = target, (new, *args)
        elif target is aten.permute.default:
            order = [dim % len(shape) for dim in args[0]]
            inverse = target, (new, [order.index(dim) for dim in range(len(shape))])
        elif target is aten.slice.Tensor:
            inverse = aten.slice_scatter.default, (before, new, *args)
        elif target is aten.select.int:
            inverse = aten.select_scatter.default, (before, new, *args)
        else:
            raise Unsure(f"a write through {target}")
        function, operands = inverse
        return self._emit(function, operands, {}, step.before)


def memory_of(tensor: Tensor) -> int:
    """Identity of the memory that a tensor looks at."""
    return tensor.untyped_storage()._cdata
