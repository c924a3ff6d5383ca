"""Blocks are left out more and more often as training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pathlens.training.rules.stochastic_depth import StochasticDepth


@dataclass(frozen=True)
class RandomDrop(StochasticDepth):
    """Stochastic depth of which the probability to leave a block out rises linearly in training time.

    After a share t of the training, block l of L is kept with probability 1 - t l/L (1 - P), P being ``last`` (with
    ``decay`` uniform, 1 - t (1 - P)). The network is tested with the probabilities of the time it is from: at the end,
    with those of stochastic depth.

    Attributes:
        decay: over the blocks, ``linear`` or ``uniform``; see :class:`StochasticDepth`.
        last: survival probability of the last block at the end of the training.
        per: ``batch`` or ``sample``; see :class:`StochasticDepth`.

    Source: over blocks, RandomDrop as in Yamada, Iwamura, Akiba, Kise 2019, section II, which is stochastic depth; over
        time, the linear schedule of Zoph, Vasudevan, Shlens, Le 2018, "Learning Transferable Architectures for Scalable
        Image Recognition" (ScheduledDropPath).
    """

    name: ClassVar[str] = "randomdrop"

    def __str__(self) -> str:
        return super(StochasticDepth, self).__str__()

    def at(self, share: float) -> StochasticDepth:
        """Stochastic depth as it is after a share of the training."""
        return StochasticDepth(self.decay, 1 - share * (1 - self.last), self.per)
