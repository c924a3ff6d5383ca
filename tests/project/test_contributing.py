"""Each recipe of CONTRIBUTING.md, carried out on a copy of the repository: it touches what it says, and it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pathlens.tables import read_table
from tests.helpers import ROOT

RECIPES = dict(
    part.split("\n", 1) for part in re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
)
#: a recipe that goes on where another one ends
BEFORE = {"A figure": "A verb"}


def copied(to: Path) -> Path:
    for folder in ("pathlens", "studies"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", to)
    return to


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path)


def blocks(recipe: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", RECIPES[recipe], re.MULTILINE | re.DOTALL)


def changed(text: str, diff: list[str]) -> str:
    """The text with added lines below the line that is shown above them, and others taken away."""
    place = 0
    for line in diff:
        sign, content = line[0], line[1:] + "\n"
        if sign == "+":
            text, place = text[:place] + content + text[place:], place + len(content)
            continue
        found = text.index(content, place)
        place = found if sign == "-" else found + len(content)
        if sign == "-":
            text = text[:found] + text[found + len(content) :]
    return text


def carry_out(recipe: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """Make the files and changes of a recipe; which are new, and which are changed."""
    new, old = [], []
    for code in blocks(recipe, "python"):
        name, content = code.split("\n", 1)
        path = folder / name.removeprefix("# ")
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        new.append(path)
    for diff in blocks(recipe, "diff"):
        name, *lines = diff.splitlines()
        path = folder / name.removeprefix("# ")
        path.write_text(changed(path.read_text(), lines))
        old.append(path)
    return new, old


#: runs the lines that it is given one after the other, in one process, since to start one takes longer than most lines
RUNNER = """
import contextlib, io, json, os, runpy, shlex, sys, traceback

def run(words):
    if words[0] == "test":
        return 0 if words[1] == "-f" and os.path.isfile(words[2]) else 1
    if words[0] == "pathlens":
        words = ["python", "-m", *words]
    assert words[:2] == ["python", "-m"]
    sys.argv[1:] = words[3:]
    try:
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return leaving.code
    except Exception:
        traceback.print_exc()
        return 1

done = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(shlex.split(line))
    done[line] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(done))
"""
ESTIMATOR = "An estimator of path gradients"
BESIDE_THE_OTHERS = "pathlens path-gradients --method all --max-samples 1 --limit 1 --max-length 3 --out one"


def lines(recipe: str) -> list[str]:
    return "".join(blocks(recipe, "sh")).splitlines()


def run_all(wanted: list[str], folder: Path) -> dict[str, tuple[int, str, str]]:
    """Exit code, printed and said, of every line."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "140"}
    program = [sys.executable, "-c", RUNNER, json.dumps(wanted)]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str, str]]]:
    """A copy with all recipes that begin on the repository as it is, and what became of their lines."""
    folder = copied(tmp_path_factory.mktemp("copy"))
    together = [recipe for recipe in RECIPES if recipe not in BEFORE]
    for recipe in together:
        carry_out(recipe, folder)
    return folder, run_all([*(line for recipe in together for line in lines(recipe)), BESIDE_THE_OTHERS], folder)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_does_what_it_says(recipe: str, everything: tuple[Path, Any], tmp_path: Path) -> None:
    _, done = everything
    if recipe in BEFORE:
        copy = copied(tmp_path)
        carry_out(BEFORE[recipe], copy)
        carry_out(recipe, copy)
        done = run_all(lines(recipe), copy)
    assert lines(recipe)
    for line in lines(recipe):
        code, _, said = done[line]
        assert not code, f"{line}: {said}"


@pytest.mark.slow
def test_what_a_new_estimator_measures_is_printed_described_and_drawn(everything: tuple[Path, Any]) -> None:
    folder, done = everything
    code, printed, said = done[BESIDE_THE_OTHERS]
    assert code == 0, said
    assert "peak norm" in printed
    assert "effective lengths by largest of any example" in printed
    rows = read_table(folder / "one" / "path-gradients.parquet").rows
    # of one image the largest is that of the mean
    assert [row["peak_norm"] for row in rows] == pytest.approx([row["total_norm"] for row in rows])
    described = json.loads((folder / "one" / "path-gradients.meta.json").read_text())
    assert "largest of any example" in json.dumps(described["columns"])
    assert described["provenance"]["effective"]["peak"]["share_of_contribution"] >= 0.95
    assert (folder / "one" / "path-gradients.png").stat().st_size > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_adds_is_clean(recipe: str, copy: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", copy)
    if recipe in BEFORE:
        carry_out(BEFORE[recipe], copy)
    new, old = carry_out(recipe, copy)
    files = [str(path) for path in (*new, *old) if path.suffix == ".py"]
    for arguments in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        program = [sys.executable, "-m", "ruff", *arguments, *files]
        done = subprocess.run(program, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
