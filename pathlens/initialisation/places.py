"""Where the weights of a network stand: which of them end a branch, and what each is fed with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from pathlens.residual import ResidualView
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain, Link, module_path

_RECTIFIERS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"}
)
#: rectifiers where their lower bound, the first argument behind the input, is 0 (``nn.ReLU6`` is ``hardtanh``)
_CLAMPS = frozenset({"hardtanh", "clamp", "clamp_min"})
_POOLING = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"})


@dataclass(frozen=True)
class Place:
    """One weight: where it stands, and the numbers that schemes go by.

    Attributes:
        parameter: its qualified name.
        role: ``stem``, ``transition``, ``branch``, ``shortcut`` or ``head``.
        block: index of the block, or None outside of blocks.
        layer: position among the weights of the branch, from 0.
        layers: weights of the branch.
        blocks: of the network.
        fan_in: values that each output is a sum over.
        fan_out: values that each input adds to.
        groups: of a convolution; 1 for any other map.
        rectified: whether a ReLU or something of its kind stands before it.
        last: whether it is the last weight before the output that is studied.
    """

    parameter: str
    role: str
    block: int | None
    layer: int | None
    layers: int
    blocks: int
    fan_in: int
    fan_out: int
    groups: int
    rectified: bool
    last: bool

    @property
    def ends_branch(self) -> bool:
        """Whether it is the last weight of its branch."""
        return self.layer is not None and self.layer == self.layers - 1


@dataclass(frozen=True)
class BranchEnd:
    """What a branch ends in.

    Attributes:
        block: index of the block.
        name: the block's.
        kind: ``weight``, ``norm``, or the operation that it is otherwise.
        parameters: qualified names of its weight and bias, in the module that runs it where several share them; none
            for other operations, and where that module is not known.
    """

    block: int
    name: str
    kind: str
    parameters: tuple[str, ...]


def find_places(view: ResidualView) -> tuple[Place, ...]:
    """The weights of convolutions and linear maps on the way to the output that is studied, in order.

    A weight that is used several times has the place of its first use.
    """
    chain = view.chain()
    maps = [node for node in _used(chain) if ops.is_map(node) and node in chain.discovery.input_dependent]
    named = {node: name for node in maps if (name := _weight_of(chain, node)) is not None}
    places: dict[str, Place] = {}
    parameters = dict(view.model.named_parameters(remove_duplicate=False))
    for node, name in named.items():
        if name in places:
            continue
        role, block, siblings = _role(chain, node)
        # a chain of layers has no branches
        layers = [sibling for sibling in siblings if sibling in named] if role == "branch" else []
        weight = parameters[name]
        fed: Any = node.args[0]
        groups = chain.trace.shape(fed)[1 - weight.dim()] // weight.shape[1]
        places[name] = Place(
            parameter=name,
            role=role,
            block=block,
            layer=layers.index(node) if layers else None,
            layers=len(layers),
            blocks=len(chain.links),
            fan_in=weight[0].numel(),
            fan_out=weight[:, 0].numel() // groups,
            groups=groups,
            rectified=_is_rectified(node, chain.discovery.input_dependent),
            last=node is maps[-1],
        )
    return tuple(places.values())


def _used(chain: Chain) -> list[fx.Node]:
    """The nodes that the output which is studied is computed from, in order."""
    used = ops.ancestors([chain.trace.main])
    return [node for node in chain.trace.graph.nodes if node in used]


def find_biases(view: ResidualView) -> frozenset[str]:
    """The parameters that are added behind convolutions and linear maps."""
    chain = view.chain()
    operands = (node.args[2] for node in _used(chain) if ops.is_map(node) and len(node.args) > 2)
    names = (_parameter(chain, operand) for operand in operands if isinstance(operand, fx.Node))
    return frozenset(name for name in names if name is not None)


def find_undrawn(view: ResidualView, places: tuple[Place, ...]) -> tuple[str, ...]:
    """Weights of other products, of which it is not known which axes are inputs and which outputs."""
    chain, known = view.chain(), {place.parameter for place in places}
    dependent = chain.discovery.input_dependent
    found: dict[str, None] = {}
    for node in _used(chain):
        weight: Any = node.args[1] if node in dependent and ops.is_map(node) else None
        if weight is not None and weight not in dependent:
            # a weight that is computed, as by weight norm, is none that could be drawn
            made = ops.ancestors([weight]) - {weight}
            names = (_parameter(chain, part) for part in made)
            found |= dict.fromkeys(sorted(name for name in names if name is not None and name not in known))
            continue
        if node not in dependent or not ops.is_product(node):
            continue
        operands = [operand for operand in node.all_input_nodes if operand not in dependent]
        while operands:
            operand = operands.pop()
            if ops.is_rearranging(operand):
                operands += operand.all_input_nodes
            name = _parameter(chain, operand)
            if name is not None and name not in known and len(chain.trace.shape(operand)) > 1:
                found[name] = None
    return tuple(found)


def find_embedded(view: ResidualView) -> frozenset[str]:
    """The parameters that are looked up by index."""
    chain = view.chain()
    operands = (node.args[0] for node in _used(chain) if ops.short_name(node) == "embedding")
    names = (_parameter(chain, operand) for operand in operands if isinstance(operand, fx.Node))
    return frozenset(name for name in names if name is not None)


def find_ends(view: ResidualView) -> tuple[BranchEnd, ...]:
    """What each branch ends in, behind dropout, fixed or learned factors and rearrangements."""
    chain = view.chain()
    return tuple(_end(view, chain, link, index) for index, link in enumerate(chain.links))


def _end(view: ResidualView, chain: Chain, link: Link, index: int) -> BranchEnd:
    node = link.branch
    while True:
        moving = [operand for operand in node.all_input_nodes if operand in chain.discovery.input_dependent]
        passes = ops.is_rearranging(node) or node.target in ops.SCALINGS
        is_passive = len(moving) == 1 and passes and moving[0] in link.addition.branch_nodes
        statistics = ops.is_norm(node) and node.target not in ops.NORMS
        if not (is_passive or statistics):
            break
        node = moving[0]
    kind = "weight" if ops.is_map(node) else "norm" if node.target in ops.NORMS else ops.short_name(node)
    operands: list[fx.Node] = []
    if kind == "weight":
        operands = [operand for operand in node.args[1:3] if isinstance(operand, fx.Node)]
    elif kind == "norm":  # whose weight and bias stand in different places
        operands = [operand for operand in node.all_input_nodes if operand not in chain.discovery.input_dependent]
    parameters = [name for operand in operands if (name := _parameter(chain, operand)) is not None]
    own = [name for parameter in parameters if (name := _held(view.model, parameter, node)) is not None]
    return BranchEnd(index, view[index].name, kind, tuple(own) if len(own) == len(parameters) else ())


def holders(model: nn.Module, parameter: str) -> dict[tuple[nn.Module, str], str]:
    """The modules that hold a parameter, each with the name that it has there -> the qualified name.

    Args:
        model: the network.
        parameter: a qualified name; of a module under several names, the first stands for all.
    """
    found: dict[tuple[nn.Module, str], str] = {}
    tensor = model.get_parameter(parameter)
    for name, held in model.named_parameters(remove_duplicate=False):
        if held is tensor:
            owner, _, leaf = name.rpartition(".")
            found.setdefault((model.get_submodule(owner), leaf), name)
    return found


def _held(model: nn.Module, parameter: str, node: fx.Node) -> str | None:
    """By which name the module that runs a node holds a parameter; None where several others hold it."""
    runs = dict(model.named_modules(remove_duplicate=False)).get(".".join(module_path(node)))
    places = holders(model, parameter)
    names = [name for (module, _), name in places.items() if len(places) == 1 or module is runs]
    return names[0] if len(names) == 1 else None


def _weight_of(chain: Chain, node: fx.Node) -> str | None:
    operand: Any = node.args[1]
    return _parameter(chain, operand)


def _parameter(chain: Chain, operand: fx.Node) -> str | None:
    """The one parameter that an operand is, or None where it is made of something."""
    kind, target = chain.trace.tensors.get(operand.name, ("", None))
    return str(target) if kind == "parameter" else None


def _role(chain: Chain, node: fx.Node) -> tuple[str, int | None, tuple[fx.Node, ...]]:
    order = chain.discovery.order
    for index, link in enumerate(chain.links):
        if node in link.addition.branch_nodes:
            return ("layer" if link.addition.is_layer else "branch"), index, link.addition.branch_nodes
        if node in link.addition.shortcut_nodes:
            return "shortcut", index, ()
    if order[node] < order[chain.links[0].total]:
        return "stem", None, ()
    return ("head" if order[node] > order[chain.links[-1].total] else "transition"), None, ()


def _is_rectified(node: fx.Node, input_dependent: set[fx.Node]) -> bool:
    """Whether what a map is applied to comes out of rectifiers, maybe pooled, rearranged or joined on the way."""
    waiting: list[Any] = [node.args[0]]
    while waiting:
        fed = waiting.pop()
        name = ops.short_name(fed)
        if name in _RECTIFIERS or (name in _CLAMPS and fed.args[1:2] == (0,)):
            continue
        moving = [operand for operand in fed.all_input_nodes if operand in input_dependent]
        passes = ops.is_rearranging(fed) or name in _POOLING or fed.target in ops.SCALINGS or name == "getitem"
        if not passes or (len(moving) != 1 and fed.target not in ops.CONCATENATIONS):
            return False
        waiting += moving
    return True


def find_used(view: ResidualView) -> frozenset[Tensor]:
    """The parameters and buffers that the output which is studied is computed from."""
    chain = view.chain()
    names = tuple(node.name for node in _used(chain) if node.name in chain.trace.tensors)
    return frozenset(chain.trace.fetch(names))


def norms_of(model: nn.Module, used: frozenset[Tensor]) -> list[nn.Module]:
    """The norms that compute with some of these tensors."""
    norms = (module for module in model.modules() if isinstance(module, _NORM_MODULES))
    return [norm for norm in norms if not used.isdisjoint((*norm.parameters(), *norm.buffers()))]


def other_parameters(
    model: nn.Module, places: tuple[Place, ...], biases: frozenset[str], norms: Collection[nn.Module]
) -> dict[str, str]:
    """Role of each parameter that is no weight of a place: ``norm``, ``bias`` of a map, or ``other``."""
    known = {place.parameter for place in places}
    owners = {name.rpartition(".")[0] for name in known}
    roles = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if name in known:
            continue
        norm = model.get_submodule(owner) in norms and leaf in ("weight", "bias")
        bias = name in biases or (owner in owners and leaf == "bias" and parameter.dim() == 1)
        roles[name] = "norm" if norm else "bias" if bias else "other"
    return roles


_NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
