"""Counts and lengths of paths. No torch.

A path through n residual blocks is the subset of blocks whose branch it takes; its length is the size of the subset.
There are C(n, k) paths of length k (Veit, Wilber, Belongie 2016, section 3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pathlens.errors import UsageError


def path_counts(blocks: int) -> list[int]:
    """Exact numbers of paths of length 0, 1, ..., ``blocks``.

    Args:
        blocks: number of blocks.

    Raises:
        UsageError: a negative number of blocks.
    """
    if blocks < 0:
        raise UsageError(f"a network cannot have {blocks} blocks; give 0 or more")
    return [math.comb(blocks, length) for length in range(blocks + 1)]


def length_range(blocks: int, share: float = 0.95) -> tuple[int, int]:
    """Shortest interval of lengths that holds at least ``share`` of all paths; around half the number of blocks.

    Args:
        blocks: number of blocks.
        share: wanted share, in (0, 1].

    Raises:
        UsageError: ``share`` outside (0, 1].
    """
    return shortest_interval(path_counts(blocks), share)


def shortest_interval(weights: Sequence[float], share: float = 0.95) -> tuple[int, int]:
    """Shortest interval of indices that holds at least ``share`` of the total weight; of equal ones the heaviest.

    Args:
        weights: non-negative numbers, exact integers of any size among them.
        share: wanted share, in (0, 1].

    Returns:
        First and last index, both included.

    Raises:
        UsageError: no weight at all, one that is negative or not finite, or a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UsageError(f"share {share} is outside (0, 1]; give 0.95 for 95 %")
    if not any(weights):
        raise UsageError("an interval over no weight was asked for; give non-negative numbers, not all zero")
    for index, weight in enumerate(weights):
        if not 0 <= weight < math.inf:
            raise UsageError(f"weight {weight} at {index} is no finite non-negative number; nothing can be held of it")
    sums: list[float] = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    # integers are kept exact, because numbers of paths exceed the range of floats
    whole = all(isinstance(weight, int) for weight in weights)
    goal = -(-sums[-1] * round(share * 10**9) // 10**9) if whole else sums[-1] * share
    for width in range(1, len(weights) + 1):
        windows = [(sums[first + width] - sums[first], -first) for first in range(len(weights) - width + 1)]
        most, first = max(windows)
        if most >= goal:
            return -first, -first + width - 1
    return 0, len(weights) - 1


def shortest_intervals(weights: np.ndarray, share: float = 0.95) -> np.ndarray:
    """As :func:`shortest_interval`, of many rows of weights.

    Args:
        weights: non-negative numbers, none of the rows all zero, shape (rows, indices).
        share: wanted share, in (0, 1].

    Returns:
        First and last index of each row, shape (rows, 2).
    """
    found = np.empty((len(weights), 2), dtype=int)
    for row, sums in enumerate(np.cumsum(np.pad(weights, ((0, 0), (1, 0))), axis=1)):
        ends = np.searchsorted(sums, sums[:-1] + sums[-1] * share)
        widths = ends - np.arange(len(ends))
        width = max(1, widths[ends < len(sums)].min())
        heaviest = int(np.argmax(sums[width:] - sums[:-width]))
        found[row] = heaviest, heaviest + width - 1
    return found


@dataclass(frozen=True)
class EffectivePaths:
    """The lengths that carry the gradient (Veit et al. 2016, section 5).

    Attributes:
        first: shortest effective length.
        last: longest effective length.
        share_of_contribution: what the range holds of the contribution.
        share_of_paths: what it holds of all paths.
        blocks_per_batch: how many random blocks make a sub-network whose path lengths (binomial, mean half of its
            blocks) are centred on the range: ``first + last``, at most all; 0 where blocks are no chain.
    """

    first: int
    last: int
    share_of_contribution: float
    share_of_paths: float
    blocks_per_batch: int


def effective_paths(
    contributions: Sequence[float],
    share: float = 0.95,
    blocks: int | None = None,
    numbers: Sequence[int] | None = None,
) -> EffectivePaths:
    """The effective range of path lengths.

    Args:
        contributions: of each length 0..n, or of the shortest ones where the rest is negligible.
        share: of the contribution that the range must hold.
        blocks: n, where ``contributions`` ends before it.
        numbers: of paths of each length, where blocks are no chain; random blocks make no sub-network then.

    Raises:
        UsageError: no contribution at all, one that is negative or not finite, or a share outside (0, 1].
    """
    first, last = shortest_interval(contributions, share)
    blocks = len(contributions) - 1 if blocks is None else blocks
    counts = path_counts(blocks) if numbers is None else numbers
    return EffectivePaths(
        first=first,
        last=last,
        share_of_contribution=sum(contributions[first : last + 1]) / sum(contributions),
        share_of_paths=sum(counts[first : last + 1]) / sum(counts),
        blocks_per_batch=max(1, min(blocks, first + last)) if blocks and numbers is None else 0,
    )


def all_paths(blocks: int, length: int) -> list[tuple[int, ...]]:
    """Every path of a length, as sorted tuples of block indices. Meant for small networks.

    Args:
        blocks: number of blocks.
        length: of the paths, 0 to ``blocks``.
    """
    return list(combinations(range(blocks), length))


def sample_paths(blocks: int, length: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Uniformly drawn paths of one length: without repetition where there are no more than ``count``, then all of them.

    Args:
        blocks: number of blocks.
        length: of the paths, 0 to ``blocks``.
        count: how many to draw.
        rng: source of randomness.

    Raises:
        UsageError: a length that no path has, or fewer than one path.
    """
    if not 0 <= length <= blocks:
        raise UsageError(f"path length {length} is outside 0..{blocks}")
    if count < 1:
        raise UsageError(f"{count} paths cannot be drawn; give 1 or more")
    if math.comb(blocks, length) <= count:
        return all_paths(blocks, length)
    return [tuple(sorted(int(b) for b in rng.choice(blocks, size=length, replace=False))) for _ in range(count)]


class Paths(ABC):
    """The paths of a network, by how much longer than the shortest one they are."""

    @abstractmethod
    def count(self, longer: int) -> int:
        """How many there are, exact.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
        """

    @abstractmethod
    def every(self, longer: int) -> Sequence[Collection[int]]:
        """All of them. Meant for few.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
        """

    @abstractmethod
    def sample(self, longer: int, count: int, rng: np.random.Generator) -> Sequence[Collection[int]]:
        """Some of them, uniformly drawn one by one.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
            count: how many to draw.
            rng: source of the draws.
        """


@dataclass(frozen=True)
class ChainPaths(Paths):
    """Paths through blocks one after the other, each as the blocks whose branch it takes.

    Attributes:
        free: blocks at which a path chooses between branch and shortcut.
        forced: blocks whose branch every path takes.
    """

    free: tuple[int, ...]
    forced: tuple[int, ...] = ()

    def count(self, longer: int) -> int:
        """See :class:`Paths`.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
        """
        return math.comb(len(self.free), longer)

    def every(self, longer: int) -> list[tuple[int, ...]]:
        """See :class:`Paths`.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
        """
        return self._named(all_paths(len(self.free), longer))

    def sample(self, longer: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """See :class:`Paths`.

        Args:
            longer: branches that a path takes beyond those of the shortest one.
            count: how many to draw.
            rng: source of the draws.
        """
        return self._named(sample_paths(len(self.free), longer, count, rng))

    def _named(self, places: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        return [(*self.forced, *(self.free[place] for place in path)) for path in places]
