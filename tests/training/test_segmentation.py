"""Training on masks: the loss, the errors and the augmentation against plain loops, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens import training
from pathlens.data import ImageData
from pathlens.data.images import NOT_COUNTED
from pathlens.errors import ModelError, UsageError
from pathlens.metrics.mask_losses import OF_IMAGES, batch_iou
from pathlens.models import strictunet
from pathlens.training.batches import CROP, ORDER, Augmentation, TrainingBatches, generator
from pathlens.training.recipe import Recipe


@pytest.fixture(scope="module")
def scenes() -> ImageData:
    return pathlens.open_data("digit-scenes", limit=10)


def with_gaps(data: ImageData) -> ImageData:
    """The same with some pixels, and of one image all, that are not counted."""
    data.labels[:, :5] = NOT_COUNTED
    data.labels[3] = NOT_COUNTED
    return data


class Small(nn.Module):
    """A residual network of one block that keeps the size of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Conv2d(4, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


def test_losses_and_errors_of_an_epoch_against_a_plain_loop() -> None:
    data, watched = (with_gaps(pathlens.open_data("digit-scenes", split=s, limit=10)) for s in ("train", "validation"))
    torch.manual_seed(0)
    net = Small().double()
    twin = Small().double()
    twin.load_state_dict(net.state_dict())
    recipe = Recipe(epochs=2, batch_size=4, lr=0.05, schedule="constant", warmup=0, crop=0, flip=False)
    given = {"mean": data.mean, "std": data.std}
    trained = training.train(net, data, validation=watched, recipe=recipe, seed=3, dtype="float64", **given)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    whole = data.batch(0, 10, dtype=torch.float64, **given)
    for epoch, row in enumerate(trained.history.rows):
        order = generator(3, ORDER, epoch).permutation(10)
        losses, errors = [], []
        twin.train()
        for start in (0, 4, 8):
            rows = order[start : start + 4]
            logits, masks = twin(whole.images[rows]), whole.labels[rows]
            each = []
            for one, mask in zip(logits, masks, strict=True):
                counted = mask != NOT_COUNTED
                right = one[:, counted].T
                each.append(F.cross_entropy(right, mask[counted]) if counted.any() else one.sum() * 0)
                errors.append(float((right.argmax(1) != mask[counted]).double().mean()) if counted.any() else 0.0)
            losses += [float(loss.detach()) for loss in each]
            optimizer.zero_grad()
            (sum(each) / len(rows)).backward()
            optimizer.step()
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-9)
        assert row["train_error"] == pytest.approx(np.mean(errors), rel=1e-9)
    twin.eval()
    seen = watched.batch(0, 10, dtype=torch.float64, **given)
    with torch.no_grad():
        wrong = (twin(seen.images).argmax(1) != seen.labels)[seen.labels != NOT_COUNTED]
    assert trained.result.rows[0]["error"] == pytest.approx(float(wrong.double().mean()))
    assert trained.history.rows[-1]["validation_error"] == trained.result.rows[0]["error"]
    assert trained.history.provenance["task"] == "segmentation"


