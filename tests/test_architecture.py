"""The import arrows between the rooms, which are contracts in pyproject.toml, and the length of files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
