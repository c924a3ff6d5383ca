"""Networks and arguments that are odd: what is right is done, and the rest refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.cli import main
from pathlens.data import open_arrays, open_data, open_text
from pathlens.errors import DataError, ModelError, NumericsError, UsageError
from pathlens.policies import Settings
from pathlens.training import Recipe, hold_out


class Block(nn.Module):
    def __init__(self, activation: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.second(self.activation(self.first(x))))


class Net(nn.Module):
    """Three blocks that share one activation, which is handed from block to block.

    Args:
        times: how often the blocks run.
        drop: dropout behind the stem, in any mode.
        cut: whether the gradient ends behind the stem.
    """

    def __init__(self, times: int = 1, drop: float = 0.0, cut: bool = False) -> None:
        super().__init__()
        activation = nn.ReLU()
        self.stem, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)
        self.blocks = nn.ModuleList(Block(activation) for _ in range(3))
        self.times, self.drop, self.cut = times, drop, cut

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.dropout(x, self.drop) if self.drop else x
        for block in [*self.blocks] * self.times:
            x = block(x)
        x = self.head(x.mean((2, 3)))
        return x.detach() if self.cut else x


DATA = open_data("digits", limit=12)


def net(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options).eval()


@pytest.mark.parametrize("times", [1, 2])
def test_modules_that_are_shared_and_run_again(times: int) -> None:
    model = net(times=times).double()
    view = pathlens.find_blocks(model, DATA.batch(0, 2, dtype=torch.float64).images)
    assert len(view) == 3 * times
    table = pathlens.delete_blocks(view, DATA, dtype="float64", engine="plain", batch_size=5)
    batch = DATA.batch(0, DATA.n)  # pixels are normalised in float32
    model.requires_grad_(False)
    for row in table.rows:
        x = model.stem(batch.images.double())
        for index, block in enumerate([*model.blocks] * times):
            x = F.relu(x) if index == row["block"] else block(x)
        loss = F.cross_entropy(model.head(x.mean((2, 3))), batch.labels)
        assert row["loss"] == pytest.approx(float(loss), rel=1e-9), row["block"]


@pytest.mark.parametrize("scheme", ["stable", "fixup", "skipinit", "rezero", "scaled-ws"])
def test_blocks_that_run_twice_are_initialised_once(scheme: str) -> None:
    model = net(times=2)
    view = pathlens.find_blocks(model, DATA.batch(0, 2).images)
    pathlens.initialise(view, scheme)
    assert model(DATA.batch(0, 2).images).isfinite().all()


def test_a_network_that_draws_in_eval_mode_is_told_so() -> None:
    model = net(drop=0.5)
    for verb in (pathlens.delete_blocks, pathlens.path_gradients):
        with pytest.raises(NumericsError, match=r"draws at random in this mode.*pass training=self.training"):
            verb(model, DATA)


@pytest.mark.parametrize("kind", ["frozen", "cut"])
def test_networks_that_cannot_learn(kind: str) -> None:
    model = net(cut=kind == "cut").requires_grad_(kind == "cut")
    said = {"frozen": "has no parameter that learns", "cut": "cannot be trained as it is"}[kind]
    with pytest.raises(ModelError, match=said):
        pathlens.train(model, DATA, recipe=Recipe(epochs=1, batch_size=4, warmup=0))


def test_a_forward_that_ends_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def forward(self, x):\n        sys.exit(0)\n\n\ndef build():\n    return Net(), torch.zeros(2, 1, 8, 8)\n"
    )
    (tmp_path / "ends.py").write_text(code)
    assert main(["blocks", "--model", f"{tmp_path / 'ends.py'}:build"]) == ModelError.exit_code
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "the network's code ended the program (sys.exit: 0)" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("stream", [">/dev/full", ">&-", "2>&-"])
def test_streams_that_cannot_be_written(stream: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m pathlens blocks --json {stream}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if stream == ">/dev/full":
        assert done.returncode == 7
        assert done.stderr.splitlines()[-1].startswith(
            "pathlens: error: the output cannot be printed: No space left on device"
        )
    else:
        assert done.returncode == 0


def test_seeds_below_zero_and_numbers_of_numpy() -> None:
    model = net()
    tables = [pathlens.path_gradients(model, DATA, seed=seed, max_samples=2, draws=1) for seed in (-5, 2**64 - 5)]
    assert tables[0].rows == tables[1].rows
    for given in (1, np.int64(1)):
        assert len(pathlens.delete_blocks(model, DATA, blocks=given).rows) == 2
    same = [pathlens.delete_blocks(model, DATA, count=given, samples=2).rows for given in (1, np.int64(1))]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda model: pathlens.signal_propagation(model, DATA, steps=1, lr=-1.0), "lr -1: give a number above 0"),
        (lambda model: pathlens.signal_propagation(model, DATA, steps=1, lr=float("nan")), "lr nan: give a number"),
        (lambda model: pathlens.loss_surface(model, DATA, span=1e39), r"span 1e\+39: give a number above 0.*at most"),
        (lambda model: pathlens.loss_surface(model, DATA, points=10**11 + 1), "has more than 1,000,000 points"),
        (lambda model: pathlens.delete_blocks(model, DATA, count=2, samples=10**9), "give 1,000,000 at most"),
        (lambda model: pathlens.reorder_blocks(model, DATA, swaps=10**16), "give 1,000,000 at most"),
    ],
)
def test_numbers_that_nobody_can_mean(call: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        call(net())


def test_devices_pipes_and_damaged_archives_are_no_data(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in ("/dev/zero", str(pipe)):
        with pytest.raises(DataError, match="no regular file"):
            open_text(place)
        with pytest.raises(DataError, match="no regular file"):
            open_arrays(place)
    np.savez(tmp_path / "good.npz", inputs=np.zeros((2, 3), np.float32), targets=np.zeros((2, 1), np.float32))
    for shape in (b"(True, 3)", b"(0, 99999999999999999999999)"):
        with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
            content = good.read("inputs.npy").replace(b"(2, 3)", shape)
            header = int.from_bytes(content[8:10], "little") + len(shape) - len(b"(2, 3)")
            bad.writestr("inputs.npy", content[:8] + header.to_bytes(2, "little") + content[10:])
            bad.writestr("targets.npy", good.read("targets.npy"))
        with pytest.raises(DataError, match=r"is no file of numpy\.savez"):
            open_arrays(tmp_path / "bad.npz")


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave, self.head = nn.Linear(64, 64, dtype=torch.cfloat), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).to(torch.cfloat)
        return self.head((z + self.wave(z)).abs())


def test_networks_of_other_numbers() -> None:
    with pytest.raises(ModelError, match=r"wave.weight of Complex is complex; only networks of real numbers"):
        pathlens.decompose(Complex(), DATA)
    train = open_data("digits", split="train", limit=40)
    found = pathlens.blockdrop(net().half(), DATA, train, settings=Settings(epochs=1))
    assert {parameter.dtype for parameter in found.policy.parameters()} == {torch.float32}
    with pytest.raises(UsageError, match="in float16 cannot be trained with its policy"):
        pathlens.blockdrop(net().half(), DATA, train, settings=Settings(epochs=1, joint_epochs=1))


def test_examples_and_modules_without_what_is_needed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import torch\nfrom torch import nn\n\n\ndef build():\n    return nn.Linear(3, 3), torch.zeros({})\n"
    for number, (given, said) in enumerate((("()", "batch axis"), ("(2, 3), device='meta'", "without values"))):
        (tmp_path / f"n{number}.py").write_text(code.format(given))
        assert main(["blocks", "--model", f"{tmp_path}/n{number}.py:build"]) == ModelError.exit_code
        assert said in capfd.readouterr().err
    scripted = torch.jit.trace(net(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(ModelError, match=r"has no forward in Python \(torch.jit\?\)"):
        pathlens.find_blocks(scripted, torch.zeros(2, 1, 8, 8))
    with pytest.raises(UsageError, match="give 0, since these are too few"):
        hold_out(open_data("digits", split="train", limit=16), 12)


def test_numbers_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["delete-blocks", "--limit", "8", "--blocks", "0:2"]) == 0
    ranges = [line for line in capsys.readouterr().out.splitlines() if " - " in line]
    assert len(ranges) == 4
    for line in ranges:
        assert re.search(r"\d+\.\d\d - \d+\.\d\d", line), line
