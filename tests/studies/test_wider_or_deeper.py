"""The study of effective depth at a size that tests can afford, and its statistics on numbers made by hand."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.tables import read_table
from studies import common
from studies.wider_or_deeper import compared, nets, trained
from tests.helpers.study_modules import run_study

TABLES = {
    "networks": {"network", "blocks", "widths", "parameters", "multiply_adds", "ratio"},
    "summary": {"network", "effective_depth", "seeds", "test_error", "test_error_low", "error_difference", "error_p"},
    "runs": {"run", "effective_depth", "seed", "test_error", "test_error_low", "test_error_high", "test_loss"},
    "lengths": {"effective_depth", "first", "last", "mean_length"},
    "claims": {"claim", "source", "rule", "test", "outcome"},
    "epochs": {"effective_depth", "epoch", "train_loss", "validation_error"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run: page and tables in ``out``, trained networks in ``runs``."""
    folder = tmp_path_factory.mktemp("wider")
    where = ("--out", str(folder / "out"), "--runs", str(folder / "runs"))
    run_study("wider_or_deeper", "--scale", "smoke", "--device", "cpu", "--jobs", "2", *where)
    return folder


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done):
    page = (done / "out" / "README.md").read_text()
    assert str(done) not in page
    for title in ("**Question.**", "**Protocol.**", "**Scale and hardware.**", "## Networks", "## What was claimed"):
        assert title in page
    for stem, columns in TABLES.items():
        assert columns <= set(read_table(done / "out" / f"{stem}.parquet").names)
        assert page.count(f"({stem}.csv)") == 1
        assert "seconds" not in read_table(done / "out" / f"{stem}.parquet").names
    for stem in ("depths", "epochs"):
        assert (done / "out" / f"{stem}.png").stat().st_size > 10_000
        assert f"]({stem}.png)" in page
    for file in (done / "out").glob("*.json"):
        assert str(done) not in file.read_text()


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(done):
    rows = {row["run"]: row for row in read_table(done / "out" / "runs.parquet").rows}
    assert set(rows) == {"deep9-L1-seed0", "deep9-Lall-seed0", "wide3_small-Lall-seed0"}
    run = done / "runs" / "deep9-L1-seed0"
    result = read_table(run / "result.csv")
    assert result.provenance["rule"] == "path-lengths 0:1"
    (test,) = [row for row in result.rows if row["split"] == "test"]
    assert rows["deep9-L1-seed0"]["test_error"] == test["error"]
    loaded = pathlens.load_model(f"{trained.NETS}:deep9", run / "weights.safetensors")
    data = pathlens.open_data("digits", limit=6)
    table = pathlens.path_gradients(loaded.model, data, method="exact", mean=loaded.mean, std=loaded.std)
    norms = [row["total_norm"] for row in table.rows]
    mean = sum(length * norm for length, norm in enumerate(norms)) / sum(norms)
    assert rows["deep9-L1-seed0"]["mean_length"] == pytest.approx(mean, rel=1e-5)
    (cut,) = [row for row in read_table(done / "out" / "summary.parquet").rows if row["effective_depth"] == "1"]
    whole = rows["deep9-Lall-seed0"]
    assert cut["error_difference"] == pytest.approx(test["error"] - whole["test_error"])


@pytest.mark.slow
def test_wide_networks_cost_what_the_deep_one_costs(done):
    for row in read_table(done / "out" / "networks.parquet").rows:
        first, *_, last = map(int, row["widths"].split(","))
        stem_and_head = 64 * 9 * first + 10 * last  # 8x8 positions of a 3x3 convolution, and ten classes
        assert row["multiply_adds"] == row["multiply_adds_in_blocks"] + stem_and_head
        assert abs(row["ratio"] - 1) <= 0.05
    for scale, image in (("cpu", torch.zeros(1, 1, 8, 8)), ("paper", torch.zeros(1, 3, 32, 32))):
        found = []
        for name in trained.networks(common.setting("wider_or_deeper", "x", ["--scale", scale])):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                getattr(nets, name)().eval()(image)
            found.append(counter.get_total_flops())
        assert len(found) == 3
        assert all(abs(flops / found[0] - 1) <= 0.05 for flops in found)


def test_a_network_of_another_cost_is_refused(monkeypatch):
    monkeypatch.setattr(trained, "networks", lambda _study: ("wide3", "wide3_small"))
    with pytest.raises(SystemExit, match=r"wide3_small has 0\.08 times the multiply-adds of wide3"):
        trained.costs(common.setting("wider_or_deeper", "x", ["--scale", "cpu"]))


