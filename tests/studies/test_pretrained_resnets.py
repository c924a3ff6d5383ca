"""The study of published networks, at a size that tests can afford, and its headline numbers by hand."""

from __future__ import annotations

import os

import pytest
import torch

import pathlens
from pathlens.tables import Column, Table, read_table
from studies import common, subjects
from studies.pretrained_resnets import __main__ as run
from studies.pretrained_resnets import headlines
from tests.helpers.study_modules import run_study

FILES = ("headlines", *(f"{key}-resnet20" for key in ("lesions", "skips", "sets", "orders", "gradients")))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run, without any file from outside."""
    out = tmp_path_factory.mktemp("pretrained_resnets")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PATHLENS_DATA", "PATHLENS_MODELS"):
            patch.delenv(name, raising=False)
        run_study("pretrained_resnets", "--scale", "smoke", "--device", "cpu", "--out", str(out))
    return out


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done):
    page = (done / "README.md").read_text()
    assert "Its numbers mean nothing" in page
    for title in ("**Question.**", "**Protocol.**", "**Scale and hardware.**", "## What agrees, what does not"):
        assert title in page
    for stem in FILES:
        assert (done / f"{stem}.csv").is_file(), stem
        assert f"({stem}.csv)" in page, stem
    for stem in FILES[1:]:
        assert f"({stem}.png)" in page, stem
        assert (done / f"{stem}.png").read_bytes().startswith(b"\x89PNG"), stem


@pytest.mark.slow
def test_its_numbers_are_those_of_the_package(done):
    network = pathlens.load_model("resnet20", "random", in_channels=1, num_classes=10, seed=0).model
    data = pathlens.open_data("digits", limit=16)
    network = pathlens.find_blocks(network, data.batch(0, 2).images)
    lesions, expected = read_table(done / "lesions-resnet20.csv"), pathlens.delete_blocks(network, data)
    assert lesions.values("error") == expected.values("error")
    exact = pathlens.path_gradients(network, pathlens.open_data("digits", limit=4), method="exact")
    found = read_table(done / "gradients-resnet20.csv")
    assert found.values("total_norm") == pytest.approx(exact.values("total_norm"), rel=1e-4)
    rows = {row["fact"]: row for row in read_table(done / "headlines.csv").rows}
    effective = exact.provenance["effective"]["exact"]
    first, last = effective["first"], effective["last"]
    assert rows["effective lengths, exact sum"]["here"].startswith(f"{first} to {last} of 9 blocks")
    assert rows["effective lengths, exact sum"]["value"] == pytest.approx((first + last) / 18)
    worst = max(row["error"] for row in expected.rows if row["block"] is not None)
    assert rows["which blocks hurt most"]["value"] == worst
    assert rows["lengths of 95 % of the paths"]["here"] == "2 to 7 of 9 blocks"


def lesions_of(errors, kinds):
    """A table of delete-blocks with intervals of two points either side, and an intact error of 10 %."""
    rows = [{"block": None, "kind": None, "count": 0, "error": 0.1}]
    rows += [
        {"block": block, "kind": kind, "count": 1, "error": error}
        for block, (error, kind) in enumerate(zip(errors, kinds, strict=True))
    ]
    more = {"name": "", "stage": 0, "sample": None, "loss": 1.0}
    rows = [{**more, **row, "error_low": row["error"] - 0.02, "error_high": row["error"] + 0.02} for row in rows]
    return Table(tuple(Column(name) for name in rows[0]), tuple(rows))


@pytest.mark.parametrize(("errors", "agrees"), [((0.11, 0.3, 0.12), True), ((0.4, 0.3, 0.12), False)])
def test_the_worst_block_is_judged_by_its_kind(errors, agrees):
    table = lesions_of(errors, ("identity", "padding", "identity"))
    worst, single = headlines._worst(table), headlines._single(table)
    said = run.answers([{"network": "n", **worst}])
    assert worst["agrees"] is agrees
    assert worst["value"] == max(errors)
    assert single["value"] == pytest.approx(sum(error < 0.14 for error in errors) / 3)
    assert f"does not agree in: {'nothing' if agrees else 'which blocks'}" in said


def test_correlation_of_sets_by_hand():
    correlation = headlines._correlation
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    found = correlation([(1, 0.2), (2, 0.1), (3, 0.4), (4, 0.3), (5, 0.5)], 1)
    assert found["value"] == pytest.approx(0.8)
    assert found["value_low"] < 0.8 < found["value_high"] < 1
    assert found["value_low"] < 0  # five sets do not tell
    assert found["agrees"] is None
    many = [(count, count / 10 + 0.01 * (-1) ** count) for count in range(1, 9)] * 4
    assert correlation(many, 1)["agrees"] is True
    assert correlation(many, -1)["agrees"] is False
    assert correlation([(1, 0.2), (2, 0.2), (3, 0.2), (4, 0.2)], 1) == {"value": None}


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_without_the_files_it_ends_with_one_line(scale, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    monkeypatch.setenv("PATHLENS_MODELS", str(tmp_path / "empty"))
    out = tmp_path / "out"
    assert run.main(["--scale", scale, "--out", str(out)]) == 5
    monkeypatch.setenv("PATHLENS_DATA", str(tmp_path))
    assert run.main(["--scale", scale, "--out", str(out)]) == 5
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "PATHLENS_DATA is not set" in first
    assert "PATHLENS_MODELS has no pytorch_resnet_cifar10" in second
    assert not out.exists()


@pytest.mark.skipif(
    not {"PATHLENS_DATA", "PATHLENS_MODELS"} <= set(os.environ), reason="PATHLENS_DATA and PATHLENS_MODELS are not set"
)
def test_published_networks_are_opened_with_their_normalisation():
    asked = common.setting("pretrained_resnets", "A study.", ["--device", "cpu"])
    one = subjects.published(asked, "resnet20")
    batch = one.images(200).batch(0, 200, mean=one.mean, std=one.std)
    with torch.no_grad():
        error = (one.loaded.model(batch.images).argmax(1) != batch.labels).float().mean()
    assert len(one.view) == 9
    assert error < 0.3  # 8.27 % on the original images; without this normalisation far more
