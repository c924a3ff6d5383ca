"""The benchmark of training at a size that tests can afford."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pathlens.tables import read_table
from studies.benchmarks import training


@pytest.mark.slow
def test_it_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    small = ["--network", "preresnet20", "--part-network", "preresnet20", "--images", "24", "--part-images", "24"]
    more = ["--batch-size", "8", "--repeats", "1", "--threads", "1", "--workers", "0", "--dtypes", "float32"]
    assert training.main([*small, *more, "--out", str(tmp_path)]) == 0
    rows = read_table(tmp_path / "training.parquet").rows
    assert [row["method"] for row in rows] == [
        "plain loop, float32",
        "pathlens, float32",
        "all 9 blocks",
        "4 random blocks",
    ]
    assert rows[1]["ratio"] == float(rows[0]["seconds"] or 0) / float(rows[1]["seconds"] or 1)
    # the same recipe and the same start: losses of the same size
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=0.3)
    assert (tmp_path / "training.md").read_text() in capsys.readouterr().out
