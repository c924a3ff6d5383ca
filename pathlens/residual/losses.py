"""The loss of each example, of which gradients are taken."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pathlens.metrics.classification import cross_entropy

__all__ = ["Loss", "cross_entropy"]

#: (outputs, targets) -> the loss of each example, shape (N,)
Loss = Callable[[Tensor, Tensor], Tensor]
