"""The study of depth in training at a size that tests can afford, and its statistics on numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import pathlens
from pathlens.tables import read_table
from studies import common
from studies.depth_in_training import answers, cells, checkpoints, gains, trends
from studies.veit2016 import trainings
from tests.helpers.study_modules import run_study

TABLES = {
    "ranges": {
        "run",
        "seed",
        "weight_decay",
        "epoch",
        "mode",
        "contribution",
        "first",
        "last",
        "centre",
        "mean_length",
    },
    "by-epoch": {"epoch", "contribution", "mean_length", "mean_length_low", "mean_length_high", "validation_error"},
    "trends": {"since", "rho", "rho_p", "rising", "sign_p", "change", "change_low", "change_high", "change_p"},
    "curves": {"epoch", "contribution", "length", "share"},
    "gains": {"run", "epoch", "gamma", "response_ratio", "gradient_ratio", "predicted_length"},
    "gains-by-epoch": {"epoch", "gamma", "gamma_low", "gamma_high", "gradient_ratio_low"},
    "mechanism": {"contribution", "scale", "rho", "measured_over_predicted"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run: page and tables in ``out``, trained networks in ``runs``."""
    folder = tmp_path_factory.mktemp("depth")
    where = ("--out", str(folder / "out"), "--runs", str(folder / "runs"))
    run_study("depth_in_training", "--scale", "smoke", "--device", "cpu", "--jobs", "2", *where)
    return folder


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done):
    page = (done / "out" / "README.md").read_text()
    assert str(done) not in page
    for title in ("**Question.**", "**Protocol.**", "**Scale and hardware.**", "## Mechanism", "## What agrees"):
        assert title in page
    for stem, columns in TABLES.items():
        assert columns <= set(read_table(done / "out" / f"{stem}.parquet").names)
        assert f"({stem}.csv)" in page
    for stem in ("trajectories", "curves", "gains"):
        assert (done / "out" / f"{stem}.png").stat().st_size > 10_000
        assert f"]({stem}.png)" in page


