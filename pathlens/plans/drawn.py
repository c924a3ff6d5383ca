"""Plans that are drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathlens.errors import UsageError
from pathlens.plans.plan import Deletion, Reordering, SkipDeletion, interchangeable
from pathlens.residual import ResidualView


def random_swaps(
    view: ResidualView, swaps: int, rng: np.random.Generator, units: Sequence[tuple[int, ...]] | None = None
) -> Reordering:
    """The order after exchanging ``swaps`` random pairs of interchangeable blocks, one after the other.

    Args:
        view: the network's blocks.
        swaps: how many pairs, 0 or more.
        rng: source of randomness.
        units: neighbouring blocks that move together, such as those of a layer (default: each block by itself).

    Raises:
        UsageError: no two blocks can be exchanged, or ``swaps`` is negative.

    Source: Veit et al. 2016, section 4.3.
    """
    units = [(i,) for i in range(len(view))] if units is None else units
    groups = interchangeable(view, units)
    if swaps < 0:
        raise UsageError(f"the number of swaps must not be negative; found {swaps}")
    if not groups:
        raise UsageError("no two blocks of this network have equal shapes inside a stage, so nothing can be reordered")
    pairs = [(a, b) for group in groups for a in group for b in group if a < b]
    order = list(range(len(units)))
    for pick in rng.integers(len(pairs), size=swaps):
        a, b = pairs[pick]
        order[a], order[b] = order[b], order[a]
    return Reordering(tuple(block for number in order for block in units[number]))


def random_deletion(view: ResidualView, count: int, rng: np.random.Generator) -> Deletion:
    """A uniformly drawn set of ``count`` blocks to delete (Veit et al. 2016, section 4.2).

    Args:
        view: the network's blocks.
        count: how many blocks, 1 to all.
        rng: source of randomness.

    Raises:
        UsageError: more blocks than the network has, or fewer than one.
    """
    return Deletion(random_set(len(view), count, rng))


def random_skip_deletion(view: ResidualView, count: int, rng: np.random.Generator) -> SkipDeletion:
    """A uniformly drawn set of ``count`` blocks to delete the shortcuts of.

    Args:
        view: the network's blocks.
        count: how many blocks, 1 to all.
        rng: source of randomness.

    Raises:
        UsageError: more blocks than the network has, or fewer than one.
    """
    return SkipDeletion(random_set(len(view), count, rng))


def random_set(existing: int, count: int, rng: np.random.Generator, what: str = "blocks") -> tuple[int, ...]:
    """A uniformly drawn set of numbers below ``existing``.

    Args:
        existing: how many there are.
        count: how many to draw, 1 to all.
        rng: source of randomness.
        what: they are called.

    Raises:
        UsageError: more than there are, or fewer than one.
    """
    if not 1 <= count <= existing:
        raise UsageError(f"{count} {what} cannot be drawn: the network has {existing}")
    return tuple(sorted(int(number) for number in rng.choice(existing, size=count, replace=False)))
