"""The verb ``decompose``: what its columns say, on a trained network and over initialisations, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens import figures
from pathlens.__main__ import main
from pathlens.decomposition import CONSTANTS, STEM, decompose_at, target_of
from pathlens.errors import DataError, PathlensError, UsageError
from pathlens.metrics import interval_of_sums, sample_interval
from pathlens.tables import Table


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(F.relu(self.norm(x)))


class Net(nn.Module):
    def __init__(self, blocks: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def batches(count: int = 2, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, 8, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x, torch.arange(size) % 4) for x in made]


def test_moments_of_the_last_sum_by_definition() -> None:
    torch.manual_seed(0)
    net = Net().double()
    data = batches()
    table = pathlens.decompose(net, data, mode="train")
    view = pathlens.find_blocks(net, data[0][0])
    net.train()
    variances, covariances, squares = {}, {}, {}
    for x, _ in data:
        chain = view.chain(x)
        whole, summands = decompose_at(chain, x, target_of(chain, "sum")[0])
        for key, part in {**summands, "whole": whole}.items():
            pairs = [np.cov(part[:, c], whole[:, c], ddof=0) for c in range(16)]
            variances.setdefault(key, []).append(np.mean([pair[0, 0] for pair in pairs]))
            covariances.setdefault(key, []).append(np.mean([pair[0, 1] for pair in pairs]))
            squares.setdefault(key, []).append(float(part.square().mean()))
    spread = np.mean(variances["whole"])
    assert [row["summand"] for row in table.rows] == ["constants", "stem", "block", "block", "block"]
    for row in table.rows:
        key = CONSTANTS if row["block"] is None else row["block"]
        assert row["share"] == pytest.approx(np.mean(covariances[key]) / spread, abs=1e-12)
        assert row["variance_ratio"] == pytest.approx(np.mean(variances[key]) / spread, abs=1e-12)
        assert row["norm"] == pytest.approx(np.sqrt(np.mean(squares[key])))
        assert row["norm_ratio"] == pytest.approx(np.sqrt(np.mean(squares[key]) / np.mean(squares["whole"])))
        if key != CONSTANTS:
            due = np.mean(covariances[key]) / np.sqrt(np.mean(variances[key]) * spread)
            assert row["correlation"] == pytest.approx(due)
        assert row["logit"] is row["error_through"] is row["share_low"] is None
    assert sum(row["share"] for row in table.rows) == pytest.approx(1, abs=1e-12)
    assert table.provenance["at"] == "sum of block 2"


def test_a_smaller_last_batch_counts_by_its_examples() -> None:
    torch.manual_seed(0)
    net, (whole,) = Net().double(), batches(1, 33)
    parts = [tuple(tensor[start : start + 16] for tensor in whole) for start in (0, 16, 32)]
    for one, several in zip(pathlens.decompose(net, [whole]).rows, pathlens.decompose(net, parts).rows, strict=True):
        assert one["norm"] == pytest.approx(several["norm"], rel=1e-12), one["summand"]


def test_logits_of_a_trained_network_add_up_to_its_own() -> None:
    loaded = pathlens.load_model("digits54")
    data = pathlens.open_data("digits", limit=20)
    norm = {"mean": loaded.mean, "std": loaded.std}
    table = pathlens.decompose(loaded.model, data, at="output", batch_size=7, **norm)
    batch = data.batch(0, 20, **norm)
    with torch.no_grad():
        logits = loaded.model.eval()(batch.images).double()
    own = logits[range(20), batch.labels] - logits.mean(1)
    assert sum(row["logit"] for row in table.rows) == pytest.approx(float(own.mean()), rel=1e-5)
    assert sum(row["share"] for row in table.rows) == pytest.approx(1, abs=1e-4)
    wrong = float((logits.argmax(1) != batch.labels).double().mean())
    assert table.rows[-1]["error_through"] == pytest.approx(wrong)
    chain = pathlens.find_blocks(loaded.model, batch.images).chain(batch.images)
    _, summands = decompose_at(chain, batch.images, chain.trace.main)
    for row, so_far in zip(table.rows, (summands[CONSTANTS], summands[CONSTANTS] + summands[STEM]), strict=False):
        assert row["error_through"] == pytest.approx(float((so_far.argmax(1) != batch.labels).double().mean()))
    assert len(table.rows) == 56
    assert table.provenance["at"] == "output"


def test_contributions_to_the_label_and_the_errors_by_definition() -> None:
    torch.manual_seed(1)
    net, data = Net().double().eval(), batches()
    table = pathlens.decompose(net, data, at="output")
    view = pathlens.find_blocks(net, data[0][0])
    logits: dict[int, list[float]] = {}
    wrong: dict[int, int] = {}
    for x, labels in data:
        chain = view.chain(x)
        _, summands = decompose_at(chain, x, chain.trace.main)
        so_far = torch.zeros(10, 4, dtype=torch.float64)
        for key in (CONSTANTS, -1, 0, 1, 2):
            so_far = so_far + summands[key]
            wrong[key] = wrong.get(key, 0) + int((so_far.argmax(1) != labels).sum())
            for part, label in zip(summands[key], labels, strict=True):
                logits.setdefault(key, []).append(float(part[label] - part.mean()))
    for row in table.rows:
        key = CONSTANTS if row["block"] is None else row["block"]
        assert row["logit"] == pytest.approx(np.mean(logits[key]), abs=1e-12)
        assert (row["logit_low"], row["logit_high"]) == pytest.approx(sample_interval(logits[key]), abs=1e-9)
        assert row["error_through"] == wrong[key] / 20


class Foreground(nn.Module):
    """One logit a pixel, against 0 for the background."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.inner:
            x = x + torch.tanh(layer(x))
        out: Tensor = self.last(x)
        return out


