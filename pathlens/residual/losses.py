"""The loss of each example, of which gradients are taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathlens.errors import DataError, ModelError

#: (outputs, targets) -> the loss of each example, shape (N,)
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example in nats, shape (N,).

    Args:
        logits: shape (N, classes).
        labels: class indices, shape (N,), or probabilities of the classes, shape (N, classes).

    Raises:
        DataError: labels of another type or shape, or outside the classes.
        ModelError: logits of one dimension.
    """
    if logits.dim() < 2:
        raise ModelError(f"the network gives shape {tuple(logits.shape)}, not logits [batch, classes]; wrap it")
    if not (labels.is_floating_point() and labels.shape == logits.shape):
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if not whole or labels.shape != logits.shape[:1] + logits.shape[2:]:
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}; "
                "give one class index per image"
            )
        labels = labels.long()
        outside = int(((labels < 0) | (labels >= logits.shape[1])).sum())  # checked, because it would be fatal on a GPU
        if outside:
            raise DataError(
                f"{outside} of {labels.numel()} labels are outside the {logits.shape[1]} classes of the network; "
                "take the data set that the network was trained for"
            )
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
