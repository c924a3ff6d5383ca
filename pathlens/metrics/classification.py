"""What a classifier gets right, as counts that add up over batches and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathlens.errors import DataError, ModelError, NumericsError
from pathlens.metrics.intervals import mcnemar_p, paired_interval, wilson_interval
from pathlens.metrics.sums import Sums

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClassificationCounts(Sums):
    """What a classifier got right on some images. Counts of disjoint sets of images add up with ``+``.

    Attributes:
        n: images seen.
        correct: images whose highest logit is the label's; of equal logits, the first class counts.
        loss_sum: sum over the images of the cross-entropy in nats, in float64, without the ``nonfinite`` images.
        nonfinite: images with a logit that is NaN or infinite; they are never ``correct``.
    """

    n: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    nonfinite: int = 0

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor) -> ClassificationCounts:
        """Count one batch.

        Args:
            logits: shape ``[batch, classes]``, any floating type; the log-softmax is taken in float64.
            labels: class indices, shape ``[batch]``, an integer type.

        Raises:
            DataError: labels of another shape or type, or outside ``0 .. classes - 1``.
            ModelError: logits that are not ``[batch, classes]``.
        """
        return cls.from_values(count_values(logits, labels).tolist())

    @classmethod
    def from_values(cls, values: Sequence[float]) -> ClassificationCounts:
        """Counts from the five numbers of :func:`count_values`, or from a sum of such.

        Args:
            values: n, correct, loss sum, non-finite, labels outside.

        Raises:
            DataError: labels outside the classes were counted.
        """
        n, correct, loss_sum, nonfinite, outside = values
        if outside:
            raise DataError(
                f"{int(outside)} of {int(n)} labels are outside the classes of the network; "
                "take the data set that the network was trained for"
            )
        return cls(int(n), int(correct), float(loss_sum), int(nonfinite))

    @property
    def error(self) -> float:
        """Share of images that were classified wrongly, in [0, 1].

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return (self.n - self.correct) / self.n

    @property
    def error_interval(self) -> tuple[float, float]:
        """The 95 % interval of the error; see :func:`wilson_interval`.

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return wilson_interval(self.n - self.correct, self.n)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN where any image had a logit that is not finite.

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return math.nan if self.nonfinite else self.loss_sum / self.n

    def columns(self) -> dict[str, float | None]:
        """Images, error with its interval, and loss, as tables have them: a loss that is not finite is missing.

        Raises:
            NumericsError: no images were counted.
        """
        low, high = self.error_interval
        loss = None if self.nonfinite else self.loss
        return {"n": self.n, "error": self.error, "error_low": low, "error_high": high, "loss": loss}

    def require_finite(self, what: str) -> None:
        """Raise if the network gave a logit that is NaN or infinite.

        Args:
            what: which network this was, for the message, such as "the network without block 3".

        Raises:
            NumericsError: naming ``what`` and the number of images.
        """
        if self.nonfinite:
            raise NumericsError(
                f"{what} gives NaN or infinity for {self.nonfinite} of {self.n} images; "
                "check the weights and the normalisation of the data, or use --dtype float32"
            )

    def _require_images(self) -> None:
        if not self.n:
            raise NumericsError("no images were counted, so there is no error; give at least one image")


@dataclass(frozen=True)
class PairedCounts(Sums):
    """How a changed network's answers differ from the intact one's on the same images. Counts add up with ``+``.

    Attributes:
        n: images seen.
        lost: images that the intact network alone gets right (b in McNemar's table).
        gained: images that the changed network alone gets right (c).
    """

    n: int = 0
    lost: int = 0
    gained: int = 0

    @property
    def difference(self) -> float:
        """Error of the changed network minus that of the intact one, in [-1, 1].

        Raises:
            NumericsError: no images were counted.
        """
        if not self.n:
            raise NumericsError("no images were counted, so there is no difference; give at least one image")
        return (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference; see :func:`paired_interval`."""
        return paired_interval(self.lost, self.gained, self.n)

    @property
    def p(self) -> float:
        """The p-value of no difference; see :func:`mcnemar_p`."""
        return mcnemar_p(self.lost, self.gained)


def count_values(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One batch as five float64 numbers on the logits' device: n, correct, loss sum, non-finite, labels outside.

    Arguments and errors as :func:`count_answers`.
    """
    return count_answers(logits, labels)[0]


def count_answers(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of :func:`count_values`, and for each image whether it was classified correctly, shape ``[batch]``.

    Nothing here waits for the device. The results of many batches and processes may be summed (integers stay exact
    below 2^53) and read once with :meth:`ClassificationCounts.from_values`.

    Args:
        logits: shape ``[batch, classes]``, any floating type; the log-softmax is taken in float64.
        labels: class indices, shape ``[batch]``, an integer type.

    Raises:
        DataError: labels of another shape or type.
        ModelError: logits that are not ``[batch, classes]``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ModelError(
            f"the network gives {logits.dtype} of shape {tuple(logits.shape)}, not logits [batch, classes]; "
            "give a network that classifies"
        )
    require_labels(labels, logits.shape[0])
    with torch.no_grad():
        exact = logits.double()
        labels = labels.to(device=logits.device, dtype=torch.int64)
        outside = (labels < 0) | (labels >= logits.shape[1])
        # Clamped, because an index out of range is fatal on a GPU and would only be noticed later.
        labels = labels.clamp(0, logits.shape[1] - 1)
        finite = exact.isfinite().all(dim=1)
        losses = cross_entropy(exact, labels, reduction="none").where(finite, exact.new_zeros(()))
        correct = (exact.argmax(dim=1) == labels) & finite & ~outside
        count = exact.new_full((), logits.shape[0])
        return torch.stack([count, correct.sum(), losses.sum(), (~finite).sum(), outside.sum()]), correct


def count_pairs(correct: torch.Tensor) -> torch.Tensor:
    """What networks lose and gain against the first one, as float64 on the answers' device, without waiting for it.

    Args:
        correct: whether each network classifies each image correctly, bool, shape ``[networks, batch]``.

    Returns:
        Shape ``[networks, 2]``: images that the first network alone gets right, and that this one alone gets right.
    """
    import torch

    first = correct[:1]
    return torch.stack([(first & ~correct).sum(1), (correct & ~first).sum(1)], dim=1).double()


def require_labels(labels: torch.Tensor, images: int) -> None:
    """Raise unless there is one class index for each image.

    Args:
        labels: what a batch has for labels.
        images: how many images the batch has.

    Raises:
        DataError: labels of another shape or type.
    """
    if labels.shape != (images,) or not holds_indices(labels):
        raise DataError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {images} images; "
            "give one class index per image"
        )


def holds_indices(values: torch.Tensor) -> bool:
    """Whether a tensor is of an integer type, and so may hold indices of classes."""
    import torch

    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each example in nats, shape (N,).

    Args:
        logits: shape (N, classes).
        labels: class indices, shape (N,), or probabilities of the classes, shape (N, classes).

    Raises:
        DataError: labels of another type or shape, or outside the classes.
        ModelError: logits of one dimension.
    """
    import torch

    if logits.dim() < 2:
        raise ModelError(f"the network gives shape {tuple(logits.shape)}, not logits [batch, classes]; wrap it")
    if not (labels.is_floating_point() and labels.shape == logits.shape):
        if not holds_indices(labels) or labels.shape != logits.shape[:1] + logits.shape[2:]:
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
