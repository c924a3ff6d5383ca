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
    small = [
        "--images",
        "4",
        "--batch-size",
        "3",
        "--points",
        "5",
        "--repeats",
        "1",
        "--workers",
        "0",
        "--threads",
        "1",
    ]
    assert surface.main([*small, "--out", str(tmp_path)]) == 0
    table = read_table(tmp_path / "surface.parquet")
    rows = {row["method"]: row for row in table.rows}
    assert list(rows) == ["published", "pathlens", "further point"]
    assert rows["pathlens"]["largest_difference"] < 1e-2  # of losses of an untrained network far out
    assert rows["pathlens"]["ratio"] == rows["pathlens"]["seconds"] / rows["published"]["seconds"]
    assert table.provenance["grid_ratio"] > 0
    assert (tmp_path / "surface.md").read_text() in capsys.readouterr().out
