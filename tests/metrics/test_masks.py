"""Intersection over union of images and classes against loops and torchmetrics, and the losses that tables state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pathlens.errors import ModelError, UsageError
from pathlens.metrics import masks as counting
from pathlens.metrics.mask_losses import OF_IMAGES
from pathlens.metrics.masks import MaskCounts
from pathlens.metrics.tasks import CLASSIFICATION, SEGMENTATION, of_two_classes
from pathlens.metrics.units import IGNORED


def drawn(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[images, classes, 4, 5]`` that are often right, and masks of which one is not counted at all."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(max(2, classes - 1), (images, 4, 5), generator=generator)  # of 3 the last is in none
    logits = torch.randn(images, classes, 4, 5, generator=generator, dtype=torch.float64)
    logits += 2 * torch.nn.functional.one_hot(masks, classes).movedim(-1, 1)
    logits[..., 0, 0].mul_(3)
    masks[:, 1] = IGNORED
    masks[2:3] = IGNORED
    return logits, masks


def counts_of(task, logits: torch.Tensor, masks: torch.Tensor) -> MaskCounts:
    values, answers = task.answers(logits, masks)
    return task.measured(torch.cat([values, task.compare(answers[None])[0]]).tolist())[0]


def by_hand(logits: torch.Tensor, masks: torch.Tensor) -> tuple[list[float], list[list[int]]]:
    """The mean IoU of each image that has one, and intersections and unions of the classes over all pixels."""
    classes = logits.shape[1]
    of_images, overlaps = [], np.zeros((2, classes), dtype=int)
    for predicted, mask in zip(logits.argmax(1).tolist(), masks.tolist(), strict=True):
        pairs = [(p, t) for row in zip(predicted, mask, strict=True) for p, t in zip(*row, strict=True) if t != IGNORED]
        each = []
        for number in range(classes):
            intersection = sum(p == number == t for p, t in pairs)
            union = sum(number in pair for pair in pairs)
            overlaps[:, number] += intersection, union
            each += [intersection / union] if union else []
        of_images += [math.fsum(each) / len(each)] if pairs else []
    return of_images, overlaps.tolist()


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_iou_is_that_of_a_loop(classes):
    logits, masks = drawn(6, classes)
    counts = counts_of(SEGMENTATION, logits, masks)
    of_images, (intersections, unions) = by_hand(logits, masks)
    assert (list(counts.intersections), list(counts.unions)) == (intersections, unions)
    columns = counts.columns()
    assert counts.judged == len(of_images) == 5
    assert columns["iou"] == pytest.approx(np.mean(of_images), rel=1e-12)
    interval = stats.ttest_1samp(of_images, 0).confidence_interval()
    assert [columns["iou_low"], columns["iou_high"]] == pytest.approx(np.clip(interval, 0, 1).tolist(), rel=1e-9)
    fractions = [i / u for i, u in zip(intersections, unions, strict=True) if u]
    assert columns["iou_over_classes"] == pytest.approx(np.mean(fractions), rel=1e-12)
    assert columns["iou_class_0"] == intersections[0] / unions[0]


def test_a_class_that_is_nowhere_has_no_iou_and_enters_no_mean():
    logits, masks = drawn(4, 3)
    logits[:, 2] = -100.0  # in no mask, and now never predicted
    columns = counts_of(SEGMENTATION, logits, masks).columns()
    assert columns["iou_class_2"] is None
    assert columns["iou_over_classes"] == np.mean([columns["iou_class_0"], columns["iou_class_1"]])
    logits[0, 2, 0, 1] = 100.0  # once predicted, it has an IoU, which is 0
    assert counts_of(SEGMENTATION, logits, masks).columns()["iou_class_2"] == 0


def test_torchmetrics_agrees_where_every_class_is_there():
    metrics = pytest.importorskip("torchmetrics")
    logits, masks = drawn(6, 4, 1)
    masks[2] = masks[1]
    masks[:, 0, :4] = torch.arange(4)
    counts = counts_of(SEGMENTATION, logits, masks)
    theirs = metrics.functional.jaccard_index(
        logits.argmax(1), masks, "multiclass", num_classes=4, average="none", ignore_index=IGNORED
    )
    assert counts.iou_of_classes == pytest.approx(theirs.tolist(), rel=1e-6)
    each = [
        metrics.functional.jaccard_index(
            image.argmax(0)[None], mask[None], "multiclass", num_classes=4, ignore_index=IGNORED
        ).item()
        for image, mask in zip(logits, masks, strict=True)
    ]
    assert counts.iou == pytest.approx(np.mean(each), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("loss", SEGMENTATION.known_losses)
def test_batches_add_up_and_losses_are_means(loss, chunk, monkeypatch):
    monkeypatch.setattr(counting, "CHUNK", chunk)
    logits, masks = drawn(6, 3)
    logits = logits[:, :2]
    task = SEGMENTATION.with_loss(loss)
    whole = counts_of(task, logits, masks)
    one, other = (counts_of(task, logits[at], masks[at]) for at in (slice(0, 2), slice(2, 6)))
    assert (one + other).columns() == pytest.approx(whole.columns(), rel=1e-12)
    assert (one + other).intersections == whole.intersections
    assert MaskCounts() + whole == whole
    losses = task.losses(logits, masks)
    assert losses.shape == (6,)
    assert losses[2] == 0
    if loss in OF_IMAGES:
        flat = logits.flatten(2).movedim(1, 2), masks.flatten(1)
        torch.testing.assert_close(losses, OF_IMAGES[loss](*flat), rtol=0, atol=0)
        assert whole.loss == pytest.approx(losses.sum().item() / 5, rel=1e-12)
    else:
        pixels = (masks != IGNORED).flatten(1).sum(1)
        assert whole.loss == pytest.approx(((losses * pixels).sum() / pixels.sum()).item(), rel=1e-12)


@pytest.mark.parametrize("loss", SEGMENTATION.known_losses)
def test_masks_in_any_type_of_whole_numbers(loss):
    logits, masks = drawn(4, 2)
    masks[masks == IGNORED] = 0
    found, wanted = (counts_of(SEGMENTATION.with_loss(loss), logits, given) for given in (masks.to(torch.uint8), masks))
    assert found == wanted


@pytest.mark.parametrize("loss", SEGMENTATION.known_losses)
def test_an_image_that_overflows_predicts_nothing(loss):
    logits, masks = drawn(3, 2)
    masks[2] = masks[1]
    masks[1, 2, 3] = 0
    broken = logits.clone()
    broken[1, 0, 2, 3] = math.inf
    counts = counts_of(SEGMENTATION.with_loss(loss), broken, masks)
    rest = counts_of(SEGMENTATION.with_loss(loss), logits[[0, 2]], masks[[0, 2]])
    assert (counts.nonfinite, counts.judged) == (1, 3)
    assert counts.iou_sum == rest.iou_sum
    assert counts.intersections == rest.intersections
    assert sum(counts.unions) == sum(rest.unions) + int((masks[1] != IGNORED).sum())
    assert counts.loss_sum == pytest.approx(rest.loss_sum)
    assert counts.columns()["loss"] is None


@pytest.mark.parametrize("loss", SEGMENTATION.known_losses)
def test_one_logit_is_that_of_the_second_of_two_classes(loss):
    logits, masks = drawn(5, 2)
    task = SEGMENTATION.with_loss(loss)
    single = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(task.losses(single, masks), task.losses(logits, masks))
    columns = counts_of(task, single, masks).columns()
    assert columns == pytest.approx(counts_of(task, logits, masks).columns(), rel=1e-12)
    if loss == "cross-entropy":
        counted = masks != IGNORED
        binary = torch.nn.functional.binary_cross_entropy_with_logits(single[:, 0][counted], masks[counted].double())
        assert counts_of(task, single, masks).loss == pytest.approx(binary.item(), rel=1e-12)
    assert of_two_classes(logits) is logits


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="the task classification has no loss 'dice'; give cross-entropy"):
        CLASSIFICATION.with_loss("dice")
    with pytest.raises(UsageError, match="the task classification has no loss 'batch-iou'; give cross-entropy"):
        CLASSIFICATION.with_loss("batch-iou")
    with pytest.raises(
        UsageError, match="loss 'batch-iou' is of all pixels of a batch, and is for training; here each"
    ):
        SEGMENTATION.with_loss("batch-iou")
    with pytest.raises(UsageError, match="the task segmentation has no loss 'lovasz'; give cross-entropy or soft-iou"):
        SEGMENTATION.with_loss("lovasz")
    with pytest.raises(
        ModelError, match="lovasz-hinge is of two classes, and the network has 3; give soft-iou or dice"
    ):
        SEGMENTATION.with_loss("lovasz-hinge").losses(*drawn(2, 3))
