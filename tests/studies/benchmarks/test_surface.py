"""The benchmark of loss surfaces at a size that tests can afford."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathlens.tables import read_table
from studies.benchmarks import surface


def test_it_measures_compares_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PATHLENS_DATA", "PATHLENS_MODELS"):
        monkeypatch.delenv(name, raising=False)
    small = ["--images", "4", "--batch-size", "3", "--points", "3", "--every", "2", "--workers", "0", "--threads", "1"]
    assert surface.main([*small, "--out", str(tmp_path)]) == 0
    table = read_table(tmp_path / "surface.parquet")
    published, ours = table.rows
    assert (published["method"], published["points"]) == ("published", 4)
    assert (ours["method"], ours["points"]) == ("pathlens", 9)
    assert ours["largest_difference"] < 1e-2  # of losses of an untrained network far out
    assert ours["ratio"] == ours["seconds"] / published["seconds"]
    assert (tmp_path / "surface.md").read_text() in capsys.readouterr().out
