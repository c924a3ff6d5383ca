"""One entry for all views of a network as a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import networkx as nx
from torch import Tensor, nn

from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.graph.dag import make_dag
from pathlens.graph.lattice import make_lattice
from pathlens.graph.tree import make_tree
from pathlens.graph.window import checked_window
from pathlens.residual import ResidualView
from pathlens.residual.chain import Chain, build_chain
from pathlens.residual.discover import discover
from pathlens.residual.plain import build_layers
from pathlens.residual.trace import Trace

Kind = Literal["dag", "tree", "lattice"]
KINDS: tuple[str, ...] = get_args(Kind)
DETAILS = ("merges", "blocks")

Gradients = Mapping[tuple[int, int], float] | Iterable[Mapping[str, Any]]


def unravel(
    model: ResidualView | nn.Module,
    example: Tensor | None = None,
    kind: Kind = "dag",
    *,
    blocks: Sequence[int] | None = None,
    detail: Literal["merges", "blocks"] = "merges",
    gradients: Any = None,
) -> nx.DiGraph:
    """A network as a networkx graph, in one of three views (Veit, Wilber, Belongie 2016, section 3 and figure 1).

    ``dag``: the network as it is. Nodes are the input, additions and concatenations, and the segments of layers between
    them; any network has this view, with or without residual blocks. ``tree``: the unraveled network, in which each of
    the 2^n paths through n blocks is a path of the graph of its own. ``lattice``: nodes (i, k) are the boundary i
    between blocks and the number k of branches between there and the output.

    Every node has ``role``, and ``n_paths_in``, ``n_paths_out`` and ``n_paths``: the exact number of paths from the
    input to it, from it to the output, and through it. The graph has ``kind``, ``network``, ``n_blocks``, ``n_paths``
    and ``n_paths_by_length``. ``docs/unravel.md`` lists all attributes.

    Args:
        model: a view, or a network together with an example.
        example: an input of the network, shape (N, ...); only its shape and type matter.
        kind: which view.
        blocks: first and last block of the window to unravel, both included; by default all. Not for a dag.
        detail: of a dag. ``merges``: everything that is added or concatenated is a node; ``blocks``: stem, transitions,
            branches, shortcuts, additions, post-activations and head, whatever is inside of them.
        gradients: of a lattice: what :func:`pathlens.lattice` returns, or norms by (boundary, length). They become the
            attribute ``gradient_norm``.

    Raises:
        NoResidualBlocksError: a tree or lattice of a network without residual blocks.
        UsageError: an unknown kind, a window outside of the network, a tree of more than 1024 paths, or gradients of
            another network.

    Example:
        >>> import torch, torchvision, pathlens
        >>> network = torchvision.models.resnet18().eval()
        >>> graph = pathlens.unravel(network, torch.zeros(2, 3, 64, 64))
        >>> graph.graph["n_paths"], graph.graph["n_paths_by_length"]
        (256, [1, 8, 28, 56, 70, 56, 28, 8, 1])
    """
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r} is unknown; give one of {', '.join(KINDS)}")
    if detail not in DETAILS:
        raise UsageError(f"detail {detail!r} is unknown; give one of {', '.join(DETAILS)}")
    if gradients is not None and kind != "lattice":
        raise UsageError(f"gradients belong to a lattice, not to a {kind}; leave them out or give kind='lattice'")
    view = as_view(model, example)
    if kind == "dag":
        if blocks is not None:
            raise UsageError("a dag shows the whole network; give a window of blocks with tree, lattice or equation")
        if detail == "blocks" and (not len(view) or not view.in_series):
            raise NoResidualBlocksError(
                f"{_name(view)} has no chain of residual blocks to draw whole; give detail='merges'"
            )
        return make_dag(view, detail == "blocks")
    first, last = checked_window(view, blocks)
    if kind == "tree":
        return make_tree(view, first, last)
    return make_lattice(view, first, last, gradients)


def as_view(model: ResidualView | nn.Module, example: Tensor | None, output: str | int | None = None) -> ResidualView:
    """The view of any network: of its residual blocks, of its layers where it is a plain chain, or of nothing.

    Args:
        model: a view, which is given back, or a network together with an example.
        example: an input of the network, shape (N, ...).
        output: name or position of the output that the paths lead to, where the network returns several tensors.

    Raises:
        UsageError: neither, or no example.
        ModelError: the network cannot be traced.
    """
    if isinstance(model, ResidualView):
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"a view or a torch.nn.Module is needed; found {type(model).__name__}")
    if example is None:
        raise UsageError(f"{type(model).__name__} is no view: give an example input with it, or find_blocks(...) of it")
    return ResidualView(model, example, _chain_or_none, output)


def _chain_or_none(trace: Trace, name: str) -> Chain:
    """The chain of blocks, or of layers; one without links where the network is neither."""
    with contextlib.suppress(NoResidualBlocksError):
        return build_chain(trace, name)
    with contextlib.suppress(NoResidualBlocksError):
        return build_layers(trace, NoResidualBlocksError(name))
    return Chain(trace, discover(trace), ())


def _name(view: ResidualView) -> str:
    return type(view.model).__name__
