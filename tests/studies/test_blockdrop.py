"""The study of chosen blocks at a size that tests can afford, and its rules on numbers by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pathlens import figures
from pathlens.tables import Column, Table, read_table
from studies.blockdrop.__main__ import _told
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
    assert (out / "choices-digits54-seed1.png").stat().st_size > 10_000
    for end in ("seed0", "digits54-seed1"):
        table = read_table(out / f"blockdrop-{end}.csv")
        assert "seconds" not in table.names
        compared = any(row["network"] == "greedy" for row in table.rows)
        assert (out / f"trade-off-{end}.png").is_file() == (f"(trade-off-{end}.png)" in page) == compared
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


def of(rows: list[tuple[str, float, float]], choices: int = 2) -> Table:
    names = ("network", "choices", "kept", "policy_difference", "policy_p")
    policy = dict(zip(names, ("policy", choices, None, None, None), strict=True))
    others = [dict(zip(names, (kind, 1, "0,1", gap, p), strict=True)) for kind, gap, p in rows]
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
    assert [row["outcome"] for row in verdicts(tables, "resnet56")] == [AGREES] * 3
    assert {(row["seeds"], "of 3 policies" in row["here"]) for row in verdicts(tables, "resnet56")} == {(None, True)}
    # three policies of a network of which one was trained here
    found = verdicts(tables, "digits54")
    assert {(row["seeds"], row["outcome"]) for row in found} == {(1, CANNOT_TELL)}
    tables["seed 2"] = of([("random", 0.2, 1e-9), ("single", 0.1, 1e-9), ("greedy", 0.0, 1.0)])
    assert [row["outcome"] for row in verdicts(tables, "resnet56")] == [AGREES, AGREES, CANNOT_TELL]


def test_one_choice_for_all_images_is_no_choosing_image_by_image() -> None:
    rows = [*[("random", 0.2, 1e-9)] * 3, ("single", -0.1, 1e-9), ("greedy", 0.1, 1e-9)]
    found = of_seed(of(rows, choices=1))
    assert {verdict.outcome for verdict in found.values()} == {CANNOT_TELL}
    assert found[RANDOM].here.startswith("the policy makes one choice for all images")
    assert "better than 3 of 3" in found[RANDOM].here
    assert found[SINGLE].value == pytest.approx(-10)
    # one such seed among those that choose is enough
    tables = {f"seed {seed}": of(rows, choices=1 if seed == 1 else 7) for seed in range(3)}
    assert {row["outcome"] for row in verdicts(tables, "resnet56")} == {CANNOT_TELL}


def table_of(*counts: tuple[str, float, int]) -> Table:
    """Networks, the blocks they run of four, and how many choices that is."""
    rows = [
        {
            "network": network, "sample": None, "blocks": blocks, "blocks_sd": 0.0, "choices": choices,
            "multiply_adds": 1000.0 * blocks, "error": 0.2, "error_low": 0.1, "error_high": 0.3,
        }
        for network, blocks, choices in counts
    ]  # fmt: skip
    return Table(tuple(map(Column, rows[0])), tuple(rows))


def test_what_is_told_of_a_policy() -> None:
    intact = ("intact", 4.0, 1)
    looks = _told(table_of(intact, ("policy", 2.5, 3)))
    assert "2.50 +- 0.00 of 4 blocks" in looks
    assert "2.5e+03 multiply-adds" in looks
    assert "against 4e+03" in looks
    assert looks.endswith("It makes 3 different choices.")
    assert "one choice for all images" in _told(table_of(intact, ("policy", 2.0, 1)))
    assert "drops nothing" in _told(table_of(intact, ("policy", 4.0, 1)))


def test_marks_of_as_many_blocks_do_not_cover_one_another_and_ticks_are_whole_numbers() -> None:
    others = (("intact", 4.0, 1), ("random", 2.0, 1), ("single", 2.0, 1), ("greedy", 2.0, 1))

    def places(policy: float) -> list[float]:
        figure = figures.draw("blockdrop", table_of(*others, ("policy", policy, 2)))
        figure.canvas.draw()
        (axes,) = figure.axes
        assert axes.get_xlim() == (1, 4 if policy > 2 else 3)
        ticks = axes.get_xticks()
        assert all(tick == round(tick) for tick in ticks)
        marks = [container.lines[0] for container in axes.containers]  # policy, random sets, single, greedy
        back = axes.transData.inverted()
        return [
            float(back.transform(mark.get_transform().transform(mark.get_xydata()))[0, 0]) - mark.get_xdata()[0]
            for mark in marks
        ]

    same = places(2.0)
    assert same == sorted(same)
    assert min(b - a for a, b in pairwise(same)) > 0.04
    assert sum(same) == pytest.approx(0)
    policy, *_ = places(2.5)
    assert policy == pytest.approx(0)  # none beside it
