"""Training against the plain loop that everybody writes, in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import RandAugment

from pathlens import deleted, restrict_backward
from pathlens.data import ImageData, open_data
from pathlens.data.sources import ArraySource
from pathlens.errors import ModelError, UsageError
from pathlens.models import load_model
from pathlens.models.nfresnet_cifar import NFResNet
from pathlens.residual import find_blocks
from pathlens.training import (
    BlocksPerBatch,
    PathLengths,
    Recipe,
    StochasticDepth,
    hold_out,
    train,
)
from pathlens.training.batches import BLOCKS, POLICY, Augmentation, TrainingBatches, generator
from pathlens.training.loop import Loop
from pathlens.training.network import memory_format
from tests.helpers.training_oracle import (
    assert_same_weights,
    by_hand,
    cropped,
    digits,
    network,
    plain_loop,
)

PLAIN = Recipe(epochs=2, batch_size=32, lr=0.05, warmup=0.5, crop=0, flip=False)
RECIPES = {
    "momentum of Nesterov": PLAIN,
    "crops, mirrors, cosine, plain momentum": Recipe(
        epochs=2, batch_size=30, lr=0.03, warmup=0, crop=2, schedule="cosine", nesterov=False
    ),
    "AdamW, smoothed labels": Recipe(
        epochs=2, batch_size=32, optimizer="adamw", lr=0.01, weight_decay=0.05, label_smoothing=0.2, crop=1, warmup=1
    ),
}


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("name", RECIPES)
def test_full_training_equals_the_plain_loop(name: str) -> None:
    state = torch.random.get_rng_state()
    net = network()
    twin, data, recipe = copy.deepcopy(net), digits(), RECIPES[name]
    trained = train(net, data, recipe=recipe, dtype="float64", seed=5)
    losses = plain_loop(twin, data, recipe, seed=5)
    torch.random.set_rng_state(state)
    assert trained.model is net
    assert trained.weights is None
    assert not any(module.training for module in net.modules())
    assert_same_weights(net, twin)
    assert [row["train_loss"] for row in trained.history.rows] == pytest.approx(losses, rel=1e-11)
    assert losses[1] < losses[0]


def test_no_more_images_are_evaluated_at_once_than_a_step_has() -> None:
    net, (kept, held) = network(), hold_out(digits(), 30)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    net.register_forward_pre_hook(lambda module, given: sizes[module.training].append(len(given[0])))
    trained = train(net, kept, validation=held, recipe=Recipe(epochs=1, batch_size=14, warmup=0, crop=0, flip=False))
    assert sizes[True] == [14] * 5
    assert sizes[False][-6:] == [14, 14, 2] * 2  # after the epoch, and at the end
    with torch.no_grad():
        batch = held.batch(0, held.n, mean=digits().mean, std=digits().std)
        wrong = (net.double()(batch.images.double()).argmax(1) != batch.labels).sum().item()
    assert trained.result.rows[0]["error"] == wrong / 30


def lesioned(view: Any, rule: Any, seed: int) -> Any:
    def forward(model: torch.nn.Module, images: torch.Tensor, step: int) -> torch.Tensor:
        kept = rule.draw(len(view), len(images), generator(seed, BLOCKS, step))
        with deleted(view, np.flatnonzero(~kept).tolist()):
            return model(images)

    return forward


@pytest.mark.parametrize(("rule", "optimizer"), [(BlocksPerBatch(2), "sgd"), (StochasticDepth("linear", 0.4), "adamw")])
def test_random_blocks_equal_a_loop_with_blocks_deleted(rule: Any, optimizer: str) -> None:
    """What is not drawn has a gradient of zero; momentum and decay go on for it."""
    net, data = network(), digits()
    twin = copy.deepcopy(net)
    recipe = Recipe(epochs=2, batch_size=32, optimizer=optimizer, lr=0.02, weight_decay=0.01, crop=0, flip=False)
    trained = train(net, data, recipe=recipe, rule=rule, rescale="test", dtype="float64", seed=6)
    view = find_blocks(twin, torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    losses = plain_loop(twin, data, recipe, 6, lesioned(view, rule, 6), zeros=True)
    survival = [2 / 3] * 3 if isinstance(rule, BlocksPerBatch) else [0.8, 0.6, 0.4]
    with torch.no_grad():
        for stage, probability in enumerate(survival, start=1):
            twin.get_parameter(f"layer{stage}.0.conv2.weight").mul_(probability)
    assert_same_weights(net, twin)
    assert [row["train_loss"] for row in trained.history.rows] == pytest.approx(losses, rel=1e-11)
    drawn = [rule.draw(3, 32, generator(6, BLOCKS, step)).sum() for step in range(8)]
    assert [row["blocks"] for row in trained.history.rows] == [np.mean(drawn[:4]), np.mean(drawn[4:])]


@pytest.mark.parametrize(("per", "rescale"), [("batch", "train"), ("sample", "train"), ("sample", "none")])
def test_stochastic_depth_equals_a_loop_by_hand(per: str, rescale: str) -> None:
    net, data, rule = by_hand(), digits(), StochasticDepth("linear", 0.3, per)
    twin, survival = copy.deepcopy(net), torch.tensor(rule.expectation(3), dtype=torch.float64)

    def forward(model: Any, images: torch.Tensor, step: int) -> torch.Tensor:
        kept = torch.from_numpy(rule.draw(3, len(images), generator(7, BLOCKS, step))).double().reshape(3, -1)
        return model.weighted(images, kept / survival[:, None] if rescale == "train" else kept)

    recipe = Recipe(epochs=2, batch_size=24, lr=0.05, crop=1, flip=True)
    trained = train(net, data, recipe=recipe, rule=rule, rescale=rescale, dtype="float64", seed=7)
    losses = plain_loop(twin, data, recipe, 7, forward, zeros=True)
    assert_same_weights(net, twin)
    assert [row["train_loss"] for row in trained.history.rows] == pytest.approx(losses, rel=1e-11)


def test_path_lengths_equal_a_loop_with_a_restricted_backward_pass() -> None:
    net, data = network(), digits()
    twin = copy.deepcopy(net)
    view = find_blocks(twin, torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    train(net, data, recipe=PLAIN, rule=PathLengths(1, 2), dtype="float64", seed=8)
    with restrict_backward(view, lengths=range(1, 3)):
        plain_loop(twin, data, PLAIN, 8)
    assert_same_weights(net, twin)


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (1, False), (4, True), (9, True)])
def test_every_pixel_of_crops_and_mirrors(crop: int, flip: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (40, 3, 8, 5), dtype=np.uint8))
    augmentation = Augmentation(crop, flip)
    drawn = augmentation.draw(40, rng)
    assert drawn.shape == (40, 3)
    assert set(drawn[:, 2]) == ({0, 1} if flip else {0})
    found = augmentation.apply(pixels, torch.from_numpy(drawn))
    assert found.dtype == torch.uint8
    assert torch.equal(found, cropped(pixels, crop, drawn))
    many = augmentation.draw(20_000, rng)
    assert set(many[:, 0]) == set(many[:, 1]) == set(range(2 * crop + 1))
    assert abs(many[:, 2].mean() - 0.5 * flip) < 0.02
    assert abs(many[:, 0].mean() - crop) < 0.05 * (crop + 1)


def test_batches_hold_every_image_once_and_depend_on_the_step_alone() -> None:
    data = digits(50)

    def made(**options: Any) -> TrainingBatches:
        given: dict[str, Any] = {"batch_size": 16, "seed": 1, **options}
        return TrainingBatches(
            data, augmentation=Augmentation(1, True), mean=data.mean, std=data.std,
            device=torch.device("cpu"), dtype=torch.float64, **given,
        )  # fmt: skip

    batches = made()
    assert batches.per_epoch == 4
    forwards = [batches(step) for step in range(8)]
    backwards = [made()(step) for step in reversed(range(8))][::-1]
    for (one, labels, count), (two, same, again) in zip(forwards, backwards, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(labels, same)
        assert count == again == len(labels)
    assert [count for _, _, count in forwards] == [16, 16, 16, 2] * 2
    orders = [torch.from_numpy(np.concatenate([batches._indices(4 * epoch + i) for i in range(4)])) for epoch in (0, 1)]
    assert not torch.equal(*orders)
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert torch.equal(torch.cat([labels for _, labels, _ in forwards[:4]]), data.labels[orders[0]])
    # the processes' parts make up the batch
    for step in (0, 3):
        images, labels, _ = batches(step)
        if len(labels) >= 4:
            parts = [made(rank=rank, world=2)(step) for rank in range(2)]
            for rank, (part, mine, count) in enumerate(parts):
                assert torch.equal(part, images[rank::2])
                assert torch.equal(mine, labels[rank::2])
                assert count == len(labels)
    assert made(world=2).per_epoch == 3  # two images are too few for two processes
    with pytest.raises(UsageError, match="a batch of 3 images cannot be divided among 2 processes"):
        made(batch_size=3, world=2)
    with pytest.raises(UsageError, match="larger batch or more images"):
        made(batch_size=1)


def test_every_image_gets_operations_of_its_own_whatever_came_before() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 3, 12, 10), dtype=np.uint8))
    data = ImageData("noise", "train", 24, 24, 3, None, torch.arange(24) % 3, ArraySource(pixels, 255), None)

    def opened(policy: str, **options: Any) -> TrainingBatches:
        return TrainingBatches(
            data,
            8,
            Augmentation(2, True, policy),
            (0.0,) * 3,
            (1.0,) * 3,
            torch.device("cpu"),
            torch.float64,
            4,
            **options,
        )

    state = torch.random.get_rng_state()
    for step in (4, 1):
        images = opened("randaugment")(step)[0]
        plain = (opened("none")(step)[0] * 255).round().to(torch.uint8)
        seeds = generator(4, POLICY, step).integers(2**63, size=8)
        for image, before, seed in zip(images, plain, seeds, strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(int(seed))
                assert torch.equal((image * 255).round().to(torch.uint8), RandAugment(2, 9)(before))
        assert sum(not torch.equal(image, before / 255) for image, before in zip(images, plain, strict=True)) > 4
        parts = [opened("randaugment", rank=rank, world=2)(step)[0] for rank in range(2)]
        assert all(torch.equal(part, images[rank::2]) for rank, part in enumerate(parts))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_operations_are_refused_for_images_that_they_are_not_made_for() -> None:
    with pytest.raises(UsageError, match=r"those of digits go to 16; .*leave --augment out"):
        train(network(), digits(), recipe=Recipe(epochs=2, augment="randaugment"), dtype="float64")


@pytest.mark.parametrize("channels", [4, 6])
def test_few_channels_with_a_stride_are_trained_in_the_order_that_onednn_can(channels: int) -> None:
    """Channels-last, the process crashes or its weights differ by far on CPUs with AVX2 alone."""
    torch.manual_seed(1)
    net = NFResNet(False, (1, 2), "idshort", in_channels=1, widths=(channels, 8))
    twin, data, recipe = copy.deepcopy(net), digits(), Recipe(epochs=2, batch_size=32, lr=0.05, warmup=0, crop=1)
    train(net, data, recipe=recipe, seed=5)
    plain_loop(twin, data, recipe, 5, forward=lambda model, images, step: model(images.float()))
    assert_same_weights(net, twin, 1e-3)
    assert memory_format(net) == torch.contiguous_format
    assert memory_format(nn.Conv2d(16, 8, 1, 2)) == torch.channels_last
    assert memory_format(nn.Conv2d(4, 8, 3, 2)) == memory_format(nn.Conv2d(4, 8, 1)) == torch.channels_last


def row_set(data: ImageData) -> list[bytes]:
    return [pixels.numpy().tobytes() for pixels in data.rows(torch.arange(data.n))[0]]


def test_images_held_out() -> None:
    data = digits(300)
    kept, held = hold_out(data, 60)
    assert (kept.n, held.n, kept.split, held.split) == (240, 60, "train", "validation")
    assert not set(row_set(kept)) & set(row_set(held))
    assert sorted(row_set(kept) + row_set(held)) == sorted(row_set(data))
    assert (kept.mean, kept.std) == (data.mean, data.std)
    shares = torch.bincount(data.labels, minlength=10) * 60 / 300
    assert (torch.bincount(held.labels, minlength=10) - shares).abs().max() < 1
    again = hold_out(data, 60)
    assert (again[0].fingerprint, again[1].fingerprint) == (kept.fingerprint, held.fingerprint)
    for count in (0, 9, 291, 300, 1000, -1):
        with pytest.raises(UsageError, match=f"--validation {count}: digits has 300 training images in 10 classes"):
            hold_out(data, count)
    lonely = data.subset(torch.tensor([*range(40), int((data.labels == 9).nonzero()[0])]), "train")
    once = lonely.subset(torch.nonzero((lonely.labels != 3) | (torch.arange(41) == 3)).flatten(), "train")
    single = once.subset(torch.cat([(once.labels != 5).nonzero().flatten(), (once.labels == 5).nonzero()[0]]), "train")
    with pytest.raises(UsageError, match="cannot be divided by class"):
        hold_out(single, 10)


def test_the_test_split_is_read_once_after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    batch, rows = ImageData.batch, ImageData.rows

    def counted(self: ImageData, index: int, *args: Any, **options: Any) -> Any:
        read.append((self.split, index))
        return batch(self, index, *args, **options)

    def counted_rows(self: ImageData, *args: Any, **options: Any) -> Any:
        read.append((self.split, -1))
        return rows(self, *args, **options)

    monkeypatch.setattr(ImageData, "batch", counted)
    monkeypatch.setattr(ImageData, "rows", counted_rows)
    kept, held = hold_out(digits(), 20)
    test = open_data("digits", split="test")
    read.clear()
    trained = train(network(), kept, validation=held, test=test, recipe=PLAIN, dtype="float64")
    batches = -(-test.n // PLAIN.batch_size)
    assert [entry for entry in read if entry[0] == "test"] == [("test", index) for index in range(batches)]
    assert {split for split, _ in read[-batches:]} == {"test"}
    assert read.count(("validation", 0)) == 3  # after each epoch, and at the end
    assert [row["split"] for row in trained.result.rows] == ["validation", "test"]
    assert [row["n"] for row in trained.result.rows] == [20, 360]


def error_and_loss(model: torch.nn.Module, data: ImageData) -> tuple[float, float]:
    batch = data.batch(0, data.n, dtype=torch.float64)
    with torch.no_grad():
        logits = model(batch.images)
    wrong = (logits.argmax(1) != batch.labels).double().mean()
    return float(wrong), float(torch.nn.functional.cross_entropy(logits, batch.labels))


def test_history_result_and_epochs_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from tests.helpers.training_oracle import network\n")
    net, (kept, held), told = network(), hold_out(digits(), 20), list[tuple[int, int]]()
    start = copy.deepcopy(net)
    rows: list[dict[str, Any]] = []
    trained = train(
        net, kept, validation=held, recipe=PLAIN, rule=StochasticDepth("linear", 0.5), dtype="float64", seed=2,
        out=tmp_path / "run", keep_epochs=(0, 1, 2), on_epoch=rows.append,
        progress=lambda done, total: told.append((done, total)), provenance={"note": "of a test"},
    )  # fmt: skip
    assert told == [(step, 6) for step in range(1, 7)]
    assert rows == [dict(row) for row in trained.history.rows]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6)]
    assert [row["lr"] for row in rows] == [PLAIN.rate(2, 3), PLAIN.rate(5, 3)]
    assert all(row["images_per_second"] > 0 and row["seconds"] >= 0 for row in rows)
    assert trained.history.provenance["note"] == "of a test"
    assert trained.history.provenance["rule"] == "stochastic-depth linear:0.5 per batch"
    # the network as it is tested: each branch times its survival probability
    kept_nets = [
        load_model(f"{tmp_path / 'net.py'}:network", tmp_path / "run" / "epochs" / f"epoch-{epoch:03}.safetensors")
        for epoch in range(3)
    ]
    with torch.no_grad():
        for stage, probability in enumerate((1 - 1 / 6, 1 - 2 / 6, 0.5), start=1):
            start.get_parameter(f"layer{stage}.0.conv2.weight").mul_(probability)
    assert_same_weights(kept_nets[0].model, start, 1e-15)
    for loaded, row in zip(kept_nets[1:], rows, strict=True):
        error, loss = error_and_loss(loaded.model, held)
        assert (row["validation_error"], row["validation_loss"]) == (error, pytest.approx(loss, rel=1e-12))
        assert row["validation_error_low"] < error < row["validation_error_high"]
    final = load_model(f"{tmp_path / 'net.py'}:network", trained.weights)
    for other in (final, kept_nets[2]):
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.model.state_dict().items())
        assert (other.mean, other.std, other.input_shape) == (kept.mean, kept.std, (1, 8, 8))
    (result,) = trained.result.rows
    assert (result["error"], result["loss"]) == (
        pytest.approx(error_and_loss(net, held)[0]), pytest.approx(rows[-1]["validation_loss"], rel=1e-12)
    )  # fmt: skip


def test_seconds_are_those_of_the_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but for steps, evaluation and checkpoints, which are also written inside epochs."""
    now = [0.0]

    def takes(name: str, seconds: float) -> None:
        original = getattr(Loop, name)

        def slow(self: Loop, *given: Any) -> Any:
            now[0] += seconds
            return original(self, *given)

        monkeypatch.setattr(Loop, name, slow)

    takes("_step", 1.0)
    takes("_save", 100.0)
    takes("_end_epoch", 100.0)
    monkeypatch.setattr("pathlens.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    trained = train(network(), digits(), recipe=PLAIN, out=tmp_path / "run", checkpoint_seconds=0)
    assert now[0] == 8 * 101 + 2 * 100  # a checkpoint after every step
    assert [row["seconds"] for row in trained.history.rows] == [4, 4]


class Auxiliary(nn.Module):
    """Returns more in train mode, or fails there."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.net, self.fails = network(), fails

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.net(x)
        if not self.training:
            return logits
        return {"logits": logits}["auxiliary"] if self.fails else (logits, logits)


def test_networks_that_are_another_in_train_mode() -> None:
    with pytest.raises(UsageError, match="one tensor in train mode can be trained; found a tuple of Tensor, Tensor"):
        train(Auxiliary(False), digits(), recipe=PLAIN)
    with pytest.raises(ModelError, match=r"Auxiliary cannot be trained as it is: KeyError: 'auxiliary'; run a forward"):
        train(Auxiliary(True), digits(), recipe=PLAIN)
