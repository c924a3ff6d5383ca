"""The study of depth in training at a size that tests can afford, and its statistics on numbers made by hand."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

import pathlens
from pathlens.tables import read_table
from studies import common
from studies.depth_in_training import cells, checkpoints, gains, judged, trends
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
    "errors": {"weight_decay", "epoch", "validation_error"},
    "claims": {"claim", "source", "rule", "test", "outcome"},
    "by-epoch": {"epoch", "contribution", "mean_length", "mean_length_low", "mean_length_high", "validation_error"},
    "trends": {"since", "rho", "rho_p", "rising", "sign_p", "change", "change_low", "change_high", "change_p"},
    "curves": {"epoch", "contribution", "length", "share"},
    "gains": {"run", "epoch", "gamma", "response_ratio", "gradient_ratio", "predicted_length"},
    "gains-by-epoch": {"epoch", "gamma", "gamma_low", "gamma_high", "gradient_ratio_low"},
    "mechanism": {"contribution", "scale", "since", "moves", "rho", "rho_p_holm", "measured_over_predicted"},
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
    for title in (
        "**Question.**",
        "**Protocol.**",
        "**Scale and hardware.**",
        "## Scales of the branches",
        "## What was claimed",
    ):
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
    smaller, larger = sorted((whole["change_p"], later["change_p"]))
    corrected = {smaller: min(1, 2 * smaller), larger: max(larger, min(1, 2 * smaller))}
    assert whole["change_p_holm"] == pytest.approx(corrected[whole["change_p"]])
    assert later["change_p_holm"] == pytest.approx(corrected[later["change_p"]])
    assert later["part"] == pytest.approx(later["change"] / whole["change"])
    (start, *_) = module.by_epoch(ranges, [{"weight_decay": 0.1, "epoch": 0, "validation_error": 0.3}])
    assert start["validation_error"] == pytest.approx(0.3)
    assert start["mean_length"] == pytest.approx(5.5)
    assert start["mean_length_high"] == pytest.approx(5.5 + 4.302653 * 0.5 / math.sqrt(3))


def test_a_scale_that_moves_in_step_is_told_from_one_that_only_falls():
    lengths = [20.0, 15.0, 14.0, 10.0, 9.5]
    ranges = [
        {"run": "r", "epoch": epoch, "contribution": "exact", "mode": "train", "mean_length": length}
        for epoch, length in enumerate(lengths)
    ]
    moves = [5.0, 1.0, 4.0, 0.5]
    in_step, falling = [30.0], [30.0]
    for move, other in zip(moves, reversed(moves), strict=True):
        in_step.append(in_step[-1] - move)
        falling.append(falling[-1] - other)
    scales = [
        {"run": "r", "weight_decay": 0.1, "epoch": epoch, "gamma": falling[epoch], "response_ratio": in_step[epoch]}
        | {"gradient_ratio": in_step[epoch], "predicted_length": in_step[epoch]}
        for epoch in range(5)
    ]
    rows = {row["scale"]: row for row in trends.driven_by(scales, ranges, 0)}
    assert {row["moves"] for row in rows.values()} == {4}
    assert rows["response_ratio"]["rho"] == pytest.approx(1)
    assert rows["gamma"]["rho"] == pytest.approx(stats.spearmanr(moves, moves[::-1]).statistic)
    assert trends.rank_correlation(falling, lengths) == pytest.approx(1)  # what both trends say
    late = {row["scale"]: row for row in trends.driven_by(scales, ranges, 1)}  # without the first move
    assert {(row["since"], row["moves"]) for row in late.values()} == {(1, 3)}
    assert late["gamma"]["rho"] == pytest.approx(stats.spearmanr(moves[1:], moves[-2::-1]).statistic)
    assert trends.driven_by(scales, ranges, 2) == []  # two moves have no correlation


def test_correlations_with_scales_are_tested_over_seeds_and_corrected_over_all_rows():
    lengths = [20.0, 18.0, 17.5, 14.0, 13.0]
    scales = {
        "a": ([9.0, 7.0, 6.5, 4.0, 3.0], [9.0, 8.0, 6.0, 5.5, 3.0]),
        "b": ([9.0, 7.5, 6.5, 4.0, 3.9], [9.0, 7.0, 6.0, 4.4, 3.0]),
        "c": ([9.0, 7.0, 6.0, 3.0, 2.5], [9.0, 8.8, 7.0, 4.0, 3.5]),
    }
    ranges = [
        {"run": run, "epoch": epoch, "contribution": "exact", "mode": "train", "mean_length": length}
        for run in scales
        for epoch, length in enumerate(lengths)
    ]
    moving = [
        {"run": run, "weight_decay": 0.1, "epoch": epoch, "gamma": gamma[epoch], "response_ratio": ratio[epoch]}
        | {"gradient_ratio": 2 * gamma[epoch], "predicted_length": 9.0}
        for run, (gamma, ratio) in scales.items()
        for epoch in range(5)
    ]
    rows = {row["scale"]: row for row in trends.driven_by(moving, ranges, 0)}
    assert list(rows) == ["gamma", "response_ratio", "gradient_ratio"]  # what never moves has no correlation
    p = []
    for which, name in enumerate(("gamma", "response_ratio")):
        ranks = [stats.spearmanr(np.diff(own[which]), np.diff(lengths)).statistic for own in scales.values()]
        p.append(stats.ttest_1samp(ranks, 0).pvalue)
        assert (rows[name]["rho"], rows[name]["rho_p"]) == pytest.approx((sum(ranks) / 3, p[-1]))
    assert p[0] < 0.01 < 0.8 < p[1]
    corrected = [rows[name]["rho_p_holm"] for name in ("gamma", "gradient_ratio", "response_ratio")]
    assert corrected == pytest.approx([3 * p[0], 3 * p[0], p[1]])  # by hand, the two smallest being equal


def test_nothing_is_said_of_a_mechanism_where_it_is_not_shown_after_correction():
    key = {"weight_decay": 0.0, "contribution": "exact", "moves": 5}
    rows = [
        {**key, "scale": "gamma", "rho_low": 0.01, "rho_high": 0.4, "rho_p_holm": 0.08},
        {**key, "scale": "response_ratio", "rho_low": 0.2, "rho_high": 0.8, "rho_p_holm": 0.01},
        {**key, "scale": "gradient_ratio", "rho_low": None, "rho_high": None, "rho_p_holm": None},
    ]
    told = judged.moves_told(rows, 10)
    assert "from epoch 10 on, 5 in each run" in told
    assert "shown not to be 0 in 1 of 3 rows" in told
    assert "for gamma and exact (weight decay 0), gradient_ratio and exact (weight decay 0)." in told
    assert "too few kept epochs" in judged.moves_told([], 10)


def test_verdicts_follow_the_numbers():
    change = {
        "contribution": "sampled",
        "change": -1.0,
        "change_low": -1.5,
        "change_high": -0.5,
        "since": 10,
        "part": 0.1,
    }
    change |= {"change_p_holm": 0.01, "seeds": 5}
    assert judged.deeper([change]).outcome == "disagrees"
    assert judged.deeper([{**change, "change_low": 0.5, "change_high": 1.5}]).outcome == "agrees"
    assert judged.deeper([{**change, "change_p_holm": 0.2}]).outcome == "cannot tell"
    assert judged.deeper([{**change, "seeds": 2}]).outcome == "cannot tell"
    exact = {**change, "contribution": "exact", "change_low": 0.5, "change_high": 1.5}
    assert judged.deeper([exact, change]).outcome == "disagrees"  # the paper's contribution is judged
    begun = {"blocks": 54, "contribution": "sampled", "mean_length": 10.0, "mean_length_low": 9.0, "seeds": 3}
    assert judged.start([{**begun, "mean_length_high": 11.0}]).outcome == "agrees"
    assert judged.start([{**begun, "mean_length_high": 28.0}]).outcome == "cannot tell"
    assert judged.settled([0, 5, 10, 20]) == 10
    assert judged.settled([0, 1, 2]) == 1


@pytest.mark.parametrize(
    ("gamma", "change", "with_decay", "outcome"),
    [
        (1.01, (-6, -5), (-6, -5), "disagrees"),
        (1.5, (-6, -5), (-6, -5), "cannot tell"),  # gamma moves where it should not
        (1.01, (-0.4, 0.5), (-6, -5), "agrees"),
        (1.01, (-0.4, 0.5), (-6, 0.5), "cannot tell"),  # lengths may not move where gamma does either
        (1.01, (-3, 1), (-6, -5), "cannot tell"),
    ],
)
def test_gamma_is_judged_where_it_stands_still_and_where_it_moves(gamma, change, with_decay, outcome):
    means, tests, scales = [], [], []
    for rate, end, (low, high) in ((0, gamma, change), (0.1, 0.5, with_decay)):
        key = {"weight_decay": rate, "mode": "train", "contribution": "exact"}
        # from initialisation all of it would look otherwise
        means += [{**key, "epoch": epoch, "mean_length": length} for epoch, length in ((0, 99.0), (10, 10.0))]
        test = {**key, "change": (low + high) / 2, "change_low": low, "change_high": high, "seeds": 3}
        tests += [{**test, "since": 10}, {**test, "since": 0, "change_low": -90, "change_high": -80}]
        scales += [
            {"weight_decay": rate, "epoch": epoch, "response_ratio": 0.2}
            | {"gamma": value, "gamma_low": value, "gamma_high": value}
            for epoch, value in ((60, end), (10, 1.0), (0, 7.0))
        ]
    assert judged.scale(means, tests, scales, 0.1).outcome == outcome


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
    without = [run for run in others if run.arguments[-2:] == ("--weight-decay", "0")]
    assert {run.seed for run in without} == {run.seed for run in wanted.values()} == set(range(10))
    more = {name: run for name, run in wanted.items() if name not in theirs and run not in without}
    assert set(more) == {f"digits54-full-seed{seed}" for seed in range(5, 10)}
    first = theirs["digits54-full-seed0"]
    for run in more.values():
        assert [a if a != str(run.seed) else "0" for a in run.arguments] == list(first)
    given = common.setting("depth_in_training", "x", ["--scale", "cpu", "--runs", str(tmp_path)])
    assert checkpoints.shared(given).runs == tmp_path


@pytest.mark.slow
def test_larger_scales_train_in_processes_of_their_own(tmp_path):
    one_thread = ("--jobs", str(os.cpu_count()))
    study_ = common.setting("depth_in_training", "x", ["--runs", str(tmp_path), "--device", "cpu", *one_thread])
    short = ("--data", "digits", "--epochs", "1", "--limit", "40", "--validation", "20")
    arguments = ("--model", checkpoints.TINY, *short)
    done = common.train_all({"tiny": arguments}, study_)
    assert done == {"tiny": tmp_path / "tiny"}
    before = (tmp_path / "tiny" / "weights.safetensors").read_bytes()
    assert pathlens.load_model(checkpoints.TINY, tmp_path / "tiny" / "weights.safetensors").trained
    with pytest.raises(SystemExit, match=r"training odd ended with exit code 2: pathlens: error: .*epochs"):
        common.train_all({"tiny": (), "odd": (*arguments, "--epochs", "0")}, study_)
    assert (tmp_path / "tiny" / "weights.safetensors").read_bytes() == before
