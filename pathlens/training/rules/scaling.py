"""Random factors of a block's branch: one in the forward pass, another one in the backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathlens.errors import UsageError

LEVELS = ("batch", "sample", "pixel")


@dataclass(frozen=True)
class Range:
    """Numbers between two, each as likely as the others.

    Attributes:
        low: the smallest.
        high: the largest; it may be the same.

    Raises:
        UsageError: the other way round, or not finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -float("inf") < self.low <= self.high < float("inf"):
            raise UsageError(f"range {self}: give LOW:HIGH or one number, such as -1:1")

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}"

    @property
    def mean(self) -> float:
        """Expectation of a draw."""
        return (self.low + self.high) / 2

    @classmethod
    def parse(cls, text: str) -> Range:
        """``LOW:HIGH`` or one number.

        Args:
            text: as users write it.

        Raises:
            ValueError: something else.
        """
        low, colon, high = text.partition(":")
        return cls(float(low), float(high if colon else low))


@dataclass(frozen=True)
class Share:
    """Which images of a batch a process has: those from ``rank`` on in steps of ``world``."""

    images: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Factor:
    """A uniform random factor that is the same whenever it is drawn, on the same device.

    Attributes:
        range: of its values.
        level: ``batch`` (one number), ``sample`` (one for each image) or ``pixel`` (one for each element).
        seed: of its own generator.
    """

    range: Range
    level: str
    seed: int

    def drawn(self, like: Tensor, share: Share) -> Tensor:
        """The factor for a process's images.

        Args:
            like: what is multiplied, shape (N, ...).
            share: its images. All of the batch are drawn, so that the number of processes changes nothing.

        Returns:
            A tensor that broadcasts with ``like``, in at least float32.
        """
        each = tuple(like.shape[1:]) if self.level == "pixel" else (1,) * (like.dim() - 1)
        shape = (1 if self.level == "batch" else share.images, *each)
        dtype = torch.promote_types(like.dtype, torch.float32)
        generator = torch.Generator(like.device).manual_seed(self.seed)
        factor = torch.empty(shape, dtype=dtype, device=like.device)
        factor.uniform_(self.range.low, self.range.high, generator=generator)
        return factor if self.level == "batch" else factor[share.rank :: share.world]


class Scaling(ABC):
    """How a block's branch is scaled in one step."""

    @abstractmethod
    def __call__(self, terms: Sequence[Tensor], share: Share) -> Tensor:
        """The branch as it enters the sum.

        Args:
            terms: the branch as it is, or its parallel branches where the rule mixes them; each of shape (N, ...).
            share: which images of the batch these are.
        """


class _Scaled(torch.autograd.Function):
    """A tensor times one factor, of which the gradient is multiplied by another one."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return (tensor * forward).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (backward,) = ctx.saved_tensors
        return (gradients[0] * backward).to(gradients[0].dtype), None, None


def scaled(tensor: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """A tensor times ``forward``; its gradient is the one that arrives times ``backward``."""
    result: Tensor = _Scaled.apply(tensor, forward, backward)
    return result
