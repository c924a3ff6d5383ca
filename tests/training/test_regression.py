"""Training on numbers: losses and errors against a plain loop, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pathlens
from pathlens import training
from pathlens.__main__ import main
from pathlens.data import ArrayData
from pathlens.errors import DataError, NumericsError, UsageError
from pathlens.training.batches import ORDER, generator
from pathlens.training.recipe import ARRAYS, Recipe, recipe_for

NET = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def net():
    torch.manual_seed(0)
    return Small(), torch.zeros(2, 3)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    inputs = draws.normal(size=(40, 3))
    targets = np.stack([inputs.sum(1), 10 + 3 * np.sin(inputs[:, 0])], 1)
    np.savez(tmp_path / "numbers.npz", inputs=inputs, targets=targets)
    return tmp_path / "numbers.npz"


@pytest.fixture
def data(file: Path) -> ArrayData:
    return pathlens.open_arrays(file)


def net() -> nn.Module:
    names: dict[str, object] = {"__name__": "small"}
    exec(NET, names)
    model: nn.Module = names["net"]()[0]  # type: ignore[operator]
    return model


def test_losses_and_errors_of_an_epoch_against_a_plain_loop(data: ArrayData) -> None:
    whole, watched = data.hold_out(9)
    model, twin = net().double(), net().double()
    recipe = Recipe(epochs=2, batch_size=8, lr=0.02, schedule="constant", warmup=0, crop=0, flip=False)
    trained = training.train(model, whole, validation=watched, recipe=recipe, seed=3, dtype="float64")
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
    inputs, targets = whole.inputs.double(), whole.targets.double()
    variance = float((targets - targets.mean(0)).square().mean())
    for epoch, row in enumerate(trained.history.rows):
        order, losses = generator(3, ORDER, epoch).permutation(31), []
        for start in range(0, 31, 8):
            rows = order[start : start + 8]
            each: Tensor = (twin(inputs[rows]) - targets[rows]).square().mean(1)
            losses += each.tolist()
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-9)
        assert row["train_error"] == pytest.approx(np.mean(losses) / variance, rel=1e-9)
    with torch.no_grad():
        errors = (twin(watched.inputs.double()) - watched.targets.double()).square().mean()
    assert row["validation_loss"] == pytest.approx(float(errors), rel=1e-9)
    assert row["validation_rmse"] == trained.result.rows[0]["rmse"]
    assert trained.result.rows[0]["rmse"] == pytest.approx(float(errors) ** 0.5, rel=1e-9)
    assert trained.result.provenance["task"] == "regression"


def test_what_is_held_out_is_the_same_again_and_apart(data: ArrayData) -> None:
    first, last = data.hold_out(7)
    assert (first.n, last.n, last.split) == (33, 7, "validation")
    both = torch.cat([first.inputs, last.inputs])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, data.inputs.tolist()))
    assert torch.equal(data.hold_out(7)[1].targets, last.targets)
    for count in (0, 40):
        with pytest.raises(DataError, match=f"{count} of 40 examples cannot be held out"):
            training.hold_out(data, count)


@pytest.mark.parametrize("rule", [training.BlocksPerBatch(1), training.PathLengths(0, 2)])
def test_the_rules_are_for_regressions_too(data: ArrayData, rule: training.Rule) -> None:
    recipe = recipe_for("arrays:", epochs=20, lr=1e-2, batch_size=20)
    trained = training.train(net(), data, rule=rule, rescale="train", recipe=recipe)
    assert trained.history.rows[-1]["train_loss"] < trained.history.rows[0]["train_loss"]


def test_the_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "small.py", tmp_path / "run"
    source.write_text(NET)
    given = ["--model", f"{source}:net", "--data", f"arrays:{file}", "--quiet"]
    assert main(["train", *given, "--epochs", "3", "--out", str(out)]) == 0
    stated = json.loads((out / "result.meta.json").read_text())["provenance"]
    assert (stated["train_images"], stated["validation_images"], stated["loss"]) == (36, 4, "squared-error")
    assert stated["recipe"]["lr"] == ARRAYS.lr
    capsys.readouterr()
    assert main(["delete-blocks", *given, "--weights", str(out / "weights.safetensors"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["table"]) == 4


def test_two_examples_or_more_are_held_out_of_few(data: ArrayData, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", inputs=data.inputs[:12].numpy(), targets=data.targets[:12].numpy())
    source, out = tmp_path / "small.py", tmp_path / "run"
    source.write_text(NET)
    given = ["--model", f"{source}:net", "--data", f"arrays:{tmp_path / 'few.npz'}", "--quiet"]
    assert main(["train", *given, "--epochs", "1", "--out", str(out)]) == 0
    stated = json.loads((out / "result.meta.json").read_text())["provenance"]
    assert (stated["train_images"], stated["validation_images"]) == (10, 2)


def test_one_example_to_watch_is_refused_before_the_training(data: ArrayData) -> None:
    rest, one = data.hold_out(1)
    done: list[int] = []
    with pytest.raises(NumericsError, match="all targets of the 1 examples are equal"):
        training.train(net(), rest, validation=one, progress=lambda steps, _: done.append(steps))
    assert not done


def test_what_is_refused(data: ArrayData) -> None:
    with pytest.raises(UsageError, match=r"numbers.npz has arrays, and crop, flip and augment are of images"):
        training.train(net(), data, recipe=recipe_for("arrays:", flip=True))
    with pytest.raises(UsageError, match="--label-smoothing is of the cross-entropy"):
        training.train(net(), data, recipe=recipe_for("arrays:", label_smoothing=0.1))
    with pytest.raises(UsageError, match="dice"):
        training.train(net(), data, loss="dice")
    with pytest.raises(DataError, match=r"targets have shape \(\d+, 2\) and the network gives \(\d+, 6\)"):
        training.train(nn.Sequential(nn.Linear(3, 6)), data)
    with pytest.raises(NumericsError, match="all targets of the 2 examples are equal"):
        training.train(net(), ArrayData("same", "train", 2, 2, torch.ones(2, 3), torch.ones(2, 2)))
    with pytest.raises(UsageError, match="squared-error"):
        training.train(pathlens.load_model().model, pathlens.open_data("digits", limit=20), loss="squared-error")
