"""Names, stages, shapes, parameters and multiply-adds of the blocks of a chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain, Link, module_path
from pathlens.residual.costs import multiply_adds
from pathlens.residual.discover import CONCATENATION
from pathlens.residual.trace import Trace

#: levels of module names that are tried to tell the blocks of one module apart, before they are numbered
_DEEPEST_PART = 3


@dataclass(frozen=True)
class Block:
    """Description of one residual block.

    Attributes:
        index: position in the network, from 0.
        name: the module that the block lies in; with the module of its branch where several share one. Where blocks are
            no chain, the module and the addition, as in ``layer1.0:add``; of a concatenation, the module that computes
            the new channels.
        stage: consecutive blocks of one output shape form a stage, from 0; where blocks are no chain, all of one shape.
        kind: of the shortcut: ``identity``; ``projection`` (learned); ``padding`` (parameter-free change of shape);
            ``scaled`` (parameter-free, shape kept); ``gated`` (highway). In plain networks ``layer`` or
            ``layer-resized``. Of new channels that are concatenated to earlier ones, ``concatenation``.
        branch: modules of the branch.
        shortcut: operations of the shortcut; empty for an identity.
        post_activation: operations between the addition and the block's output; empty if there are none.
        transition: operations between the previous block's output and the branch point; empty if there are none.
        in_shape: shape of the branch point t_i without the batch dimension.
        out_shape: shape of x_i without the batch dimension; of a concatenation, that of the new channels.
        parameters: number of parameters of the branch.
        shortcut_parameters: number of parameters of the shortcut.
        multiply_adds: multiply-adds of the branch for one example (torch.utils.flop_counter: convolutions and
            matrix products).
        shortcut_multiply_adds: multiply-adds of the shortcut for one example.
        nested: residual additions inside the branch.
        module: that makes the sum, or computes new channels; several blocks of one layer may share it.
    """

    index: int
    name: str
    stage: int
    kind: str
    branch: str
    shortcut: str
    post_activation: str
    transition: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    parameters: int
    shortcut_parameters: int
    multiply_adds: int
    shortcut_multiply_adds: int
    nested: int = 0
    module: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether this is a layer of a plain network, which has no shortcut."""
        return self.kind.startswith("layer")

    @property
    def is_concatenation(self) -> bool:
        """Whether these are new channels, which are concatenated and not added."""
        return self.kind == CONCATENATION

    @property
    def changes_shape(self) -> bool:
        """Whether the output has another shape than the input."""
        return self.in_shape != self.out_shape

    def row(self) -> dict[str, object]:
        """The block as a row of a table."""
        return {
            "block": self.index,
            "name": self.name,
            "stage": self.stage,
            "kind": self.kind,
            "branch": self.branch,
            "shortcut": self.shortcut,
            "post_activation": self.post_activation,
            "transition": self.transition,
            "in_shape": "x".join(map(str, self.in_shape)),
            "out_shape": "x".join(map(str, self.out_shape)),
            "parameters": self.parameters,
            "shortcut_parameters": self.shortcut_parameters,
            "multiply_adds": self.multiply_adds,
            "shortcut_multiply_adds": self.shortcut_multiply_adds,
            "nested": self.nested,
        }


@dataclass(frozen=True)
class Totals:
    """A whole network, with stem and head.

    Attributes:
        parameters: all of the model, also those that this output does not need.
        norm_parameters: those of them that norms use.
        multiply_adds: for one example, of convolutions and matrix products (torch.utils.flop_counter).
    """

    parameters: int
    norm_parameters: int
    multiply_adds: int


def totals(chain: Chain, model: nn.Module) -> Totals:
    """Parameters and multiply-adds of the whole network."""
    norms = tuple(node for node in chain.discovery.input_dependent if node.target in ops.NORMS)
    return Totals(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        norm_parameters=count_parameters(chain, norms),
        multiply_adds=sum(multiply_adds(chain.trace).values()),
    )


def describe(chain: Chain) -> tuple[Block, ...]:
    """The blocks of a chain with everything that a table of them shows."""
    trace = chain.trace
    costs = multiply_adds(trace)
    names = _names(chain) if chain.in_series else _names_anywhere(chain)
    blocks: list[Block] = []
    stages: dict[object, int] = {}
    run = 0  # number of the consecutive blocks of one shape
    nested = {addition.node for addition in chain.discovery.nested}
    for index, link in enumerate(chain.links):
        branch, shortcut = link.addition.branch_nodes, link.addition.shortcut_nodes
        transition = nodes_between(chain, link.start, link.branch_point)
        shape = shape_of(trace, link.end)
        run += bool(blocks) and shape != blocks[-1].out_shape
        stage = stages.setdefault((shape, run) if chain.in_series else shape, len(stages))
        blocks.append(
            Block(
                index=index,
                name=names[index],
                stage=stage,
                kind=link.addition.kind,
                branch=", ".join(_parts(branch, link)),
                shortcut=", ".join(operation_names(shortcut)),
                post_activation=", ".join(operation_names(link.post)),
                transition=", ".join(operation_names(transition)),
                in_shape=shape_of(trace, link.branch_point),
                out_shape=shape,
                parameters=count_parameters(chain, branch),
                shortcut_parameters=count_parameters(chain, shortcut),
                multiply_adds=sum(costs.get(node, 0) for node in branch),
                shortcut_multiply_adds=sum(costs.get(node, 0) for node in shortcut),
                nested=sum(node in nested for node in branch),
                module=".".join(_adder(link)),
            )
        )
    return tuple(blocks)


