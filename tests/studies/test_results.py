"""What lies in results/: every page can be made again from its tables, and every folder says where it comes from."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pathlens.errors import DataError
from pathlens.tables import read_table
from studies import common, findings, record
from studies.rules import claims, veit
from studies.veit2016 import cifar

RESULTS = common.ROOT / "results"
#: studies whose folders are of the present form
STUDIES = (
    "depth_in_training", "wider_or_deeper", "udl11", "civitelli2021", "language", "li2018", "blockdrop",
    "strict_resnets", "pretrained_resnets", "critics", "veit2016",
)  # fmt: skip
#: beginnings of the names of claims that are judged on each network by a bootstrap interval, which has no p value
BOOTSTRAPPED = tuple(
    claim.name for claim in (veit.SETS, veit.ORDERS, veit.DECAY, veit.SHORT, veit.FEW, veit.EXACT, veit.CANCELLATION)
)


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_what_its_tables_say(name: str, tmp_path: Path) -> None:
    out = shutil.copytree(RESULTS / name, tmp_path / name)
    known = record.read(out)
    state = importlib.import_module(f"studies.{name}.__main__").state
    page = state(common.StudySetting(name, known["scale"], out, tmp_path, "cpu", 1, restate=True, draws=False))
    assert page.text_of(known["protocol"], known) == (RESULTS / name / "README.md").read_text()
    for path in RESULTS.joinpath(name).glob("*.csv"):
        assert read_table(out / path.name).rows == read_table(path).rows, path.name


@pytest.mark.parametrize("name", STUDIES)
def test_a_record_is_complete_and_true(name: str) -> None:
    known = record.read(RESULTS / name)
    assert (known["study"], known["scale"]) == (name, "cpu")
    apart = known.get("apart", {}).values()  # parts that were measured alone
    for step in (known["measured"], known["page"], *(part["measured"] for part in apart)):
        assert all(step[part] for part in (*record.STEP, "command")), step
        assert not step["commit"].endswith("-dirty")
    # nothing is trained for one of them, and the tables of blockdrop describe its policies themselves
    assert known["trainings"] or name in ("pretrained_resnets", "blockdrop")
    for one in (*known["trainings"], *(one for part in apart for one in part["trainings"])):
        assert one.get("note") or all(one[part] for part in record.TRAINING), one["run"]
    assert_files_are_those_of_the_record(RESULTS / name, "README.md")


def assert_files_are_those_of_the_record(folder: Path, *beside: str) -> None:
    known = record.read(folder)["files"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*known, record.NAME, *beside}
    for file, digest in known.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file


def test_networks_that_are_trained_beside_a_study_have_a_record_of_their_files() -> None:
    assert_files_are_those_of_the_record(RESULTS / "cifar10")


def test_the_record_of_such_networks_is_written_again_without_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    with pytest.raises(SystemExit, match="no training is kept there; name one to train, such as preresnet110-full"):
        cifar.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "preresnet110-full-seed0.safetensors").write_bytes(b"weights")
    for content in ("{}", '{"row": {}}'):
        (tmp_path / "preresnet110-full-seed0.json").write_text(content)
        assert cifar.main(["--out", str(tmp_path)]) == 0
        assert_files_are_those_of_the_record(tmp_path)
        said = capsys.readouterr().err
        assert f"wrote {tmp_path / record.NAME}" in said
        assert "missing: preresnet110-m23-seed0, preresnet110-own-seed0, " in said


@pytest.mark.parametrize("name", STUDIES)
def test_every_table_says_where_it_comes_from(name: str) -> None:
    for path in RESULTS.joinpath(name).glob("*.meta.json"):
        facts = json.loads(path.read_text())["provenance"]
        assert all(facts.get(part) for part in record.STEP), path.name
        # times of runs beside other work are noise; benchmarks have them
        for column in read_table(path.with_name(path.name.replace(".meta.json", ".csv"))).columns:
            assert "seconds" not in column.name, path.name
            assert column.unit not in ("s", "ms", "seconds"), path.name


def test_no_table_but_of_benchmarks_has_times() -> None:
    for path in RESULTS.rglob("*.meta.json"):
        # make gpu measures how long things take
        if path.relative_to(RESULTS).parts[0] not in ("benchmarks", "gpu"):
            units = {column["unit"] for column in json.loads(path.read_text())["columns"]}
            assert not units & {"s", "ms", "seconds", "images/s"}, path.relative_to(RESULTS)


@pytest.mark.parametrize("name", STUDIES)
def test_no_verdict_without_a_test_and_three_seeds(name: str) -> None:
    rows = read_table(RESULTS / name / "claims.csv").rows
    assert rows
    several = Counter(row["claim"] for row in rows)
    for row in rows:
        assert row["outcome"] in claims.OUTCOMES
        assert all(row[part] for part in ("says", "source", "rule", "test", "here")), row["claim"]
        if row["outcome"] != claims.CANNOT_TELL and not row["test"].startswith("Counted"):
            assert row["p"] is not None or None not in (row["value_low"], row["value_high"]), row["claim"]
            assert row["seeds"] is None or row["seeds"] >= claims.SEEDS, row["claim"]
            if row["p"] is not None:
                assert row["p"] < claims.LEVEL, row["claim"]
            elif several[row["claim"]] > 1:
                assert needs_no_correction(row), (row["claim"], row["network"])


def needs_no_correction(row: Mapping[str, Any]) -> bool:
    """Whether all of several things, or networks, have to show it alike; or a bootstrap judges it."""
    alike = re.match(rf"{row['outcome']} in (\d+) of \1 ", row["here"])
    return bool(alike) or "no correction is due" in row["test"] or row["claim"].startswith(BOOTSTRAPPED)


def test_the_overview_has_each_verdict_once() -> None:
    def row(claim: str, network: str, seeds: int | None, outcome: str) -> dict[str, object]:
        return {"claim": claim, "network": network, "seeds": seeds, "outcome": outcome}

    known = {
        "pretrained_resnets": [row("cancellation", "resnet20", None, "disagrees")],
        "critics": [row("cancellation", "digits54", 1, "cannot tell")],
        "veit2016": [row("cancellation", "preresnet110", 2, "cannot tell"), row("plain network", "v", 3, "agrees")],
        "udl11": [row("autocorrelation", f"plain, {depth} layers, lag 16", 50, "agrees") for depth in range(12)],
    }
    rows = findings.overview(known).splitlines()[2:]
    assert rows == [
        "| [With and without shortcuts](#with-and-without-shortcuts) | plain network | v |  |  |",
        "| [Cancellation](#cancellation) | cancellation |  | resnet20 | digits54 (packaged); preresnet110 (2 seeds) |",
        "| [Growth laws and shattered gradients at initialisation]"
        "(#growth-laws-and-shattered-gradients-at-initialisation) | autocorrelation | 12 settings |  |  |",
    ]


def test_findings_are_what_the_tables_of_claims_say() -> None:
    assert findings.text(RESULTS) == (RESULTS / findings.NAME).read_text()
    assert {study for finding in findings.FINDINGS for study, _ in finding.claims} == set(STUDIES)
    for study in STUDIES:
        told = {row["claim"] for row in read_table(RESULTS / study / "claims.csv").rows}
        assert told == {claim for finding in findings.FINDINGS for of, claim in finding.claims if of == study}


def test_no_file_names_a_place_of_a_machine() -> None:
    for path in RESULTS.rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"(^|[\s\"'])/(work|tmp|home|root)/", path.read_text()), path


def test_a_record_says_what_trainings_saw_and_names_files_as_the_repository_does(tmp_path: Path) -> None:
    manifest = {
        "recipe": {},
        "model": "../../other/studies/udl11/nets.py:plain",
        "train_images": 9,
        "train_sha256": "a",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"validation_images": 1, "test_sha256": "b"}))
    found = record.training("run", tmp_path)
    assert found["model"] == "studies/udl11/nets.py:plain"
    assert (found["train_images"], found["train_sha256"], found["validation_images"], found["test_sha256"]) == (
        9,
        "a",
        1,
        "b",
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"model": "resnet20"}))
    assert record.training("run", tmp_path)["model"] == "resnet20"


def test_a_record_names_the_calls_that_made_a_training_where_its_manifest_does(tmp_path: Path) -> None:
    calls = [{"from_step": 0, "date": None}, {"from_step": 9, "date": "2026"}]
    (tmp_path / "manifest.json").write_text(json.dumps({"date": "2026", "calls": calls}))
    found = record.training("run", tmp_path)
    assert (found["date"], found["calls"]) == ("2026", calls)
    (tmp_path / "manifest.json").write_text(json.dumps({"date": "2026"}))  # of a version that did not name them
    assert "calls" not in record.training("run", tmp_path)


def test_a_record_says_what_it_lacks() -> None:
    whole = {"run": "a", "date": "d", "commit": "c", "versions": {"torch": "2"}, "hardware": {"cpu": "x"}}
    assert record.gaps([whole]) == ""
    said = record.gaps([whole, {**whole, "date": None, "hardware": None, "note": "old"}])
    assert said == " Provenance is incomplete: the record lacks date and hardware of 1 of 2 trainings (old)."


def line_of(drawn: tuple[int, ...] = (), /, **facts: object) -> str:
    rows = [{"samples": paths} for paths in drawn]
    return record.protocol_of(record.make_table((("samples", "", ""),), rows, **facts))


def test_a_line_of_protocol_says_images_batches_and_mode() -> None:
    known = {"data": "digits", "split": "test", "images": 360, "batch_size": 128}
    assert line_of(**known) == "360 images of digits (test), batches of 128."
    swept = "360 images of digits (test), batches of 128, batch norms in eval mode"
    assert line_of(**known, mode="eval") == f"{swept}."
    assert line_of(**known, engine="plain", dtype="float32") == f"{swept}, float32."
    assert line_of(**known, engine="plain", samples=10) == f"{swept}, 10 drawn at each size."
    assert line_of(**known, verb="blockdrop", engine="plain", samples=10) == f"{swept}."
    told = line_of(data="stories", images=9, examples="sequences", engine="plain")
    assert told == "9 sequences of stories, eval mode."
    # of a loss surface
    assert line_of(**known, engine="plain", batch_norm="kept") == f"{swept}."
    assert "mode" not in line_of(**known, engine="plain", batch_norm="re-estimated")


def test_a_line_of_protocol_says_over_how_many_batches_paths_are_spread() -> None:
    known = {"verb": "path-gradients", "data": "digits", "batch_size": 16, "mode": "eval", "draws": 8}
    said = line_of((1024, 32, 896), images=500, **known)
    assert said == (
        "500 images of digits, batches of 16, batch norms in eval mode, 32 to 1,024 sampled paths a length (each for "
        "one of the 32 batches; a path of two batches counts twice), 8 draws of signs."
    )
    assert "4 to 16 sampled paths a length, 8 draws" in line_of((4, 16), images=16, **known)


def test_a_p_value_below_all_floats_is_no_zero(tmp_path: Path) -> None:
    setting = common.StudySetting("demo", "smoke", tmp_path, tmp_path, "cpu", 1, draws=False)
    page = common.Page(setting, "Demo", "Is it?")
    columns = (("block", "", "which"), ("p_holm", "", "its p value"))
    rows = [{"block": 0, "p_holm": 0.0}, {"block": 1, "p_holm": 0.04}, {"block": 2, "p_holm": None}]
    setting.tables.put("lesions", record.make_table(columns, rows))
    page.table("lesions", {"block": "d", "p_holm": ".2g"})
    step = {"date": "2026", "commit": "c", "versions": {"torch": "2"}, "hardware": None}
    said = page.text_of("", {"scale": "smoke", "measured": step, "page": step})
    assert "| 0 | <1e-300 |\n| 1 | 0.04 |\n| 2 |  |" in said


def test_earlier_results_go_when_new_ones_are_there(tmp_path: Path) -> None:
    study = common.setting("x", "A study.", ["--out", str(tmp_path / "out")])

    def measure(study: common.StudySetting, number: str) -> None:
        common.start_fresh(study)
        assert not (study.out / "told.txt").exists()
        (study.out / "told.txt").write_text(number)
        if number == "none":
            raise DataError("no images")

    def carry_out(number: str, state: Callable[[common.StudySetting], common.Page] | None = None) -> int:
        return common.carry_out(study, "", partial(measure, number=number), state or page)

    def page(study: common.StudySetting) -> common.Page:
        return common.Page(study, "x", "y?")

    def stopped(study: common.StudySetting) -> common.Page:
        raise KeyboardInterrupt

    told = study.out / "told.txt"
    assert carry_out("one") == 0
    assert carry_out("none") == DataError.exit_code
    assert told.read_text() == "one"
    with pytest.raises(KeyboardInterrupt):
        carry_out("two", stopped)
    assert told.read_text() == "one"
    measure(study, "three")  # and killed there
    assert (told.read_text(), len(list(tmp_path.iterdir()))) == ("three", 2)
    assert carry_out("none") == DataError.exit_code
    assert told.read_text() == "one"
    assert carry_out("four") == 0
    assert (told.read_text(), list(tmp_path.iterdir())) == ("four", [study.out])
