"""Greedy and exhaustive deletions against loops over plain forward passes."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import nn

import pathlens
from pathlens import figures
from pathlens.cli import main
from pathlens.data import ImageData, open_data
from pathlens.errors import UsageError
from pathlens.figures.searches import matrix
from pathlens.models import preresnet
from pathlens.results.searches import EXHAUSTIVE, GREEDY
from pathlens.tables import Table

EXACT: dict[str, Any] = {"dtype": "float64", "engine": "plain", "batch_size": 16}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Six blocks, trained on few digits for a moment, so that blocks matter."""
    torch.manual_seed(2)
    model = preresnet(14, in_channels=1, widths=(4, 6, 8))
    data = open_data("digits", split="train", limit=128)
    batch = data.batch(0, 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(batch.images), batch.labels).backward()
        optimizer.step()
    return model.eval().double()


@pytest.fixture(scope="module")
def data() -> ImageData:
    """The images that all is measured on."""
    return open_data("digits", limit=40)


class ByHand:
    """Right or wrong and loss of each image, by a plain forward pass without some blocks."""

    def __init__(self, model: nn.Module, data: ImageData) -> None:
        self.view = pathlens.find_blocks(model, data.batch(0, 2, dtype=torch.float64).images)
        self.batch = data.batch(0, data.n, dtype=torch.float64)
        self.known: dict[tuple[int, ...], tuple[torch.Tensor, float]] = {}
        self.right = self.measured(())[0]

    def measured(self, blocks: tuple[int, ...]) -> tuple[torch.Tensor, float]:
        if blocks not in self.known:
            with torch.no_grad(), pathlens.deleted(self.view, blocks):
                logits = self.view.model(self.batch.images)
            right = logits.argmax(1) == self.batch.labels
            self.known[blocks] = right, float(F.cross_entropy(logits, self.batch.labels))
        return self.known[blocks]

    def error(self, blocks: tuple[int, ...]) -> float:
        return 1 - float(self.measured(blocks)[0].double().mean())

    def p(self, blocks: tuple[int, ...]) -> float:
        right = self.measured(blocks)[0]
        lost, gained = int((self.right & ~right).sum()), int((~self.right & right).sum())
        return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def test_the_best_next_block_each_time(network: nn.Module, data: ImageData) -> None:
    loop = ByHand(network, data)
    table = pathlens.delete_blocks_greedy(network, data, count=3, **EXACT)
    intact, *steps = table.rows
    assert (intact["count"], intact["block"], intact["error"]) == (0, None, pytest.approx(loop.error(())))
    deleted: tuple[int, ...] = ()
    p_values, chosen = [], []
    for row in steps:
        left = [block for block in range(6) if block not in deleted]
        costs = [(loop.error((*deleted, block)), loop.measured((*deleted, block))[1], block) for block in left]
        best = min(costs)
        chosen.append(len(p_values) + left.index(best[2]))
        p_values += [loop.p((*deleted, block)) for block in left]
        deleted = (*deleted, best[2])
        assert (row["count"], row["block"], row["blocks"]) == (len(deleted), best[2], ",".join(map(str, deleted)))
        assert (row["error"], row["loss"]) == pytest.approx(best[:2], rel=1e-9)
        assert row["p"] == pytest.approx(p_values[chosen[-1]])
        assert row["name"] == loop.view[best[2]].name
    # any of the 6, 15 and 20 sets of a size could have been the chosen one
    sets = [math.comb(6, row["count"]) for row in steps]
    corrected = [min(1, 3 * many * p_values[index]) for many, index in zip(sets, chosen, strict=True)]
    assert [row["p_holm"] for row in steps] == pytest.approx(corrected)
    assert len({loop.error((block,)) for block in range(6)}) > 2  # blocks differ, so that there is a choice
    assert table.provenance["networks_evaluated"] == 7 + 6 + 5
    assert table.provenance["comparison"]["networks"] == 6 + 5 + 4
    assert "chosen on the images" in table.provenance["notes"][-1]


