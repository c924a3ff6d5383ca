"""A traced network as a small directed graph: what joins tensors, and the segments of layers between.

The vertices that matter to paths are the input and the *merges*: additions and concatenations of two or more tensors
that depend on the input, with something between their branch point and them that is more than moving or scaling values
(so the additions of a hand-written GELU, rotary embeddings and patch merging drop out). What computes from a single
tensor is one segment, however often it parts and joins by products inside (gates, attention). An operation that takes
tensors of several vertices without adding or concatenating them (a gate from another level, cross attention) is a
*joint*.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain
from pathlens.residual.describe import nodes_between
from pathlens.residual.discover import immediate_dominators, tensor_before
from pathlens.residual.trace import Trace


@dataclass(frozen=True, eq=False)
class Part:
    """One node of the collapsed graph.

    Attributes:
        end: the tensor that it gives.
        kind: ``input``, ``add``, ``concat``, ``joint``, or ``segment``.
        nodes: operations, in execution order; those that an earlier segment holds too are left out.
        sources: ends of the parts that it takes its tensors from, each once.
        entering: of additions, concatenations and joints: each tensor that it takes, and the source that this is.
    """

    end: fx.Node
    kind: str
    nodes: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]
    entering: Mapping[fx.Node, fx.Node] = field(default_factory=dict)


def collapse(chain: Chain) -> list[Part]:
    """The collapsed graph of everything that the network's main output needs, in execution order."""
    return _Collapse(chain).parts()


class _Collapse:
    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.trace: Trace = chain.trace
        self.order = chain.discovery.order
        self.additions = chain.discovery.additions
        self.needed = self._needed()
        self.dominators = immediate_dominators(self.trace, self.order, chain.discovery.input_dependent)
        self.partial: set[fx.Node] = set()
        self.merges = self._merges()
        self.joints = self._joints()
        self.vertices = {self.trace.source, *self.merges, *self.joints}
        self.cuts = self._cuts()

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        if node is self.trace.source:
            return []
        return [operand for operand in node.all_input_nodes if operand in self.chain.discovery.input_dependent]

    def _needed(self) -> list[fx.Node]:
        """What the main output is computed from, in execution order."""
        input_dependent = self.chain.discovery.input_dependent
        needed = ops.ancestors([self.trace.main], lambda node: node not in input_dependent)
        return [node for node in self.trace.graph.nodes if node in needed]

    def _merges(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """Additions and concatenations, each with the tensors that it joins."""
        merges: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self.needed:
            addition = self.additions.get(node)
            if addition is not None:
                merges[node] = tuple(dict.fromkeys((*addition.terms, addition.shortcut)))
                self.partial.update(self._sums_inside(node, merges[node]))
                continue
            operands = tuple(dict.fromkeys(self._joined(node)))
            if len(operands) > 1 and self._is_substantial(node, operands):
                merges[node] = operands
        return {node: operands for node, operands in merges.items() if node not in self.partial}

    def _joined(self, node: fx.Node) -> Iterator[fx.Node]:
        input_dependent = self.chain.discovery.input_dependent
        if node.target in ops.ADDITIONS and len(node.args) > 1:
            pair = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and operand in input_dependent]
            # an operand that is broadcast (a mean, a bias computed from the input) is no tensor of the flow
            if len({str(tuple(self.trace.value(operand).shape[1:])) for operand in pair}) == 1:
                yield from pair
        elif node.target in ops.CONCATENATIONS:
            yield from self._operands(node)

    def _sums_inside(self, node: fx.Node, terms: tuple[fx.Node, ...]) -> Iterator[fx.Node]:
        for operand in node.args[:2]:
            if isinstance(operand, fx.Node) and operand not in terms:
                yield operand
                yield from self._sums_inside(operand, terms)

    def _is_substantial(self, node: fx.Node, operands: Iterable[fx.Node]) -> bool:
        branch_point = tensor_before(self.trace, self.dominators, node)
        between = {item for operand in operands for item in self._between(branch_point, operand)}
        return not all(
            ops.is_elementwise(item) or ops.is_rearranging(item) or item.target is operator.getitem for item in between
        )

    def _between(self, first: fx.Node, last: fx.Node) -> tuple[fx.Node, ...]:
        return nodes_between(self.chain, first, last)

    def _joints(self) -> set[fx.Node]:
        """Operations that take what comes from several vertices, and are no merges."""
        origin: dict[fx.Node, fx.Node] = {}
        joints: set[fx.Node] = set()
        for node in self.needed:
            origins = {origin[operand] for operand in self._operands(node)}
            if node is self.trace.source or node in self.merges or len(origins) > 1:
                origin[node] = node
                if node is not self.trace.source and node not in self.merges and node not in self.partial:
                    joints.add(node)
            else:
                origin[node] = origins.pop()
        return joints

    def _cuts(self) -> set[fx.Node]:
        """Tensors between segments: vertices, what enters or leaves them, and the boundaries of blocks."""
        cuts = set(self.vertices)
        for vertex in self.vertices:
            cuts |= {self._settled(operand) for operand in self._entering(vertex)}
            if vertex is not self.trace.source:
                cuts.add(self._settled(tensor_before(self.trace, self.dominators, vertex)))
        for link in self.chain.links:
            cuts |= {self._settled(node) for node in (link.start, link.branch_point, link.total, link.end)}
        cuts.add(self._settled(self.trace.main))
        return cuts

    def _entering(self, vertex: fx.Node) -> Iterable[fx.Node]:
        return self.merges[vertex] if vertex in self.merges else self._operands(vertex)

    def _settled(self, node: fx.Node) -> fx.Node:
        """Without copies and conversions that keep the values."""
        while node not in self.vertices and node.target in ops.PRESERVING and len(self._operands(node)) == 1:
            (node,) = self._operands(node)
        return node

    def _parent(self, cut: fx.Node) -> fx.Node:
        node = self.dominators[cut]
        while node not in self.cuts:
            node = self.dominators[node]
        return node

    def parts(self) -> list[Part]:
        shortcuts = {node for addition in self.additions.values() for node in addition.shortcut_nodes}
        assigned: set[fx.Node] = set()
        nodes: dict[fx.Node, tuple[fx.Node, ...]] = {}
        segments = sorted(self.cuts - self.vertices, key=self.order.__getitem__)
        # what a gate's two operand paths share belongs to the branch
        for cut in sorted(segments, key=lambda cut: cut in shortcuts):
            own = tuple(node for node in self._between(self._parent(cut), cut) if node not in assigned)
            assigned.update(own)
            nodes[cut] = own
        parts = []
        for cut in sorted(self.cuts, key=self.order.__getitem__):
            if cut in self.vertices:
                entering = {operand: self._settled(operand) for operand in self._entering(cut)}
                sources = tuple(dict.fromkeys(entering.values()))
                parts.append(Part(cut, self._kind(cut), (cut,), sources, entering))
            else:
                parts.append(Part(cut, "segment", nodes[cut], (self._parent(cut),)))
        return parts

    def _kind(self, vertex: fx.Node) -> str:
        if vertex is self.trace.source:
            return "input"
        if vertex in self.joints:
            return "joint"
        return "concat" if vertex.target in ops.CONCATENATIONS else "add"
