r"""Write a tensor of a network as a sum of what its stem and each of its branches contributed.

With S the sum of block n, the summand of block i is its branch's output, carried through everything between the sum of
block i and S but for later branches: shortcuts, transitions and post-activations. Each of those is taken as the affine
map that it is at these examples:

* what is linear is applied to each summand; what is added by it (biases) goes to a summand of its own, ``constants``;
* a norm centres each summand by itself and divides it by the standard deviation of the whole;
* an activation multiplies each summand by f(x) / x of the whole x (for a ReLU: by 0 or 1);
* a maximum takes from each summand the value at the place where the whole is largest;
* a product or quotient of two tensors that both depend on the input carries the one that the other is computed from (a
  gate's input, what is divided by its own norm).

The summands add up to the whole, which is checked behind every operation that is no residual addition, and at the end.

Source: the break-up of the last sum in Youssin, "Training deep resnets"; the gates are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pathlens.errors import ModelError
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain, Link, module_path
from pathlens.residual.segments import cut
from pathlens.residual.simplify import gives_statistics, uses_the_batch
from pathlens.runtime.randomness import seeded

aten = torch.ops.aten

STEM, CONSTANTS = -1, -2
"""Keys of the summands that are no block's."""

Summands = dict[int, Tensor]
"""Key of a summand, which for a block is its index, -> the summand."""

#: how far sums may be from the whole, relative to the sizes of what is added up
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 5e-2

#: how a maximum also says where it is, and over how many of the last dimensions
_WITH_PLACES: Mapping[Any, tuple[Any, int]] = {
    aten.max_pool1d.default: (aten.max_pool1d_with_indices.default, 1),
    aten.max_pool2d.default: (aten.max_pool2d_with_indices.default, 2),
}


class Decomposition:
    """A tensor of a network, ready to be written as summands, batch after batch.

    Args:
        chain: the traced network, in its mode; batch norms in train mode use the statistics of the batch.
        target: the sum of a block, or the output.

    Raises:
        ModelError: an operation on the way takes two tensors of which neither is computed from the other.
    """

    def __init__(self, chain: Chain, target: fx.Node) -> None:
        self._chain, self._target = chain, target
        self._carried = carried_nodes(chain, target)
        self._links = {link.total.name: (index, link) for index, link in enumerate(chain.links)}
        links = [link for link in chain.links if link.total.name in self._carried]
        # a shortcut that the sum itself multiplies (alpha) is a node beside the network's own
        scaled = [link.shortcut for link in links if link.shortcut not in link.total.all_input_nodes]
        ends = [target, *(link.branch for link in links), *scaled]
        self._segment = cut(chain.trace, chain.trace.source, ends)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Summands]:
        """The tensor, and its summands by key; each has the tensor's shape.

        Args:
            inputs: shape (N, ...).

        Raises:
            ModelError: an operation on the way is not affine in the above sense.
        """
        module, stem = self._segment.graph_module, self._chain.boundaries[0].name
        carrier = _Carrier(module, self._carried, self._links, stem)
        # a network may draw at random in train mode (stochastic depth); the user's random state stays as it is
        with torch.no_grad(), seeded(0, inputs.device):
            whole = carrier.run(inputs, *self._chain.trace.fetch(self._segment.tensor_names))[0]
        summands = carrier.summands[self._target.name]
        _check_sum(self._target, whole, summands)
        return whole, summands


def decompose_at(chain: Chain, inputs: Tensor, target: fx.Node) -> tuple[Tensor, Summands]:
    """A tensor of the network and its summands, for one batch.

    Args:
        chain: as of :class:`Decomposition`.
        inputs: shape (N, ...).
        target: as of :class:`Decomposition`.

    Raises:
        ModelError: as of :class:`Decomposition`.
    """
    return Decomposition(chain, target)(inputs)


