"""Order the additions of the trunk into a chain of blocks with the tensors between them.

Block i turns x_{i-1} into x_i = s_i(S_i(t_i) + F_i(t_i)) with t_i = T_i(x_{i-1}). The transition T_i is the identity
except where a network has layers between two blocks (a downsampling layer, a shared pre-activation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import fx

from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.residual import operations as ops
from pathlens.residual.concatenated import concatenated
from pathlens.residual.discover import Addition, Discovery, concatenations, discover
from pathlens.residual.routes import Part
from pathlens.residual.segments import Segment, cut
from pathlens.residual.trace import Trace

aten = torch.ops.aten
_T = TypeVar("_T")

ADDITIONS = ("trunk", "all", "nested", "off-trunk")
"""Which residual additions are blocks; see :func:`pathlens.find_blocks`."""


@dataclass(frozen=True, eq=False)
class Link:
    """The nodes of one block.

    Attributes:
        addition: the residual addition.
        start: x_{i-1}; its post-activation output is the start of the next link.
        branch_point: t_i, where branch and shortcut part.
        branch: value of F_i(t_i) as it enters the sum.
        shortcut: value of S_i(t_i) as it enters the sum.
        total: the sum.
        end: x_i, after the post-activation.
        post: nodes of the post-activation, in execution order.
        bypass: what the sum becomes when the block is deleted: the shortcut, for gated blocks the branch point.
    """

    addition: Addition
    start: fx.Node
    branch_point: fx.Node
    branch: fx.Node
    shortcut: fx.Node
    total: fx.Node
    end: fx.Node
    post: tuple[fx.Node, ...]
    bypass: fx.Node

    @property
    def channel_axis(self) -> int:
        """Where the channels of its tensors are: 1, or last where the branch begins with a map or norm of those."""
        for node in self.addition.branch_nodes:
            args: Any = node.args
            name = ops.short_name(node)
            if node.target in ops.CONVOLUTIONS or name in ("batch_norm", "group_norm", "instance_norm"):
                return 1
            if name in ("layer_norm", "rms_norm") and len(args[1]) == 1:
                return -1 if self._is_last(node) else 1
            if node.target in ops.WEIGHTED:
                # maps of sequences may mix the tokens, behind a transposition; of images none does
                return -1 if self.branch_point.meta["val"].dim() == 3 or self._is_last(node) else 1
        return 1

    def _is_last(self, node: fx.Node) -> bool:
        """Whether the last dimension at a node of the branch is the last one at the branch point, and was not moved."""
        axis, before = -1, (self.branch_point, *self.addition.branch_nodes)
        while node in self.addition.branch_nodes:
            axis = _axis_before(node, axis)
            node = next((operand for operand in node.all_input_nodes if operand in before), self.branch_point)
        return axis == -1

    def remainder(self, part: Part) -> fx.Node:
        """What is left of the sum where only a part of the block runs."""
        return {Part.BLOCK: self.total, Part.SHORTCUT: self.bypass, Part.BRANCH: self.branch}[part]


@dataclass(frozen=True, eq=False)
class Chain:
    """A network as stem, links and head, in one train/eval mode and for one input shape.

    Links of other additions than those of the trunk, and of concatenations, lie anywhere in the graph: each has its
    parts and can be rewritten by itself, but nothing runs from one to the next.
    """

    trace: Trace
    discovery: Discovery
    links: tuple[Link, ...]
    additions: str = "trunk"
    concat: bool = False
    _segments: dict[tuple[fx.Node, fx.Node, fx.Node | None], Segment] = field(default_factory=dict, repr=False)
    _derived: dict[Callable[[Chain], Any], Any] = field(default_factory=dict, repr=False)

    @property
    def in_series(self) -> bool:
        """Whether each link starts where the one before it ends."""
        return self.additions == "trunk" and not self.concat

    @property
    def kinds(self) -> str:
        """What the blocks are."""
        if all(link.addition.is_concatenation for link in self.links):
            return "concatenations"
        return "residual additions and concatenations" if self.concat else "residual additions"

    @cached_property
    def boundaries(self) -> tuple[fx.Node, ...]:
        """x_0, ..., x_n.

        Raises:
            UsageError: the links are not in series.
        """
        if not self.in_series:
            raise UsageError(
                f"these {len(self.links)} blocks are {self.kinds} anywhere in the network and no chain: they can be "
                "deleted, but this needs blocks one after the other; give those of the trunk (additions='trunk')"
            )
        return (self.links[0].start, *(link.end for link in self.links))

    @property
    def stem(self) -> Segment:
        """From the input to x_0."""
        return self._between(self.trace.source, self.boundaries[0])

    @property
    def head(self) -> Segment:
        """From x_n to the output that is studied."""
        return self._between(self.boundaries[-1], self.trace.main)

    @property
    def whole(self) -> Segment:
        """From the input to the output that is studied."""
        return self._between(self.trace.source, self.trace.main)

    def run(self, start: int, stop: int) -> Segment:
        """From x_start to x_stop."""
        return self._between(self.boundaries[start], self.boundaries[stop])

    def step(self, part: Part, index: int) -> Segment:
        """All or a part of a block, from x_{i-1} to x_i."""
        link = self.links[index]
        return self._between(link.start, link.end, None if part is Part.BLOCK else (link.total, link.remainder(part)))

    def transition(self, index: int) -> Segment:
        """T_i, from x_{i-1} to the branch point t_i."""
        return self._between(self.links[index].start, self.links[index].branch_point)

    def branch(self, index: int) -> Segment:
        """F_i, from the branch point to what enters the sum."""
        return self._between(self.links[index].branch_point, self.links[index].branch)

    def shortcut(self, index: int) -> Segment:
        """S_i, from the branch point to what enters the sum."""
        return self._between(self.links[index].branch_point, self.links[index].shortcut)

    def post(self, index: int) -> Segment:
        """s_i, from the sum to x_i."""
        return self._between(self.links[index].total, self.links[index].end)

    def once(self, make: Callable[[Chain], _T]) -> _T:
        """The result of ``make(chain)``, kept for later calls: training loops enter a ``with`` block at every step."""
        if make not in self._derived:
            self._derived[make] = make(self)
        result: _T = self._derived[make]
        return result

    def _between(self, start: fx.Node, end: fx.Node, swap: tuple[fx.Node, fx.Node] | None = None) -> Segment:
        """A segment, made once; with ``swap`` the second node stands in the place of the first."""
        key = (start, end, swap and swap[1])
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = cut(self.trace, start, [end], dict([swap] if swap else []))
        return segment


def build_chain(trace: Trace, model_name: str, discovery: Discovery | None = None) -> Chain:
    """Arrange what :func:`discover` finds into a chain.

    Raises:
        NoResidualBlocksError: nothing on the trunk is a residual addition.
    """
    discovery = discovery or discover(trace)
    if not discovery.trunk:
        raise NoResidualBlocksError(_why_none(discovery, trace, model_name))
    position = {node: index for index, node in enumerate(discovery.dominators)}
    links: list[Link] = []
    start = discovery.trunk[0].branch_point
    for index, addition in enumerate(discovery.trunk):
        following = discovery.trunk[index + 1] if index + 1 < len(discovery.trunk) else None
        limit = position[following.branch_point] if following else len(discovery.dominators) - 1
        after = discovery.dominators[position[addition.node] + 1 : limit + 1]
        links.append(_link(trace, addition, start, _post_activation(addition, after, discovery.input_dependent)))
        start = links[-1].end
    return Chain(trace, discovery, tuple(links))


def build_additions(trace: Trace, model_name: str, additions: str | None, concat: bool = False) -> Chain:
    """The additions of a graph as blocks: a chain where they are all on the trunk, else wherever they lie.

    Args:
        trace: the graph.
        model_name: for errors.
        additions: which ones (default: those of the trunk, and where there are none, all).
        concat: the new channels of concatenations are blocks too, which makes them no chain where there are any.

    Raises:
        NoResidualBlocksError: there are none of these.
    """
    discovery, new_channels = concatenated(trace) if concat else (discover(trace), ())
    groups = {"trunk": discovery.trunk, "nested": discovery.nested, "off-trunk": discovery.off_trunk}
    everywhere = sorted(discovery.additions.values(), key=lambda addition: discovery.order[addition.node])
    if additions is None:
        additions = "trunk" if discovery.trunk else "all"
    if new_channels:
        blocks = sorted((*groups.get(additions, everywhere), *new_channels), key=lambda block: block.node)
        return Chain(trace, discovery, _anywhere(trace, blocks), additions, concat=True)
    if additions == "trunk" or not everywhere or (additions == "all" and len(discovery.trunk) == len(everywhere)):
        return build_chain(trace, model_name, discovery)
    chosen = groups.get(additions, everywhere)
    if not chosen:
        lie = ", ".join(f"{len(group)} {name}" for name, group in groups.items() if group)
        raise NoResidualBlocksError(f"{model_name} has no {additions} additions, but {lie}; give one of these, or all")
    return Chain(trace, discovery, _anywhere(trace, chosen), additions)


def _anywhere(trace: Trace, additions: Iterable[Addition]) -> tuple[Link, ...]:
    """Links that each lie by themselves."""
    return tuple(_link(trace, addition, addition.branch_point, ()) for addition in additions)


def _link(trace: Trace, addition: Addition, start: fx.Node, post: tuple[fx.Node, ...]) -> Link:
    branch, shortcut = _operands(trace, addition)
    return Link(
        addition=addition,
        start=start,
        branch_point=addition.branch_point,
        branch=branch,
        shortcut=shortcut,
        total=addition.node,
        end=post[-1] if post else addition.node,
        post=post,
        bypass=addition.branch_point if addition.kind == "gated" else shortcut,
    )


def _why_none(discovery: Discovery, trace: Trace, model_name: str) -> str:
    if discovery.off_trunk:
        return (
            f"{model_name} has {len(discovery.off_trunk)} residual additions, but none that every path passes "
            "(parallel trunks); give --additions all (additions='all') where a study has it, or one of its trunks as a "
            "module of its own"
        )
    if concatenations(trace, discovery):
        return (
            f"{model_name} has no residual addition: its skip connections are concatenations; give --concat "
            "(concat=True) where a study has it"
        )
    targets = [node.target for node in trace.graph.nodes if node in discovery.input_dependent]
    if any(target is aten.cat.default for target in targets):
        return (
            f"{model_name} has no residual addition: its skip connections are concatenations, which block deletion "
            "does not apply to"
        )
    if discovery.refused:
        name, reason = next(iter(discovery.refused.items()))
        return (
            f"{model_name} has no residual addition: {len(discovery.refused)} additions are none, the first ({name}) "
            f"because: {reason}"
        )
    return f"{model_name} has no residual addition: no tensor is added to something computed from it"


def module_path(node: fx.Node) -> tuple[str, ...]:
    """Qualified name of the innermost module that ran a node, as parts."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ()
    path, kind = next(reversed(stack.values()))
    # nodes without a module (sizes) have a marker whose path and type are equal; torch.compile adds "_orig_mod"
    return () if path == kind else tuple(part for part in path.split(".") if part not in ("", "_orig_mod"))


