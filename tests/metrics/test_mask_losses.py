"""Losses of masks against loops over pixels, sets and orders, and those of segmentation-models-pytorch."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from pathlens.metrics import mask_losses
from pathlens.metrics.mask_losses import DICE_EPSILON, IOU_EPSILON, batch_iou, dice, lovasz_hinge, soft_iou
from pathlens.metrics.units import IGNORED


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip("segmentation_models_pytorch")


def drawn(images: int, pixels: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, pixels, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (images, pixels), generator=generator)


def with_gaps(targets: torch.Tensor) -> torch.Tensor:
    """Without some pixels; the second image is all background, the third is not counted at all."""
    targets = targets.clone()
    targets[:, ::3] = IGNORED
    targets[1] = torch.where(targets[1] == IGNORED, IGNORED, 0)
    targets[2] = IGNORED
    return targets


def sums_by_hand(logits: list, targets: list, scored: int) -> tuple[float, float, float]:
    """Of a class over pixels: products of probability and truth, probabilities, and truths."""
    both = predicted = true = 0.0
    for scores, target in zip(logits, targets, strict=True):
        if target != IGNORED:
            probability = math.exp(scores[scored]) / sum(map(math.exp, scores))
            predicted += probability
            true += target == scored
            both += probability * (target == scored)
    return both, predicted, true


def overlap_by_hand(name: str, logits: list, targets: list) -> float:
    classes = len(logits[0])
    fractions = []
    for scored in range(classes) if classes > 2 else [1]:
        both, predicted, true = sums_by_hand(logits, targets, scored)
        if name == "dice":
            fractions.append((2 * both + DICE_EPSILON) / (predicted + true + DICE_EPSILON))
        else:
            fractions.append((both + IOU_EPSILON) / (predicted + true - both + IOU_EPSILON))
    return 1 - math.fsum(fractions) / len(fractions)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", ["soft-iou", "dice"])
def test_soft_overlaps_are_those_of_a_loop(name, classes):
    logits, targets = drawn(4, 10, classes)
    targets = with_gaps(targets)
    losses = mask_losses.OF_IMAGES[name](logits, targets).tolist()
    by_hand = [overlap_by_hand(name, *image) for image in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert losses == pytest.approx(by_hand, rel=1e-12)
    assert losses[2] == 0
    assert losses[1] > 0.1  # an empty mask costs what is predicted in vain


def test_the_iou_of_a_batch_is_that_of_its_images_as_one():
    logits, targets = drawn(4, 10, 3)
    targets = with_gaps(targets)
    whole = overlap_by_hand("soft-iou", logits.flatten(0, 1).tolist(), targets.flatten().tolist())
    assert batch_iou(logits, targets).item() == pytest.approx(whole, rel=1e-12)
    assert batch_iou(logits, torch.full_like(targets, IGNORED)) == 0


def lovasz_by_enumeration(margins: list, true: list) -> float:
    """The largest sum of hinges times gains of the set function, over all orders of the pixels (Edmonds 1970).

    The set function is 1 - IoU where exactly the pixels of a set are wrong; it is submodular, and its Lovász extension
    at hinges of 0 or more is the maximum.
    """
    hinges = [1 + (1 - m) if m <= 1 else math.exp(1 - m) for m in margins]
    truth = {pixel for pixel, is_true in enumerate(true) if is_true}

    def loss(wrong: set) -> float:
        union = truth | wrong
        return 1 - len(truth - wrong) / len(union) if union else 0.0

    return max(
        math.fsum(hinges[p] * (loss({*order[: k + 1]}) - loss({*order[:k]})) for k, p in enumerate(order))
        for order in permutations(range(len(margins)))
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_lovasz_hinge_is_the_extension_over_all_orders(seed):
    logits, targets = drawn(4, 8, 2, seed)
    targets = with_gaps(targets)
    losses = lovasz_hinge(logits, targets).tolist()
    for loss, scores, mask in zip(losses, logits, targets, strict=True):
        counted = mask != IGNORED
        true = (mask[counted] == 1).tolist()
        differences = (scores[:, 1] - scores[:, 0])[counted].tolist()
        margins = [d if t else -d for d, t in zip(differences, true, strict=True)]
        assert loss == pytest.approx(lovasz_by_enumeration(margins, true) if margins else 0.0, rel=1e-12)
    # an empty mask: any wrong pixel makes the IoU 0, so that the worst hinge is the whole loss
    worst = (logits[1, :, 1] - logits[1, :, 0])[targets[1] == 0].max()
    assert losses[1] == pytest.approx(float(torch.nn.functional.elu(1 + worst) + 1), rel=1e-12)


@pytest.mark.parametrize("name", [*mask_losses.OF_IMAGES, mask_losses.BATCH_IOU])
def test_gradients_are_finite_differences_and_none_of_what_is_not_counted(name):
    logits, targets = drawn(3, 7, 2, 3)
    targets = with_gaps(targets)
    loss = mask_losses.OF_IMAGES.get(name, batch_iou)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss(given, targets), (logits,))
    (gradient,) = torch.autograd.grad(loss(logits, targets).sum(), logits)
    assert not gradient[targets == IGNORED].any()
    assert bool(gradient[targets != IGNORED].any(-1).all()) == (name != "lovasz-hinge")


def test_logits_of_any_size_give_finite_losses_and_gradients():
    logits, targets = drawn(3, 7, 2, 4)
    logits = (1e4 * logits).requires_grad_()
    for loss in (*mask_losses.OF_IMAGES.values(), batch_iou):
        value = loss(logits, with_gaps(targets)).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [2, 4])
def test_segmentation_models_pytorch_agrees_where_every_mask_has_every_class(smp, classes):
    logits, targets = drawn(3, 30, classes, 5)
    targets[:, ::4] = IGNORED
    targets[:, 1 : 1 + 4 * classes : 4] = torch.arange(classes)
    if classes == 2:
        given = (logits[..., 1:] - logits[..., :1]).movedim(-1, 1)
        mode, asked = "binary", targets[:, None]
    else:
        given, mode, asked = logits.movedim(-1, 1), "multiclass", targets
    theirs = {
        batch_iou: smp.losses.JaccardLoss(mode, smooth=IOU_EPSILON),
        dice: smp.losses.DiceLoss(mode, smooth=DICE_EPSILON / 2, ignore_index=IGNORED),
    }
    theirs[batch_iou].ignore_index = IGNORED  # the constructor has no argument for it
    for image in range(3):
        one = slice(image, image + 1)
        assert soft_iou(logits[one], targets[one]).item() == pytest.approx(
            theirs[batch_iou](given[one], asked[one]).item()
        )
        assert dice(logits[one], targets[one]).item() == pytest.approx(theirs[dice](given[one], asked[one]).item())
    assert batch_iou(logits, targets).item() == pytest.approx(theirs[batch_iou](given, asked).item())


def test_segmentation_models_pytorch_has_the_same_lovasz_hinge_where_no_pixel_is_beyond_its_margin(smp):
    logits, targets = drawn(3, 12, 2, 6)
    targets[0, :3] = IGNORED
    targets[1] = 0
    logits /= 10 * logits.abs().max()  # so that ELU + 1 of a hinge is ReLU + 1 of it
    difference = logits[..., 1] - logits[..., 0]
    theirs = smp.losses.LovaszLoss("binary", per_image=True, ignore_index=IGNORED)
    # 1 more at each pixel adds the Lovász extension of all ones, 1, to each image
    ours = lovasz_hinge(logits, targets).mean().item()
    assert ours == pytest.approx(theirs(difference.float()[:, None], targets).item() + 1, rel=1e-6)