@pytest.mark.parametrize("loss", ["soft-iou", "batch-iou", "dice"])
def test_a_loss_by_name_is_minimised_and_stated(loss: str) -> None:
    data, watched = (with_gaps(pathlens.open_data("digit-scenes", split=s, limit=6)) for s in ("train", "validation"))
    torch.manual_seed(0)
    net, twin = Small().double(), Small().double()
    twin.load_state_dict(net.state_dict())
    recipe = Recipe(epochs=1, batch_size=4, lr=0.5, schedule="constant", warmup=0, crop=0, flip=False)
    given = {"mean": data.mean, "std": data.std}
    trained = training.train(net, data, validation=watched, recipe=recipe, dtype="float64", loss=loss, **given)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5, momentum=0.9, nesterov=True, weight_decay=1e-4)
    whole, sums = data.batch(0, 6, dtype=torch.float64, **given), 0.0
    order = generator(0, ORDER, 0).permutation(6)
    twin.train()
    for rows in (order[:4], order[4:]):
        logits, masks = twin(whole.images[rows]).flatten(2).movedim(1, 2), whole.labels[rows].flatten(1)
        of_step = batch_iou(logits, masks) if loss == "batch-iou" else OF_IMAGES[loss](logits, masks).mean()
        optimizer.zero_grad()
        of_step.backward()
        optimizer.step()
        sums += of_step.item() * len(rows)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])
    assert trained.history.rows[0]["train_loss"] == pytest.approx(sums / 6, rel=1e-9)
    assert trained.result.provenance["loss"] == loss
    twin.eval()
    seen = watched.batch(0, 6, dtype=torch.float64, **given)
    each = OF_IMAGES["soft-iou" if loss == "batch-iou" else loss](
        twin(seen.images).flatten(2).movedim(1, 2), seen.labels.flatten(1)
    )
    (result,) = trained.result.rows
    assert result["loss"] == pytest.approx(each.sum().item() / 5, rel=1e-9)  # one of the six is not counted
    units = {column.name: column.unit for column in trained.result.columns}
    assert (units["loss"], units["iou"], units["iou_class_10"]) == ("", "fraction", "fraction")
    names = ("iou", "iou_low", "iou_high")
    assert [trained.history.rows[-1][f"validation_{name}"] for name in names] == [result[name] for name in names]
    assert [c.unit for c in trained.history.columns if c.name == "validation_iou"] == ["fraction"]


def test_a_single_logit_is_trained_as_two_classes(scenes: ImageData) -> None:
    data = pathlens.open_data("digit-scenes", split="train", limit=4)
    data.labels.clamp_(max=1)
    torch.manual_seed(0)
    net = Small().double()
    net.head = nn.Conv2d(4, 1, 1).double()
    recipe = Recipe(epochs=1, batch_size=4, crop=0, flip=False, warmup=0)
    images, masks = data.batch(0, 4, dtype=torch.float64).images, data.labels
    net.train()
    logits = net(images)[:, 0].detach()
    expected = F.binary_cross_entropy_with_logits(logits, masks.double()).item()
    (row,) = training.train(net, data, test=data, recipe=recipe, dtype="float64").history.rows
    assert row["train_loss"] == pytest.approx(expected, rel=1e-9)
    assert row["train_error"] == pytest.approx(((logits > 0) != masks.bool()).double().mean().item())


def test_losses_that_do_not_fit_are_refused(scenes: ImageData) -> None:
    digits = pathlens.open_data("digits", split="train", limit=40)
    recipe = Recipe(epochs=1, warmup=0)
    with pytest.raises(UsageError, match="loss 'iou' is unknown; give one of cross-entropy, soft-iou, dice"):
        training.train(Small(), scenes, recipe=recipe, loss="iou")
    with pytest.raises(UsageError, match="the task classification has no loss 'batch-iou'; give cross-entropy"):
        training.train(pathlens.load_model("digits54").model, digits, recipe=recipe, loss="batch-iou")
    with pytest.raises(
        ModelError, match="lovasz-hinge is of two classes, and the network has 11; give soft-iou or dice"
    ):
        training.train(Small(), scenes, recipe=recipe, loss="lovasz-hinge")
    with pytest.raises(UsageError, match="--label-smoothing is of the cross-entropy; leave it or --loss dice out"):
        training.train(Small(), scenes, recipe=Recipe(epochs=1, warmup=0, label_smoothing=0.1), loss="dice")