def test_one_logit_a_pixel_is_that_of_two_classes() -> None:
    torch.manual_seed(2)
    net = Foreground().double().eval()
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    masks = torch.randint(0, 2, (4, 6, 6))
    masks[0, 0] = -100
    table = pathlens.decompose(net, [(images, masks)], at="output")
    view = pathlens.find_blocks(net, images)
    chain = view.chain(images)
    _, summands = decompose_at(chain, images, chain.trace.main)
    so_far = torch.zeros(4, 6, 6, dtype=torch.float64)
    for row in table.rows:
        part = summands[CONSTANTS if row["block"] is None else row["block"]][:, 0]
        so_far = so_far + part
        counted = masks >= 0
        # half of the logit for the foreground, half of it less for the background
        logits = [float((one * (mask - 0.5))[use].mean()) for one, mask, use in zip(part, masks, counted, strict=True)]
        assert row["logit"] == pytest.approx(np.mean(logits), abs=1e-12)
        assert row["error_through"] == pytest.approx(float(((so_far > 0) != (masks == 1))[counted].double().mean()))
    assert 0 < table.rows[-1]["error_through"] < 1


def test_masks_of_another_size_than_the_logits_are_refused() -> None:
    images, masks = torch.randn(2, 3, 6, 6), torch.zeros(2, 5, 6, dtype=torch.long)
    line = r"the targets are torch.int64 of shape \(2, 5, 6\); give one class index for each of \(2, 6, 6\)"
    with pytest.raises(DataError, match=line):
        pathlens.decompose(Foreground().eval(), [(images, masks)], at="output")


def test_labels_of_another_data_set_are_refused() -> None:
    torch.manual_seed(1)
    with pytest.raises(DataError, match="outside the"):
        pathlens.decompose(Net().double(), [(x, labels + 2) for x, labels in batches()], at="output")


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (torch.zeros(6, 1, dtype=torch.long), "labels"),
        (torch.zeros(6), "labels are torch.float32"),
        (torch.zeros(5, dtype=torch.long), "labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Tensor, line: str) -> None:
    with pytest.raises(DataError, match=line):
        pathlens.decompose(Net().eval(), [(torch.randn(6, 8), labels)], at="output")


def test_labels_in_any_type_of_whole_numbers() -> None:
    torch.manual_seed(0)
    net, x, labels = Net().eval(), torch.randn(6, 8), torch.arange(6) % 4
    found, wanted = (pathlens.decompose(net, [(x, of)], at="output") for of in (labels.to(torch.uint8), labels))
    assert found.rows == wanted.rows


def test_intervals_over_seeds_and_schemes_side_by_side() -> None:
    net = Net().double()
    options = {"init": ["he-fan-in", "as-built"], "seeds": 3, "build": lambda seed: Net().double(), "at": "output"}
    table = pathlens.decompose(net, batches(), given=True, **options)
    assert {row["weights"]: row["seeds"] for row in table.rows} == {"as given": 1, "he-fan-in": 3, "as-built": 3}
    single = [
        pathlens.decompose(net, batches(), init="he-fan-in", seeds=1, seed=seed, at="output").rows for seed in range(3)
    ]
    several = [row for row in table.rows if row["weights"] == "he-fan-in"]
    for at, row in enumerate(several):
        for name in ("share", "logit"):
            values = [rows[at][name] for rows in single]
            assert row[name] == pytest.approx(np.mean(values), abs=1e-12)
            due = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)) if np.std(values) else (values[0],) * 2
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(due, abs=1e-9)


