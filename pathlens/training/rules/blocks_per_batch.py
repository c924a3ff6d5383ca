"""A number of random blocks in each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pathlens.errors import UsageError
from pathlens.training.rules.rule import Rule


@dataclass(frozen=True)
class BlocksPerBatch(Rule):
    """Exactly ``count`` blocks, drawn anew for each batch; the others are deleted in its forward and backward pass.

    The path lengths of such a sub-network are binomial with mean count/2.

    Attributes:
        count: blocks in a batch, 1 to the number that the network has.

    Source: Veit, Wilber, Belongie 2016, section 5 (23 of 54 blocks).
    """

    count: int
    name: ClassVar[str] = "blocks-per-batch"
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

    def expectation(self, blocks: int) -> tuple[float, ...]:
        """Probability of each block to be in a batch's sub-network."""
        return (self.count / blocks,) * blocks

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in the sub-network, shape (blocks,)."""
        kept = np.zeros(blocks, dtype=bool)
        kept[rng.choice(blocks, size=self.count, replace=False)] = True
        return kept
