"""The benchmark of path gradients at a size that tests can afford."""

from __future__ import annotations

import torch

from pathlens.tables import read_table
from studies.benchmarks import paths


def test_it_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("PATHLENS_DATA", "PATHLENS_MODELS"):
        monkeypatch.delenv(name, raising=False)
    small = ["--network", "resnet20", "--batch-size", "2", "--repeats", "1", "--draws", "1", "--threads", "1"]
    assert paths.main([*small, "--deep-network", "resnet20", "--out", str(tmp_path)]) == 0
    table = read_table(tmp_path / "paths.parquet")
    by_method = {(row["benchmark"], row["method"]): row for row in table.rows}
    exact = by_method["profile", "exact, all lengths"]
    plain = by_method["profile", "ordinary forward and input gradient"]
    assert exact["blocks"] == 9
    assert exact["ratio"] == exact["seconds"] / plain["seconds"]
    assert by_method["sampling", "single paths to equal standard error"]["seconds"] > 0
    chain, graph = (row for row in table.rows if row["benchmark"] == "engines")
    assert chain["ratio"] == 1
    assert graph["ratio"] == graph["seconds"] / chain["seconds"]
    assert by_method["deep", "exact, all lengths"]["images"] == 4
    assert (tmp_path / "paths.md").read_text() in capsys.readouterr().out
