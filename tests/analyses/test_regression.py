"""A regression studied: lesions and path gradients against the network's own forward, and what its tables say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import pathlens
from pathlens import analyses
from pathlens.cli import main
from pathlens.errors import DataError
from pathlens.results import named

CODE = """
import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(10, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def regressor():
    torch.manual_seed(0)
    return Regressor()
"""


@pytest.fixture(scope="module")
def net() -> nn.Module:
    space: dict = {}
    exec(CODE, space)
    return space["regressor"]().double().eval()


@pytest.fixture(scope="module")
def patients() -> tuple[Tensor, Tensor]:
    inputs, targets = load_diabetes(return_X_y=True)
    return torch.from_numpy(10 * inputs[:60]), torch.from_numpy(targets[:60] / 100)


def test_lesions_are_those_of_the_networks_own_forward(net, patients):
    inputs, targets = patients
    batches = [(inputs[:32], targets[:32]), (inputs[32:], targets[32:])]
    table = pathlens.delete_blocks(net, batches, task="regression", dtype="float64")
    variance = float(targets.var(correction=0))
    for row in table.rows:
        with pathlens.deleted(net, [] if row["block"] is None else [row["block"]]), torch.no_grad():
            loss = (net(inputs)[:, 0] - targets).square().mean().item()
        assert row["loss"] == pytest.approx(loss, rel=1e-9)
        assert row["error"] == pytest.approx(loss / variance, rel=1e-9)
        assert row["rmse"] == pytest.approx(loss**0.5, rel=1e-9)
        assert (row["lost"], row["gained"]) == (None, None)
    assert (table.provenance["task"], table.provenance["loss"]) == ("regression", "squared-error")
    columns = {column.name: column for column in table.columns}
    assert (columns["loss"].unit, columns["rmse"].unit) == ("targets^2", "targets")
    assert columns["error"].description.startswith("relative squared error")
    assert named("delete-blocks").fits(table)
    (chart,) = named("delete-blocks").charts(table.rows, table.provenance)
    assert chart["y"]["label"] == "relative squared error (%)"
    means = pathlens.delete_blocks(net, batches, loss="squared-error", count=2, samples=2, dtype="float64").rows[-1]
    assert means["error_low"] < means["error"] < means["error_high"]
    assert means["rmse"] > 0


@pytest.mark.parametrize("verb", ["delete_skips", "reorder_blocks", "reorder_blocks_runs", "delete_blocks_greedy",
                                  "delete_blocks_exhaustive", "delete_blocks_influence"])  # fmt: skip
def test_every_table_of_lesions_has_what_the_task_measures(net, patients, verb):
    inputs, targets = (each[:20] for each in patients)
    more = {"samples": 2, "swaps": 1} if verb == "reorder_blocks" else {}
    study = getattr(analyses, verb)
    table = study(net, [(inputs, targets)], task="regression", dtype="float64", engine="plain", **more)
    with torch.no_grad():
        loss = (net(inputs)[:, 0] - targets).square().mean().item()
    assert table.rows[0]["rmse"] == pytest.approx(loss**0.5, rel=1e-9)
    assert all(row["rmse"] > 0 for row in table.rows)


def test_path_gradients_are_of_the_squared_error(net, patients):
    inputs, targets = (each[:5] for each in patients)
    table = pathlens.path_gradients(net, [(inputs, targets)], method="exact", loss="squared-error", dtype="float64")
    assert table.provenance["loss"] == "squared-error"
    by_function = pathlens.path_gradients(
        net, [(inputs, targets)], method="exact", loss=lambda y, t: (y[:, 0] - t).square(), dtype="float64"
    )
    norms = [row["total_norm"] for row in by_function.rows]
    assert [row["total_norm"] for row in table.rows] == pytest.approx(norms, rel=1e-12)


def test_the_command_line_reads_arrays(tmp_path, capsys, patients):
    (tmp_path / "net.py").write_text(CODE)
    inputs, targets = patients
    np.savez(tmp_path / "few.npz", inputs=inputs.numpy(), targets=targets.numpy())
    options = ["--model", f"{tmp_path / 'net.py'}:regressor", "--data", f"arrays:{tmp_path / 'few.npz'}", "--quiet"]
    assert main(["delete-blocks", *options, "--limit", "40", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "RMSE" in printed
    assert "few.npz test 40 examples" in printed
    assert main(["path-gradients", *options, "--method", "exact", "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)["provenance"]
    assert (stated["loss"], stated["images"]) == ("squared-error", 60)
    assert main(["delete-blocks", *options, "--task", "classification"]) == DataError.exit_code
    assert "or for numbers as targets the task regression" in capsys.readouterr().err