def test_trainings_of_the_cpu_scale():
    wanted = trained.trainings(common.setting("wider_or_deeper", "x", ["--scale", "cpu"]))
    deep = [training for training in wanted if training.network == "deep27"]
    assert {training.depth for training in deep} == {1, 2, 4, 8, "all"}
    seeds = {training.seed for training in wanted}
    assert len(seeds) > 2
    assert len(wanted) == 7 * len(seeds)
    for training in wanted:
        assert ("--effective-depth" in training.arguments) == (training.depth != "all")
        assert not any(argument.startswith("/") for argument in training.arguments)


def _runs():
    errors = {
        ("deep", "1"): (0.20, 0.24, 0.22),
        ("deep", "all"): (0.10, 0.12, 0.14),
        ("wide", "all"): (0.1, 0.11, 0.15),
    }
    return [
        {"network": network, "effective_depth": depth, "seed": seed, "test_error": error, "test_loss": 2 * error}
        | {"train_loss": 0.1, "first": 1, "last": 4, "mean_length": 2.0, "test_images": 1000}
        for (network, depth), values in errors.items()
        for seed, error in enumerate(values)
    ]


def test_differences_are_paired():
    cut, whole, wide = compared.summary_rows(_runs())
    test = stats.ttest_rel((0.20, 0.24, 0.22), (0.10, 0.12, 0.14))
    assert cut["error_difference"] == pytest.approx(0.10)
    assert cut["error_p"] == pytest.approx(test.pvalue)
    assert cut["error_difference_low"] == pytest.approx(test.confidence_interval().low)
    assert cut["loss_difference"] == pytest.approx(0.20)
    # of six tests (three rows, one the baseline, error and loss of the others) the smaller four are corrected
    tests = [cut["error_p"], cut["loss_p"], wide["error_p"], wide["loss_p"]]
    assert cut["error_p_holm"] == pytest.approx(min(4 * min(tests), 1))
    assert wide["error_p_holm"] == 1
    one = stats.ttest_1samp((0.10, 0.12, 0.08), 0.005, alternative="less")
    assert cut["p_inferior"] == pytest.approx(one.pvalue)
    assert wide["p_inferior"] == pytest.approx(stats.ttest_1samp((0, -0.01, 0.01), 0.005, alternative="less").pvalue)
    assert whole["error_difference"] is whole["loss_p"] is None
    assert whole["test_error"] == pytest.approx(0.12)
    assert wide["error_difference"] == pytest.approx(0)


def test_the_interval_is_over_seeds_and_images():
    runs = {
        name: {seed: {"test_error": error, "test_images": 400} for seed in range(40)}
        for name, error in (("a", 0.2), ("b", 0.1))
    }
    low, high = compared.both_interval(runs["a"], runs["b"])
    # seeds do not differ, so that the interval is that of images: the mean of 40 differences of binomial rates
    half = 1.96 * ((0.2 * 0.8 + 0.1 * 0.9) / 400 / 40) ** 0.5
    assert low == pytest.approx(0.1 - half, abs=0.001)
    assert high == pytest.approx(0.1 + half, abs=0.001)
    single = {0: runs["a"][0]}
    assert compared.both_interval(single, {0: runs["b"][0]}) == (None, None)


def test_verdicts_need_interval_test_and_seeds():
    row = dict.fromkeys(("error_p", "loss_p", "loss_p_holm", "p_inferior"), 0.001)
    row |= {"error_difference": -0.02, "loss_difference": -0.1, "both_low": -0.03, "both_high": -0.01, "seeds": 5}
    assert compared.wider({**row, "error_p_holm": 0.01}).outcome == "agrees"
    assert compared.wider({**row, "error_p_holm": 0.06}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "both_high": 0.001}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "seeds": 2}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "both_low": 0.01, "both_high": 0.03}).outcome == "disagrees"
    assert compared.enough(row).outcome == "agrees"
    assert compared.enough({**row, "both_high": 0.004}).outcome == "agrees"
    assert compared.enough({**row, "both_high": 0.006}).outcome == "cannot tell"
    assert compared.enough({**row, "p_inferior": 0.06}).outcome == "cannot tell"
    assert compared.enough({**row, "both_low": 0.006, "both_high": 0.03}).outcome == "disagrees"
