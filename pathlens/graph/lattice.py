"""The lattice of block and path length: all 2^n paths in (n + 1)(n + 2) / 2 nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import networkx as nx

from pathlens.errors import UsageError
from pathlens.paths import path_counts
from pathlens.residual import ResidualView


def make_lattice(view: ResidualView, first: int, last: int, gradients: Any = None) -> nx.DiGraph:
    """The lattice of blocks ``first`` to ``last``; see :func:`pathlens.graph.unravel` for its attributes.

    Node (i, k) stands for x_i on the paths that take k branches between there and the end of the window, as the table
    of :func:`pathlens.lattice` counts them.
    """
    end = last + 1
    norms = {} if gradients is None else _norms(gradients, view, end)
    graph = nx.DiGraph()
    below = [path_counts(end - place) for place in range(first, end + 1)]
    for place in range(first, end + 1):
        into = 2 ** (place - first)
        for length, out in enumerate(below[place - first]):
            graph.add_node((place, length), role="place", boundary=place, length=length,
                           n_paths_in=into, n_paths_out=out, n_paths=into * out)  # fmt: skip
            if (place, length) in norms:
                graph.nodes[place, length]["gradient_norm"] = norms[place, length]
    for block in range(first, end):
        into = 2 ** (block - first)
        for length, out in enumerate(below[block + 1 - first]):
            later = (block + 1, length)
            for role, start in (("shortcut", (block, length)), ("branch", (block, length + 1))):
                graph.add_edge(start, later, role=role, block=block, n_paths=into * out)
                if later in norms:
                    graph.edges[start, later]["gradient_norm"] = norms[later]
    graph.graph.update(
        kind="lattice",
        network=type(view.model).__name__,
        first=first,
        last=last,
        n_blocks=end - first,
        n_paths=2 ** (end - first),
        n_paths_by_length=path_counts(end - first),
        names=[block.name for block in view.blocks[first:end]],
        stages=[block.stage for block in view.blocks[first:end]],
    )
    return graph


def _norms(gradients: Any, view: ResidualView, end: int) -> dict[tuple[int, int], float]:
    """Norms by boundary and length, from a mapping, a table or a frame."""
    if end != len(view):
        raise UsageError(
            f"gradients are counted from the output: give a window that ends with the last block, {len(view) - 1}"
        )
    stated = getattr(gradients, "provenance", {})
    _check_blocks(stated, view)
    if stated.get("lesion"):
        raise UsageError(
            "the gradients are of a lesioned network, and the graph has all blocks; give those of the intact network"
        )
    norms = dict(_pairs(gradients))
    for (boundary, length), norm in norms.items():
        if not 0 <= length <= end - max(0, boundary) or not -1 <= boundary <= end:
            raise UsageError(
                f"the gradients have a norm at boundary {boundary} and length {length}, which a network of {end} "
                "blocks has not; give those of this network"
            )
        if not (math.isfinite(norm) and norm >= 0):
            raise UsageError(f"the norm at boundary {boundary} and length {length} is {norm}; give finite norms")
    if not any(boundary == end for boundary, _ in norms):
        raise UsageError(
            f"the gradients have nothing at boundary {end}, the output of the last block; give those of this network"
        )
    return norms


def _check_blocks(stated: Mapping[str, Any], view: ResidualView) -> None:
    """Refuse what says that it was measured on other blocks; a table need not say anything of its network."""
    here = [block.name for block in view.blocks]
    there = stated.get("block_names")
    if isinstance(there, list) and there != here:
        pairs = enumerate(zip_longest(there, here, fillvalue="missing"))
        block, other, name = next((block, other, name) for block, (other, name) in pairs if other != name)
        raise UsageError(
            f"the gradients were measured on a network whose block {block} is {other}, and here it is {name}; give "
            "those of this network"
        )


def _pairs(gradients: Any) -> Iterable[tuple[tuple[int, int], float]]:
    if isinstance(gradients, Mapping):
        yield from gradients.items()
        return
    frame = hasattr(gradients, "iterrows")
    rows = gradients.to_dict("records") if frame else getattr(gradients, "rows", gradients)
    try:
        for row in rows:
            yield (int(row["boundary"]), int(row["length"])), float(row["norm"])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise UsageError(
            "gradients need the columns boundary, length and norm, as pathlens.lattice(...) returns them; found "
            f"{type(gradients).__name__} ({error})"
        ) from error
