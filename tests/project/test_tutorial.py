"""The tutorial runs as it stands, at its own size, and gets what the functions that it calls give by themselves."""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pathlens
from pathlens import figures
from pathlens.metrics import ClassificationCounts
from pathlens.tables import read_table
from pathlens.training import PathLengths
from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], list[str], Path]]:
    """The names that the code cells leave, what each printed, and the folder that they ran in."""
    folder = tmp_path_factory.mktemp("tutorial")
    names: dict[str, Any] = {"__name__": "tutorial"}
    printed = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, cell in enumerate(cells("code")):
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(source(cell), f"tutorial.ipynb, code cell {number}", "exec"), names)
            printed.append(out.getvalue())
        yield names, printed, folder
    torch.set_num_threads(threads)


def test_the_analysis_has_at_most_thirty_lines():
    code = [source(cell) for cell in cells("code")]
    assert sum(bool(line.strip()) for text in code for line in text.splitlines()) <= 30
    assert len(cells("markdown")) == len(code)
    for text in code:
        ast.parse(text)


def test_stored_outputs_are_small_and_name_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    stored = json.loads(text)
    assert stored["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    for picture in pictures:
        data = base64.b64decode("".join(picture))
        assert len(data) < 200_000
        assert Image.open(io.BytesIO(data)).width > 500
        text = text.replace("".join(picture).strip(), "")
    assert not re.search(r"/(home|root|tmp|work|Users|mnt|opt|usr|var)/|0x[0-9a-f]{6}", text)


@pytest.mark.slow
def test_stored_words_are_those_of_a_run(ran):
    _, printed, _ = ran
    for cell, now in zip(cells("code"), printed, strict=True):
        stored = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        number = r"\d[\d,.]*(?:e[+-]?\d+)?"
        assert re.sub(number, "#", stored) == re.sub(number, "#", now)
    assert "".join(cells("code")[1]["outputs"][0]["text"]) == printed[1]  # nothing there depends on rounding
    assert f"{2**54:,} paths" in printed[1]


@pytest.mark.slow
def test_lesions_are_those_of_the_function_and_of_the_model_itself(ran):
    names, printed, _ = ran
    deletions, view, test = names["deletions"], names["view"], names["test"]
    worst = max(range(len(view)), key=lambda block: names["lesioned"][block])
    assert pathlens.delete_blocks(view, test, blocks=[0, worst]).values("error") == (
        names["intact"],
        names["lesioned"][0],
        names["lesioned"][worst],
    )
    ((images, labels),) = [(batch.images, batch.labels) for batch in test.batches(test.n)]
    with torch.no_grad(), pathlens.deleted(view, worst) as model:
        counts = ClassificationCounts.of(model(images), labels)
    assert counts.error == deletions.rows[1 + worst]["error"]
    assert f"{counts.error:.1%} (worst)" in printed[2]
    assert names["intact"] < 0.03 < 0.2 < counts.error


@pytest.mark.slow
def test_the_effective_range_is_that_of_the_gradient_and_of_its_sums(ran):
    names, printed, _ = ran
    totals = [float(value) for value in names["gradients"].values("total_norm")]
    first, last = names["first"], names["last"]
    shares = [total / math.fsum(totals) for total in totals]
    assert math.fsum(shares[first : last + 1]) >= 0.95
    widths = range(last - first)
    assert all(math.fsum(shares[at : at + width + 1]) < 0.95 for width in widths for at in range(55 - width))
    share = sum(math.comb(54, length) for length in range(first, last + 1)) / 2**54
    assert names["effective"]["share_of_paths"] == pytest.approx(share)
    assert f"lengths {first} to {last}: " in printed[3]
    few = pathlens.open_data("digits", limit=32)
    again = pathlens.path_gradients(names["view"], few, method="exact", max_length=last)
    kept = [float(value) for value in again.values("total_norm")]
    assert kept == pytest.approx(totals[: last + 1], rel=1e-4)


@pytest.mark.slow
def test_training_is_of_the_effective_paths_and_tested_as_it_says(ran):
    names, _, _ = ran
    assert names["rule"] == PathLengths(names["first"], names["last"])
    ((images, labels),) = [(batch.images, batch.labels) for batch in names["test"].batches(names["test"].n)]
    for run in names["trained"].values():
        with torch.no_grad():
            counts = ClassificationCounts.of(run.model.eval()(images), labels)
        assert run.result.rows[0]["error"] == pytest.approx(counts.error, abs=2 / counts.n)
        assert counts.error < 0.8  # chance is 0.9
    whole, effective = (
        [value for part in run.model.parameters() for value in part.flatten()[:1].tolist()]
        for run in names["trained"].values()
    )
    assert whole != effective


@pytest.mark.slow
def test_results_are_on_disk(ran):
    names, _, folder = ran
    assert read_table(folder / "results" / "delete-blocks.csv").rows == names["deletions"].rows
    assert read_table(folder / "results" / "path-gradients.parquet").rows == names["gradients"].rows
    assert [path.name for path in names["written"]] == ["delete-blocks.png", "delete-blocks.pdf"]
    assert (folder / "results" / "delete-blocks.png").read_bytes() == figures.files(names["figure"], "x")["x.png"]


@pytest.mark.slow
def test_figures_show_themselves_in_notebooks(ran):
    names, _, _ = ran
    data = names["figure"]._repr_png_()
    assert Image.open(io.BytesIO(data)).format == "PNG"
    assert data == names["figure"]._repr_png_()
    assert len(data) < 100_000
