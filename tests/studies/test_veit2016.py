"""The study of Veit et al. 2016 at its smallest scale, from training to the page."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pathlens
from pathlens.cli import main
from pathlens.models.checkpoints import save_weights
from pathlens.tables import Column, Table, read_table
from studies import common, record
from studies.veit2016 import __main__ as study
from studies.veit2016 import cifar, hurt, judged, left, retraining, stated, trainings, winograd
from studies.veit2016.measured import kinds_of
from tests.helpers.data_files import image_folder, noise, png, write
from tests.helpers.study_modules import is_right, run_study


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("veit2016")
    image_folder(folder / "imagenet", {"cat": 3, "dog": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHLENS_IMAGENET", str(folder / "imagenet"))
        patch.setenv("PATHLENS_IMAGENET_WEIGHTS", "random")
        patch.delenv("PATHLENS_DATA", raising=False)
        run_study(
            "veit2016", "--scale", "smoke", "--out", str(folder / "out"), "--runs", str(folder / "runs"), "--jobs", "2"
        )
    return folder


@pytest.mark.slow
def test_every_section_has_its_table_and_figure(page: Path) -> None:
    text = (page / "out" / "README.md").read_text()
    runs = ("preresnet20-full-seed0", "preresnet20-m4-seed0", "vgg15-seed0", "highway19-seed0")
    whole = [f"{key}-{runs[0]}" for key in ("sets", "orders", "gradients")]
    for stem in (*(f"lesions-{run}" for run in runs), *whole, "sets-preresnet20-sd-seed0", "lesions-imagenet"):
        assert f"({stem}.png)" in text
        assert (page / "out" / f"{stem}.csv").is_file()
        assert (page / "out" / f"{stem}.pdf").is_file()
    # several networks, or several rules, in one panel; and what is computed from the gradients
    for stem in ("lesions", "sets-preresnet20", f"paths-left-{runs[0]}", f"cancellation-{runs[0]}", "retraining"):
        assert f"({stem}.png)" in text
    for part in ("**Question.**", "**Protocol.**", "**Scale and hardware.**", "## What was claimed", "(figure 4)"):
        assert part in text
    assert str(page) not in text
    for file in (page / "out").glob("*.json"):
        assert str(page) not in file.read_text()


@pytest.mark.slow
def test_lesions_are_those_of_the_trained_network(page: Path) -> None:
    table = read_table(page / "out" / "lesions-preresnet20-full-seed0.csv")
    loaded = pathlens.load_model("preresnet20", page / "runs" / "preresnet20-full-seed0" / "weights.safetensors")
    data = pathlens.open_data("digits", limit=40)
    again = pathlens.delete_blocks(loaded.model, data, blocks=[4], mean=loaded.mean, std=loaded.std)
    found = next(row for row in table.rows if row["block"] == 4)
    assert found["error"] == again.rows[1]["error"]
    assert found["loss"] == pytest.approx(again.rows[1]["loss"])


@pytest.mark.slow
def test_retraining_is_read_from_the_runs(page: Path) -> None:
    runs = read_table(page / "out" / "runs.csv")
    assert {row["rule"] for row in runs.rows} == {
        "full",
        "blocks-per-batch 4",
        "stochastic-depth linear:0.5 per batch",
    }
    for row in runs.rows:
        result = read_table(page / "runs" / str(row["run"]) / "result.csv")
        assert row["test_error"] == next(r["error"] for r in result.rows if r["split"] == "test")
    # which images were lost and gained, by a forward pass of both networks
    data = pathlens.open_data("digits")
    whole, less = (
        is_right(pathlens.load_model("preresnet20", page / "runs" / name / "weights.safetensors"), data)
        for name in ("preresnet20-full-seed0", "preresnet20-m4-seed0")
    )
    counts = {row["run"]: (row["lost"], row["gained"]) for row in runs.rows}
    assert counts["preresnet20-m4-seed0"] == ((whole & ~less).sum(), (less & ~whole).sum())
    assert counts["preresnet20-full-seed0"] == (0, 0)
    assert counts["highway19-seed0"] == (None, None)
    blocks = {row["run"]: row["blocks"] for row in runs.rows}
    assert blocks["preresnet20-full-seed0"] == 9
    assert blocks["preresnet20-m4-seed0"] == 4
    assert blocks["highway19-seed0"] == 15
    summary = read_table(page / "out" / "retraining.csv")
    assert [row["trained"] for row in summary.rows] == ["full", "m4", "sd"]


@pytest.mark.slow
def test_one_seed_tells_nothing(page: Path) -> None:
    rows = read_table(page / "out" / "claims.csv").rows
    assert {row["outcome"] for row in rows} == {"cannot tell"}
    assert {row["seeds"] for row in rows} == {1}
    ours = [row["claim"] for row in rows if row["source"] == "ours"]
    # the paper says nothing of highway networks, nor of trainings as short as these
    assert {"highway network", "single deletions after stochastic depth"} <= set(ours)
    assert not {"single deletions", "plain network", "gradient of single paths"} & set(ours)


@pytest.mark.slow
def test_the_record_says_where_everything_comes_from(page: Path) -> None:
    known = record.read(page / "out")
    assert known["measured"]["commit"] == known["page"]["commit"]
    assert {one["run"] for one in known["trainings"]} == {
        row["run"] for row in read_table(page / "out" / "runs.csv").rows
    }
    for one in (known["measured"], *known["trainings"]):
        assert all(one[name] for name in record.STEP)
    for name, digest in known["files"].items():
        assert hashlib.sha256((page / "out" / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_the_page_is_made_from_the_tables_alone(page: Path, tmp_path: Path) -> None:
    again = shutil.copytree(page / "out", tmp_path / "again")
    setting = common.StudySetting("veit2016", "smoke", again, tmp_path, "cpu", 1, draws=False)
    known = record.read(again)
    assert study.state(setting).text_of(known["protocol"], known) == (page / "out" / "README.md").read_text()


def _runs(errors: dict[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    return [
        {"network": "n", "data": "d", "trained": trained, "seed": seed, "test_error": error, "test_images": 10**6}
        | {"lost": 0, "gained": 0}
        for trained, own in errors.items()
        for seed, error in enumerate(own)
    ]


def test_retraining_is_judged_by_a_margin_and_a_correction() -> None:
    full = (0.060, 0.062, 0.061, 0.059)
    same = tuple(error + step for error, step in zip(full, (0.0005, -0.0005, 0.0, 0.0004), strict=True))
    worse = tuple(error + step for error, step in zip(full, (0.02, 0.022, 0.019, 0.021), strict=True))
    rows = {row["trained"]: row for row in retraining.summary_rows(_runs({"full": full, "m23": same, "m7": worse}))}
    gaps = [a - b for a, b in zip(same, full, strict=True)]
    p = stats.ttest_1samp(gaps, 0.005, alternative="less").pvalue
    assert rows["m23"]["p_if_worse"] == pytest.approx(p)
    assert rows["m23"]["p_if_worse_holm"] == pytest.approx(2 * p)
    assert rows["m23"]["p"] == pytest.approx(stats.ttest_rel(same, full).pvalue)
    assert retraining.as_good(rows["m23"]).outcome == "agrees"
    assert retraining.as_good(rows["m7"]).outcome == "disagrees"
    assert retraining.as_good({**rows["m23"], "p_if_worse_holm": 0.06}).outcome == "cannot tell"
    # of few images, of which some are lost and as many gained, less is shown
    few = [{**row, "test_images": 1000, "lost": 40, "gained": 40} for row in _runs({"full": full, "m23": same})]
    unsure = retraining.summary_rows(few)[1]
    assert unsure["both_high"] > 0.005 > unsure["difference_high"]
    assert retraining.as_good(unsure).outcome == "cannot tell"
    unknown = [{**row, "lost": None, "gained": None} for row in few]
    assert retraining.as_good(retraining.summary_rows(unknown)[1]).outcome == "cannot tell"
    two = {row["trained"]: row for row in retraining.summary_rows(_runs({"full": full[:2], "m7": worse[:2]}))}
    assert retraining.as_good(two["m7"]).outcome == "cannot tell"
    assert rows["full"]["difference"] is None


def test_a_difference_is_of_fit_and_of_what_is_above_it() -> None:
    errors = {"full": (0.10, 0.02), "m23": (0.15, 0.08), "m7": (0.30, 0.29)}
    runs = [
        {"run": trained, "network": "n", "trained": trained, "seed": 0, "test_error": test}
        for trained, (test, _) in errors.items()
    ]
    right = {name: torch.arange(100) >= round(100 * train) for name, (_, train) in errors.items() if name != "m7"}
    full, less = retraining.fitted_rows(runs, right)
    assert (full["train_error"], full["difference"]) == (0.02, None)
    assert full["train_error_low"] < 0.02 < full["train_error_high"]
    assert (less["train_error"], less["train_images"]) == (0.08, 100)
    assert [less[name] for name in ("difference", "of_fit", "of_gap")] == pytest.approx([0.05, 0.06, -0.01])
    (alone,) = retraining.fitted_rows(runs[1:], {"m23": right["m23"]})
    assert alone["of_fit"] is None


def test_what_is_trained_on_digits() -> None:
    wanted = trainings.trainings(common.setting("veit2016", "x", ["--scale", "cpu"]))
    numbers = {training.blocks for training in wanted if training.blocks}
    assert numbers == {7, 15, 23, 31, 39}
    others = [training for training in wanted if training.rule in ("plain", "highway")]
    for number in (None, *numbers):
        seeds = [training.seed for training in wanted if training not in others and training.blocks == number]
        assert set(seeds) == set(range(5))
    assert {training.seed for training in others} == {0, 1, 2}
    assert len({training.name for training in wanted}) == len(wanted)


TINY = f"{common.ROOT / 'studies' / 'depth_in_training' / 'nets.py'}:tiny"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training."""
    run = tmp_path_factory.mktemp("beside") / "tiny-own-seed0"
    short = ("--data", "digits", "--epochs", "1", "--limit", "40", "--validation", "20", "--device", "cpu", "--quiet")
    with contextlib.chdir(run.parent):
        assert main(["train", "--model", TINY, *short, "--blocks-per-batch", "2", "--out", run.name]) == 0
    return run


