r"""Find the residual blocks in a traced graph.

A residual addition adds a tensor to something computed from it (He et al. 2016, equation 1). In the graph that is an
addition of two tensors of equal shape, both of which depend on the input. Its *branch point* is the immediate dominator
of the addition: the last tensor through which everything that is added has passed. Between the branch point and each
operand lie the two operand paths; one is the shortcut and the other the branch. No table of architectures is consulted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pathlens.residual import operations as ops
from pathlens.residual.trace import Trace

aten = torch.ops.aten

CONCATENATION = "concatenation"
"""Kind of a block that adds nothing: its new channels are concatenated to what is there."""


@dataclass(frozen=True, eq=False)
class Addition:
    """One residual addition.

    Attributes:
        node: where the sum is complete.
        branch_point: the tensor that branch and shortcut both start from.
        shortcut: the operand that ends the shortcut (the branch point itself for an identity).
        terms: the operands that end the branch; several when parallel branches are summed.
        branch_nodes: nodes of the branch, in execution order.
        shortcut_nodes: nodes of the shortcut, in execution order, without those that the branch also needs.
        kind: ``identity``, ``projection``, ``padding``, ``scaled`` or ``gated``; :data:`CONCATENATION` for new channels
            beside earlier ones, of which ``node`` is what all concatenations take, and the shortcut zeros.
    """

    node: fx.Node
    branch_point: fx.Node
    shortcut: fx.Node
    terms: tuple[fx.Node, ...]
    branch_nodes: tuple[fx.Node, ...]
    shortcut_nodes: tuple[fx.Node, ...]
    kind: str

    @property
    def branch_edges(self) -> tuple[tuple[fx.Node, fx.Node], ...]:
        """The ends of the branch, each with the sum that adds it."""
        edges: list[tuple[fx.Node, fx.Node]] = []
        sums = [self.node]
        shortcuts = 1  # which may be a term beside: x + f(x) + x
        while sums:
            node = sums.pop()
            for operand in node.all_input_nodes:
                if operand is self.shortcut and shortcuts:
                    shortcuts -= 1
                elif operand in self.terms:
                    edges.append((node, operand))
                elif operand is not self.shortcut:
                    sums.append(operand)
        return tuple(edges)

    @property
    def is_layer(self) -> bool:
        """Whether this stands for a layer of a plain network, which adds nothing."""
        return self.kind.startswith("layer")

    @property
    def is_concatenation(self) -> bool:
        """Whether this stands for new channels, which are concatenated and not added."""
        return self.kind == CONCATENATION


@dataclass(frozen=True, eq=False)
class Discovery:
    """The additions of a graph, sorted by whether they are residual blocks.

    Attributes:
        trunk: residual additions that every path from input to output passes, in order.
        nested: additions inside the branch or shortcut of another.
        off_trunk: residual additions beside the trunk (parallel trunks, U-shaped networks).
        refused: node name -> why an addition of two input-dependent tensors is not a residual block.
        order: position of each node in the graph.
        input_dependent: nodes that depend on the input.
        dominators: the dominators of the main output, in order: where the graph may be cut.
    """

    trunk: tuple[Addition, ...]
    nested: tuple[Addition, ...]
    off_trunk: tuple[Addition, ...]
    refused: dict[str, str]
    order: dict[fx.Node, int]
    input_dependent: set[fx.Node]
    dominators: tuple[fx.Node, ...]

    @property
    def additions(self) -> dict[fx.Node, Addition]:
        """All residual additions, by the node where the sum is complete."""
        return {addition.node: addition for addition in (*self.trunk, *self.nested, *self.off_trunk)}


def discover(trace: Trace) -> Discovery:
    """Find the residual additions of a trace and sort them into trunk, nested and off-trunk."""
    order = {node: position for position, node in enumerate(trace.graph.nodes)}
    input_dependent = _input_dependent(trace)
    immediate = immediate_dominators(trace, order, input_dependent)
    dominators = _dominators_of_output(trace, immediate)
    finder = _Finder(trace, order, input_dependent, immediate)
    additions: list[Addition] = []
    for node in trace.graph.nodes:
        if node in input_dependent and finder.is_candidate(node):
            addition = finder.examine(node)
            if addition is not None:
                additions.append(addition)
    return _sort(additions, finder.refused, order, input_dependent, dominators)


def concatenations(trace: Trace, discovery: Discovery) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Concatenations of a tensor with something learned from it, as in DenseNets and U-Nets, with what is learned.

    As for an addition, the operand paths start at the branch point. Those with a learned operand are branches, and
    there must be one without.

    Args:
        trace: the graph.
        discovery: its additions.
    """
    immediate = immediate_dominators(trace, discovery.order, discovery.input_dependent)
    finder = _Finder(trace, discovery.order, discovery.input_dependent, immediate)
    joined = ((n, finder.learned_of(n)) for n in discovery.order if n.target in ops.CONCATENATIONS)
    return {node: branches for node, branches in joined if branches}


