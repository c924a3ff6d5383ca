"""Each recipe of CONTRIBUTING.md, carried out on a copy of the repository: it touches what it says, and it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


#: runs lines one after the other in the folder of their copy, each copy in a fork of a process that has imported what
#: is not copied, since to start a Python with torch takes longer than most lines
RUNNER = """
import contextlib, io, json, os, runpy, shlex, sys, traceback
import pyarrow.parquet, scipy.stats, seaborn, torch, torchvision, typer

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

for folder, lines in json.loads(sys.argv[1]).items():
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")
    sys.path.insert(0, folder)
    done = {}
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = run(shlex.split(line))
        done[line] = [code, out.getvalue(), err.getvalue()]
    with open("done.json", "w") as file:
        json.dump(done, file)
    os._exit(0)
"""
ESTIMATOR = "An estimator of path gradients"
BESIDE_THE_OTHERS = (
    "pathlens path-gradients --model preresnet20 --weights random --data digits --method all --max-samples 1 "
    "--limit 1 --out one"
)


def lines(recipe: str) -> list[str]:
    return "".join(blocks(recipe, "sh")).splitlines()


#: exit code, printed and said, of every line
Done = dict[str, tuple[int, str, str]]


def run_all(wanted: dict[Path, list[str]]) -> dict[Path, Done]:
    """What became of the lines of each copy."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    given = json.dumps({str(folder): lines for folder, lines in wanted.items()})
    program = [sys.executable, "-P", "-c", RUNNER, given]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {folder: json.loads((folder / "done.json").read_text()) for folder in wanted}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """A copy with all recipes that begin on the repository as it is, and what became of the lines of every recipe."""
    folder = copied(tmp_path_factory.mktemp("copy"))
    together = [recipe for recipe in RECIPES if recipe not in BEFORE]
    for recipe in together:
        carry_out(recipe, folder)
    wanted = {folder: [*(line for recipe in together for line in lines(recipe)), BESIDE_THE_OTHERS]}
    folders = dict.fromkeys(together, folder)
    for recipe, before in BEFORE.items():
        folders[recipe] = copied(tmp_path_factory.mktemp("copy"))
        carry_out(before, folders[recipe])
        carry_out(recipe, folders[recipe])
        wanted[folders[recipe]] = lines(recipe)
    done = run_all(wanted)
    return folder, {recipe: done[folders[recipe]] for recipe in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_does_what_it_says(recipe: str, everything: tuple[Path, dict[str, Done]]) -> None:
    _, done = everything
    assert lines(recipe)
    for line in lines(recipe):
        code, _, said = done[recipe][line]
        assert not code, f"{line}: {said}"


@pytest.mark.slow
def test_what_a_new_estimator_measures_is_printed_described_and_drawn(everything: tuple[Path, dict[str, Done]]) -> None:
    folder, done = everything
    code, printed, said = done[ESTIMATOR][BESIDE_THE_OTHERS]
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