def carried_nodes(chain: Chain, target: fx.Node) -> dict[str, tuple[str, ...]]:
    """The nodes between the stem and a target that are not in a branch, each with those that it is computed from.

    Args:
        chain: the traced network.
        target: where to end.

    Returns:
        Name of a node -> names of its operands that are carried, in no particular order; () for the end of the stem.
    """
    dependent = chain.discovery.input_dependent
    totals = {link.total: link for link in chain.links}
    names: dict[str, tuple[str, ...]] = {}
    waiting = [target]
    while waiting:
        node = waiting.pop()
        if node.name in names:
            continue
        if node is chain.boundaries[0]:
            operands: list[fx.Node] = []
        elif node in totals:
            operands = [totals[node].shortcut]
        else:
            operands = [operand for operand in node.all_input_nodes if operand in dependent]
            if len(operands) == 2 and node.target not in ops.ADDITIONS | ops.CONCATENATIONS:
                operands = [_earlier(node, operands)]
        names[node.name] = tuple(operand.name for operand in operands)
        waiting += operands
    return names


def _earlier(node: fx.Node, operands: Sequence[fx.Node]) -> fx.Node:
    """Of the two operands of a node the one that the other is computed from."""
    for operand, other in (operands, operands[::-1]):
        if operand in ops.ancestors([other]):
            return operand
    raise ModelError(
        f"{ops.short_name(node)}{_of_module(node)} takes two tensors that both depend on the blocks before "
        "it, and neither is computed from the other, so that what a block contributes is not defined; decompose at a "
        "block before it (--at N)"
    )


def _of_module(node: fx.Node) -> str:
    path = ".".join(module_path(node))
    return f" of {path}" if path else ""


