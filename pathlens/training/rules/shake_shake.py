"""Shake-shake: the two branches of a block are mixed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from pathlens.errors import UsageError
from pathlens.residual.modes import in_mode
from pathlens.residual.parallel import draws_at_random, parallel_branches
from pathlens.training.rows import require_rows_of_blocks
from pathlens.training.rules.rule import Rule
from pathlens.training.rules.scaling import Factor, Range, Scaling, Share, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from pathlens.residual import ResidualView

_FORWARD = ("shake", "even")
_BACKWARD = ("shake", "even", "keep")
_LEVELS = ("batch", "sample")


@dataclass(frozen=True)
class ShakeShake(Rule):
    """The two parallel branches of a block are weighted by alpha and 1 - alpha, drawn from [0, 1].

    A block with x + F(x) + G(x) computes x + 2 alpha F(x) + 2 (1 - alpha) G(x), so that the network itself is the
    expectation: with the 1/2 of both branches written into it, as published, that is x + alpha F(x) + (1 - alpha) G(x).
    In the backward pass beta is in the place of alpha. Blocks with one branch stay as they are.

    Attributes:
        forward: ``shake`` (alpha is drawn) or ``even`` (1/2).
        backward: ``shake`` (beta is drawn), ``even`` (1/2) or ``keep`` (beta is alpha).
        level: ``sample`` (each image has numbers of its own) or ``batch``.

    Source: Gastaldi 2017, "Shake-Shake regularization", section 2 (Shake-Shake-Image is the best on CIFAR-10).
    """

    forward: str = "shake"
    backward: str = "shake"
    level: str = "sample"
    name: ClassVar[str] = "shake-shake"
    is_random: ClassVar[bool] = True
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for what, choices in (("forward", _FORWARD), ("backward", _BACKWARD), ("level", _LEVELS)):
            if getattr(self, what) not in choices:
                raise UsageError(
                    f"shake-shake {what} {getattr(self, what)!r} is unknown; give one of {', '.join(choices)}"
                )

    def check_view(self, view: ResidualView) -> None:
        """Refuse a network without blocks of two branches.

        Raises:
            UsageError: there is none, they are mixed at random already, or have no row for each image.
        """
        with in_mode(view.model, training=True):
            chain = view.chain()
        for block in view:
            if draws_at_random(chain, block.index):
                raise UsageError(
                    f"shake-shake: block {block.index} ({block.name}) mixes its branches at random by itself in train "
                    "mode; train this network without a rule"
                )
        if all(len(parallel_branches(chain, block.index)) == 1 for block in view):
            raise UsageError(
                f"shake-shake: none of the {len(view)} blocks of this network is a sum of two branches; "
                "shakedrop is for blocks with one"
            )
        if self.level == "sample" and "shake" in (self.forward, self.backward):
            require_rows_of_blocks(view, "shake-shake level sample", "draw once for a batch (level=batch)")

    def scale(self, blocks: int, rng: np.random.Generator) -> tuple[Scaling | None, ...]:
        """How the branches of each block are mixed."""
        unit = Range(0, 1)
        return tuple(
            _Mixed(self, Factor(unit, self.level, forward), Factor(unit, self.level, backward))
            for forward, backward in rng.integers(2**62, size=(blocks, 2)).tolist()
        )


@dataclass(frozen=True)
class _Mixed(Scaling):
    """Two branches in the proportion of alpha, and their gradients in that of beta."""

    rule: ShakeShake
    alpha: Factor
    beta: Factor

    def __call__(self, terms: Sequence[Tensor], share: Share) -> Tensor:
        """See :class:`Scaling`."""
        if len(terms) == 1:
            return terms[0]
        first, second = terms
        half = torch.full((), 0.5, dtype=first.dtype, device=first.device)
        alpha = self.alpha.drawn(first, share) if self.rule.forward == "shake" else half
        beta = {"even": half, "keep": alpha}.get(self.rule.backward)
        if beta is None:
            beta = self.beta.drawn(first, share)
        return scaled(first, 2 * alpha, 2 * beta) + scaled(second, 2 * (1 - alpha), 2 * (1 - beta))
