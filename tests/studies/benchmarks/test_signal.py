"""The benchmark of signal propagation at a size that tests can afford."""

from __future__ import annotations

from pathlens.tables import read_table
from studies.benchmarks import signal


def test_it_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PATHLENS_DATA", raising=False)
    small = ["--network", "preresnet20", "--batch-size", "2", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    assert signal.main([*small, "--out", str(tmp_path)]) == 0
    rows = {row["method"]: row for row in read_table(tmp_path / "signal.parquet").rows}
    assert list(rows) == ["training step", "measured", "whole"]
    assert rows["measured"]["ratio"] == rows["measured"]["seconds"] / rows["training step"]["seconds"]
    assert (tmp_path / "signal.md").read_text() in capsys.readouterr().out
