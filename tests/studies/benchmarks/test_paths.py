"""The benchmark of path gradients at a size that tests can afford."""

from __future__ import annotations

import torch

from pathlens.tables import read_table
from studies.benchmarks import paths


def test_it_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("PATHLENS_DATA", "PATHLENS_MODELS"):
        monkeypatch.delenv(name, raising=False)
    ran: list[str] = []
    ordinary, path_gradients = paths.ordinary, paths.path_gradients
    monkeypatch.setattr(paths, "ordinary", lambda *given: (ran.append("ordinary"), ordinary(*given))[1])
    monkeypatch.setattr(
        paths, "path_gradients", lambda *given, **kw: (ran.append(kw["method"]), path_gradients(*given, **kw))[1]
    )
    small = ["--network", "resnet20", "--batch-size", "2", "--repeats", "1", "--draws", "1", "--threads", "1"]
    assert paths.main([*small, "--deep-network", "resnet20", "--out", str(tmp_path)]) == 0
    # a round that warms up and the one that is timed, each way once in each
    assert ran == ["ordinary", "exact", "ordinary", "exact", "signed", "sampled", "exact"]
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


def test_methods_take_turns_and_the_first_round_is_not_counted():
    ran: list[str] = []
    seconds, results = paths.in_turn("any", {name: lambda name=name: ran.append(name) or len(ran) for name in "ab"}, 2)
    assert ran == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}
    assert results == {"a": 5, "b": 6}