def _sort(
    additions: list[Addition],
    refused: dict[str, str],
    order: dict[fx.Node, int],
    input_dependent: set[fx.Node],
    dominators: tuple[fx.Node, ...],
) -> Discovery:
    inside: set[fx.Node] = set()
    for addition in additions:
        inside.update(addition.branch_nodes, addition.shortcut_nodes)
    within = {node.name for node in inside}
    refused = {name: reason for name, reason in refused.items() if name not in within}
    on_trunk = set(dominators)
    trunk, nested, off_trunk = [], [], []
    for addition in additions:
        if addition.node in inside:
            nested.append(addition)
        elif addition.node in on_trunk and addition.branch_point in on_trunk:
            trunk.append(addition)
        else:
            off_trunk.append(addition)
    return Discovery(tuple(trunk), tuple(nested), tuple(off_trunk), refused, order, input_dependent, dominators)


def _input_dependent(trace: Trace) -> set[fx.Node]:
    """Nodes whose *values* depend on the input; sizes do not count (a mask made from the batch size is a constant)."""
    input_dependent = {trace.source}
    for node in trace.graph.nodes:
        if node.op != "call_function" or not _is_tensor(trace.value(node)):
            continue
        if any(operand in input_dependent for operand in node.all_input_nodes):
            input_dependent.add(node)
    return input_dependent


def immediate_dominators(
    trace: Trace, order: dict[fx.Node, int], input_dependent: set[fx.Node]
) -> dict[fx.Node, fx.Node]:
    """Immediate dominators: where the paths from the input to a node last meet.

    Source: Cooper, Harvey, Kennedy, A Simple, Fast Dominance Algorithm, 2001; one pass, since the graph has no cycles.
    """
    immediate = {trace.source: trace.source}
    for node in trace.graph.nodes:
        if node not in input_dependent or node is trace.source:
            continue
        meeting, *others = [operand for operand in node.all_input_nodes if operand in input_dependent]
        for operand in others:
            other = operand
            while meeting is not other:
                if order[meeting] > order[other]:
                    meeting = immediate[meeting]
                else:
                    other = immediate[other]
        immediate[node] = meeting
    return immediate


