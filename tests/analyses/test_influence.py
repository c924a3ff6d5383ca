"""Deletion in the order of block influence, against cosines and deletions by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pathlens
from pathlens import figures
from pathlens.__main__ import main
from pathlens.errors import UsageError
from pathlens.models import load_model

EXACT = {"dtype": "float64", "batch_size": 3}


def cosines(before: Tensor, after: Tensor, axis: int) -> Tensor:
    """Of each example, the mean over its positions, by the definition of the cosine."""
    before, after = before.movedim(axis, -1), after.movedim(axis, -1)
    products = (before * after).sum(-1) / (before.square().sum(-1).sqrt() * after.square().sum(-1).sqrt())
    return products.reshape(len(products), -1).mean(1)


@torch.no_grad()
def test_influence_and_errors_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    net = load_model("preresnet20", "random").model.double().eval()
    batches = [(torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.arange(n)) for n in (5, 2)]
    table = pathlens.delete_blocks_influence(net, batches, count=9, **EXACT)
    view = pathlens.find_blocks(net, batches[0][0])
    influence: dict[int, list[Tensor]] = {}
    for images, _ in batches:
        x = view.stem(images)
        for block in range(9):
            before, x = x, view.run(x, block, block + 1)
            if before.shape == x.shape:
                influence.setdefault(block, []).append(1 - cosines(before, x, 1))
    due = {block: float(torch.cat(values).mean()) for block, values in influence.items()}
    steps = table.rows[1:]
    assert [row["block"] for row in steps] == [*sorted(due, key=due.__getitem__), 3, 6]  # these two change the shape
    for row in steps:
        assert row["influence"] == (pytest.approx(due[row["block"]], rel=1e-9) if row["block"] in due else None)
    for size in (1, 4, 9):
        deleted = [row["block"] for row in steps[:size]]
        assert steps[size - 1]["blocks"] == ",".join(map(str, deleted))
        with pathlens.deleted(net, deleted), torch.no_grad():
            wrong = sum(int((net(images).argmax(1) != labels).sum()) for images, labels in batches)
        assert steps[size - 1]["error"] == wrong / 7


class Layer(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        nn.init.normal_(self.first.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        return x + torch.tanh(self.second(x))


class Layers(nn.Module):
    """Three layers of two blocks each, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Sequential(*[Layer(scale) for scale in (1.0, 0.1, 0.5)])
        self.head = nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)))


@torch.no_grad()
def test_layers_go_as_a_whole() -> None:
    torch.manual_seed(0)
    net = Layers().double().eval()
    tokens = torch.randint(0, 11, (4, 7))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    table = pathlens.delete_blocks_influence(net, batches, group="layer", **EXACT)
    x, due = net.embedding(batches[0][0]), []
    for layer in net.body:
        before, x = x, layer(x)
        due.append(float((1 - cosines(before, x, -1)).mean()))
    order = sorted(range(3), key=due.__getitem__)
    assert [row["block"] for row in table.rows[1:]] == order
    assert [row["name"] for row in table.rows[1:]] == [f"body.{layer}" for layer in order]
    assert [row["influence"] for row in table.rows[1:]] == pytest.approx([due[layer] for layer in order])
    assert table.rows[1]["blocks"] == f"{2 * order[0]},{2 * order[0] + 1}"
    assert len(figures.draw("delete-blocks-influence", table).axes[0].lines) > 0


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--count", "77"], "count 77: give 1 to 54, the number of blocks"),
        (["--contiguous"], "leave --group and --contiguous out"),
        (["--additions", "all"], "--search influence needs blocks one after the other"),
        (["--replace", "mean"], "leave one of the two out"),
    ],
)
def test_refusals(more: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete-blocks", "--search", "influence", "--limit", "4", *more]) == 2
    assert line in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["delete-blocks", "--search", "influence", "--limit", "8", "--count", "1:2", "--out", str(tmp_path)]
    assert main([*given, "--quiet"]) == 0
    assert "influence" in capsys.readouterr().out
    assert {"delete-blocks-influence.csv", "delete-blocks-influence.png"} <= {path.name for path in tmp_path.iterdir()}


def test_blocks_that_are_no_chain_are_refused() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.maps[1](x + torch.tanh(self.maps[0](x)))

    net, x = Nested(), torch.randn(3, 4)
    view = pathlens.find_blocks(net, x, additions="all")
    with pytest.raises(UsageError, match="no chain"):
        pathlens.delete_blocks_influence(view, [(x, torch.zeros(3, dtype=torch.long))])
