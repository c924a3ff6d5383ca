"""Which of the tensors that a network returns is studied."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pathlens.errors import ModelError, UsageError

#: usual names of the main output: in most libraries, in torchvision, and in transformers without a head
_MAIN = ("logits", "out", "last_hidden_state")
_LISTED = 12


@dataclass(frozen=True, eq=False)
class Output:
    """An output of a network.

    Attributes:
        name: its key, attribute or position in what the network returns; with dots between levels.
        node: what computes it.
        among: names of all tensors that the network returns.
    """

    name: str
    node: fx.Node
    among: tuple[str, ...]


def choose_output(model: str, outputs: Sequence[Any], spec: pytree.TreeSpec, choice: str | int | None) -> Output:
    """The output to study: the one asked for, else one of the usual name, else the only one.

    Args:
        model: name of the network, for errors.
        outputs: nodes (or constants) of the flattened return value.
        spec: of the return value.
        choice: name or position of the output asked for, or None.

    Raises:
        UsageError: there is no tensor of that name.
        ModelError: there is no tensor at all, or there are several.
    """
    names = _names(spec)
    tensors = {
        name: node
        for name, node in zip(names, outputs, strict=True)
        if isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)
    }
    if not tensors:
        raise ModelError(f"{model} does not turn its input tensor into an output tensor")
    among = tuple(tensors)

    def listed() -> str:
        shown = [f"{name} {_shape(node)}" for name, node in list(tensors.items())[:_LISTED]]
        return ", ".join(shown + ["..."] * (len(tensors) > _LISTED))

    if choice is not None:
        if str(choice) not in tensors:
            raise UsageError(f"{model} returns no tensor {choice}; it returns {listed()}")
        return Output(str(choice), tensors[str(choice)], among)
    for name in _MAIN:
        if name in tensors:
            return Output(name, tensors[name], among)
    if len(set(tensors.values())) > 1:
        raise ModelError(
            f"{model} returns {len(tensors)} tensors: {listed()}; say which one to study, such as --output {among[0]} "
            f"(in Python the view find_blocks(model, images, output={among[0]!r}))"
        )
    return Output(among[0], tensors[among[0]], among)


def _shape(node: fx.Node) -> str:
    return f"(N, {', '.join(str(size) for size in node.meta['val'].shape[1:])})".replace(", )", ")")


def _names(spec: pytree.TreeSpec) -> list[str]:
    """Names of the leaves of a return value, in order."""
    count = spec.num_leaves
    names = dict(_named(pytree.tree_unflatten(list(range(count)), spec), ""))
    return [names.get(position) or str(position) for position in range(count)]


def _named(tree: Any, prefix: str) -> Iterator[tuple[int, str]]:
    """Positions of leaves and the names they have in mappings, fields, attributes or sequences."""
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, int):
        yield tree, prefix
    elif isinstance(tree, Mapping):
        items = list(tree.items())
    elif hasattr(tree, "_fields"):
        items = list(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, (tuple, list)):
        items = list(enumerate(tree))
    elif dataclasses.is_dataclass(tree):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    for key, item in items:
        yield from _named(item, f"{prefix}.{key}" if prefix else str(key))
