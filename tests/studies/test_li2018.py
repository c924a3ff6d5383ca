"""The study of loss surfaces at a size that tests can afford, and its rules on numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pathlens import figures
from pathlens.metrics import holm
from pathlens.tables import read_table
from studies.common import ROOT
from studies.li2018 import judged, measured
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES
from tests.helpers.study_modules import run_study


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    where = ("--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"))
    run_study("li2018", "--scale", "smoke", "--device", "cpu", "--jobs", "1", *where)
    out = tmp_path / "out"
    page = (out / "README.md").read_text()
    assert str(tmp_path) not in page
    for title in ("**Question.**", "**Protocol.**", "## Surfaces", "## What moves", "## Curvature", "## Trained here"):
        assert title in page
    for stem in ("surfaces", "treatments", "own"):
        assert (out / f"{stem}.png").stat().st_size > 10_000
        assert f"]({stem}.png)" in page
    lines, numbers = (read_table(out / f"{stem}.parquet").rows for stem in ("lines", "numbers"))
    # three networks by five treatments and two of our own, two draws each of three points
    assert (len(lines), len(numbers)) == (17 * 2 * 3, 17 * 2)
    cut = read_table(out / "surface-resnet20b-cut.parquet")
    assert cut.provenance["lesion"]["deleted_shortcuts"] == list(range(9))
    claims = read_table(out / "claims.parquet").rows
    assert {row["outcome"] for row in claims if row["network"] == "resnet20"} == {CANNOT_TELL}  # one seed
    assert len(claims) == 5 + 2 * 3 + 1
    # everything that takes long is kept, to be taken up again
    assert len(list((tmp_path / "runs" / "measured").glob("*.csv"))) == 3 + 17  # surfaces and lines


def test_numbers_of_a_line() -> None:
    losses = [3.0, 1.0, 0.05, 0.0, None]
    rows = [{"x": x, "y": None, "draw": 0, "loss": loss} for x, loss in zip((-2, -1, 0, 1, 2), losses, strict=True)]
    numbers = measured.numbers_of(rows)
    assert numbers["loss"] == 0.05
    assert numbers["basin"] == 2 / 5
    assert numbers["has_basin"]
    assert numbers["mean_loss"] == pytest.approx((3 + 1 + 0.05 + 10) / 5)
    assert numbers["concave"] == 0
    bent = [{**row, "loss": loss} for row, loss in zip(rows, (0.0, 2.0, 3.0, 5.0, 6.0), strict=True)]
    numbers = measured.numbers_of(bent)
    assert numbers["concave"] == 2 / 3
    assert not numbers["has_basin"]
    # a loss above what a figure shows bends no line
    steep = [{**row, "loss": loss} for row, loss in zip(rows, (1.0, 2.0, 1e2, 1e4, None), strict=True)]
    numbers = measured.numbers_of(steep)
    assert numbers["concave"] == 0
    assert numbers["mean_loss"] == pytest.approx((1 + 2 + 3 * 10) / 5)


def test_numbers_are_of_each_line() -> None:
    which = {"network": "n", "kind": measured.WITH, "seed": None, "one_dimensional": "still", "batch_norm": "kept"}
    lines = [
        {**which, "draw": draw, "x": x, "error": 0.0, "loss": loss}
        for draw, losses in ((0, (4.0, 1.0, 4.0)), (1, (1.0, 3.0, 4.0)))
        for x, loss in zip((-1, 0, 1), losses, strict=True)
    ]
    first, second = measured.number_rows(lines)
    assert (first["draw"], first["network"], first["concave"]) == (0, "n", 0)
    assert (second["draw"], second["concave"], second["loss"]) == (1, 1, 3)


def number(
    kind: str, draw: int, value: float, treatment: tuple[str, str] = measured.PUBLISHED, **more: Any
) -> dict[str, Any]:
    one_dimensional, batch_norm = treatment
    which = {"kind": kind, "draw": draw, "one_dimensional": one_dimensional, "batch_norm": batch_norm, "seed": None}
    return {**which, "basin": value, "loss": 0.0, "mean_loss": value, **more}


def test_rules() -> None:
    with_, without = measured.WITH, measured.WITHOUT
    rows = [number(with_, d, 0.5 + d / 100) for d in range(4)] + [number(without, d, 0.2 - d / 100) for d in range(4)]
    verdict = judged.by_directions(rows, with_, without, "basin", measured.PUBLISHED)
    assert verdict.outcome == AGREES
    assert verdict.value == pytest.approx(0.33)
    assert judged.by_directions(rows, without, with_, "basin", measured.PUBLISHED).outcome == DISAGREES
    own = [
        number(kind, draw, base + seed / 50 + slope * seed, seed=seed)
        for kind, base, slope in ((with_, 0.6, 0.01), (without, 0.3, 0.0))
        for seed in range(3)
        for draw in range(2)
    ]
    assert judged.by_seed(own, "basin").outcome == AGREES
    assert judged.by_seed([row for row in own if row["seed"] < 2], "basin").outcome == CANNOT_TELL
    moved = ("moved", "kept")
    both = [number(with_, d, 1.0 + d) for d in range(3)] + [number(with_, d, 2.0 + 1.1 * d, moved) for d in range(3)]
    assert judged.by_treatment(both, moved, measured.PUBLISHED).outcome == AGREES
    assert judged.by_treatment(both, measured.PUBLISHED, moved).outcome == DISAGREES
    # a loss that is higher at the weights already does not rise by that
    higher = [
        {**row, "loss": 5.0, "mean_loss": row["mean_loss"] + 5} if row["one_dimensional"] == "still" else row
        for row in both
    ]
    assert judged.by_treatment(higher, moved, measured.PUBLISHED).outcome == AGREES


def test_claims_are_corrected_over_their_networks() -> None:
    names = ("resnet56b", "plain56", "resnet56b-cut")
    stems = ("numbers", "curvature", *(f"surface-{name}" for name in names))
    tables = {stem: read_table(ROOT / "results" / "li2018" / f"{stem}.csv") for stem in stems}
    verdicts = judged.verdicts(tables)

    def rises(network: str, treatment: tuple[str, str]) -> list[float]:
        return [
            row["mean_loss"] - row["loss"]
            for row in sorted(tables["numbers"].rows, key=lambda row: row["draw"])
            if (row["network"], row["one_dimensional"], row["batch_norm"]) == (network, *treatment)
        ]

    for claim, more, less in (
        (judged.STATISTICS, measured.PUBLISHED, ("still", "re-estimated")),
        (judged.ONE_DIMENSIONAL, ("moved", "kept"), measured.PUBLISHED),
    ):
        ps = [float(stats.ttest_rel(rises(name, more), rises(name, less)).pvalue) for name in names]
        found = [row for row in verdicts if row["claim"] == claim.name]
        assert [row["network"] for row in found] == list(names)
        assert [row["p"] for row in found] == pytest.approx(holm(ps))
    assert sum("after Holm's correction" in row["here"] for row in verdicts) == 2 * len(names)


def test_directions_of_two_networks_are_no_pairs() -> None:
    values = {measured.WITH: [0.1, 0.2, 0.3, 0.4], measured.WITHOUT: [0.35, 0.4, 0.45, 0.5]}
    rows = [number(kind, draw, value) for kind, own in values.items() for draw, value in enumerate(own)]
    verdict = judged.by_directions(rows, measured.WITHOUT, measured.WITH, "basin", measured.PUBLISHED)
    welch = stats.ttest_ind(values[measured.WITHOUT], values[measured.WITH], equal_var=False).confidence_interval()
    assert (verdict.low, verdict.high) == pytest.approx(tuple(welch))
    assert verdict.outcome == CANNOT_TELL
    pairs = stats.ttest_rel(values[measured.WITHOUT], values[measured.WITH]).confidence_interval()
    assert pairs.low > 0  # of pairs it would agree
    alike = [number(kind, draw, 1 / 9) for kind in values for draw in range(4)]
    verdict = judged.by_directions(alike, measured.WITH, measured.WITHOUT, "basin", measured.PUBLISHED)
    assert (verdict.outcome, verdict.low) == (CANNOT_TELL, None)
    assert "the grid cannot tell" in verdict.here


def test_every_treatment_has_to_show_it() -> None:
    first, second = measured.TREATMENTS[:2]

    def rows(of_second: float) -> list[dict[str, Any]]:
        return [
            number(kind, draw, value + draw / 100, treatment)
            for treatment, shift in ((first, 0.3), (second, of_second))
            for kind, value in ((measured.WITHOUT, 0.2 + shift), (measured.WITH, 0.2))
            for draw in range(4)
        ]

    for of_second, outcome in ((0.2, AGREES), (-0.2, CANNOT_TELL), (0.0, CANNOT_TELL)):
        verdict = judged.over_treatments(
            rows(of_second), measured.WITHOUT, measured.WITH, "basin", measured.TREATMENTS[:2]
        )
        assert (verdict.outcome, verdict.value) == (outcome, pytest.approx(0.3))
        assert "still, kept" in verdict.here
        assert "moved, kept" in verdict.here


def test_one_bar_tells_the_losses_of_all_contours() -> None:
    names = ("resnet56b", "plain56", "resnet56b-cut")
    tables = {name: read_table(ROOT / f"results/li2018/surface-{name}.csv") for name in names}
    figure = figures.surfaces(tables)
    figure.draw_without_rendering()
    flats, (bar,) = figure.axes[:3], figure.axes[6:]
    levels = {tuple(drawn.levels) for flat in flats for drawn in flat.collections}
    assert len(levels) == 1
    assert set(bar.get_yticks()) <= set(*levels)
    losses = [min(row["loss"], 10) for table in tables.values() for row in table.rows]
    said = [float(text.get_text()) for text in bar.get_yticklabels()]
    assert (said[0], said[-1]) == pytest.approx((min(losses), max(losses)), rel=1e-2)
    assert bar.get_ylabel() == "loss (nats)"


def test_trace_is_compared_by_both_standard_errors() -> None:
    def rows(error: float) -> list[dict[str, Any]]:
        return [
            {"kind": kind, "trace": trace, "trace_standard_error": error}
            for kind, trace in ((measured.WITH, 10.0), (measured.WITHOUT, 15.0))
        ]

    vectors = {measured.WITH: 9, measured.WITHOUT: 9}
    assert judged.trace(rows(1.0), vectors).outcome == AGREES
    assert judged.trace(rows(1.0), vectors).low == pytest.approx(5 - stats.t.ppf(0.975, 16) * 2**0.5)
    assert judged.trace(rows(3.0), vectors).outcome == CANNOT_TELL
    # two vectors tell less than nine
    assert judged.trace(rows(1.5), vectors).outcome == AGREES
    assert judged.trace(rows(1.5), {**vectors, measured.WITHOUT: 2}).outcome == CANNOT_TELL
