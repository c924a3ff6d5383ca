"""ShakeDrop: branches are kept, or multiplied by random factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pathlens.errors import UsageError
from pathlens.training.rows import require_rows_of_blocks
from pathlens.training.rules.rule import Rule
from pathlens.training.rules.scaling import LEVELS, Factor, Range, Scaling, Share, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from pathlens.residual import ResidualView

_ALPHA, _BETA = Range(-1, 1), Range(0, 1)


@dataclass(frozen=True)
class ShakeDrop(Rule):
    """A block's branch is kept as it is, or multiplied by alpha in the forward and by beta in the backward pass.

    The branch F of block l enters the sum as (b + alpha - b alpha) F(x), its gradient has beta in the place of alpha,
    and b is 1 with probability 1 - l/L (1 - P), P being ``last``, else 0. b is drawn for each block and batch, whatever
    the level. On average the branch is multiplied by p + (1 - p) E[alpha].

    Attributes:
        last: probability that the last block's branch is kept.
        alpha: range of the factor in the forward pass; the paper has -1:1 and 0.
        beta: range of that in the backward pass.
        level: ``batch``, ``sample`` or ``pixel``: what has an alpha and a beta of its own.

    Source: Yamada, Iwamura, Akiba, Kise 2019, "ShakeDrop Regularization for Deep Residual Learning", section III.
    """

    last: float = 0.5
    alpha: Range = _ALPHA
    beta: Range = _BETA
    level: str = "pixel"
    name: ClassVar[str] = "shakedrop"
    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"shakedrop level {self.level!r} is unknown; give one of {', '.join(LEVELS)}")
        if not 0 <= self.last <= 1:
            raise UsageError(f"shakedrop probability {self.last:g} is outside [0, 1]; give one such as 0.5")

    def check(self, blocks: int) -> None:
        """Refuse factors of which the expectation is no factor for a test.

        Raises:
            UsageError: it is not above 0.
        """
        least = min(self.expectation(blocks))
        if least <= 0:
            raise UsageError(
                f"shakedrop would multiply a branch by {least:g} on average; give a larger last probability or alpha"
            )

    def check_view(self, view: ResidualView) -> None:
        """Refuse a network without shortcuts, or of which images cannot have factors of their own, where they should.

        Raises:
            UsageError: it is plain, or has no row for each image.
        """
        if view.is_plain:
            raise UsageError("shakedrop: a plain network has no shortcut beside which a branch could be scaled")
        super().check_view(view)
        if self.level != "batch":
            require_rows_of_blocks(view, f"shakedrop level {self.level}", "draw once for a batch (level=batch)")

    def expectation(self, blocks: int) -> tuple[float, ...]:
        """What each branch is multiplied by on average."""
        return tuple(kept + (1 - kept) * self.alpha.mean for kept in self._kept(blocks).tolist())

    def scale(self, blocks: int, rng: np.random.Generator) -> tuple[Scaling | None, ...]:
        """The factors of the branches that are not kept."""
        kept = rng.random(blocks) < self._kept(blocks)
        seeds = rng.integers(2**62, size=(blocks, 2)).tolist()
        return tuple(
            None
            if kept[block]
            else _Shaken(Factor(self.alpha, self.level, forward), Factor(self.beta, self.level, backward))
            for block, (forward, backward) in enumerate(seeds)
        )

    def _kept(self, blocks: int) -> np.ndarray:
        return 1 - np.arange(1, blocks + 1) / blocks * (1 - self.last)


@dataclass(frozen=True)
class _Shaken(Scaling):
    """The branch times alpha, and its gradient times beta."""

    alpha: Factor
    beta: Factor

    def __call__(self, terms: Sequence[Tensor], share: Share) -> Tensor:
        """See :class:`Scaling`."""
        (branch,) = terms
        return scaled(branch, self.alpha.drawn(branch, share), self.beta.drawn(branch, share))
