"""A backward pass through paths of chosen lengths, where blocks need not be a chain.

As in :mod:`pathlens.residual.restricted` the forward pass is whole, and gradients are polynomials as in
:mod:`pathlens.residual.polynomials`. Stem and head are what lies before and after all blocks on the trunk, the tensors
that every path passes: the head comes before any choice of path (in backward order) and gets its ordinary gradient, and
so does the stem from what has come through the allowed paths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pathlens.errors import ModelError, UsageError
from pathlens.residual.chain import Chain
from pathlens.residual.flow import Edge, Flow, Unit, called, ends_of_blocks, is_sum
from pathlens.residual.polynomials import MOST_DEGREES, Polynomial, summed
from pathlens.residual.restricted import FEW, Choice, RestrictedNetwork, ThroughPaths, collect, restricted_chain
from pathlens.residual.routes import Route, intact
from pathlens.residual.scaled import Scaled
from pathlens.residual.segments import Piece, Segment, cut, with_updates
from pathlens.residual.turns import together
from pathlens.residual.vjp import BatchedVJP, is_stackable

aten = torch.ops.aten


def restricted(chain: Chain, route: Route | None = None) -> RestrictedNetwork | RestrictedGraph:
    """A network made ready for restricted backward passes, in the faster way where its blocks are a chain.

    Args:
        chain: the network.
        route: what is left of each block (default: all of it).

    Raises:
        ModelError: an output of the network depends on more than what all paths end in.
    """
    return restricted_chain(chain, route) if chain.in_series else RestrictedGraph(chain, route)


class RestrictedGraph:
    """A network as stem, units between the places where tensors meet or part, and head.

    Args:
        chain: the network and its blocks.
        route: what is left of each block (default: all of it).

    Raises:
        ModelError: an output of the network depends on more than what all paths end in.
    """

    def __init__(self, chain: Chain, route: Route | None = None) -> None:
        trace = self.trace = chain.trace
        start, end = ends_of_blocks(chain)
        flow = self.flow = Flow(chain, route or intact(len(chain.links)), start, False, end)
        outputs = tuple(item for item in trace.outputs if isinstance(item, fx.Node))
        dependent = chain.discovery.input_dependent
        (whole,), (self.buffers,) = with_updates(trace, dependent, [Piece(trace.source, outputs, flow.swap)])
        flow.swap.update(whole.swap)  # where a batch norm runs twice: the statistics of the run that is left
        self.outputs, self.statistics = whole.ends[: len(outputs)], whole.ends[len(outputs) :]
        self.stem = flow.needed([flow.start])
        self.body = flow.needed([flow.main], dependent.intersection(self.stem))
        given = dependent.intersection((*self.stem, *self.body)) | {flow.main}
        self.head = flow.needed(self.outputs, given)
        self._check_head(given - {flow.main}, dependent)
        self.updates = flow.needed(self.statistics, {*given, *self.head})
        everything = (*self.stem, *self.body, *self.head, *self.updates)
        self.held = tuple({node for node in everything if node.op == "placeholder"} - {trace.source})
        self.owners: dict[fx.Node, list[Unit]] = {}
        for unit in flow.units:
            for node in unit.nodes:
                self.owners.setdefault(node, []).append(unit)
        self.parameters = {unit: self._parameters_of(unit) for unit in flow.units}
        self._segments: dict[Unit, Segment | None] = {}

    def _check_head(self, before: set[fx.Node], dependent: set[fx.Node]) -> None:
        """Refuse a head that reads numbers of the stem or of the blocks other than through their end."""
        ends = [self.flow.resolved(output)[0] for output in self.outputs]
        read = [
            self.flow.resolved(operand)[0]
            for node in self.head
            if node in dependent
            for operand in node.all_input_nodes
        ]
        for node in (*ends, *read):
            value = self.trace.value(node)
            if node in before and (not isinstance(value, Tensor) or value.is_floating_point()):
                raise ModelError(
                    f"an output of this network depends on {node.name}, which is not the end of all paths through its "
                    "blocks, so that its backward pass cannot be restricted"
                )

    def _parameters_of(self, unit: Unit) -> tuple[fx.Node, ...]:
        """Tensors of the model, parameters and others, that a unit computes with."""
        before = {source for source, *_ in unit.sources}
        needed = self.flow.needed(unit.nodes, before | (self.owners.keys() - set(unit.nodes)))
        return tuple(node for node in needed if self.is_held(node))

    def is_held(self, node: fx.Node) -> bool:
        """Whether a node is the place of a tensor that the model holds."""
        return node.op == "placeholder" and node.name in self.trace.tensors

    def segment_of(self, unit: Unit) -> Segment | None:
        """A unit cut out for many cotangents at once; None where it does not allow that."""
        if unit not in self._segments:
            segment = None
            if len(unit.sources) == 1:
                # what is cut out may need a size or a tensor from elsewhere
                with contextlib.suppress(ModelError):
                    segment = cut(self.trace, unit.sources[0][0], [unit.end], self.flow.swap)
            self._segments[unit] = segment if segment is not None and is_stackable(segment.graph) else None
        return self._segments[unit]

    def run(self, images: Tensor, choice: Choice) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs of the network, in the order of the trace's output nodes, and new values of buffers.

        Raises:
            UsageError: no path has an allowed length, or paths of too many lengths would have to be told apart.
        """
        assert choice.lengths is not None
        self._check(choice.lengths)
        names = tuple(node.name for node in self.held)
        values: dict[fx.Node, Any] = dict(zip(self.held, self.trace.fetch(names), strict=True))
        values[self.trace.source] = images
        self._compute(self.stem, values)
        start: Tensor = values[self.flow.start]
        trained = [node for node in self.body if self.is_held(node) and values[node].requires_grad]
        tape = _Tape(self, choice.lengths, values, trained, start.requires_grad)
        end = ThroughPaths.apply(tape, start, *(values[node] for node in trained))
        known = {**tape.values, **values, self.flow.main: end}
        tape.values = {}
        self._compute(self.head, known)
        with torch.no_grad():
            self._compute(self.updates, known)
        results, updates = (
            [known[self.flow.resolved(node)[0]] for node in nodes] for nodes in (self.outputs, self.statistics)
        )
        return results, dict(zip(self.buffers, updates, strict=True))

    def _compute(self, nodes: Iterable[fx.Node], values: dict[fx.Node, Any]) -> None:
        for node in nodes:
            if node.op != "placeholder":
                values[node] = called(node, lambda operand: values[self.flow.resolved(operand)[0]])

    def _check(self, allowed: frozenset[int]) -> None:
        lengths = self.flow.lengths
        if not allowed.intersection(lengths):
            raise UsageError(
                f"no path through the blocks has a length of {_spoken(sorted(allowed))}; paths have lengths of "
                f"{_spoken(lengths)}"
            )
        most = min(max(allowed), self.flow.longest)
        if most > MOST_DEGREES:
            raise UsageError(
                f"paths of up to {most} branches are allowed, and where blocks are no chain, gradients are resolved by "
                f"up to {MOST_DEGREES}; give lengths of {MOST_DEGREES} or less"
            )


