"""Rows of the tables of path gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from pathlens.results.lattice import LatticeRow
from pathlens.results.path_profile import PathRow
from pathlens.tables.declared import MutableRow, Row


def empty(numbers: Sequence[int], lengths: range) -> list[MutableRow]:
    """Rows with lengths and numbers of paths, for estimators to fill.

    Args:
        numbers: of paths of each length, from the shortest one on.
        lengths: of the table.
    """
    return [asdict(PathRow(length=length, n_paths=count)) for length, count in zip(lengths, numbers, strict=False)]


def lattice(
    sums: dict[tuple[int, int], float],
    examples: int,
    numbers: Callable[[int], Mapping[int, int]],
    is_whole: bool = True,
) -> list[Row]:
    """Rows of the lattice, from the loss down.

    Args:
        sums: of norms over examples, by boundary and length.
        examples: their number.
        numbers: boundary -> numbers of paths from the loss to there, by length.
        is_whole: whether all lengths are there, so that shares are known.
    """
    rows: list[Row] = []
    norms: dict[int, dict[int, float]] = {}
    for (boundary, length), total in sums.items():
        norms.setdefault(boundary, {})[length] = total / examples
    for boundary, here in sorted(norms.items(), reverse=True):
        everything = math.fsum(here.values())
        counts = numbers(boundary)
        for length in sorted(here):
            rows.append(
                vars(
                    LatticeRow(
                        boundary=boundary,
                        length=length,
                        n_paths=counts.get(length, 0),
                        norm=here[length],
                        share=None if not is_whole else here[length] / everything if everything else 0.0,
                    )
                )
            )
    return rows