@pytest.mark.slow
def test_path_lengths_are_those_of_the_checkpoint(done):
    rows = read_table(done / "out" / "ranges.parquet").rows
    assert {(row["seed"], row["epoch"]) for row in rows} == {(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    run = "tiny-full-seed1"
    loaded = pathlens.load_model(checkpoints.TINY, done / "runs" / run / "epochs" / "epoch-002.safetensors")
    data = pathlens.open_data("digits", split="train", limit=6)
    options = {"mean": loaded.mean, "std": loaded.std, "batch_size": 6, "seed": 1}
    table = pathlens.path_gradients(loaded.model, data, method="all", mode="train", max_samples=2, draws=1, **options)
    for kind, of in (
        ("exact", lambda row: row["total_norm"]),
        ("sampled", lambda row: row["n_paths"] * row["path_norm_mean"]),
        ("signed", lambda row: row["n_paths"] * row["path_norm_rms"]),
    ):
        (row,) = [
            row
            for row in rows
            if (row["run"], row["epoch"], row["mode"], row["contribution"]) == (run, 2, "train", kind)
        ]
        weights = [of(one) for one in table.rows]
        assert row["mean_length"] == pytest.approx(sum(k * w for k, w in enumerate(weights)) / sum(weights), rel=1e-4)
        effective = table.provenance["effective"][kind]
        assert (row["first"], row["last"]) == (effective["first"], effective["last"])
        assert row["blocks"] == 3


def test_a_checkpoint_is_measured_again_when_its_weights_change(tmp_path, monkeypatch):
    study_ = common.setting("x", "x", ["--scale", "smoke", "--runs", str(tmp_path)])
    monkeypatch.setattr(cells, "measure", lambda cell: {"weights": cell.weights.read_text()})
    (tmp_path / "weights").write_text("old")
    cell = cells.Cell("run", "preresnet20", 0, 0.1, 1, tmp_path / "weights", "digits", 6, 2, 1, "cpu")
    (first,) = cells.measure_all([cell], study_)
    monkeypatch.setattr(cells, "measure", lambda cell: {"weights": "measured again"})
    assert cells.measure_all([cell], study_) == [first]
    (tmp_path / "weights").write_text("new")
    assert cells.measure_all([cell], study_)[0]["weights"] == "measured again"


class Block(torch.nn.Module):
    """Adds a layer to what it got."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


def test_gains_of_linear_blocks_are_known():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(3)]
    factors = (2.0, 0.5, 1.0)
    for layer, factor in zip(layers, factors, strict=True):
        layer.weight.data = factor * torch.eye(4)
    norm = torch.nn.BatchNorm1d(4)
    torch.nn.init.constant_(norm.weight, -3.0)
    first = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(first, *map(Block, [*layers, norm])).eval()
    images, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    view = pathlens.find_blocks(model, images)
    assert len(view) == 4
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gains.gains(view, images, labels)
    assert found["gamma"] == 3
    # the last block by autograd, with the statistics of the batch
    x = torch.nn.Sequential(*model[:4])(images).detach().requires_grad_()
    scaled = -3 * (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt()
    (arriving,) = torch.autograd.grad(torch.nn.functional.cross_entropy(x + scaled, labels, reduction="sum"), x)
    total = (x + scaled).detach().requires_grad_()
    (at_sum,) = torch.autograd.grad(torch.nn.functional.cross_entropy(total, labels, reduction="sum"), total)
    last = float((arriving - at_sum).norm(dim=1).mean() / at_sum.norm(dim=1).mean())
    assert found["gradient_ratio"] == pytest.approx((sum(factors) + last) / 4, rel=1e-4)
    assert found["predicted_length"] == pytest.approx(2 / 3 + 1 / 3 + 1 / 2 + last / (1 + last), rel=1e-4)
    assert found["response_ratio"] == pytest.approx((sum(factors) + (scaled.std() / x.std()).item()) / 4, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_trends_by_hand():
    def rows(run, lengths):
        return [
            {"run": run, "weight_decay": 0.1, "mode": "train", "contribution": "exact", "epoch": epoch, "blocks": 9}
            | {"mean_length": length, "centre": length, "first": 1, "last": 5}
            for epoch, length in lengths.items()
        ]

    data = [{0: 5.0, 1: 4.0, 4: 3.0, 9: 4.5}, {0: 6.0, 1: 3.0, 4: 3.5, 9: 4.0}, {0: 5.5, 1: 3.0, 4: 3.5, 9: 3.2}]
    ranges = [row for seed, lengths in enumerate(data) for row in rows(f"seed{seed}", lengths)]
    module = trends
    whole, later = module.trends(ranges, (0, 1))
    changes = [lengths[9] - lengths[1] for lengths in data]
    assert later["change"] == pytest.approx(sum(changes) / 3)
    assert later["change_p"] == pytest.approx(stats.ttest_1samp(changes, 0).pvalue)
    interval = stats.ttest_1samp(changes, 0).confidence_interval()
    assert later["change_low"] == pytest.approx(interval.low)
    ranks = [stats.spearmanr(list(lengths), list(lengths.values())).statistic for lengths in data]
    assert whole["rho"] == pytest.approx(sum(ranks) / 3)
    assert (whole["rising"], whole["sign_p"]) == (0, pytest.approx(0.25))
    assert (later["rising"], later["sign_p"]) == (3, pytest.approx(0.25))
    assert later["rho_high"] <= 1
    assert whole["rho_low"] >= -1
    (start, *_) = module.by_epoch(ranges, {("seed0", 0): 0.2, ("seed1", 0): 0.4})
    assert start["validation_error"] == pytest.approx(0.3)
    assert start["mean_length"] == pytest.approx(5.5)
    assert start["mean_length_high"] == pytest.approx(5.5 + 4.302653 * 0.5 / math.sqrt(3))


def test_sentences_follow_the_numbers():
    module = answers
    rising = {"change_low": 0.5, "change_high": 1.5}
    assert module.direction(rising) == "grows"
    assert module.direction({"change_low": -1.5, "change_high": -0.5}) == "shrinks"
    assert module.direction({"change_low": -1.5, "change_high": 0.5}) == "does not change for certain"
    assert module.direction({"change_low": None, "change_high": None}) == "does not change for certain"
    start = {"blocks": 54, "contribution": "exact", "mean_length": 10.0, "mean_length_low": 9.0}
    assert "below half the blocks, as claimed" in module._start({**start, "mean_length_high": 11.0})
    assert "not told apart" in module._start({**start, "mean_length_high": 28.0})
    trend = {"mode": "train", "weight_decay": 0, "contribution": "exact", "since": 0}
    falls, rises = {**trend, "change_low": -2.0, "change_high": -1.0}, {**trend, **rising}
    scales = [
        {"weight_decay": 0, "epoch": epoch, "gamma": 1.0, "gradient_ratio": ratio}
        for epoch, ratio in ((9, 0.3), (0, 0.6))
    ]
    assert "γ does not measure" in module._reason([falls], scales)
    assert "1.00 times its value at initialisation and λ at 0.50 times" in module._reason([falls], scales)
    assert module._reason([rises], scales) == ""
    assert module._reason([falls], [{**row, "gradient_ratio": 0.6} for row in scales]) == ""


def test_the_cpu_scale_takes_the_runs_of_the_first_study(monkeypatch, tmp_path):
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    study_ = checkpoints.shared(common.setting("depth_in_training", "x", ["--scale", "cpu"]))
    assert study_.runs.name == "veit2016-cpu"
    wanted = checkpoints.wanted(study_)
    theirs = {training.name: training.arguments for training in trainings.trainings(study_)}
    shared = {name: run.arguments for name, run in wanted.items() if name in theirs}
    assert set(shared) == {f"digits54-full-seed{seed}" for seed in range(5)}
    assert all(theirs[name] == arguments for name, arguments in shared.items())
    others = [run for name, run in wanted.items() if name not in theirs]
    assert len(others) == 3
    assert all(run.arguments[-2:] == ("--weight-decay", "0") for run in others)
    given = common.setting("depth_in_training", "x", ["--scale", "cpu", "--runs", str(tmp_path)])
    assert checkpoints.shared(given).runs == tmp_path


@pytest.mark.parametrize(("low", "high", "words"), [(-6, -5, "not told apart"), (-9, -8, "are due to it")])
def test_what_is_due_to_weight_decay_stands_out_of_the_seeds(low, high, words):
    row = {"mode": "train", "contribution": "exact", "since": 0}
    without = {**row, "weight_decay": 0, "change": -5.3, "change_low": -5.9, "change_high": -4.7}
    with_it = {**row, "weight_decay": 0.1, "change": (low + high) / 2, "change_low": low, "change_high": high}
    assert words in answers._decay([without, with_it], 0.1)


@pytest.mark.slow
def test_larger_scales_train_in_processes_of_their_own(tmp_path):
    study_ = common.setting("depth_in_training", "x", ["--runs", str(tmp_path), "--device", "cpu", "--jobs", "1"])
    short = ("--data", "digits", "--epochs", "1", "--limit", "40", "--validation", "20")
    arguments = ("--model", checkpoints.TINY, *short)
    done = common.train_all({"tiny": arguments}, study_)
    assert done == {"tiny": tmp_path / "tiny"}
    before = (tmp_path / "tiny" / "weights.safetensors").read_bytes()
    assert pathlens.load_model(checkpoints.TINY, tmp_path / "tiny" / "weights.safetensors").trained
    with pytest.raises(SystemExit, match=r"training odd ended with exit code 2: pathlens: error: .*epochs"):
        common.train_all({"tiny": (), "odd": (*arguments, "--epochs", "0")}, study_)
    assert (tmp_path / "tiny" / "weights.safetensors").read_bytes() == before
