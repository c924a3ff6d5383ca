"""Training any network as a plain one, against its twin that has no shortcuts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pathlens import skips_deleted
from pathlens.cli import main
from pathlens.errors import RunError, UsageError
from pathlens.models import load_model
from pathlens.models.resnet_cifar import resnet
from pathlens.training import Recipe, StochasticDepth, train
from tests.helpers.training_oracle import assert_same_weights, by_hand, digits, plain_loop

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, warmup=0.5, crop=0, flip=False)


def test_it_is_the_training_of_the_plain_twin(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = resnet(8, in_channels=1, shortcut="none").double()
    net = resnet(8, in_channels=1).double()
    net.load_state_dict(plain.state_dict())
    options = {"recipe": RECIPE, "dtype": "float64", "seed": 5, "validation": digits(40)}
    trained = train(net, digits(), without_skips=True, out=tmp_path / "run", **options)
    twin = train(plain, digits(), **options)
    assert_same_weights(net, plain)
    for name in ("train_loss", "validation_loss", "validation_error"):
        assert trained.history.values(name) == pytest.approx(twin.history.values(name), rel=1e-9)
    assert trained.result.rows[0]["loss"] == pytest.approx(twin.result.rows[0]["loss"])
    assert trained.result.provenance["without_skips"] is True
    assert "without_skips" not in twin.result.provenance
    # what it gives back is the network itself
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(net(images), plain(images))
        with skips_deleted(net, range(3)):
            torch.testing.assert_close(net(images), plain(images))
    with pytest.raises(RunError, match="without_skips"):
        train(copy.deepcopy(net), digits(), out=tmp_path / "run", resume=True, **options)


def test_without_norms_against_the_loop() -> None:
    net = by_hand()
    twin = copy.deepcopy(net)
    train(net, digits(), without_skips=True, recipe=RECIPE, dtype="float64", seed=5)

    def branches(model: nn.Module, images: torch.Tensor, step: int) -> torch.Tensor:
        x = model.stem(images)
        for block in model.blocks:
            x = torch.relu(block.branch(x))
        return model.fc(x.mean((2, 3)))

    plain_loop(twin, digits(), RECIPE, 5, branches)
    assert_same_weights(net, twin)


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="CifarResNet has no shortcuts"):
        train(resnet(8, in_channels=1, shortcut="none"), digits(), without_skips=True, recipe=RECIPE)
    for more in ({"compiled": True}, {"rule": StochasticDepth()}):
        with pytest.raises(UsageError, match="leave --compile and rules out"):
            train(by_hand(), digits(), without_skips=True, recipe=RECIPE, **more)
    command = ["train", "-m", "preresnet20", "-d", "digits", "--limit", "40", "--validation", "12", "--epochs", "1"]
    out = tmp_path / "run"
    assert main([*command, "--no-test", "-q", "--without-skips", "--out", str(out)]) == 0
    capsys.readouterr()
    weights = out / "weights.safetensors"
    assert load_model("preresnet20", weights).trained
    assert main(["loss-surface", "-m", "preresnet20", "-w", str(weights), "-d", "digits", "--delete-skips", "all",
                 "--points", "3", "--dimensions", "1", "--curvature", "none", "--limit", "4", "-q"]) == 0  # fmt: skip
