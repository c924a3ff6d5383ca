"""What a network computes from one tensor, in units between the places where tensors meet or part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.errors import ModelError, UsageError
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain
from pathlens.residual.discover import concatenations
from pathlens.residual.gradients import boundary_of
from pathlens.residual.routes import Part, Route

aten = torch.ops.aten

Ways = Mapping[tuple[fx.Node, fx.Node], int]
"""Where paths part: an operation with an operand -> the number of the way that a path takes there."""

Edge = tuple[fx.Node, int, int | None]
"""A tensor that something is computed from, by how many branches the way to it is longer, and its number."""


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
        ways: those that are to be told apart.
    """

    def __init__(
        self,
        chain: Chain,
        route: Route,
        start: fx.Node,
        concat: bool,
        end: fx.Node | None = None,
        ways: Ways | None = None,
    ) -> None:
        self.trace, self._ways = chain.trace, ways or {}
        links = [(part, chain.links[block]) for part, block in route]
        self.swap = {link.total: link.remainder(part) for part, link in links if part is not Part.BLOCK}
        self._longer = {link.total for part, link in links if part is Part.BRANCH}
        self._raising = {edge for part, link in links if part is Part.BLOCK for edge in link.addition.branch_edges}
        if concat:
            self._raising |= concatenation_edges(chain)
        self._told = blocks_at(chain, concat)
        self.start = start
        self.main, self.forced = self.resolved(end or self.trace.main)
        self.nodes = self.needed([self.main])
        self._flowing = self._reached()
        self.units = self._units()

    def resolved(self, node: fx.Node) -> tuple[fx.Node, int]:
        """What stands in a node's place, and how many branches that is."""
        longer = 0
        while node in self.swap:
            longer += node in self._longer
            node = self.swap[node]
        return node, longer

    def edge(self, node: fx.Node, operand: fx.Node) -> Edge:
        """Where an operand of a node comes from."""
        before, longer = self.resolved(operand)
        return before, longer + ((node, operand) in self._raising), self._ways.get((node, operand))

    def needed(self, ends: Iterable[fx.Node], given: Collection[fx.Node] = ()) -> list[fx.Node]:
        """What has to be computed for some tensors, in execution order.

        Args:
            ends: the tensors.
            given: what is there already.
        """
        needed: set[fx.Node] = set()
        waiting = [self.resolved(end)[0] for end in ends]
        while waiting:
            node = waiting.pop()
            if node not in needed and node not in given:
                needed.add(node)
                waiting += [self.resolved(operand)[0] for operand in node.all_input_nodes]
        return sorted(needed)

    def _reached(self) -> set[fx.Node]:
        """What a gradient can come back from: floats, or tuples of tensors, that are computed from the start."""
        reached = {self.start}
        for node in self.nodes:
            value = self.trace.value(node)
            follows = any(self.resolved(operand)[0] in reached for operand in node.all_input_nodes)
            if follows and isinstance(value, Tensor) and value.is_complex():
                raise ModelError(
                    f"{node.name} is complex, and where blocks are no chain gradients are followed through real "
                    "numbers alone; leave additions='all' and concat out"
                )
            continuous = value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, (tuple, list))
            if continuous and follows:
                reached.add(node)
        return reached

    def _units(self) -> tuple[Unit, ...]:
        single = [
            self._single(node)
            for node in self.nodes
            if node in self._flowing and node is not self.start and isinstance(self.trace.value(node), Tensor)
        ]
        uses = Counter(node for unit in single for node, *_ in unit.sources)
        units: dict[fx.Node, Unit] = {}
        for unit in single:
            (before, longer, way), *others = unit.sources
            earlier = units.get(before)
            joins = earlier is not None and len(earlier.sources) == 1 and uses[before] == 1
            joins = joins and before not in self._told
            if joins and earlier is not None and not longer and way is None and not others:
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
                edge = before, *_ = self.edge(taker, operand)
                if before not in self._flowing:
                    continue
                if isinstance(self.trace.value(before), Tensor):
                    sources[edge] = None
                elif before not in nodes:
                    nodes.add(before)
                    waiting.append(before)
        return Unit(tuple(sorted(nodes)), tuple(sources))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of branches that paths take, ascending; none where no path leads from the start to the end."""
        taken = {self.main: {self.forced}}
        for unit in reversed(self.units):
            for source, longer, _ in unit.sources:
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

            own[node, 0, None] = called(node, given)
        result: Tensor = own[unit.end, 0, None]
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


def blocks_at(chain: Chain, concat: bool = False) -> dict[fx.Node, list[int]]:
    """Places at which a gradient is told, with their numbers: x_i of a chain.

    Elsewhere i is the branch point of block i, and n the first tensor that all paths pass behind all n blocks.

    Args:
        chain: the network and its blocks.
        concat: whether concatenations are choices too.
    """
    if chain.in_series:
        return {node: [boundary] for boundary, node in enumerate(chain.boundaries)}
    places: dict[fx.Node, list[int]] = {ends_of_blocks(chain, concat)[1]: [len(chain.links)]}
    for block, link in enumerate(chain.links):
        places.setdefault(link.branch_point, []).append(block)
    return places


def ends_of_blocks(chain: Chain, concat: bool = False) -> tuple[fx.Node, fx.Node]:
    """The last tensor of the trunk before all blocks, and the first one after all of them.

    Args:
        chain: the network and its blocks.
        concat: whether what is behind must be behind all concatenations that are choices, too.
    """
    order, trace = chain.discovery.order, chain.trace
    trunk = [node for node in chain.discovery.dominators if isinstance(trace.value(node), Tensor)]
    needed = ops.ancestors([trace.main])
    links = [link for link in chain.links if link.total in needed]
    ends = [link.end for link in links]
    if concat:
        ends += [node for node, _ in concatenation_edges(chain) if node in needed]
    first = min((order[link.start] for link in links), default=order[trace.source])
    last = max((order[end] for end in ends), default=order[trace.source])
    start = max((node for node in trunk if order[node] <= first), key=order.__getitem__, default=trace.source)
    return start, min((node for node in trunk if order[node] >= last), key=order.__getitem__, default=trace.main)


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
