"""Tables of lesions where blocks are no chain: concatenations and nested sums, replaced as in a loop by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pathlens
from pathlens.analyses.replacing import other_images
from pathlens.cli import main
from pathlens.errors import UsageError
from tests.helpers.cli_files import make_files
from tests.helpers.dense_nets import Listed
from tests.helpers.joined import JOINED
from tests.helpers.lesion_oracle import indices, plain_loop, small_batches
from tests.helpers.path_oracle import drawn

BATCHES = [(images, labels % 3) for images, labels in small_batches(22, 8)]


class Swapped(nn.Module):
    """What computes a branch, with something else in the place of what it gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.replace, self.seen = module, "", list[Tensor]()
        self.mean = torch.zeros(())
        self.block = self.batch = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        self.seen.append(out)
        if self.replace == "resample":
            return torch.stack([out[other] for other in other_images(3, self.batch, self.block, len(out)).tolist()])
        return {"": out, "zero": torch.zeros_like(out), "mean": self.mean.expand_as(out)}[self.replace]


def by_hand(net: nn.Module, branches: list[Swapped], replaced: list[int], replace: str) -> tuple[float, float]:
    """Error and loss of one lesioned network."""
    for block, branch in enumerate(branches):
        branch.seen.clear()
        branch.replace, branch.block = "", block
    with torch.no_grad():
        for images, _ in BATCHES:
            net(images)
    for block, branch in enumerate(branches):
        branch.mean = torch.cat(branch.seen).mean(0)
        branch.replace = replace if block in replaced else ""
    number = iter(range(len(BATCHES)))

    def forward(x: Tensor) -> Tensor:
        batch = next(number)
        for branch in branches:
            branch.batch = batch
        logits: Tensor = net(x)
        return logits

    return plain_loop(forward, BATCHES)


@pytest.mark.parametrize("replace", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["concatenations", "nested", "resolutions"])
def test_error_and_loss_equal_a_loop_by_hand(name: str, replace: str) -> None:
    is_dense = name == "concatenations"
    net, twin = (drawn((Listed if is_dense else JOINED[name])()) for _ in range(2))
    table = pathlens.delete_blocks(
        net, BATCHES, count=[1, 2], samples=3, additions=None if is_dense else "all", concat=is_dense,
        replace=replace, dtype="float64", seed=3, engine="folded-5x2",
    )  # fmt: skip
    assert table.provenance.get("concatenations_are_blocks", False) == is_dense
    # in "nested" the last module of the outermost branch gives it
    order = (
        ["f.0", "f.1", "after", "f.2"] if name == "nested" else [f"f.{i}" for i in range(table.provenance["blocks"])]
    )
    branches = []
    for path in order:
        branches.append(Swapped(twin.get_submodule(path)))
        twin.set_submodule(path, branches[-1])
    rows = [row for row in table.rows if row["blocks"]]
    assert len(rows) >= 6
    for row in rows:
        error, loss = by_hand(twin, branches, indices(row["blocks"]), replace)
        assert row["error"] == error
        assert row["loss"] == pytest.approx(loss, rel=1e-10)
    assert len({row["loss"] for row in rows}) >= 4  # a lesion inside of a branch that is replaced changes nothing


def test_searches_are_among_them_too() -> None:
    net = drawn(Listed())
    single = {
        row["block"]: row["error"] for row in pathlens.delete_blocks(net, BATCHES, concat=True, dtype="float64").rows
    }
    greedy = pathlens.analyses.delete_blocks_greedy(net, BATCHES, count=1, concat=True, dtype="float64")
    assert greedy.rows[1]["error"] == min(error for block, error in single.items() if block is not None)
    pairs = pathlens.analyses.delete_blocks_exhaustive(net, BATCHES, concat=True, dtype="float64")
    assert len(pairs.rows) == 1 + 3 + 3


class Windows(nn.Module):
    """A branch that is computed for each half of an image by itself, and put together after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pieces = x.reshape(x.shape[0] * 2, 4, 4, 8)
        pieces = pieces + self.f(pieces)
        return self.head(pieces.reshape(x.shape[0], 4, 8, 8).mean((2, 3)))


def test_pieces_of_images_are_not_replaced() -> None:
    with pytest.raises(UsageError, match="cuts images into pieces") as caught:
        pathlens.delete_blocks(drawn(Windows()), BATCHES, replace="resample", dtype="float64")
    assert "\n" not in str(caught.value)


USER = """
import torch
from torch import nn

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 5)
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(2))

    def forward(self, x):
        x = self.stem(x)
        for f in self.layers:
            x = torch.cat([x, torch.relu(f(x))], 1)
        return self.head(x.mean((2, 3)))
"""


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "dense.py").write_text(USER)
    network = ["--model", f"{tmp_path}/dense.py:Dense", "--concat", "--json", "--quiet"]
    assert main(["blocks", *network, "--input-shape", "3,8,8"]) == 0
    blocks = json.loads(capsys.readouterr().out)["table"]
    assert [(row["name"], row["kind"]) for row in blocks] == [(f"layers.{i}", "concatenation") for i in range(2)]
    data = ["--data", make_files(tmp_path)["images"], "--mean", "0,0,0", "--std", "1,1,1"]
    run = tmp_path / "run"
    assert main(["delete-blocks", *network, *data, "--replace", "mean", "--out", str(run)]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["table"]] == [None, "layers.0", "layers.1"]
    assert json.loads((run / "manifest.json").read_text())["arguments"]["concat"] is True
    assert (run / "delete-blocks.png").exists()
    assert main(["delete-blocks", *network[:2], *data]) == 3
    assert "give --concat (concat=True)" in capsys.readouterr().err
