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
    # of three blocks: with each, losses at the corners of an untrained network grow by a multiple
    assert surface.main([*small, "--network", "wrn10_1", "--out", str(tmp_path)]) == 0
    table = read_table(tmp_path / "surface.parquet")
    published, ours = table.rows
    assert (published["method"], published["points"]) == ("published", 4)
    assert (ours["method"], ours["points"]) == ("pathlens", 9)
    assert ours["largest_difference"] < 1e-2  # of losses of an untrained network far out
    assert (published["compared"], ours["compared"]) == (None, 4)
    assert ours["ratio"] == ours["seconds"] / published["seconds"]
    assert (tmp_path / "surface.md").read_text() in capsys.readouterr().out


def test_losses_are_compared_at_the_corners_and_all_over_the_grid() -> None:
    numbers = surface.chosen(51, 153, seed=0)
    assert numbers == surface.chosen(51, 153, seed=0)
    assert numbers[:4] == [0, 50, 2550, 2600]
    assert len(set(numbers)) == 153
    # of 51 rows and columns, some three are left without one of 149 draws
    assert min(len({number // 51 for number in numbers}), len({number % 51 for number in numbers})) > 40
    assert sorted(surface.chosen(3, 9, seed=1)) == list(range(9))
