"""The benchmark of the first table: it runs both versions, and refuses to compare what gives different results."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from pathlens.cli import main
from pathlens.tables import read_table
from studies.benchmarks import first_table
from tests.helpers import ROOT


def test_each_version_runs_by_itself(tmp_path, monkeypatch):
    """A process of its own, with the pathlens of the checkout, and with an empty cache and working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import os, pathlens; print(pathlens.__file__, os.environ['XDG_CACHE_HOME'], os.getcwd(), os.listdir())"
    (tmp_path / "pathlens").mkdir()
    (tmp_path / "pathlens" / "__init__.py").write_text("")
    for tree in (tmp_path, ROOT):
        where, cache, folder, files = first_table.run(tree, "-c", code).split()
        assert where == str(tree / "pathlens" / "__init__.py")
        assert cache == folder != str(tmp_path)
        assert files == "[]"
    with pytest.raises(SystemExit, match=r"(?s)-c nonsense failed: .*NameError"):
        first_table.run(tmp_path, "-c", "nonsense")


def run_here(tree: Path, *arguments: str) -> str:
    """What a fresh process does, without the seconds that it takes to start."""
    with redirect_stdout(io.StringIO()) as printed:
        if arguments[:2] == ("-m", "pathlens"):
            assert main([*arguments[2:], "--limit", "4", "--blocks", "0:5"]) == 0
        else:
            _, code = arguments
            exec(code, {})
    return printed.getvalue()


@pytest.mark.slow
def test_this_version_beside_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(first_table, "run", run_here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ["--before", str(ROOT), "--repeats", "1", "--networks", "find_blocks", "--out", str(tmp_path)]
    assert first_table.main(small) == 0
    rows = {(row["benchmark"], row["version"]): dict(row) for row in read_table(tmp_path / "first_table.csv").rows}
    assert set(rows) == {(what, version) for what in ("delete-blocks", "find_blocks") for version in ("now", "before")}
    for what, blocks in (("delete-blocks", 6), ("find_blocks", 54)):
        now, before = rows[what, "now"], rows[what, "before"]
        assert now["blocks"] == before["blocks"] == blocks
        assert now["share"] == pytest.approx(now["seconds"] / before["seconds"])
        assert before["share"] is None
    assert len(read_table(tmp_path / "first_table-runs.csv").rows) == 4
    assert capsys.readouterr().out == (tmp_path / "first_table.md").read_text() + "\n"


def test_versions_that_disagree_are_not_compared(tmp_path, monkeypatch):
    errors = {"now": [0.1, 0.2], "before": [0.1, 0.3]}
    monkeypatch.setattr(first_table, "whole_command", lambda tree: (1.0, errors[tree.name]))
    trees = {name: tmp_path / name for name in errors}
    with pytest.raises(SystemExit, match="different errors"):
        first_table.measure(trees, 1, [])
    errors["before"] = errors["now"]
    monkeypatch.setattr(first_table, "finding", lambda tree, _network: (1.0, len(tree.name)))
    with pytest.raises(SystemExit, match="different numbers of blocks"):
        first_table.measure(trees, 1, ["find_blocks"])
    assert [t.benchmark for t in first_table.measure(trees, 2, [])] == ["delete-blocks"] * 4


def test_a_folder_without_pathlens_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        first_table.main(["--before", str(tmp_path)])
    assert stop.value.code == 2
    assert "no pathlens/ there" in capsys.readouterr().err
