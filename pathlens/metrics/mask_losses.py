"""Losses of masks beside the cross-entropy: soft overlaps, and the Lovász hinge.

All take logits ``[images, pixels, classes]`` and targets ``[images, pixels]``, which are checked already, and leave out
pixels whose target is ``IGNORED``. Of two classes only class 1 is scored, the foreground; of more, the overlaps of all
classes are averaged. An image without pixels that count has the loss 0.

segmentation-models-pytorch has such losses too. Its ``JaccardLoss`` and ``DiceLoss`` add up over the images of a batch,
and leave out what has no true pixel, so that an empty mask costs nothing whatever is predicted; here it costs what is
predicted in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pathlens.metrics.units import IGNORED

if TYPE_CHECKING:
    import torch

IOU_EPSILON = 0.62
"""In pixels, added to intersection and union."""

DICE_EPSILON = 1.0
"""In pixels, added to both sides of the fraction."""


def soft_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Of each image :math:`1 - (I + \epsilon) / (U + \epsilon)`, shape ``[images]``.

    With the probabilities p and the truth t of a class, :math:`I = \sum p t` and :math:`U = \sum p + \sum t - I`.
    """
    intersection, union = _intersection_and_union(logits, targets)
    return 1 - ((intersection + IOU_EPSILON) / (union + IOU_EPSILON)).mean(-1)


def batch_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As :func:`soft_iou`, of all pixels of all images as if they were one image; a scalar."""
    intersection, union = (part.sum(0) for part in _intersection_and_union(logits, targets))
    return 1 - ((intersection + IOU_EPSILON) / (union + IOU_EPSILON)).mean(-1)


def dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    r"""Of each image :math:`1 - (2 I + \epsilon) / (\sum p + \sum t + \epsilon)`, shape ``[images]``."""
    overlap, predicted, true = _overlaps(logits, targets)
    return 1 - ((2 * overlap + DICE_EPSILON) / (predicted + true + DICE_EPSILON)).mean(-1)


def lovasz_hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each image the Lovász extension of 1 - IoU of class 1, at the hinges of its pixels; shape ``[images]``.

    A hinge is ELU + 1 of 1 minus the margin, so that pixels beyond their margin still have a gradient. The margin is
    the difference of the two logits, positive where it is right.

    Source: Berman, Triki, Blaschko 2018, "The Lovász-Softmax loss", section 2 and algorithm 1, which have ReLU.
    """
    import torch
    from torch.nn.functional import elu

    counted = targets != IGNORED
    true = counted & (targets == 1)
    margins = (logits[..., 1] - logits[..., 0]) * torch.where(true, 1, -1)
    # what is not counted comes last, with a hinge of 0
    errors, order = (1 - margins).masked_fill(~counted, -torch.inf).sort(dim=1, descending=True)
    positive, negative = (which.gather(1, order).cumsum(1).double() for which in (true, counted & ~true))
    whole = true.sum(1, keepdim=True)
    jaccard = 1 - (whole - positive) / (whole + negative).clamp_min(1)
    weights = jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
    return ((elu(errors) + 1) * weights.to(errors.dtype)).sum(1)


def _intersection_and_union(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft intersections and unions, ``[images, classes]``."""
    overlap, predicted, true = _overlaps(logits, targets)
    return overlap, predicted + true - overlap


def _overlaps(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each image and class the sums of p t, p and t over the pixels that count, ``[images, classes]``."""
    from torch.nn.functional import one_hot

    classes, counted = logits.shape[-1], (targets != IGNORED)[..., None]
    probabilities = logits.softmax(-1).masked_fill(~counted, 0)
    truth = one_hot(targets.masked_fill(targets == IGNORED, 0), classes) * counted
    scored = slice(1, None) if classes == 2 else slice(None)
    overlap, predicted, true = (part[..., scored].sum(1) for part in (probabilities * truth, probabilities, truth))
    return overlap, predicted, true


#: name -> the loss of each image
OF_IMAGES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "soft-iou": soft_iou,
    "dice": dice,
    "lovasz-hinge": lovasz_hinge,
}

BATCH_IOU = "batch-iou"
"""The one loss that images do not have each for itself."""
