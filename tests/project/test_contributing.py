"""Each recipe of CONTRIBUTING.md, carried out on a copy of the repository: it touches what it says, and it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

RECIPES = dict(
    part.split("\n", 1) for part in re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
)
#: a recipe that goes on where another one ends
BEFORE = {"A figure": "A verb"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in ("pathlens", "studies"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_does_what_it_says(recipe: str, copy: Path) -> None:
    if recipe in BEFORE:
        carry_out(BEFORE[recipe], copy)
    carry_out(recipe, copy)
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(copy / "cache")}
    for line in "".join(blocks(recipe, "sh")).splitlines():
        command = re.sub(r"^pathlens ", "python -m pathlens ", line)
        command = re.sub(r"^python ", f"{sys.executable} ", command)
        done = subprocess.run(command.split(), cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


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