def test_every_set_and_what_it_costs_beyond_the_sum(network: nn.Module, data: ImageData) -> None:
    loop = ByHand(network, data)
    table = pathlens.delete_blocks_exhaustive(network, data, **EXACT)
    sets = [blocks for size in range(3) for blocks in combinations(range(6), size)]
    assert [row["blocks"] for row in table.rows] == [",".join(map(str, blocks)) or None for blocks in sets]
    errors, losses = (
        {blocks: loop.error(blocks) for blocks in sets},
        {blocks: loop.measured(blocks)[1] for blocks in sets},
    )
    for row, blocks in zip(table.rows, sets, strict=True):
        assert (row["error"], row["loss"]) == pytest.approx((errors[blocks], losses[blocks]), rel=1e-9)
        if len(blocks) < 2:
            assert row["interaction"] is row["loss_interaction"] is None
            continue
        for name, values in (("interaction", errors), ("loss_interaction", losses)):
            alone = sum(values[block,] - values[()] for block in blocks)
            assert row[name] == pytest.approx(values[blocks] - values[()] - alone, abs=1e-7)
    pairs = [row for row in table.rows if row["count"] == 2]
    values = matrix(pairs, "interaction")
    assert values[2, 5] == values[5, 2] == next(row["interaction"] for row in pairs if row["blocks"] == "2,5")
    assert max(abs(row["loss_interaction"]) for row in pairs) > 0.01


def test_a_search_goes_on_where_it_stopped(network: nn.Module, data: ImageData, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 5:
            raise KeyboardInterrupt

    whole = pathlens.delete_blocks_greedy(network, data, count=3, **EXACT)
    with pytest.raises(KeyboardInterrupt):
        pathlens.delete_blocks_greedy(network, data, count=3, journal=tmp_path, progress=stop, **EXACT)
    assert {total for _, total in seen} == {9}
    again = pathlens.delete_blocks_greedy(network, data, count=3, journal=tmp_path, **EXACT)
    assert again.rows == whole.rows
    assert 0 < again.provenance["resumed_batches"] < 9


def test_figures_and_pages(network: nn.Module, data: ImageData, tmp_path: Path) -> None:
    tables = {
        "delete-blocks-greedy": pathlens.delete_blocks_greedy(network, data, count=2, **EXACT),
        "delete-blocks-exhaustive": pathlens.delete_blocks_exhaustive(network, data, **EXACT),
    }
    for (stem, table), result in zip(tables.items(), (GREEDY, EXHAUSTIVE), strict=True):
        figures.save(figures.draw(stem, table), tmp_path, stem)
        assert (tmp_path / f"{stem}.png").stat().st_size > 10_000
        assert len(result.headlines(table.rows, table.provenance)) > 1
        assert result.charts(table.rows, table.provenance)[0]["series"]
    with pytest.raises(UsageError, match="no pairs of blocks; give one from delete-blocks --search exhaustive"):
        figures.draw("delete-blocks-exhaustive", _without(tables["delete-blocks-exhaustive"], 2))
    with pytest.raises(UsageError, match="no deleted blocks; give one from delete-blocks --search greedy"):
        figures.draw("delete-blocks-greedy", _without(tables["delete-blocks-greedy"], 1, 2))


def _without(table: Table, *counts: int) -> Table:
    return Table(table.columns, tuple(row for row in table.rows if row["count"] not in counts), table.provenance)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-m", "preresnet20", "--weights", "random", "--data", "digits", "--limit", "12", "-q"]
    assert main(["delete-blocks", *where, "--search", "greedy", "--count", "1:2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "blocks were chosen on the images" in printed
    assert "after Bonferroni's correction" in printed
    assert "Holm" not in printed
    assert (tmp_path / "delete-blocks-greedy.csv").is_file()
    assert (tmp_path / "delete-blocks-greedy.png").is_file()
    assert main(["delete-blocks", *where, "--search", "exhaustive", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["table"]) == 1 + 9 + 36


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--search", "greedy", "--blocks", "0:3"], "--blocks 0:3: --search greedy is among all blocks"),
        (["--search", "greedy", "--count", "55"], "count 55: give 1 to 54, the number of blocks"),
        (["--search", "exhaustive", "--count", "1"], "count 1: give 2 to 54"),
        (["--search", "exhaustive", "--count", "4"], "54 blocks have 342,540 sets of up to 4, and at most 50,000"),
        (["--search", "best"], "'best' is not one of 'random', 'greedy', 'exhaustive'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete-blocks", "--limit", "4", "-q", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