def shape_of(trace: Trace, node: fx.Node) -> tuple[int, ...]:
    """Shape without the batch dimension."""
    shape, axis = trace.shape(node), trace.batch_axis(node)
    return shape[:axis] + shape[axis + 1 :]


def nodes_between(chain: Chain, first: fx.Node, last: fx.Node) -> tuple[fx.Node, ...]:
    """Input-dependent nodes after ``first`` up to and including ``last``, in execution order."""
    input_dependent = chain.discovery.input_dependent
    return tuple(sorted(ops.ancestors([last], lambda node: node is first or node not in input_dependent)))


def count_parameters(chain: Chain, nodes: tuple[fx.Node, ...]) -> int:
    """Number of distinct parameters that some nodes use, directly or through a table or normalised weight."""
    operands = (operand for node in nodes for operand in node.all_input_nodes)
    constants = ops.ancestors(operands, chain.discovery.input_dependent.__contains__)
    names = {node.name for node in constants if chain.trace.tensors.get(node.name, ("",))[0] == "parameter"}
    return sum(tensor.numel() for tensor in chain.trace.fetch(tuple(sorted(names))))


def _names(chain: Chain) -> list[str]:
    owners = [_owner(link) for link in chain.links]
    names = owners
    for _ in range(_DEEPEST_PART):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 and name else f"{name}.{_largest_part(chain, link, name)}".strip(".")
            for link, name in zip(chain.links, names, strict=True)
        ]
    # drop a part of the name that all blocks of a module share
    spread = {owner: {name for name, own in zip(names, owners, strict=True) if own == owner} for owner in owners}
    names = [owner if owner and len(spread[owner]) == 1 else name for name, owner in zip(names, owners, strict=True)]
    repeated = Counter(names)
    return [name if repeated[name] == 1 and name else f"{name or 'block'}#{link}" for link, name in enumerate(names)]


def _names_anywhere(chain: Chain) -> list[str]:
    """The module that adds, and which of its residual additions it is: the same whichever of them are blocks.

    New channels have the name of the module that computes them, with a number where there are others.
    """
    names: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    joined = {link.total: ".".join(_adder(link)) for link in chain.links if link.addition.is_concatenation}
    counts = Counter(joined.values())
    for node, owner in joined.items():
        alone = owner and counts[owner] == 1
        names[node] = owner if alone else f"{owner}:cat{seen[owner] or ''}".lstrip(":")
        seen[owner] += 1
    seen.clear()
    for node in sorted(chain.discovery.additions, key=chain.discovery.order.__getitem__):
        owner = ".".join(module_path(node))
        names[node] = f"{owner}:add{seen[owner] or ''}".lstrip(":")
        seen[owner] += 1
    return [names[link.total] for link in chain.links]


def _owner(link: Link) -> str:
    """The innermost module that holds both the branch and the addition."""
    if link.addition.is_layer:
        return ".".join(module_path(link.addition.branch_nodes[0]))
    return ".".join(common_start([module_path(link.total), *_branch_paths(link)]))


def _adder(link: Link) -> tuple[str, ...]:
    """The module that makes the sum, or the innermost that holds all that computes new channels."""
    return common_start(_branch_paths(link)) if link.addition.is_concatenation else module_path(link.total)


def _branch_paths(link: Link) -> list[tuple[str, ...]]:
    paths = [module_path(node) for node in link.addition.branch_nodes if node.target not in ops.PRESERVING]
    return [path for path in paths if path]


def common_start(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The levels with which all module paths begin; none of no paths."""
    if not paths:
        return ()
    shortest = min(paths, key=len)
    for length in range(len(shortest), 0, -1):
        if all(path[:length] == shortest[:length] for path in paths):
            return shortest[:length]
    return ()


def _largest_part(chain: Chain, link: Link, owner: str) -> str:
    """The child module of ``owner`` that holds most of the branch's parameters."""
    depth = len(owner.split(".")) if owner else 0
    sizes: Counter[str] = Counter()
    paths: list[tuple[str, ...]] = []
    for node in link.addition.branch_nodes:
        path = module_path(node)[depth:]
        if path:
            sizes[path[0]] += 1 + count_parameters(chain, (node,))
            paths.append(path)
    if not sizes:
        return ""
    part = sizes.most_common(1)[0][0]
    return ".".join(common_start([path for path in paths if path[0] == part]))


def _parts(nodes: tuple[fx.Node, ...], link: Link) -> list[str]:
    """Child modules of the block's owner that the branch runs through, in order; operations where there are none."""
    owner = _adder(link)
    parts: list[str] = []
    for node in nodes:
        path = module_path(node)
        part = path[len(owner)] if path[: len(owner)] == owner and len(path) > len(owner) else ".".join(path)
        if part and path != owner and part not in parts:
            parts.append(part)
    return parts or operation_names(nodes)


def operation_names(nodes: Iterable[fx.Node]) -> list[str]:
    """What some nodes do, each name once, in order."""
    return list(dict.fromkeys(ops.shown_name(node) for node in nodes if is_shown(node)))


def is_shown(node: fx.Node) -> bool:
    """Whether a node computes a tensor, and does more than hand one on."""
    return node.target not in ops.PRESERVING and isinstance(node.meta.get("val"), Tensor)
