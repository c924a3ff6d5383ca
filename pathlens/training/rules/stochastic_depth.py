"""Every block is kept or left out with a probability of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pathlens.errors import UsageError
from pathlens.training.rows import require_rows_of_blocks
from pathlens.training.rules.rule import Rule

if TYPE_CHECKING:
    from pathlens.residual import ResidualView


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

    decay: str = "linear"
    last: float = 0.5
    per: str = "batch"
    name: ClassVar[str] = "stochastic-depth"
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
        if min(self.expectation(blocks)) == 0:
            raise UsageError("survival probability 0 never trains the last block; give a larger one")

    def check_view(self, view: ResidualView) -> None:
        """Refuse a network of which images cannot have draws of their own, where they should.

        Raises:
            UsageError: it has no row for each of them.
        """
        super().check_view(view)
        if self.per == "sample":
            require_rows_of_blocks(view, f"{self.name} per sample", "draw once for a batch (per=batch)")

    def expectation(self, blocks: int) -> tuple[float, ...]:
        """Probability of each block to be in a batch's sub-network."""
        if self.decay == "uniform":
            return (self.last,) * blocks
        return tuple(1 - (index + 1) / blocks * (1 - self.last) for index in range(blocks))

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in the sub-network, shape (blocks,), or (blocks, images) per sample."""
        shape = (blocks, 1) if self.per == "batch" else (blocks, images)
        kept = rng.random(shape) < np.array(self.expectation(blocks))[:, None]
        return kept[:, 0] if self.per == "batch" else kept


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