def test_masks_move_with_their_images(scenes: ImageData) -> None:
    batches = TrainingBatches(
        scenes, 10, Augmentation(4, True), (0,) * 3, (1,) * 3, torch.device("cpu"), torch.float32, seed=0
    )
    images, masks, _ = batches(0)
    rows = generator(0, ORDER, 0).permutation(10)
    offsets = Augmentation(4, True).draw(10, generator(0, CROP, 0))
    pixels = scenes.rows(torch.arange(10))[0]
    assert offsets[:, 2].any()
    for place, (row, (down, right, mirrored)) in enumerate(zip(rows, offsets.tolist(), strict=True)):
        image = F.pad(pixels[row], (4,) * 4)[:, down : down + 48, right : right + 48]
        mask = F.pad(scenes.labels[row], (4,) * 4, value=NOT_COUNTED)[down : down + 48, right : right + 48]
        if mirrored:
            # columns are mirrored inside the padded image, before the offset is added
            image = F.pad(pixels[row].flip(-1), (4,) * 4)[:, down : down + 48, 8 - right : 56 - right]
            padded = F.pad(scenes.labels[row].flip(-1), (4,) * 4, value=NOT_COUNTED)
            mask = padded[down : down + 48, 8 - right : 56 - right]
        torch.testing.assert_close(images[place], image / 255)
        assert torch.equal(masks[place], mask)


@pytest.mark.parametrize("images", [1, 4])
def test_holding_out_needs_no_classes(scenes: ImageData, images: int) -> None:
    rest, held_out = training.hold_out(scenes, images)
    assert (rest.n, held_out.n) == (10 - images, images)
    joined = torch.cat([rest.labels, held_out.labels]).flatten(1).sum(1)
    assert sorted(joined.tolist()) == sorted(scenes.labels.flatten(1).sum(1).tolist())


def test_what_does_not_fit_is_refused(scenes: ImageData) -> None:
    classifier = pathlens.load_model("resnet20", "random").model
    with pytest.raises(UsageError, match=r"found \(2, 10\) for digit-scenes"):
        training.train(classifier, scenes, recipe=Recipe(epochs=1, warmup=0))
    halved = nn.Sequential(Small(), nn.AvgPool2d(2))
    with pytest.raises(UsageError, match="gives logits of 24x24 pixels, and the masks of digit-scenes have 48x48"):
        training.train(halved, scenes, recipe=Recipe(epochs=1, warmup=0))
    with pytest.raises(UsageError, match="moves pixels without their masks"):
        training.train(Small(), scenes, recipe=Recipe(epochs=1, warmup=0, augment="randaugment"))


def test_lesions_of_a_strict_unet_against_its_own_forward(scenes: ImageData) -> None:
    torch.manual_seed(0)
    net = strictunet((1, 1), 4, num_classes=11).eval()
    view = pathlens.find_blocks(net, torch.zeros(2, 3, 48, 48), additions="all")
    assert len(view) == 3 + 1  # the units, and the addition on the way up
    table = pathlens.delete_blocks(view, scenes, batch_size=4, engine="plain", loss="soft-iou")
    batch = scenes.batch(0, 10)
    assert table.provenance["loss"] == "soft-iou"
    for row in table.rows:
        with pathlens.deleted(view, [] if row["block"] is None else [row["block"]]), torch.no_grad():
            logits = net(batch.images).double()
            wrong = logits.argmax(1) != batch.labels
        assert row["error"] == pytest.approx(float(wrong.double().mean()), abs=1e-4)
        losses = OF_IMAGES["soft-iou"](logits.flatten(2).movedim(1, 2), batch.labels.flatten(1))
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    two = [(batch.images[:2], batch.labels[:2])]
    named = pathlens.path_gradients(view, two, loss="soft-iou")

    def by_function(outputs: Tensor, targets: Tensor) -> Tensor:
        return OF_IMAGES["soft-iou"](outputs.flatten(2).movedim(1, 2), targets.flatten(1))

    assert named.provenance["loss"] == "soft-iou"
    assert named.rows == pathlens.path_gradients(view, two, loss=by_function).rows
    assert named.rows != pathlens.path_gradients(view, two).rows