def tensor_before(trace: Trace, immediate: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    """The last tensor through which everything that a node is computed from has passed.

    Args:
        trace: the graph.
        immediate: its immediate dominators.
        node: that depends on the input.
    """
    before = immediate[node]
    while not isinstance(trace.value(before), Tensor):
        # a split has a tuple for a value; its parts start from the tensor before it
        before = immediate[before]
    return before


def _is_tensor(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _dominators_of_output(trace: Trace, dominators: dict[fx.Node, fx.Node]) -> tuple[fx.Node, ...]:
    chain = [trace.main]
    while chain[-1] is not trace.source:
        chain.append(dominators[chain[-1]])
    return tuple(reversed(chain))


class _Finder:
    def __init__(
        self, trace: Trace, order: dict[fx.Node, int], input_dependent: set[fx.Node], dominators: dict[fx.Node, fx.Node]
    ) -> None:
        self.trace = trace
        self.order = order
        self.input_dependent = input_dependent
        self.dominators = dominators
        self.refused: dict[str, str] = {}
        self._learned: dict[fx.Node, bool] = {}

    def is_candidate(self, node: fx.Node) -> bool:
        """A complete sum of input-dependent tensors of equal shape."""
        if not self._is_sum(node):
            return False
        # x + attention(x) + mlp(x): the inner sum is a part of the outer one
        return not any(self._absorbs(user, node) for user in node.users)

    def _is_sum(self, node: fx.Node) -> bool:
        if node.target not in ops.ADDITIONS or len(node.args) < 2:
            return False
        left, right = node.args[:2]
        if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
            return False
        if left not in self.input_dependent or right not in self.input_dependent:
            return False
        a, b = self.trace.value(left), self.trace.value(right)
        return a.dim() == b.dim() and all(same_size(m, n) for m, n in zip(a.shape, b.shape, strict=True))

    def _absorbs(self, outer: fx.Node, inner: fx.Node) -> bool:
        return (
            len(inner.users) == 1
            and inner.target is aten.add.Tensor
            and outer.target is aten.add.Tensor
            and not outer.kwargs
            and not inner.kwargs
            and self._is_sum(outer)
            and self._is_sum(inner)
            and self.dominators[outer] is self.dominators[inner]
        )

    def _terms(self, node: fx.Node) -> list[fx.Node]:
        terms: list[fx.Node] = []
        for operand in node.args[:2]:
            assert isinstance(operand, fx.Node)
            if self._is_sum(operand) and self._absorbs(node, operand):
                terms += self._terms(operand)
            else:
                terms.append(operand)
        return terms

    def learned_of(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The operands of a concatenation that were learned from its branch point, if another one was not."""
        operands = tuple(dict.fromkeys(item for item in node.all_input_nodes if item in self.input_dependent))
        if len(operands) < 2:
            return ()
        branch_point = self._branch_point(node)
        learned = tuple(o for o in operands if any(self._is_learned(item) for item in self._between(branch_point, o)))
        return learned if len(learned) < len(operands) else ()

    def _branch_point(self, node: fx.Node) -> fx.Node:
        return tensor_before(self.trace, self.dominators, node)

    def examine(self, node: fx.Node) -> Addition | None:
        """The residual addition that ends at ``node``, or None (with the reason in ``refused`` if it came close)."""
        branch_point = self._branch_point(node)
        terms = self._terms(node)
        operand_paths = [self._between(branch_point, term) for term in terms]
        learned = [any(self._is_learned(item) for item in path) for path in operand_paths]
        if not any(learned) or all(ops.is_elementwise(item) for path in operand_paths for item in path):
            # an addition within an activation function, learned ones (PReLU, Snake) included
            return None
        start = self.trace.value(branch_point)
        if not (start.is_floating_point() or start.is_complex()):
            self.refused[node.name] = (
                "it starts from integers; a position or mask that is computed from tokens reaches past blocks: give it "
                "as a constant"
            )
            return None
        shortcut, kind, reason = self._choose(node, branch_point, terms, operand_paths, learned)
        if shortcut is None:
            self.refused[node.name] = reason
            return None
        if node.target is aten.sub.Tensor and terms[shortcut] is not node.args[0]:
            self.refused[node.name] = "the input is subtracted from the branch"
            return None
        branch: set[fx.Node] = set()
        for index, path in enumerate(operand_paths):
            if index != shortcut:
                branch |= path
        branch |= self._inner_sums(node, terms)
        return Addition(
            node=node,
            branch_point=branch_point,
            shortcut=terms[shortcut],
            terms=tuple(term for index, term in enumerate(terms) if index != shortcut),
            branch_nodes=self._sorted(branch),
            shortcut_nodes=self._sorted(operand_paths[shortcut] - branch),
            kind=kind,
        )

    def _inner_sums(self, node: fx.Node, terms: list[fx.Node]) -> set[fx.Node]:
        inner: set[fx.Node] = set()
        for operand in node.args[:2]:
            if isinstance(operand, fx.Node) and operand not in terms:
                inner.add(operand)
                inner |= self._inner_sums(operand, terms)
        return inner

    def _choose(
        self,
        node: fx.Node,
        branch_point: fx.Node,
        terms: list[fx.Node],
        operand_paths: list[set[fx.Node]],
        learned: list[bool],
    ) -> tuple[int | None, str, str]:
        """Which path is the shortcut, and of which kind."""
        size = [(self._weights(path), len(path)) for path in operand_paths]
        plain = [index for index in range(len(terms)) if not learned[index]]
        if plain:
            best = min(plain, key=lambda index: size[index])
            kind = self._plain_kind(branch_point, terms[best], operand_paths[best])
            factor = node.kwargs.get("alpha", 1) if terms[best] is node.args[1] else 1
            return best, "scaled" if kind == "identity" and factor != 1 else kind, ""
        for index, term in enumerate(terms):
            if self._is_gated(branch_point, term):
                return index, "gated", ""
        linear = [all(ops.is_linear(item, self.input_dependent) for item in path) for path in operand_paths]
        # among operand paths with equally many weights, a linear one is preferred, then the one of fewest operations
        best = min(range(len(terms)), key=lambda index: (size[index][0], not linear[index], size[index][1]))
        rest = [index for index in range(len(terms)) if index != best]
        if all(linear):
            if self._weights(operand_paths[best]) == 0:
                return best, "projection", ""
            return None, "", "a sum of linear branches, of which none is a shortcut"
        resized = not self._same_shape(branch_point, terms[best])
        layered = not all(ops.is_elementwise(item) for item in operand_paths[best])
        if layered and not resized and all(self._is_rescaled(term) for term in terms):
            return None, "", "a weighted sum of branches, of which none is a shortcut"
        if linear[best] and not all(linear[index] for index in rest):
            return best, "projection", ""
        if (
            resized
            and self._weights(operand_paths[best]) <= 1
            and all(self._weights(operand_paths[index]) > 1 for index in rest)
        ):
            return best, "projection", ""
        maps = [index for index, path in enumerate(operand_paths) if self._is_map_of_activation(branch_point, path)]
        if len(maps) == 1 and not self._same_shape(branch_point, terms[maps[0]]):
            return maps[0], "projection", ""
        return None, "", "both sides are nonlinear, so that neither is a shortcut"

    def _is_map_of_activation(self, branch_point: fx.Node, path: set[fx.Node]) -> bool:
        """Whether a path is linear in an activation of the branch point, as in shake-shake networks."""
        return all(
            ops.is_linear(item, self.input_dependent)
            or (ops.is_pointwise(item) and item.all_input_nodes == [branch_point])
            for item in path
        )

    def _is_rescaled(self, term: fx.Node) -> bool:
        """Whether a term is something times one number, fixed or learned."""
        if term.target not in ops.SCALINGS:
            return False
        factor = next((item for item in reversed(term.args[:2]) if item not in self.input_dependent), None)
        if isinstance(factor, fx.Node):
            value = self.trace.value(factor)
            return isinstance(value, Tensor) and all(size == 1 for size in value.shape)
        return factor is not None

    def _same_shape(self, branch_point: fx.Node, term: fx.Node) -> bool:
        before, after = self.trace.value(branch_point).shape, self.trace.value(term).shape
        return len(before) == len(after) and all(same_size(m, n) for m, n in zip(before, after, strict=True))

    def _plain_kind(self, branch_point: fx.Node, term: fx.Node, path: set[fx.Node]) -> str:
        if all(item.target in ops.PRESERVING for item in path):
            return "identity"
        return "scaled" if self._same_shape(branch_point, term) else "padding"

    def _is_gated(self, branch_point: fx.Node, term: fx.Node) -> bool:
        """Highway networks (Srivastava et al. 2015, equation 2): the input times a learned gate."""
        if term.target is not aten.mul.Tensor or branch_point not in term.args[:2]:
            return False
        gate = term.args[0] if term.args[1] is branch_point else term.args[1]
        return isinstance(gate, fx.Node) and gate in self.input_dependent

    def _weights(self, path: set[fx.Node]) -> int:
        return sum(item.target in ops.WEIGHTED and self._is_learned(item) for item in path)

    def _is_learned(self, node: fx.Node) -> bool:
        """Whether a node has an operand that was learned: a parameter, or a constant weight of a convolution."""
        cached = self._learned.get(node)
        if cached is None:
            kinds = {"parameter", "buffer", "constant"} if node.target in ops.WEIGHTED else {"parameter"}
            if node.target in ops.NORMS:
                kinds.add("buffer")
            cached = any(
                operand not in self.input_dependent and self._rests_on(operand, kinds)
                for operand in node.all_input_nodes
            )
            self._learned[node] = cached
        return cached

    def _rests_on(self, node: fx.Node, kinds: set[str]) -> bool:
        return any(
            item.op == "placeholder" and self.trace.tensors.get(item.name, ("",))[0] in kinds
            for item in ops.ancestors([node])
        )

    def _between(self, branch_point: fx.Node, term: fx.Node) -> set[fx.Node]:
        """Nodes on the way from the branch point (excluded) to ``term`` (included)."""
        return ops.ancestors([term], lambda node: node is branch_point or node not in self.input_dependent)

    def _sorted(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        return tuple(sorted(nodes, key=self.order.__getitem__))


def same_size(a: object, b: object) -> bool:
    """Equality of two sizes without adding a guard on symbolic ones."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        return str(a) == str(b)
    return a == b
