"""Cut a piece out of a traced graph and make it callable."""

from __future__ import annotations

import linecache
import operator
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph_module import _loader

from pathlens.errors import ModelError
from pathlens.residual.simplify import batch_norm_update, statistics_after_both
from pathlens.residual.sizes import ratio
from pathlens.residual.trace import Trace

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a network from some tensors to others.

    Calling it with the tensors at its start returns those at its end (a tuple, even of one). It computes with the
    parameters that the model holds at that moment.
    """

    graph: fx.Graph
    tensor_names: tuple[str, ...]
    trace: Trace

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The graph as a module; made when asked for, since a piece that is rewritten for speed never runs as it is."""
        return compiled(torch.nn.Module(), self.graph, "Segment")

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the piece on the tensors at its start."""
        return self.graph_module.forward(*inputs, *self.trace.fetch(self.tensor_names))


def compiled(root: torch.nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A graph as a module, whose source goes with it: torch would keep the source of all that it ever compiled.

    Args:
        root: holds the tensors that the graph names.
        graph: what is computed.
        name: of the module's class.
    """
    module = fx.GraphModule(root, graph, class_name=name)
    weakref.finalize(module, _forget, module.forward.__code__.co_filename)
    return module


def _forget(source: str) -> None:
    _loader.eval_cache.pop(source, None)
    linecache.cache.pop(source, None)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the graph to copy: from ``start`` to ``ends``, with some nodes replaced by others.

    ``swap`` maps a node to the node that is used (or returned) in its place.
    """

    start: fx.Node
    ends: tuple[fx.Node, ...]
    swap: Mapping[fx.Node, fx.Node]


def cut(
    trace: Trace, start: fx.Node, ends: Sequence[fx.Node], swap: Mapping[fx.Node, fx.Node] | None = None
) -> Segment:
    """Cut the graph between nodes.

    Args:
        trace: the graph.
        start: node whose value the caller will give.
        ends: nodes whose values are wanted.
        swap: nodes to replace by other nodes of the graph wherever they are used or wanted.

    Returns:
        The segment; it holds only the operations that the ends need.

    Raises:
        ModelError: the ends depend on the input other than through the start.
    """
    return splice(trace, [Piece(start, tuple(ends), swap or {})], tuple(ends))


def splice(trace: Trace, pieces: Sequence[Piece], ends: Sequence[fx.Node]) -> Segment:
    """Chain pieces of the graph: the first end of each piece is what the next one starts from.

    Args:
        trace: the graph.
        pieces: in the order in which they run.
        ends: which nodes to return, each an end of some piece.

    Returns:
        The segment; operations that no end needs are left out.

    Raises:
        ModelError: a piece depends on the input other than through its start.
    """
    graph, names = extract(trace, pieces, ends)
    return Segment(graph, names, trace)


def extract(trace: Trace, pieces: Sequence[Piece], ends: Sequence[fx.Node]) -> tuple[fx.Graph, tuple[str, ...]]:
    """The graph of a segment: a placeholder for its start, then one for each tensor named in the second result."""
    reached = [_reach(trace, piece) for piece in pieces]
    graph = fx.Graph()
    current = graph.placeholder(pieces[0].start.name)
    current.meta = dict(pieces[0].start.meta)
    tensors: dict[fx.Node, fx.Node] = {}
    for needed in reached:
        for node in needed.tensors:
            if node not in tensors:
                tensors[node] = graph.placeholder(node.name)
                tensors[node].meta = dict(node.meta)
    results: dict[fx.Node, fx.Node] = {}
    for piece, needed in zip(pieces, reached, strict=True):
        env: dict[fx.Node, Any] = {**tensors, piece.start: current}
        for size in needed.sizes:
            env[size] = _size_from(graph, trace, size, piece.start, current)

        def new(node: fx.Node, env: dict[fx.Node, Any] = env, piece: Piece = piece) -> Any:
            return env[_resolve(node, piece)]

        for node in needed.inner:
            env[node] = graph.node_copy(node, new)
        for end in piece.ends:
            results[end] = new(end)
        current = results[piece.ends[0]]
    graph.output(tuple(results[end] for end in ends))
    return graph, tuple(node.name for node in tensors)


def _resolve(node: fx.Node, piece: Piece) -> fx.Node:
    """What stands in a node's place; what the piece starts from is given, whatever it once was."""
    while node is not piece.start and node in piece.swap:
        node = piece.swap[node]
    return node


@dataclass(frozen=True, eq=False)
class _Reached:
    """Nodes to copy in execution order, tensors to pass in, and sizes to read off the start."""

    inner: list[fx.Node]
    tensors: list[fx.Node]
    sizes: list[fx.Node]