def test_networks_that_were_trained_beside_are_kept_and_missing_ones_named(
    beside: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run, network = beside, TINY
    kept = cifar.keep(run, tmp_path / "kept")
    (one,) = cifar.kept(tmp_path / "kept")
    assert one.weights == kept
    assert one.trained == "own"
    assert str(run.parent) not in (tmp_path / "kept" / f"{run.name}.json").read_text()
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.name != record.NAME]
    assert record.read(tmp_path / "kept")["files"] == {
        str(path.relative_to(tmp_path / "kept")): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    whole, half = (
        pathlens.load_model(network, path).model.state_dict() for path in (run / "weights.safetensors", kept)
    )
    for name, value in whole.items():
        assert torch.equal(value.to(torch.float16).to(value.dtype), half[name].to(value.dtype)), name
    row = cifar.run_row(one)
    assert row["test_error"] == next(r["error"] for r in read_table(run / "result.csv").rows if r["split"] == "test")
    assert row["blocks"] == 2
    # times stay in the run folder, but for their sum
    history, there = (read_table(path) for path in (run / "history.csv", kept.parents[1] / f"history-{run.name}.csv"))
    assert history.names == (*there.names, "seconds", "images_per_second")
    assert there.rows == tuple({name: epoch[name] for name in there.names} for epoch in history.rows)
    assert cifar.without_times(there) == there
    (phase,) = one.facts["phases"]
    assert phase["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in history.rows))
    monkeypatch.setattr(cifar, "WANTED", ("tiny-own-seed0", "tiny-full-seed0", "tiny-m23-seed0"))
    assert cifar.missing(tmp_path / "kept") == ["tiny-full-seed0", "tiny-m23-seed0"]
    monkeypatch.setattr(cifar, "LARGEST", 100)
    with pytest.raises(SystemExit, match="more than 100 bytes"):
        cifar.keep(run, tmp_path / "kept")
    assert cifar.kept(tmp_path / "kept") == [one]  # of before
    with pytest.raises(SystemExit, match=r"no result\.csv"):
        cifar.keep(tmp_path, tmp_path / "kept")


def test_it_is_said_how_long_all_that_are_kept_took(tmp_path: Path) -> None:
    def kept(name: str, *seconds: float | None, device: str = "cpu") -> cifar.Kept:
        there = {"device": device, "hardware": {"cores_allowed": 2}}
        phases = [there if one is None else {**there, "seconds": one} for one in seconds]
        (tmp_path / f"{name}.json").write_text(json.dumps({"phases": phases}))
        return cifar.Kept(name, tmp_path)

    two = [kept("a", 3600, 5400.0), kept("b", 7200)]
    rest = ", without evaluation, and without the trainings that were given up."
    assert cifar.took(two) == f" The steps of the 2 trainings that are there took 4.5 hours of 2 cores{rest}"
    more = [*two, kept("c", 1800, device="cuda"), kept("d", None, 9000)]  # of the last not all phases say it
    together = "4.5 hours of 2 cores and 0.5 hours of a GPU"
    assert cifar.took(more) == f" The steps of 3 of the 4 trainings that are there took {together}{rest}"
    assert cifar.took(more[3:]) == cifar.took([]) == ""


def test_a_name_says_by_which_rule_a_network_on_cifar_is_trained() -> None:
    rules = {"full": "", "m23": "--blocks-per-batch 23", "sd": "--stochastic-depth linear:0.5"}
    for rule, options in rules.items():
        half, whole = cifar.phases(f"preresnet110-{rule}-seed1", "images").values()
        # branches are multiplied by their probabilities once, after both phases
        assert ("--rescale" in half, "--rescale" in whole) == (bool(options), False)
        assert all(options in " ".join(phase) and "--seed 1" in " ".join(phase) for phase in (half, whole))
    for wrong in ("preresnet110-sd5-seed1", "vgg15_narrow-sd-seed1", "preresnet110-m-seed1"):
        with pytest.raises(SystemExit, match="names no run"):
            cifar.phases(wrong, "images")


def test_networks_on_cifar_are_trained_in_two_phases(tmp_path: Path, monkeypatch: Any) -> None:
    for seed, split in enumerate(("train", "test")):
        images = [png(pixels) for pixels in noise(12, 32, 32, 3, seed=seed)]
        write(tmp_path / "cifar10-jpeg" / f"{split}.parquet", images, [0, 1] * 6)
    monkeypatch.setenv("PATHLENS_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "NETWORK", "preresnet20")
    monkeypatch.setattr("pathlens.figures.files", lambda *_: {})  # which nobody looks at here
    for phase in ("HALF", "WHOLE"):
        place = getattr(cifar, phase).index("--epochs") + 1
        short = (*getattr(cifar, phase)[:place], "1", *getattr(cifar, phase)[place + 1 :], "--validation", "2")
        monkeypatch.setattr(cifar, phase, short)
    name, runs, out = "preresnet20-m4-seed0", tmp_path / "runs", tmp_path / "out"
    where = ("--runs", str(runs), "--out", str(out), "--device", "cpu")
    assert cifar.main([name, *where]) == 0
    (one,) = cifar.kept(out)
    half, whole = one.facts["phases"]
    assert one.facts["convolutions"] == (None if winograd.kernel() is None else winograd.NAME)
    assert [(call["from_step"], call["device"]) for phase in (half, whole) for call in phase["calls"]] == [
        (0, "cpu")
    ] * 2
    assert (half["run"], whole["run"]) == (f"{name}-half", name)
    assert str(tmp_path) not in (out / f"{name}.json").read_text()
    # of the 4 of 9 blocks the branches are multiplied by 4/9 once, at the end
    rules = [read_table(runs / run / "result.csv").provenance["rule"] for run in (half["run"], whole["run"])]
    assert rules == ["blocks-per-batch 4"] * 2
    kept = [json.loads((runs / run / "manifest.json").read_text())["rescale"] for run in (half["run"], whole["run"])]
    assert kept == ["none", "test"]
    # the plain network beside it: its convolutions have biases, so that torch computes them
    plain = "vgg15_narrow-plain-seed1"
    assert cifar.main([plain, *where]) == 0
    other = {one.name: one for one in cifar.kept(out)}[plain]
    assert other.facts["convolutions"] is None
    assert (other.network, other.trained, other.seed) == ("vgg15_narrow", "plain", 1)
    assert other.facts["row"]["rule"] == "plain"
    assert kinds_of(other.trained) == kinds_of("highway") == ("lesions",)
    assert (kinds_of("sd"), kinds_of(one.trained)) == (("lesions", "sets"), ("lesions", "sets", "hurt"))
    with pytest.raises(
        SystemExit,
        match="names no run; write preresnet20-full-seedS, vgg15_narrow-plain-seedS, preresnet20-sd",
    ):
        cifar.main(["resnet20", *where])
    monkeypatch.delenv("PATHLENS_DATA")
    with pytest.raises(SystemExit, match="set PATHLENS_DATA"):
        cifar.main([name, *where])


@pytest.mark.slow
def test_networks_on_cifar_are_measured_alone(page: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for seed, split in enumerate(("train", "test")):
        images = [png(pixels) for pixels in noise(12, 32, 32, 3, seed=seed)]
        write(tmp_path / "cifar10-jpeg" / f"{split}.parquet", images, [0, 1] * 6)
    out = shutil.copytree(page / "out", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.glob("*-seed0.csv")}
    arguments = ["--only", "cifar", "--scale", "smoke", "--out", str(out), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(cifar, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(cifar.kept, "__defaults__", (tmp_path / "kept",))
    with pytest.raises(SystemExit, match=r"--only cifar needs a network in .*; studies.veit2016.cifar trains"):
        run_study("veit2016", *arguments)
    name = "resnet20-full-seed9"
    row = {**read_table(out / "runs.csv").rows[0], "data": "cifar10-jpeg", "test_error": 0.9}
    (tmp_path / "kept" / "weights").mkdir(parents=True)
    model = pathlens.load_model("resnet20", "random", seed=9).model
    save_weights(tmp_path / "kept" / "weights" / f"{name}.safetensors", model.half(), {})
    phase = {**record.read(out)["trainings"][0], "run": name}
    (tmp_path / "kept" / f"{name}.json").write_text(json.dumps({"row": row, "phases": [phase]}))
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    with pytest.raises(SystemExit, match="--only cifar needs PATHLENS_DATA"):
        run_study("veit2016", *arguments)
    monkeypatch.setenv("PATHLENS_DATA", str(tmp_path))
    # one kind of table first: what the others would tell is not judged
    run_study("veit2016", *arguments, "--kinds", "sets")
    assert [path.stem for path in sorted(out.glob(f"*-{name}.csv"))] == [f"sets-{name}"]
    assert "resnet20" not in {row["network"] for row in read_table(out / "claims.csv").rows}
    (out / f"sets-{name}.csv").unlink()
    run_study("veit2016", *arguments, "--kinds", "lesions")
    assert [path.stem for path in sorted(out.glob(f"*-{name}.csv"))] == [f"lesions-{name}"]
    judged = {row["claim"] for row in read_table(out / "claims.csv").rows if row["network"] == "resnet20"}
    assert judged == {"single deletions", "no block but those that downsample", "downsampling blocks"}
    first = (out / f"lesions-{name}.csv").stat().st_mtime_ns
    run_study("veit2016", *arguments)
    assert (out / f"lesions-{name}.csv").stat().st_mtime_ns == first
    assert len({row["claim"] for row in read_table(out / "claims.csv").rows if row["network"] == "resnet20"}) == 10
    for key in ("lesions", "sets", "hurt", "orders", "gradients"):
        assert read_table(out / f"{key}-{name}.csv").provenance["data"] == "cifar10-jpeg"
    assert [one["run"] for one in record.read(out)["apart"]["cifar"]["trainings"]] == [name]
    assert [one["run"] for one in read_table(out / "runs.csv").rows].count(name) == 1
    assert f"(lesions-{name}.png)" in (out / "README.md").read_text()
    # the training images, by a forward pass
    (fitted,) = read_table(out / "fitted.csv").rows
    data = pathlens.open_data(f"parquet:{tmp_path / 'cifar10-jpeg'}", split="train", limit=10)
    right = is_right(pathlens.load_model("resnet20", tmp_path / "kept" / "weights" / f"{name}.safetensors"), data)
    assert (fitted["run"], fitted["train_images"]) == (name, 10)
    assert fitted["train_error"] == pytest.approx(1 - right.float().mean().item())
    # what is there is not measured again, and nothing of the others is
    measured = (out / f"gradients-{name}.csv").stat().st_mtime_ns
    with monkeypatch.context() as known:
        known.setattr(study, "right_answers", None)  # not callable
        run_study("veit2016", *arguments)
    assert [one["run"] for one in read_table(out / "fitted.csv").rows] == [name]
    assert [one["run"] for one in read_table(out / "runs.csv").rows].count(name) == 1
    assert (out / f"gradients-{name}.csv").stat().st_mtime_ns == measured
    for file, content in before.items():
        assert (out / file).read_bytes() == content
    other = pathlens.load_model("resnet20", "random", seed=8).model
    save_weights(tmp_path / "kept" / "weights" / f"{name}.safetensors", other.half(), {})
    with pytest.raises(SystemExit, match="is of other weights of resnet20-full-seed9"):
        run_study("veit2016", *arguments)


def test_paths_left_are_those_of_all_sets_of_deleted_blocks() -> None:
    norms = {length: 1.5**-length for length in range(6)}
    paths = list(itertools.product((0, 1), repeat=5))
    carried = {path: norms[sum(path)] for path in paths}
    columns = tuple(Column(name, "", "") for name in ("length", "n_paths", "path_norm_mean", "contribution"))
    rows = []
    for length, norm in norms.items():
        count = sum(sum(path) == length for path in paths)
        rows.append({"length": length, "n_paths": count, "path_norm_mean": norm, "contribution": count * norm})
    found = left.left_rows("net", Table(columns, tuple(rows), {"share": 0.95}), most=3)
    assert [row["deleted"] for row in found] == [0, 1, 2, 3]
    for row in found:
        sets = list(itertools.combinations(range(5), row["deleted"]))
        kept = [[path for path in paths if not any(path[block] for block in deleted)] for deleted in sets]
        assert row["paths"] == len(kept[0]) / len(paths)
        mean = sum(carried[path] for own in kept for path in own) / len(sets)
        assert row["contribution"] == pytest.approx(mean / sum(carried.values()))


def test_deletions_are_compared_over_seeds_and_sets() -> None:
    one, two, three = (frozenset(blocks) for blocks in ({0, 1}, {0, 2}, {1, 2}))
    gaps = [
        {one: -0.10, two: -0.06, three: -0.02},
        {one: -0.11, two: -0.05, three: -0.03},
        {one: -0.13, two: -0.08, three: -0.03},
    ]
    found = judged.over_seeds_and_sets(gaps)
    seeds = [statistics.fmean(own.values()) for own in gaps]
    sets = [statistics.fmean(own[which] for own in gaps) for which in (one, two, three)]
    variances = [statistics.variance(of) / 3 for of in (seeds, sets)]
    freedom = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    error = sum(variances) ** 0.5
    assert found.mean == pytest.approx(statistics.fmean(seeds))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, freedom, found.mean, error))
    assert found.p == pytest.approx(2 * stats.t.cdf(found.mean / error, freedom))
    assert found.pairs == 3
    # a set that some seeds lack counts by what it has of their means
    del gaps[2][one]
    found = judged.over_seeds_and_sets(gaps)
    weights = {one: 2 / 9, two: 2 / 9 + 1 / 6, three: 2 / 9 + 1 / 6}
    seeds = [statistics.fmean(own.values()) for own in gaps]
    sets = [statistics.fmean(own[which] for own in gaps if which in own) for which in weights]
    share = sum(weight**2 for weight in weights.values())
    variances = [statistics.variance(seeds) / 3, statistics.variance(sets) * share]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / (1 / share - 1))
    assert found.mean == pytest.approx(statistics.fmean(seeds))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, freedom, found.mean, sum(variances) ** 0.5))
    # sets that cost alike: the seeds decide, and more degrees of freedom make nothing surer
    alike = [dict.fromkeys((one, two, three), gap) for gap in (-0.1, -0.05, -0.15)]
    alone = stats.ttest_1samp([-0.1, -0.05, -0.15], 0)
    found = judged.over_seeds_and_sets(alike)
    assert (found.low, found.high) == pytest.approx(tuple(alone.confidence_interval()))
    assert found.p == pytest.approx(alone.pvalue)
    assert judged.over_seeds_and_sets(gaps[:1]).low is None


def test_the_number_of_blocks_a_batch_is_the_one_that_seed_0_asks_for() -> None:
    names = ("network", "contribution", "blocks_per_batch")
    asked = (("net-full-seed0", "exact", 9), ("net-full-seed0", "sampled", 20), ("net-full-seed1", "sampled", 22))
    tables = {"effective": Table(tuple(map(Column, names)), tuple(dict(zip(names, row, strict=True)) for row in asked))}
    assert judged.own_number(tables, "net") == [20]
    assert judged.own_number(tables, "ne") == judged.own_number({}, "net") == []


def test_figures_are_of_the_smallest_seed_whatever_the_order_of_the_rows() -> None:
    rows = [{"network": "net", "trained": trained, "seed": seed} for trained in ("full", "m4") for seed in (1, 0, 2)]
    assert stated._first(rows) == [rows[1], rows[4]]


def test_all_sets_of_a_size_count_once_whichever_table_they_are_in() -> None:
    def drawn(errors: dict[str, float]) -> Table:
        rows = [{"count": 0, "sample": None, "blocks": None, "error": 0.1}]
        rows += [
            {"count": blocks.count(",") + 1, "sample": number, "blocks": blocks, "error": error}
            for number, (blocks, error) in enumerate(errors.items())
        ]
        return Table(tuple(map(Column, rows[0])), tuple(rows))

    tables = {"sets-net": drawn({"0,1": 0.3, "2": 0.2}), "hurt-net": drawn({"0,1": 0.3, "1,2": 0.5})}
    found = judged.rises_of(tables, "net")
    assert found == {
        frozenset(blocks): pytest.approx(rise) for blocks, rise in (((0, 1), 0.2), ((2,), 0.1), ((1, 2), 0.4))
    }


def test_a_figure_shows_what_every_set_costs() -> None:
    rises = {("whole", 0): [0.1, 0.3], ("23 random blocks a batch", 0): [0.02, 0.01], ("whole", 1): [0.2, 0.2]}
    (axes,) = hurt.hurt_figure(rises).axes
    points = {
        line.get_label(): line for line in axes.lines if str(line.get_label()) in ("whole", "23 random blocks a batch")
    }
    assert points["whole"].get_ydata() == pytest.approx([10, 30, 20, 20])
    assert points["23 random blocks a batch"].get_ydata() == pytest.approx([2, 1])
    assert np.round(points["whole"].get_xdata()).tolist() == [0, 0, 1, 1]
    assert len(set(points["whole"].get_xdata())) == 4
