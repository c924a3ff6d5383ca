"""A lattice as coloured cells: what the colours stand for, where stages part, and the line through the largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import networkx as nx
import numpy as np

from pathlens.errors import UsageError

PLACE = "place i: xᵢ, the input of block i"
LENGTH = "branches from there to the output"
_DECADES = 12  # of gradient norms; smaller ones look like the smallest


@dataclass(frozen=True)
class Cells:
    """Colours of a lattice.

    Attributes:
        first: the place of the first column.
        sizes: logarithms to base 10 of what the colours stand for, shape (lengths, places); NaN where nothing is.
        floor: the size of the darkest colour; smaller ones look like it.
        top: the largest size.
        longest: the largest length that has a size above the floor.
        ridge: points (place, length) of the line that is drawn.
        ridge_label: what the line is.
        stages: name, first and last place of each stage.
        by_norm: whether sizes are gradient norms, else numbers of paths.
    """

    first: int
    sizes: np.ndarray
    floor: float
    top: float
    longest: int
    ridge: list[tuple[float, float]]
    ridge_label: str = "largest at its place"
    stages: tuple[tuple[str, int, int], ...] = ()
    by_norm: bool = True

    @property
    def is_cut(self) -> bool:
        """Whether sizes are smaller than the darkest colour says."""
        return bool(np.nanmin(self.sizes) < self.floor)


def norm_cells(norms: Mapping[tuple[int, int], float]) -> Cells:
    """The cells of gradient norms by (place, length); where a norm is zero, there is none.

    Raises:
        UsageError: no norm is above zero.
    """
    logs = {node: math.log10(norm) for node, norm in norms.items() if norm > 0}
    if not logs:
        raise UsageError("every norm of the lattice is zero; give one with gradients")
    top = max(logs.values())
    floor = max(min(logs.values()), top - _DECADES)
    first, sizes = _grid(logs, norms)
    there = np.flatnonzero(~np.isnan(sizes).all(axis=0))
    largest = np.nanargmax(sizes[:, there], axis=0)
    ridge = [(float(first + place), float(length)) for place, length in zip(there, largest, strict=True)]
    return Cells(first, sizes, floor, top, max(length for (_, length), log in logs.items() if log >= floor), ridge)


def lattice_cells(graph: nx.DiGraph) -> Cells:
    """The cells of what :func:`pathlens.unravel` returns for a lattice.

    Sizes are its gradient norms where it has them, else the numbers of paths through its nodes. The line joins the
    largest norms, or half of the blocks that follow on each place, which is where most paths are.

    Raises:
        UsageError: it has gradient norms, and none is above zero.
    """
    first, blocks = graph.graph["first"], graph.graph["n_blocks"]
    stages, start = [], first + 1  # the input of a stage's first block is still of the stage before
    for stage, run in groupby(graph.graph["stages"]):
        end = start + len(list(run))
        stages.append((f"stage {stage}", start, end - 1))
        start = end
    nodes = graph.nodes(data=True)
    if any("gradient_norm" in data for _, data in nodes):
        return replace(norm_cells({node: data.get("gradient_norm", 0.0) for node, data in nodes}), stages=tuple(stages))
    logs = {node: math.log10(data["n_paths"]) for node, data in nodes}
    ridge = [(float(first + place), (blocks - place) / 2) for place in range(blocks + 1)]
    label = "half of the blocks that follow"
    return Cells(*_grid(logs, logs), 0.0, max(logs.values()), blocks, ridge, label, tuple(stages), by_norm=False)


def _grid(logs: Mapping[tuple[int, int], float], places: Mapping[tuple[int, int], float]) -> tuple[int, np.ndarray]:
    first, last = min(place for place, _ in places), max(place for place, _ in places)
    sizes = np.full((max(length for _, length in places) + 1, last - first + 1), np.nan)
    for (place, length), log in logs.items():
        sizes[length, place - first] = log
    return first, sizes
