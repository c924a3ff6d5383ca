"""Intersection over union (IoU) of images with masks, as counts that add up over batches and processes.

Of each image the IoU of every class that is in its mask or in what is predicted, and their mean; and of each class the
IoU of all pixels of the data. A class that is in neither has no IoU and enters no mean, unlike in torchmetrics, where
it scores 0. The background is a class like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathlens.metrics.intervals import interval_of_sums
from pathlens.metrics.units import CHUNK, IGNORED, Judged, UnitCounts, judge

if TYPE_CHECKING:
    import torch

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MaskCounts(UnitCounts):
    """What a network got right of the pixels of some images.

    Attributes:
        losses: how many losses ``loss_sum`` is the sum of: those of the pixels, or of the judged images.
        iou_sum: sum over the judged images of the mean IoU of the classes in truth or prediction.
        iou_squares: sum of its square.
        intersections: of each class, pixels of it that are predicted so.
        unions: of each class, pixels of it or predicted so.
    """

    losses: int = 0
    iou_sum: float = 0.0
    iou_squares: float = 0.0
    intersections: tuple[int, ...] = ()
    unions: tuple[int, ...] = ()

    @property
    def loss(self) -> float:
        """Mean loss, of a pixel or of an image; NaN where any image had a logit that is not finite.

        Raises:
            NumericsError: no pixels were counted.
        """
        self._require_units()
        return math.nan if self.nonfinite else self.loss_sum / self.losses

    @property
    def iou(self) -> float:
        """Mean over the judged images of their own mean IoU.

        Raises:
            NumericsError: no pixels were counted.
        """
        self._require_units()
        return self.iou_sum / self.judged

    @property
    def iou_of_classes(self) -> tuple[float | None, ...]:
        """IoU of each class over all pixels; None of a class that is neither in the masks nor predicted."""
        pairs = zip(self.intersections, self.unions, strict=True)
        return tuple(intersection / union if union else None for intersection, union in pairs)

    def columns(self) -> dict[str, float | None]:
        """See :meth:`UnitCounts.columns`; and the IoU of images, with Student's interval, and of classes.

        Raises:
            NumericsError: no pixels were counted.
        """
        low, high = interval_of_sums(self.judged, self.iou_sum, self.iou_squares)
        classes = self.iou_of_classes
        present = [value for value in classes if value is not None]
        return {
            **super().columns(),
            "iou": self.iou,
            "iou_low": None if low is None else max(0.0, low),
            "iou_high": None if high is None else min(1.0, high),
            "iou_over_classes": math.fsum(present) / len(present),
            **{f"iou_class_{number}": value for number, value in enumerate(classes)},
        }


def count_mask_answers(
    logits: torch.Tensor, targets: torch.Tensor, loss: Loss | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch as numbers, and the answer to each pixel. Nothing here waits for the device.

    Args:
        logits: shape ``[images, pixels, classes]``, any floating type; losses are taken in float64.
        targets: class indices, shape ``[images, pixels]``; ``IGNORED`` where nothing is asked.
        loss: of each image, as in :mod:`.mask_losses`; None for the cross-entropy of each pixel.

    Returns:
        Float64: the numbers of :func:`.count_unit_answers`, then those that :class:`MaskCounts` has beside them; and
        the answers, as there.
    """
    import torch

    with torch.no_grad():
        judged = judge(logits, targets)
        known = judged.counted.any(1)
        if loss is None:
            total = judged.losses.where(judged.counted & judged.finite, 0).sum()
            losses = judged.counted.sum()
        else:
            step = max(1, CHUNK // logits[0].numel())  # images at a time, because they are brought to float64
            asked = targets.to(logits.device).long().where(judged.counted & ~judged.outside, IGNORED)
            parts = zip(logits.split(step), asked.split(step), strict=True)
            each = torch.cat([loss(part.double(), of_part) for part, of_part in parts])
            total = each.where(known & judged.whole, 0).sum()
            losses = known.sum()
        intersections, unions = _overlaps(judged, logits.shape[-1])
        # what is in neither truth nor prediction has a union of 0
        iou = (intersections / unions.clamp_min(1)).sum(1) / (unions > 0).sum(1).clamp_min(1)
        sums = [losses, iou.sum(), iou.square().sum()]
        numbers = torch.stack([value.double() for value in sums])
        return torch.cat([judged.sums(total), numbers, intersections.sum(0), unions.sum(0)]), judged.answers


def _overlaps(judged: Judged, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections and unions of each image and class, float64 of shape ``[images, classes]``."""

    def pixels(of: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        sums = which.new_zeros(len(of), classes, dtype=judged.losses.dtype)
        return sums.scatter_add_(1, of, which.to(sums.dtype))

    intersections = pixels(judged.target, judged.correct)
    true = pixels(judged.target, judged.counted & ~judged.outside)
    # an image with a logit that is not finite predicts nothing
    predicted = pixels(judged.best, judged.counted & judged.finite)
    return intersections, true + predicted - intersections