def test_interval_of_sums() -> None:
    values = [0.3, -1.0, 2.5, 0.1]
    sums = (4, sum(values), sum(value**2 for value in values))
    assert interval_of_sums(*sums) == pytest.approx(sample_interval(values))
    assert interval_of_sums(1, 1.0, 1.0) == interval_of_sums(3, float("nan"), 1.0) == (None, None)


def test_what_is_not_finite_is_missing() -> None:
    net = Net().double()
    with torch.no_grad():
        net.blocks[1].map.weight.fill_(1e308)
    table = pathlens.decompose(net, batches())
    assert [row["share"] for row in table.rows] == [None] * 5
    assert table.rows[0]["norm"] is not None
    assert table.rows[3]["norm"] is None
    table = pathlens.decompose(net, batches(), at="output")
    for name in ("share", "norm", "logit", "error_through"):
        assert [row[name] for row in table.rows] == [None] * 5, name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("analysis", [pathlens.decompose, pathlens.signal_propagation])
def test_inputs_that_are_not_finite_are_refused(analysis: Callable[..., Table], value: float) -> None:
    data = batches()
    data[1][0][3, 2] = value
    with pytest.raises(DataError, match="batch 1 has inputs that are NaN or infinite"):
        analysis(Net().double(), data)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"at": "middle"}, "at 'middle' is unknown; give sum, output, or the number of a block"),
        ({"at": 7}, "block 7 does not exist: the network has 3"),
        ({"dtype": "bfloat16"}, "too coarse to add up summands; give float32 or float64"),
        ({"seeds": 0}, "seeds 0: give at least 1"),
        ({"init": "magic"}, "magic"),
        ({"task": "segmentation", "at": "output"}, "task segmentation wants logits"),
    ],
)
def test_refusals(options: dict[str, object], line: str) -> None:
    with pytest.raises((UsageError, PathlensError), match=line):
        pathlens.decompose(Net().double(), batches(), **options)


def test_a_model_whose_own_type_is_too_coarse_is_refused_unless_another_is_given() -> None:
    net = Net().bfloat16()
    with pytest.raises(UsageError, match="dtype 'bfloat16' is too coarse to add up summands; give float32 or float64"):
        pathlens.decompose(net, batches())
    assert pathlens.decompose(net, batches(), dtype="float32").provenance["dtype"] == "float32"


@pytest.mark.parametrize("analysis", [pathlens.decompose, pathlens.signal_propagation])
def test_a_lesioned_network_is_refused_and_not_taken_for_the_intact_one(analysis: Callable[..., Table]) -> None:
    net = Net().double()
    with (
        pathlens.deleted(net, 1),
        pytest.raises(UsageError, match=r"intervention is active on Net.*outside of its with"),
    ):
        analysis(net, batches(), mode="eval")
    assert analysis(net, batches(), mode="eval").rows


def test_command_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["decompose", "--limit", "6", "--at", "output", "--quiet", "--out", str(tmp_path / "run")]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "logit of" in out
    assert "constants" in out
    meta = json.loads((tmp_path / "run" / "decompose.meta.json").read_text())
    assert meta["provenance"]["at"] == "output"
    assert {"decompose.csv", "decompose.png", "manifest.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Contribution to the logit of the label by block" in page
    capsys.readouterr()
    assert main([*given[:3], "--at", "99"]) == 2
    assert "block 99 does not exist" in capsys.readouterr().err


def test_figure_of_a_sum_has_two_panels_and_that_of_an_output_four() -> None:
    net, data = Net().double(), batches()
    tables = {at: pathlens.decompose(net, data, at=at) for at in ("sum", "output")}
    drawn = {at: figures.decomposition(table) for at, table in tables.items()}
    assert {at: len(figure.axes) for at, figure in drawn.items()} == {"sum": 2, "output": 4}
    shares = drawn["sum"].axes[0].lines[0].get_ydata()
    assert list(shares) == [row["share"] for row in tables["sum"].rows if row["block"] is not None]
    with pytest.raises(UsageError, match="decomposition"):
        figures.decomposition([{"block": 1}])
