"""An estimator of path gradients is one file and one line: everything else is read from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pathlens.errors import UsageError
from pathlens.estimators import ALIASES, METHODS, estimators
from tests.helpers import ROOT

ESTIMATOR = '''
"""Root mean square over examples of the norm of the sum over all paths of a length."""

import math
from dataclasses import dataclass

from pathlens.estimators.estimator import NORM, Estimator
from pathlens.tables.declared import Shown, column


@dataclass(frozen=True, kw_only=True)
class Columns:
    total_rms: float | None = column(NORM, "root mean square over examples")


class Spread(Estimator):
    columns = Columns
    shown = {"total_rms": Shown("spread")}
    norm = "total_rms"
    of_one = False
    rank = 9
    on_terminal = in_headline = in_chart = "root mean square sums"
    look = {"colour": 5}

    def estimate(self, problem, rows):
        def measure(_batch, images, labels):
            profile = problem.linearise(images, labels).exact(problem.lengths[-1])
            return [len(images), profile.norms().square().sum(1).tolist()]

        found = list(problem.measure(self.name, measure).values())
        examples = sum(count for count, _ in found)
        for row, *squares in zip(rows, *(sums for _, sums in found), strict=True):
            row["total_rms"] = math.sqrt(sum(squares) / examples)
        return {"spread_examples": examples}
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one estimator more."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "pathlens", root / "pathlens", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pathlens" / "estimators" / "spread.py").write_text(ESTIMATOR)
    registry = root / "pathlens" / "estimators" / "__init__.py"
    before = registry.read_text()
    after = before.replace('    "signed": "rademacher', '    "spread": "spread.Spread",\n    "signed": "rademacher')
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    registry.write_text(after)
    return root


def test_a_new_estimator_is_one_file_and_one_line(copy: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pathlens", "path-gradients", "--limit", "3", "--batch-size", "2", "-q"]
        environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "140", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *arguments], env=environment, cwd=copy, capture_output=True, text=True, check=True, timeout=300
        )
        return done.stdout

    found = json.loads(run("--method", "spread", "--json", "--out", str(copy / "out")))
    exact = json.loads(run("--method", "exact", "--limit", "1", "--json"))
    one = json.loads(run("--method", "spread", "--limit", "1", "--json"))
    assert [row["total_rms"] for row in one["table"]] == pytest.approx([row["total_norm"] for row in exact["table"]])
    assert found["provenance"]["spread_examples"] == 3
    assert found["provenance"]["effective"]["spread"]["share_of_contribution"] >= 0.95
    meta = json.loads((copy / "out" / "path-gradients.meta.json").read_text())
    assert "root mean square over examples" in json.dumps(meta)
    assert (copy / "out" / "path-gradients.png").stat().st_size > 0
    shown = run("--method", "spread", "--limit", "1")
    assert "spread" in shown
    assert "effective lengths by root mean square sums" in shown


def test_methods_are_the_estimators_and_all_of_them() -> None:
    assert [estimator.name for estimator in estimators()] == list(METHODS[:-1])
    for name in METHODS[:-1]:
        assert [estimator.name for estimator in estimators(name)] == [name]
    for other, name in ALIASES.items():
        assert [estimator.name for estimator in estimators(other)] == [name]
    with pytest.raises(UsageError, match=r"method 'guess' is unknown; give one of exact, sampled, signed, all"):
        estimators("guess")