def with_updates(
    trace: Trace, input_dependent: set[fx.Node], pieces: Sequence[Piece]
) -> tuple[list[Piece], list[list[str]]]:
    """Let each piece also return the new batch-norm statistics of what it computes; what is cut out updates nothing.

    Args:
        trace: the graph.
        input_dependent: its nodes that depend on the input.
        pieces: in the order in which they run.

    Returns:
        The pieces with more ends, and for each the buffers that those are for.
    """
    pending = dict(trace.mutations)
    buffers: list[list[str]] = []
    extended: list[Piece] = []
    for piece in pieces:
        needed = _reach(trace, piece)
        reached = {*needed.inner, *needed.tensors}
        modules = {
            name.rpartition(".")[0]
            for name, node in pending.items()
            if node in reached or (node in input_dependent and _happens(node, reached))
        }
        mine = [name for name in pending if name.rpartition(".")[0] in modules]
        swap = {**piece.swap, **_skipped_updates(trace, reached)} if len(pieces) == 1 else piece.swap
        extended.append(Piece(piece.start, (*piece.ends, *(pending.pop(name) for name in mine)), swap))
        buffers.append(mine)
    return extended, buffers


@dataclass(frozen=True, eq=False)
class UpdatingSegment:
    """A piece of a network that also computes new batch-norm statistics.

    Attributes:
        segment: the piece; it returns its own results and then the new values of the buffers.
        results: number of its own results.
        buffers: names of the buffers.
    """

    segment: Segment
    results: int
    buffers: tuple[str, ...]

    def split(self, tensors: Sequence[Tensor], updates: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The piece's own results; the new values of buffers are put into ``updates``.

        Args:
            tensors: all that the segment returned.
            updates: new values by name.
        """
        updates.update(zip(self.buffers, tensors[self.results :], strict=True))
        return tuple(tensors[: self.results])


def updating(trace: Trace, input_dependent: set[fx.Node], pieces: Sequence[Piece]) -> list[UpdatingSegment]:
    """A segment for each piece. Arguments as :func:`with_updates`.

    Raises:
        ModelError: a piece depends on the input other than through its start.
    """
    extended, buffers = with_updates(trace, input_dependent, pieces)
    return [
        UpdatingSegment(splice(trace, [whole], whole.ends), len(piece.ends), tuple(names))
        for piece, whole, names in zip(pieces, extended, buffers, strict=True)
    ]


def _happens(update: fx.Node, reached: set[fx.Node]) -> bool:
    """Whether a batch norm whose statistics this is, is among the nodes that run."""
    if update.target is statistics_after_both:
        return any(_happens(part, reached) for part in update.all_input_nodes[:2])
    norm = update
    while norm.target is not batch_norm_update and norm.args and isinstance(norm.args[0], fx.Node):
        norm = norm.args[0]  # of an instance norm it is a mean over the examples
    if norm.target is batch_norm_update:
        return norm in reached
    return any(operand in reached for operand in update.all_input_nodes)


def _skipped_updates(trace: Trace, reached: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Where a batch norm runs several times and some of the runs are cut out: the update by the others alone."""
    swap: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.target is statistics_after_both:
            earlier, later = node.all_input_nodes[:2]
            if not _happens(later, reached):
                swap[node] = earlier
            elif not _happens(earlier, reached):
                swap[node] = later
    return swap


def _reach(trace: Trace, piece: Piece) -> _Reached:
    seen: set[fx.Node] = set()
    sizes: set[fx.Node] = set()
    stack = list(piece.ends)
    while stack:
        node = _resolve(stack.pop(), piece)
        if node is piece.start or node in seen:
            continue
        seen.add(node)
        if node.target is aten.sym_size.int and node.args[0] is not piece.start:
            sizes.add(node)
            continue
        if node is trace.source:
            raise ModelError("this part of the network needs the input itself, not only the block before it")
        stack += node.all_input_nodes
    nodes = sorted(seen)
    return _Reached(
        inner=[node for node in nodes if node.op != "placeholder" and node not in sizes],
        tensors=[node for node in nodes if node.op == "placeholder"],
        sizes=[node for node in nodes if node in sizes],
    )


def _size_from(graph: fx.Graph, trace: Trace, size: fx.Node, start: fx.Node, here: fx.Node) -> Any:
    """A size of the whole network that follows the batch, read off the tensor at the start of a piece."""
    value = trace.value(size)
    if not trace.follows_batch(value):
        return int(value)
    for dimension, have in enumerate(trace.value(start).shape):
        if not trace.follows_batch(have):
            continue
        factor = ratio(have, value)
        if factor is None or 1 not in (factor.numerator, factor.denominator):
            continue
        read = _with_meta(graph.call_function(aten.sym_size.int, (here, dimension)), have)
        if factor == 1:
            return read
        if factor.denominator == 1:
            return _with_meta(graph.call_function(operator.floordiv, (read, factor.numerator)), value)
        return _with_meta(graph.call_function(operator.mul, (read, factor.denominator)), value)
    raise ModelError(f"the size {size.name} of the network's input cannot be read off the tensor before this block")


def _with_meta(node: fx.Node, value: Any) -> fx.Node:
    node.meta = {"val": value}
    return node
