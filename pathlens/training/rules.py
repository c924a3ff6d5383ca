"""Which paths a training step goes through: the whole network, random blocks, or some path lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pathlens.errors import UsageError

RESCALES = ("test", "train", "none")


class Rule:
    """Which paths a training goes through.

    Attributes:
        is_random: whether each batch has a random sub-network of its own.
    """

    is_random: ClassVar[bool] = False

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Shortest and longest path that the gradient comes back through; None for all."""
        return None

    def check(self, blocks: int) -> None:
        """Refuse what a network of so many blocks cannot do.

        Raises:
            UsageError: naming what it has.
        """

    def survival(self, blocks: int) -> tuple[float, ...]:
        """Probability of each block to be in a batch's sub-network."""
        return (1.0,) * blocks

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in a batch's sub-network, shape (blocks,), or (blocks, images) where images differ."""
        return np.ones(blocks, dtype=bool)


@dataclass(frozen=True)
class Full(Rule):
    """All blocks, all paths: ordinary training."""

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class BlocksPerBatch(Rule):
    """Exactly ``count`` blocks, drawn anew for each batch; the others are deleted in its forward and backward pass.

    The path lengths of such a sub-network are binomial with mean count/2.

    Attributes:
        count: blocks in a batch, 1 to the number that the network has.

    Source: Veit, Wilber, Belongie 2016, section 5.3 (23 of 54 blocks).
    """

    count: int
    is_random: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"blocks-per-batch {self.count}"

    def check(self, blocks: int) -> None:
        """Refuse what the network cannot do.

        Raises:
            UsageError: more blocks than the network has, or fewer than one.
        """
        if not 1 <= self.count <= blocks:
            raise UsageError(f"--blocks-per-batch {self.count}: the network has {blocks} blocks; give 1 to {blocks}")

    def survival(self, blocks: int) -> tuple[float, ...]:
        """Probability of each block to be in a batch's sub-network."""
        return (self.count / blocks,) * blocks

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in the sub-network, shape (blocks,)."""
        kept = np.zeros(blocks, dtype=bool)
        kept[rng.choice(blocks, size=self.count, replace=False)] = True
        return kept


@dataclass(frozen=True)
class StochasticDepth(Rule):
    """Every block is kept with a probability of its own, independently of the others.

    Attributes:
        decay: ``linear`` from 1 before the first block to ``last`` at the last one (the paper's p_l = 1 - l/L (1 -
            p_L)), or ``uniform``, ``last`` for all.
        last: survival probability of the last block.
        per: ``batch`` (as published: one draw for all images) or ``sample`` (each image a draw of its own; a block
            costs no time where no image keeps it).

    Source: Huang, Sun, Liu, Sedra, Weinberger 2016, "Deep Networks with Stochastic Depth", section 3, equation 4.
    """

    decay: str
    last: float
    per: str = "batch"
    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.decay not in ("linear", "uniform"):
            raise UsageError(f"stochastic depth {self.decay!r} is unknown; give linear:P or uniform:P")
        if self.per not in ("batch", "sample"):
            raise UsageError(f"stochastic depth per {self.per!r} is unknown; give batch or sample")
        if not 0 <= self.last <= 1:
            raise UsageError(f"survival probability {self.last:g} is outside [0, 1]; give one such as 0.5")

    def __str__(self) -> str:
        return f"stochastic-depth {self.decay}:{self.last:g} per {self.per}"

    def check(self, blocks: int) -> None:
        """Refuse a probability that never trains a block.

        Raises:
            UsageError: a block would never be kept.
        """
        if min(self.survival(blocks)) == 0:
            raise UsageError("survival probability 0 never trains the last block; give a larger one")

    def survival(self, blocks: int) -> tuple[float, ...]:
        """Probability of each block to be in a batch's sub-network."""
        if self.decay == "uniform":
            return (self.last,) * blocks
        return tuple(1 - (index + 1) / blocks * (1 - self.last) for index in range(blocks))

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in the sub-network, shape (blocks,), or (blocks, images) per sample."""
        shape = (blocks, 1) if self.per == "batch" else (blocks, images)
        kept = rng.random(shape) < np.array(self.survival(blocks))[:, None]
        return kept[:, 0] if self.per == "batch" else kept


@dataclass(frozen=True)
class PathLengths(Rule):
    """The forward pass is whole; the gradient comes back through paths of some lengths alone.

    Attributes:
        first: shortest length.
        last: longest length.

    Source: the restriction is exact (docs/path-gradients.md); for lengths 0 to L the idea is that of Wu, Shen, van den
    Hengel 2019, "Wider or Deeper", section 3 (effective depth).
    """

    first: int
    last: int

    def __str__(self) -> str:
        return f"path-lengths {self.first}:{self.last}"

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest path that the gradient comes back through."""
        return self.first, self.last

    def check(self, blocks: int) -> None:
        """Refuse lengths that no path has.

        Raises:
            UsageError: lengths out of order, or outside 0 to ``blocks``.
        """
        if not 0 <= self.first <= self.last <= blocks:
            raise UsageError(
                f"path lengths {self.first}:{self.last}: this network has paths of 0 to {blocks} blocks; "
                "give FIRST:LAST within these"
            )


def parse_stochastic_depth(text: str, per: str = "batch") -> StochasticDepth:
    """``linear:P`` or ``uniform:P``.

    Raises:
        UsageError: something else.
    """
    decay, colon, last = text.partition(":")
    try:
        probability = float(last)
    except ValueError:
        colon = ""
    if not colon:
        raise UsageError(f"--stochastic-depth {text!r}: give linear:P or uniform:P, such as linear:0.5")
    return StochasticDepth(decay, probability, per)


def parse_lengths(text: str) -> PathLengths:
    """``FIRST:LAST`` or one length.

    Raises:
        UsageError: something else.
    """
    parts = text.split(":")
    try:
        ends = [int(part) for part in parts]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise UsageError(f"--path-lengths {text!r}: give FIRST:LAST, such as 5:17")
    return PathLengths(ends[0], ends[-1])