def _spoken(lengths: Sequence[int]) -> str:
    """``2 to 5``, or numbers one by one."""
    first, last = lengths[0], lengths[-1]
    return f"{first} to {last}" if len(lengths) == last - first + 1 > 1 else ", ".join(map(str, lengths))


class _Tape:
    """The blocks' part of one forward pass, and its restricted backward pass.

    Attributes:
        trained: names of the parameters that the backward pass gives gradients of.
        values: everything that the forward pass has computed, without gradients.
    """

    def __init__(
        self,
        network: RestrictedGraph,
        allowed: frozenset[int],
        values: dict[fx.Node, Any],
        trained: Sequence[fx.Node],
        carries_to_start: bool,
    ) -> None:
        self._network, self._flow, self._allowed = network, network.flow, allowed
        self._carries_to_start = carries_to_start
        self.trained = [node.name for node in trained]
        self.values = {node: _detached(value) for node, value in values.items()}
        for node in trained:
            self.values[node].requires_grad_()
        self._parameters = {node: self.values[node] for node in trained}
        # of each unit: its sources as leaves of a graph of its own, and what it gives
        self._leaves: dict[Unit, dict[Edge, Tensor]] = {unit: {} for unit in network.flow.units}
        self._results: dict[Unit, Tensor] = {}
        self._lower = False

    def forward(self, start: Tensor) -> Tensor:
        """What all blocks give; every unit keeps a graph of its own."""
        self._lower = torch.is_autocast_enabled(start.device.type)
        network, values = self._network, self.values
        values[self._flow.start] = start.detach()
        own: dict[Unit, dict[fx.Node, Any]] = {unit: {} for unit in self._flow.units}
        with torch.enable_grad():
            for node in network.body:
                for unit in network.owners.get(node, ()):
                    own[unit][node] = called(node, self._operands(node, unit, own[unit]))
                    values[node] = _detached(own[unit][node])
                    if node is unit.end:
                        self._results[unit] = own.pop(unit)[node]
                if node not in network.owners and node.op != "placeholder":
                    values[node] = called(node, lambda operand: values[self._flow.resolved(operand)[0]])
        end: Tensor = values[self._flow.main]
        return end

    def _operands(self, node: fx.Node, unit: Unit, own: dict[fx.Node, Any]) -> Callable[[fx.Node], Any]:
        leaves = self._leaves[unit]

        def given(operand: fx.Node) -> Any:
            edge = self._flow.edge(node, operand)
            if edge not in unit.sources:
                return own.get(edge[0], self.values[edge[0]])
            if edge not in leaves:
                value: Tensor = self.values[edge[0]]
                leaves[edge] = value.detach().requires_grad_(value.is_floating_point())
            return leaves[edge]

        return given

    def backward(self, seed: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradient at the end of the stem and of the parameters, through the allowed paths."""
        flow, most = self._flow, max(self._allowed)
        grads: dict[str, Tensor] = {}
        arrived: dict[fx.Node, Polynomial] = {flow.main: (flow.forced, _unscaled(seed.unsqueeze(0)))}
        with together():
            for unit in reversed(flow.units):
                first, scaled = arrived.pop(unit.end, (0, None))
                if scaled is None or first > most:
                    continue
                rows = scaled.rows[: most + 1 - first]
                self._collect(unit, self._sum(first, rows), grads)
                wanted = [edge for edge in unit.sources if edge[0] is not flow.start or self._carries_to_start]
                for (source, longer, _), carried in self._carried(unit, wanted, rows).items():
                    back = first + longer, _unscaled(carried)
                    arrived[source] = summed(arrived[source], back) if source in arrived else back
        if flow.start not in arrived:
            return None, grads
        first, scaled = arrived[flow.start]
        return self._sum(first, scaled.rows), grads

    def _sum(self, first: int, rows: Tensor) -> Tensor | None:
        """Sum of the gradients of allowed lengths; None where there are none."""
        chosen = [row for row in range(len(rows)) if first + row in self._allowed]
        return rows[chosen].sum(0) if chosen else None

    def _collect(self, unit: Unit, cotangent: Tensor | None, grads: dict[str, Tensor]) -> None:
        nodes = [node for node in self._network.parameters[unit] if node in self._parameters]
        collect(self._results[unit], {node.name: self._parameters[node] for node in nodes}, cotangent, grads)

    def _carried(self, unit: Unit, wanted: Sequence[Edge], rows: Tensor) -> dict[Edge, Tensor]:
        """Cotangents of what a unit gives -> those of each of its sources that is wanted."""
        leaves, result = self._leaves[unit], self._results[unit]
        wanted = [edge for edge in wanted if leaves[edge].requires_grad]
        if not wanted or not result.requires_grad:
            return {}
        if is_sum(unit, [leaves[edge] for edge in unit.sources]):
            return dict.fromkeys(wanted, rows)
        # what computes many at once runs the unit again, and would do that in other types than autocast chose
        if len(rows) > FEW and not self._lower:
            segment = self._network.segment_of(unit)
            if segment is not None:
                return {wanted[0]: BatchedVJP(segment, leaves[wanted[0]].detach())(rows)}
        inputs = [leaves[edge] for edge in wanted]
        back = [
            torch.autograd.grad(result, inputs, row, retain_graph=True, allow_unused=True, materialize_grads=True)
            for row in rows
        ]
        return {edge: torch.stack(parts) for edge, parts in zip(wanted, zip(*back, strict=True), strict=True)}


def _unscaled(rows: Tensor) -> Scaled:
    return Scaled(rows, (0,) * len(rows))


def _detached(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, value)
