"""The study of Veit et al. 2016 at its smallest scale, from training to the page."""

from __future__ import annotations

from pathlib import Path

import pytest

import pathlens
from pathlens.tables import read_table
from tests.helpers.data_files import image_folder
from tests.helpers.study_modules import run_study


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
    for stem in ("lesions-preresnet20", "lesions-vgg15", "lesions-highway19", "reordering", "path-gradients"):
        assert f"({stem}.png)" in text
        assert (page / "out" / f"{stem}.csv").is_file()
        assert (page / "out" / f"{stem}.pdf").is_file()
    for part in ("**Question.**", "**Protocol.**", "**Scale and hardware.**", "Beside the paper", "(figure 4)"):
        assert part in text
    assert str(page) not in text


@pytest.mark.slow
def test_lesions_are_those_of_the_trained_network(page: Path) -> None:
    table = read_table(page / "out" / "lesions-preresnet20.csv")
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
    blocks = {row["run"]: row["blocks"] for row in runs.rows}
    assert blocks["preresnet20-full-seed0"] == 9
    assert blocks["preresnet20-m4-seed0"] == 4
    assert blocks["highway19-seed0"] == 15
    summary = read_table(page / "out" / "retraining.csv")
    assert {row["rule"] for row in summary.rows} == {row["rule"] for row in runs.rows}


@pytest.mark.slow
def test_facts_stand_beside_those_of_the_paper(page: Path) -> None:
    facts = read_table(page / "out" / "facts.csv")
    assert {row["agrees"] for row in facts.rows} <= {"yes", "no"}
    text = (page / "out" / "README.md").read_text()
    agreeing = sum(row["agrees"] == "yes" for row in facts.rows)
    assert f"Of {len(facts.rows)} statements, {agreeing} agree" in text
