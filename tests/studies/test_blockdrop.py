"""The study of chosen blocks at a size that tests can afford, and its rules on numbers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathlens.tables import Column, Table, read_table
from studies.blockdrop.judged import GREEDY, RANDOM, SINGLE, of_seed, verdicts
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES
from tests.helpers.study_modules import run_study


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    where = ("--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"))
    run_study("blockdrop", "--scale", "smoke", "--device", "cpu", "--jobs", "1", *where)
    out = tmp_path / "out"
    page = (out / "README.md").read_text()
    assert str(tmp_path) not in page
    titles = ("**Question.**", "**Protocol.**", "## resnet56: error at the same", "## digits54: what is chosen")
    for title in (*titles, "## What was claimed"):
        assert title in page
    for stem in ("trade-off-seed0", "choices-digits54-seed1"):
        assert (out / f"{stem}.png").stat().st_size > 10_000
    claims = read_table(out / "claims.parquet").rows
    assert [row["outcome"] for row in claims] == [CANNOT_TELL] * 6  # two seeds of two networks
    assert {"policy.safetensors", "checkpoint.safetensors"} <= {
        path.name for path in (tmp_path / "runs/seed1").iterdir()
    }
    assert len(read_table(out / "greedy.parquet").rows) == 9
    # what is there is not measured again
    before = (tmp_path / "runs/measured/blockdrop-seed0.csv").stat().st_mtime_ns
    run_study("blockdrop", "--scale", "smoke", "--device", "cpu", *where)
    assert (tmp_path / "runs/measured/blockdrop-seed0.csv").stat().st_mtime_ns == before


def of(rows: list[tuple[str, float, float]]) -> Table:
    names = ("network", "kept", "policy_difference", "policy_p")
    policy = dict(zip(names, ("policy", None, None, None), strict=True))
    others = [dict(zip(names, (kind, "0,1", gap, p), strict=True)) for kind, gap, p in rows]
    return Table(tuple(map(Column, names)), (policy, *others))


def test_verdicts_of_a_seed() -> None:
    better = [("random", 0.2, 1e-9), ("random", 0.1, 1e-9), ("random", 0.01, 0.5)]
    found = of_seed(of([*better, ("single", -0.05, 1e-4), ("greedy", 0.02, 0.02)]))
    assert found[RANDOM].outcome == AGREES
    assert found[RANDOM].value == pytest.approx(10)
    assert found[SINGLE].outcome == DISAGREES
    # 0.02 twice that by Holm's method, as the second largest of five
    assert found[GREEDY].outcome == AGREES
    assert found[GREEDY].p == pytest.approx(0.04)
    assert of_seed(of([("greedy", 0.02, 0.04), ("single", 0.02, 0.03)]))[GREEDY].outcome == CANNOT_TELL
    assert of_seed(of([("single", 0.02, 0.03)]))[GREEDY].here == "the policy runs all blocks"


def test_three_seeds_have_to_show_the_same() -> None:
    tables = {
        f"seed {seed}": of([("random", 0.2, 1e-9), ("single", 0.1, 1e-9), ("greedy", 0.1, 1e-9)]) for seed in range(3)
    }
    assert [row["outcome"] for row in verdicts(tables, "net")] == [AGREES] * 3
    tables["seed 2"] = of([("random", 0.2, 1e-9), ("single", 0.1, 1e-9), ("greedy", 0.0, 1.0)])
    assert [row["outcome"] for row in verdicts(tables, "net")] == [AGREES, AGREES, CANNOT_TELL]