class _Carrier(fx.Interpreter):
    """Runs a graph, and carries summands along some of its nodes."""

    def __init__(
        self,
        module: fx.GraphModule,
        carried: Mapping[str, tuple[str, ...]],
        links: Mapping[str, tuple[int, Link]],
        stem: str,
    ) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._carried, self._links, self._stem = carried, links, stem
        self._named = {node.name: node for node in module.graph.nodes}
        self._waiting: dict[str, int] = {}
        for operands in carried.values():
            for operand in operands:
                self._waiting[operand] = self._waiting.get(operand, 0) + 1
        self.summands: dict[str, Summands] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run, and carry the summands of its operands to its own."""
        whole = super().run_node(n)
        if n.name in self._carried:
            self.summands[n.name] = self._summands(n, whole)
            for operand in self._carried[n.name]:
                self._waiting[operand] -= 1
                if not self._waiting[operand]:
                    del self.summands[operand]
        return whole

    def _summands(self, n: fx.Node, whole: Any) -> Summands:
        if n.name == self._stem:
            return {STEM: whole, CONSTANTS: torch.zeros_like(whole)}
        if n.name in self._links:
            index, link = self._links[n.name]
            branch = self.env[self._named[link.branch.name]]
            return {**self.summands[link.shortcut.name], index: branch.expand_as(whole)}
        summands = self._carry(n, whole)
        _check_sum(n, whole, summands)
        return summands

    def _carry(self, n: fx.Node, whole: Any) -> Summands:
        """Through an operation that is no residual addition."""
        args, _ = self.fetch_args_kwargs_from_env(n)
        operands = [node for node in n.all_input_nodes if node.name in self._carried[n.name]]
        before = [self.summands[operand.name] for operand in operands]
        if len(operands) == 1:
            x = self.env[operands[0]]
            norm = _norm(n, args, x)
            if norm is not None:
                return norm(before[0])
            if ops.is_pointwise(n) or "dropout" in ops.short_name(n):
                offset = self._at(n, {operands[0]: torch.zeros_like(x)}) if ops.is_pointwise(n) else 0.0
                gate = torch.where(x == 0, 0.0, (whole - offset) / torch.where(x == 0, 1.0, x))
                summands = {key: summand * gate for key, summand in before[0].items()}
                return {**summands, CONSTANTS: summands[CONSTANTS] + offset}
            if n.target in _WITH_PLACES:
                return _at_largest(n.target, args, before[0])
        keys = {key for summands in before for key in summands}
        zeros = {operand: _zeros(self.env[operand]) for operand in operands}
        at_zero = self._at(n, zeros)

        def applied(key: int) -> Any:
            mine = {op: part.get(key, zeros[op]) for op, part in zip(operands, before, strict=True)}
            return self._at(n, mine)

        carried = {key: pytree.tree_map(torch.sub, applied(key), at_zero) for key in sorted(keys - {CONSTANTS})}
        return {**carried, CONSTANTS: applied(CONSTANTS)}

    def _at(self, n: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """The operation with other values of some operands."""
        kept = {node: self.env[node] for node in values}
        self.env.update(values)
        try:
            return super().run_node(n)
        finally:
            self.env.update(kept)


def _zeros(value: Any) -> Any:
    return pytree.tree_map(torch.zeros_like, value)


def _norm(n: fx.Node, args: Sequence[Any], x: Tensor) -> Callable[[Summands], dict[int, Any]] | None:
    """How a norm with statistics of its own input carries summands; None where the operation is no such norm."""
    given: list[Any] = [*args[1:], None, None]
    if uses_the_batch(n):
        more = gives_statistics(n)
        over = [d for d in range(x.dim()) if d != 1]
        scaled = _dividing(x, over, given[0], given[1], args[-1] if more else args[7], channels=True)
        return (lambda summands: {key: (part,) for key, part in scaled(summands).items()}) if more else scaled
    if n.target is aten.group_norm.default:
        groups = (len(x), given[0], -1)
        return _dividing(x, [-1], given[1], given[2], args[4] if len(args) > 4 else 1e-5, folded=groups, channels=True)
    if n.target is aten.layer_norm.default:
        over = list(range(-len(given[0]), 0))
        return _dividing(x, over, given[1], given[2], args[4] if len(args) > 4 else 1e-5)
    if n.target is aten.rms_norm.default:
        eps = args[3] if len(args) > 3 and args[3] is not None else torch.finfo(x.dtype).eps
        return _dividing(x, list(range(-len(given[0]), 0)), given[1], None, eps, centred=False)
    return None


def _dividing(
    x: Tensor,
    over: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    folded: Sequence[int] | None = None,
    channels: bool = False,
    centred: bool = True,
) -> Callable[[Summands], Summands]:
    """Each summand centred by itself, and divided by the deviation of the whole.

    Args:
        x: the whole.
        over: dimensions of the statistics, of the folded tensor where there is one.
        weight: factor, or None.
        bias: what is added, or None.
        eps: added to the variance.
        folded: shape for the statistics.
        channels: whether weight and bias are of dimension 1, and not of the last ones.
        centred: whether the mean is taken away.
    """
    shape = (-1, *[1] * (x.dim() - 2)) if channels else None
    factor, offset = (None if p is None else p if shape is None else p.reshape(shape) for p in (weight, bias))

    def centre(tensor: Tensor) -> Tensor:
        tensor = tensor if folded is None else tensor.reshape(folded)
        return tensor - tensor.mean(list(over), keepdim=True) if centred else tensor

    deviation = (centre(x).square().mean(list(over), keepdim=True) + eps).sqrt()

    def carried(summands: Summands) -> Summands:
        after = {key: (centre(summand) / deviation).reshape(x.shape) for key, summand in summands.items()}
        after = after if factor is None else {key: summand * factor for key, summand in after.items()}
        return after if offset is None else {**after, CONSTANTS: after[CONSTANTS] + offset}

    return carried


def _at_largest(pool: Any, args: Sequence[Any], summands: Summands) -> Summands:
    """Of each summand, the values at the places where the whole has its maxima."""
    with_places, dimensions = _WITH_PLACES[pool]
    _, places = with_places(*args)
    flat = places.flatten(-dimensions)
    return {key: part.flatten(-dimensions).gather(-1, flat).reshape(places.shape) for key, part in summands.items()}


def _check_sum(n: fx.Node, whole: Any, summands: Mapping[int, Any]) -> None:
    """Raise where the summands do not add up to the whole: the operation is not what it was taken for."""
    first = whole[0] if isinstance(whole, tuple | list) else whole
    parts = [part[0] if isinstance(part, tuple | list) else part for part in summands.values()]
    if not first.isfinite().all():
        return  # of what is not finite nothing adds up; the table says missing
    difference = (sum(parts[1:], parts[0]) - first).abs().amax()
    size = torch.stack([first.abs().amax(), *(part.abs().amax() for part in parts)]).amax()
    if difference > _TOLERANCE.get(first.dtype, _COARSE) * size:
        raise ModelError(
            f"behind {ops.short_name(n)}{_of_module(n)} the summands do not add up to the tensor "
            f"(they differ by {float(difference):.2g}, where it goes up to {float(size):.2g}): the operation is not "
            "linear in what it is given; decompose at a block before it (--at N)"
        )
