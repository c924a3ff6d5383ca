"""Fold the factor that a branch has at test time into the weights of its last layer.

After training with random sub-networks, the whole network is tested with each branch times the probability that it was
kept (Huang et al. 2016, equation 5). Folded into the weights, every other analysis sees the network that was tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.residual.chain import Chain, Link
from pathlens.residual.operations import ancestors

aten = torch.ops.aten

_PASSING = (aten.dropout.default, aten.clone.default, aten.reshape.default, aten.permute.default, aten.transpose.int)
_LAYERS = {
    aten.conv1d.default: (1, 2),
    aten.conv2d.default: (1, 2),
    aten.conv3d.default: (1, 2),
    aten.linear.default: (1, 2),
    aten.batch_norm.default: (1, 2),
    aten.addmm.default: (2, 0),
}


def last_layers(view: ResidualView) -> list[tuple[str, ...]]:
    """For each block, the parameters that its branch is proportional to.

    The view's model must be in eval mode.

    Raises:
        UsageError: a branch ends in something that a factor cannot be put into; names the block.
    """
    chain = view.chain()
    layers = []
    for index, link in enumerate(chain.links):
        names = _ends(chain, link.branch, None, _inside(link))
        if names is None:
            raise UsageError(
                f"block {index} ({view[index].name}) ends in a layer that its survival probability cannot be put into; "
                "give --rescale train or --rescale none"
            )
        layers.append(names)
    all_names = [name for names in layers for name in names]
    if len(set(all_names)) < len(all_names):
        raise UsageError("blocks of this network share their last layer; give --rescale train or --rescale none")
    return layers


def fold(model: nn.Module, names: Sequence[tuple[str, ...]], factors: Sequence[float]) -> None:
    """Multiply the branch of each block by its factor, in place.

    Args:
        model: the network.
        names: of :func:`last_layers`.
        factors: one for each block.
    """
    with torch.no_grad():
        for parameters, factor in zip(names, factors, strict=True):
            for name in parameters:
                model.get_parameter(name).mul_(factor)


def _inside(link: Link) -> set[fx.Node]:
    """What a block computes before its sum."""
    return ancestors([link.branch, link.shortcut], lambda node: node is link.branch_point)


def _ends(chain: Chain, node: fx.Node, taker: fx.Node | None, inside: set[fx.Node]) -> tuple[str, ...] | None:
    """Parameters to scale so that ``node``, which only ``taker`` uses, is scaled; None where there are none."""
    if any(user in inside and user is not taker for user in node.users):
        return None
    if node.target in _PASSING:
        return _ends(chain, node.args[0], node, inside)  # type: ignore[arg-type]
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        parts = [_ends(chain, term, node, inside) if isinstance(term, fx.Node) else None for term in node.args[:2]]
        return None if None in parts else tuple(name for part in parts for name in part or ())
    if node.target is aten.mul.Tensor:
        for factor, other in (node.args[:2], node.args[1::-1]):
            if isinstance(factor, fx.Node) and (name := _parameter(chain, factor)) is not None:
                return (name,)
            if isinstance(factor, int | float) and isinstance(other, fx.Node):
                return _ends(chain, other, node, inside)
        return None
    if node.target not in _LAYERS or node.kwargs:
        return None
    places: list[Any] = [node.args[i] if i < len(node.args) else None for i in _LAYERS[node.target]]
    names = [None if place is None else _parameter(chain, place) for place in places]
    if names[0] is None or (places[1] is not None and names[1] is None):
        return None
    return tuple(name for name in names if name is not None)


def _parameter(chain: Chain, node: fx.Node) -> str | None:
    while node.target in (aten.t.default, aten.permute.default, aten.reshape.default, aten.unsqueeze.default):
        if len(node.users) > 1:
            return None
        node = node.args[0]  # type: ignore[assignment]
    kind, name = chain.trace.tensors.get(node.name, ("", None))
    return name if kind == "parameter" and len(node.users) == 1 else None
