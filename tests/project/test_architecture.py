"""The import arrows between the rooms, which are contracts in pyproject.toml, the length of files, where tests lie."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.helpers import ROOT

LONGEST_FILE = 500  # lines


def test_rooms_keep_to_the_contracts():
    pytest.importorskip("importlinter", reason="import-linter of the extra 'test' is not installed")
    # a process of its own, since the contracts are about the package in the working folder
    checked = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", checked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_is_too_long():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for folder in ("pathlens", "studies", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lines
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_tests_lie_as_what_they_test():
    files = list((ROOT / "tests").rglob("test_*.py"))
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in files}
    rooms = {path.stem for path in (ROOT / "pathlens").iterdir()}
    studies = {path.relative_to(ROOT).as_posix() for path in (ROOT / "studies", *(ROOT / "studies").iterdir())}
    assert "." not in folders, "a test file lies in tests/ itself; put it into the folder of its room"
    assert folders - rooms - studies == {"project"}


def test_what_files_of_tests_share_lies_among_the_helpers():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests":
                assert node.module.startswith("tests.helpers"), f"{path}: line {node.lineno} imports {node.module}"