def _post_activation(
    addition: Addition, after: tuple[fx.Node, ...], input_dependent: set[fx.Node]
) -> tuple[fx.Node, ...]:
    """The leading run of activations, norms and fixed factors that belong to the module that adds."""
    owner = module_path(addition.node)
    post: list[fx.Node] = []
    last = addition.node
    for node in after:
        feeds = [operand for operand in node.all_input_nodes if operand in input_dependent]
        takers = [user for user in last.users if user in input_dependent and not ops.is_statistics(user)]
        if feeds != [last] or takers != [node]:
            break
        inside = module_path(node)[: len(owner)] == owner
        active = ops.is_pointwise(node) or ((ops.is_norm(node) or ops.is_scaling(node)) and bool(owner))
        if not (inside and active) and node.target not in ops.PRESERVING:
            break
        post.append(node)
        last = node
    while post and post[-1].target in ops.PRESERVING:
        post.pop()
    return tuple(post)


def _operands(trace: Trace, addition: Addition) -> tuple[fx.Node, fx.Node]:
    """Branch and shortcut as they enter the sum, with the sign and factor that the addition applies to them."""
    node = addition.node
    alpha: Any = node.kwargs.get("alpha", 1)
    factor = -alpha if node.target is aten.sub.Tensor else alpha
    graph = trace.graph

    def entering(term: fx.Node) -> fx.Node:
        if factor == 1 or term is not node.args[1]:
            return term
        with graph.inserting_before(node):
            return _like(graph.call_function(aten.mul.Tensor, (term, factor)), node)

    terms = [entering(term) for term in addition.terms]
    branch = terms[0]
    for term in terms[1:]:
        with graph.inserting_before(node):
            branch = _like(graph.call_function(aten.add.Tensor, (branch, term)), node)
    return branch, entering(addition.shortcut)


def _axis_before(node: fx.Node, axis: int) -> int:
    """Where a dimension of a node's value, -1 for the last, is in its operand; only permutations move it."""
    args: Any = node.args
    name = ops.short_name(node)
    if name not in ("permute", "transpose"):
        return axis
    order = list(range(node.meta["val"].dim()))
    if name == "permute":
        order = [dim % len(order) for dim in args[1]]
    else:
        order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
    return -1 if order[axis] == len(order) - 1 else order[axis]


def _like(node: fx.Node, other: fx.Node) -> fx.Node:
    node.meta = dict(other.meta)
    return node


def check_index(index: int, count: int, what: str = "block") -> int:
    """Turn a block index (negative from the end) into 0..count-1.

    Raises:
        UsageError: out of range.
    """
    if not -count <= index < count:
        raise UsageError(f"{what} {index} does not exist: the network has {count}, numbered 0 to {count - 1}")
    return index % count
