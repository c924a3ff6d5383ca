"""The study of effective depth at a size that tests can afford, and its statistics on numbers made by hand."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.tables import read_table
from studies import common, record
from studies.rules import answers
from studies.wider_or_deeper import compared, nets, trained
from tests.helpers.study_modules import is_right, run_study

TABLES = {
    "networks": {"network", "blocks", "widths", "parameters", "multiply_adds", "ratio"},
    "summary": {"network", "effective_depth", "seeds", "test_error", "test_error_low", "error_difference", "error_p"},
    "runs": {"run", "effective_depth", "seed", "test_error", "test_error_low", "lost", "gained", "test_loss"},
    "lengths": {"effective_depth", "first", "last", "mean_length"},
    "claims": {"claim", "source", "rule", "test", "outcome"},
    "epochs": {"effective_depth", "epoch", "train_loss", "validation_error"},
    "cifar-networks": {"network", "multiply_adds", "ratio"},
    "cifar-runs": {"run", "network", "seed", "test_error", "test_images"},
    "cifar-summary": {"network", "error_difference", "error_p_holm", "both_low", "both_high"},
    "cifar-epochs": {"network", "epoch", "validation_error"},
    "cifar-lengths": {"network", "mean_length"},
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
        table = read_table(done / "out" / f"{stem}.parquet")
        assert columns <= set(table.names)
        assert "s" not in {column.unit for column in table.columns}  # times of runs beside other work say nothing
        assert page.count(f"({stem}.csv)") == 1
    for stem in ("depths", "epochs", "cifar-errors", "cifar-epochs"):
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
    # which images were lost and gained, by a forward pass of each network
    images = pathlens.open_data("digits", split="test")
    (whole_right, cut_right) = (
        is_right(pathlens.load_model(f"{trained.NETS}:deep9", done / "runs" / name / "weights.safetensors"), images)
        for name in ("deep9-Lall-seed0", "deep9-L1-seed0")
    )
    assert rows["deep9-L1-seed0"]["lost"] == (whole_right & ~cut_right).sum()
    assert rows["deep9-L1-seed0"]["gained"] == (cut_right & ~whole_right).sum() != whole_right.sum()
    assert (whole["lost"], whole["gained"]) == (0, 0)
    assert cut["error_difference"] == pytest.approx(float(whole_right.sum() - cut_right.sum()) / images.n)


@pytest.mark.slow
def test_wide_networks_cost_what_the_deep_one_costs(done):
    for row in read_table(done / "out" / "networks.parquet").rows:
        first, *_, last = map(int, row["widths"].split(","))
        stem_and_head = 64 * 9 * first + 10 * last  # 8x8 positions of a 3x3 convolution, and ten classes
        assert row["multiply_adds"] == row["multiply_adds_in_blocks"] + stem_and_head
        assert abs(row["ratio"] - 1) <= 0.05
    for networks, image in (
        (trained.main_part(_setting("cpu")).networks, (1, 1, 8, 8)),
        (("deep54_cifar", "wide9_cifar", "wide3_cifar"), (1, 3, 32, 32)),
        (("deep27_rgb", "wide9_rgb", "wide3_rgb"), (1, 3, 16, 16)),
    ):
        found = []
        for name in networks:
            with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():  # shapes alone
                getattr(nets, name)().eval()(torch.zeros(image))
            found.append(counter.get_total_flops())
        assert len(found) == 3
        assert all(abs(flops / found[0] - 1) <= 0.05 for flops in found)


@pytest.fixture
def _no_figures(monkeypatch):
    """They take longest, and are there."""
    monkeypatch.setattr(common.figures, "save", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_figures")
def test_parts_are_measured_again_alone(done, tmp_path):
    out = shutil.copytree(done / "out", tmp_path / "out")
    before = {stem: read_table(out / f"{stem}.csv").rows for stem in TABLES}
    for stem in ("cifar-networks", "cifar-runs", "cifar-epochs"):
        (out / f"{stem}.csv").unlink()
    known = record.read(out)
    where = ("--scale", "smoke", "--device", "cpu", "--out", str(out), "--runs", str(done / "runs"))
    run_study("wider_or_deeper", *where, "--only", "cifar")
    # the trainings that are there are not done again, and nothing of the others has moved
    assert {stem: read_table(out / f"{stem}.csv").rows for stem in TABLES} == before
    again = record.read(out)
    assert again["measured"] == known["measured"]
    assert again["trainings"] == known["trainings"]
    runs = [one["run"] for one in again["apart"]["cifar"]["trainings"]]
    assert runs == ["cifar-deep9-Lall-seed0", "cifar-wide3_small-Lall-seed0"]
    assert "Its part `cifar`: last measured " in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_figures")
def test_a_page_without_the_images_says_so(done, tmp_path):
    out = shutil.copytree(done / "out", tmp_path / "out")
    for path in out.glob("cifar-*"):
        path.unlink()
    run_study("wider_or_deeper", "--restate", "--out", str(out), "--runs", str(tmp_path))
    page = (out / "README.md").read_text()
    assert "Left out: these networks were not trained." in page
    assert not list(out.glob("cifar-*"))


def test_a_part_alone_needs_its_images_and_the_rest(monkeypatch, tmp_path):
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    where = ("--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--only", "cifar")
    with pytest.raises(SystemExit, match="needs CIFAR-10 at --scale cpu: set PATHLENS_DATA"):
        run_study("wider_or_deeper", "--scale", "cpu", *where)
    with pytest.raises(SystemExit, match="has no tables of --scale smoke to add to; measure the rest first"):
        run_study("wider_or_deeper", "--scale", "smoke", *where)
    assert not list(tmp_path.iterdir())


def _setting(scale):
    return common.setting("wider_or_deeper", "x", ["--scale", scale])


def test_a_network_of_another_cost_is_refused():
    part = dataclasses.replace(trained.main_part(_setting("cpu")), networks=("wide3", "wide3_small"))
    with pytest.raises(SystemExit, match=r"wide3_small has 0\.08 times the multiply-adds of wide3"):
        trained.costs(part)


def test_trainings_of_the_cpu_scale(monkeypatch, tmp_path):
    monkeypatch.setenv("PATHLENS_DATA", str(tmp_path))
    (tmp_path / "cifar10-jpeg").mkdir()
    study = _setting("cpu")
    wanted = trained.trainings(trained.main_part(study), study)
    deep = [training for training in wanted if training.network == "deep27"]
    assert {training.depth for training in deep} == {1, 2, 4, 8, "all"}
    seeds = {training.seed for training in wanted}
    assert len(seeds) > 2
    assert len(wanted) == 7 * len(seeds)
    for training in wanted:
        assert ("--effective-depth" in training.arguments) == (training.depth != "all")
        assert not any(argument.startswith("/") for argument in training.arguments)
    part = trained.cifar_part(study)
    colour = trained.trainings(part, study)
    assert len(colour) == 9
    assert not {one.name for one in colour} & {one.name for one in wanted}
    for training in colour:
        given = dict(zip(training.arguments[::2], training.arguments[1::2], strict=True))
        assert given["--data"] == f"parquet:{tmp_path}/cifar10-jpeg"
        assert int(given["--limit"]) - int(given["--validation"]) == 19_000
        assert int(given["--image-size"]) == part.image_size
    monkeypatch.delenv("PATHLENS_DATA")
    assert trained.cifar_part(study) is None


def _runs():
    errors = {
        ("deep", "1"): (0.20, 0.24, 0.22),
        ("deep", "all"): (0.10, 0.12, 0.14),
        ("wide", "all"): (0.1, 0.11, 0.15),
    }
    return [
        {"network": network, "effective_depth": depth, "seed": seed, "test_error": error, "test_loss": 2 * error}
        | {"train_loss": 0.1, "first": 1, "last": 4, "mean_length": 2.0, "test_images": 1000}
        | {"lost": 0, "gained": 0}
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
    for name, alternative in (("p_if_worse", "less"), ("p_if_not_worse", "greater")):
        one = stats.ttest_1samp((0.10, 0.12, 0.08), 0.005, alternative=alternative)
        assert cut[name] == cut[f"{name}_holm"] == pytest.approx(one.pvalue)
        assert wide[name] is None  # the margin is that of cut gradients
    assert whole["error_difference"] is whole["loss_p"] is None
    assert whole["test_error"] == pytest.approx(0.12)
    assert wide["error_difference"] == pytest.approx(0)


def test_both_tests_against_the_margin_are_corrected_over_the_depths():
    more = [{**run, "effective_depth": "2", "test_error": run["test_error"] - 0.02} for run in _runs()[:3]]
    *cuts, _, _ = sorted(compared.summary_rows([*_runs(), *more]), key=lambda one: one["effective_depth"])
    for name, alternative in (("p_if_worse", "less"), ("p_if_not_worse", "greater")):
        plain = [
            stats.ttest_1samp([gap - shift for gap in (0.10, 0.12, 0.08)], 0.005, alternative=alternative).pvalue
            for shift in (0, 0.02)
        ]
        assert min(cut[f"{name}_holm"] for cut in cuts) == pytest.approx(min(1, 2 * min(plain)))


def _trained(errors, images, lost=0, gained=0):
    counts = np.broadcast_to(np.transpose([lost, gained]), (len(errors), 2)).tolist()
    return {
        seed: {"test_error": error, "test_images": images, "lost": of[0], "gained": of[1]}
        for seed, (error, of) in enumerate(zip(errors, counts, strict=True))
    }


def test_the_interval_is_over_seeds_and_images():
    # seeds do not differ, so that the interval is that of the paired images, which more seeds do not narrow
    own, whole = _trained([0.2] * 40, 400, 60, 20), _trained([0.1] * 40, 400)
    changes = np.repeat([1, -1, 0], [60, 20, 320])
    half = stats.norm.ppf(0.975) * (changes.var() / 400) ** 0.5
    assert answers.both_interval(own, whole) == pytest.approx((0.1 - half, 0.1 + half))
    # of endless images it is Student's over the seeds
    errors, deep = (0.2, 0.22, 0.18), (0.1, 0.1, 0.1)
    students = stats.ttest_rel(errors, deep).confidence_interval()
    endless = answers.both_interval(_trained(errors, 10**12), _trained(deep, 10**12))
    assert endless == pytest.approx(tuple(students))
    # of both, with Satterthwaite's degrees of freedom; never narrower than Student's over the seeds
    seeds, images = np.var([0.1, 0.12, 0.08], ddof=1) / 3, np.repeat([1, -1, 0], [300, 100, 1600]).var() / 2000
    half = stats.t((seeds + images) ** 2 / (seeds**2 / 2)).ppf(0.975) * (seeds + images) ** 0.5
    low, high = answers.both_interval(_trained(errors, 2000, 300, 100), _trained(deep, 2000))
    assert (low, high) == pytest.approx((min(0.1 - half, students.low), max(0.1 + half, students.high)))
    assert answers.both_interval(_trained([0.2], 400), _trained([0.1], 400)) == (None, None)


@pytest.mark.parametrize(
    ("alike", "least"),
    [(0.2, 935), (0.1, 950)],  # of 1000: two standard errors below 95 %; too wide where seeds differ on images
)
def test_the_interval_of_three_seeds_covers(alike, least):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        common, own = (
            rng.choice([1, -1, 0], (3, 500), p=[part / 2, part / 2, 1 - part]) for part in (alike, 0.2 - alike)
        )
        changes = np.where(common[:1] != 0, common[:1], own)
        errors = 0.3 + changes.mean(1) + rng.normal(0, 0.02, 3)
        trained_here = _trained(errors, 500, (changes > 0).sum(1), (changes < 0).sum(1))
        low, high = answers.both_interval(trained_here, _trained([0.3] * 3, 500))
        covered += low <= 0 <= high
    assert covered >= least


def test_only_paths_beyond_the_effective_depth_are_the_papers():
    row = dict.fromkeys(
        ("error_p", "error_p_holm", "loss_p", "loss_p_holm", "p_if_worse_holm", "p_if_not_worse_holm"), 1.0
    )
    row |= {"error_difference": 0.0, "loss_difference": 0.0, "both_low": -0.01, "both_high": 0.01, "seeds": 5}
    depths = ("1", "4", "8", "16", "all")
    summary = [{**row, "network": "deep", "effective_depth": depth, "last": 9.4} for depth in depths]
    summary[-1]["last"] = 8.2  # of the whole gradient
    summary.append({**row, "network": "wide", "effective_depth": "all", "last": 3.0})
    found = {one["network"]: one for one in compared.verdicts(summary, [{"network": "deep"}], is_whole=True)}
    sources = {depth: found[f"deep, L = {depth}"]["source"] for depth in depths[:-1]}
    assert {depth for depth, source in sources.items() if source == "ours"} == {"1", "4"}
    assert all(source.startswith(compared.PAPER) for depth, source in sources.items() if depth in ("8", "16"))
    assert found["wide against deep"]["source"] == compared.WIDER.source
    short = compared.verdicts(summary, [{"network": "deep"}], is_whole=False)
    assert {one["source"] for one in short if one["claim"] == compared.WIDER.name} == {"ours"}


def test_verdicts_need_interval_test_and_seeds():
    row = dict.fromkeys(("error_p", "loss_p", "loss_p_holm", "p_if_worse_holm", "p_if_not_worse_holm"), 0.001)
    row |= {"error_difference": -0.02, "loss_difference": -0.1, "both_low": -0.03, "both_high": -0.01, "seeds": 5}
    assert compared.wider({**row, "error_p_holm": 0.01}).outcome == "agrees"
    assert compared.wider({**row, "error_p_holm": 0.06}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "both_high": 0.001}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "seeds": 2}).outcome == "cannot tell"
    assert compared.wider({**row, "error_p_holm": 0.01, "both_low": 0.01, "both_high": 0.03}).outcome == "disagrees"
    assert compared.enough(row).outcome == "agrees"
    assert compared.enough({**row, "both_high": 0.004}).outcome == "agrees"
    assert compared.enough({**row, "both_high": 0.006}).outcome == "cannot tell"
    assert compared.enough({**row, "p_if_worse_holm": 0.06}).outcome == "cannot tell"
    worse = {**row, "error_difference": 0.02, "both_low": 0.006, "both_high": 0.03, "p_if_worse_holm": 1.0}
    verdict = compared.enough(worse)
    assert (verdict.outcome, verdict.p) == ("disagrees", 0.001)
    assert "p 0.001 after Holm's correction if the difference were 0.5 points or less" in verdict.here
    assert compared.enough({**worse, "p_if_not_worse_holm": 0.06}).outcome == "cannot tell"
