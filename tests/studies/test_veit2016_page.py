"""What the pages on the paper's claims show, from small tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies import common, record
from studies.pretrained_resnets import __main__ as pretrained
from studies.rules import lesions as lesion_rules
from studies.rules import paths as path_rules
from studies.veit2016 import curve, stated
from tests.helpers import study_tables
from tests.helpers.figure_checks import assert_legible, legend

SEEDS = (0, 1)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> common.StudySetting:
    """The tables of two seeds that were trained whole, and of none with two random blocks in each batch."""
    monkeypatch.setattr(record, "_made", lambda **facts: facts)  # where tables come from takes long to find out
    setting = common.StudySetting("veit2016", "smoke", tmp_path, tmp_path, "cpu", 1, draws=False)
    for seed in SEEDS:
        name = f"net-full-seed{seed}"
        setting.tables.put(f"lesions-{name}", study_tables.lesions())
        setting.tables.put(f"sets-{name}", study_tables.sets(0.01 * seed))
        setting.tables.put(f"orders-{name}", study_tables.orders())
        setting.tables.put(f"gradients-{name}", study_tables.gradients())
    return setting


def _runs() -> list[dict[str, object]]:
    compared = {"network": "net", "data": "d", "test_images": 1000, "lost": 9, "gained": 9}
    return [
        {**compared, "run": f"net-{trained}-seed{seed}", "trained": trained, "seed": seed, "test_error": error}
        for trained, errors in (("full", (0.10, 0.11)), ("m2", (0.15, 0.17)))
        for seed, error in enumerate(errors)
    ]


def _page(study: common.StudySetting) -> common.Page:
    stated._put_derived(study, _runs())
    return common.Page(study, "A page", "What?")


def test_both_kinds_of_sets_and_of_orders_are_shown_of_every_seed(study: common.StudySetting) -> None:
    page = _page(study)
    stated._many(page, _runs())
    text = "\n\n".join(page._parts)
    for line in (
        "| net-full-seed0 | 1 | 1 | 50.00% | 2 | 11.00% |",
        "| net-full-seed0 | 2 | 2 | 65.00% | 1 | 20.00% |",
        "| net-full-seed1 | 1 | 1 | 51.00% | 2 | 12.00% |",
        "| net-full-seed1 | 2 | 2 | 66.00% | 1 | 21.00% |",
        # of orders
        "| net-full-seed0 | 1 | 1 | 50.00% | 1 | 20.00% |",
        "| net-full-seed1 | 2 | 0 |  | 1 | 30.00% |",
    ):
        assert f"\n{line}" in text, line
    for stem in ("many", "many-orders"):
        assert f"({stem}.csv)" in text
    assert "sets that hold a critical block apart, each kind with its medians" in text
    assert "orders that move a critical block apart, each kind with its medians in bins" in text
    orders = study.tables["many-orders"]
    assert {column.name: column.unit for column in orders.columns}["median"] == "fraction"
    found = [(row["seed"], row["size"], row["critical"], row["n"], row["median"]) for row in orders.rows]
    assert found[:4] == [
        (0, 1, "with", 1, 0.5),
        (0, 1, "without", 1, 0.2),
        (0, 2, "with", 0, None),
        (0, 2, "without", 1, 0.3),
    ]


def test_the_sizes_of_the_table_of_a_page_are_few() -> None:
    rows = [
        {"network": "net", "size": size, "critical": kind, "n": 3, "median": 0.25}
        for size in range(1, 21)
        for kind in ("with", "without")
    ]
    head, rule, *lines = lesion_rules.side_by_side(rows, "orders").splitlines()
    assert head.count("|") == rule.count("|") == 7
    assert lines == [f"| net | {size} | 3 | 25.00% | 3 | 25.00% |" for size in (1, 2, 5, 10, 15, 20)]


def test_shares_of_the_gradient_by_projection_stand_beside_the_norms(study: common.StudySetting) -> None:
    row = path_rules.share_row("net", study_tables.gradients())
    numbers, norms, shares = zip(*study_tables.LENGTHS, strict=True)
    product = [number * norm for number, norm in zip(numbers, norms, strict=True)]
    assert row["mean_length"] == pytest.approx(sum(length * share for length, share in enumerate(shares)))
    assert row["mean_length_sampled"] == pytest.approx(sum(k * one for k, one in enumerate(product)) / sum(product))
    assert row["up_to_longest"] == pytest.approx(1.1)
    assert (row["longest"], row["largest"], row["largest_at"], row["negative"]) == (2, 0.7, 1, -0.1)
    page = _page(study)
    stated._gradients(page, _runs())
    text = "\n\n".join(page._parts)
    for seed in SEEDS:
        assert f"\n| net-full-seed{seed} | 1.0 | 1.7 | 2 | 110.00% | 70.0% | 1 | -0.1 |" in text
    assert "Weighted by them, paths take 1.0 to 1.0 branches on average" in text
    assert "weighted by the paper's product, 1.7 to 1.7" in text
    assert "(shares.csv)" in text
    # of the seed that the figures show, the norms of the same table
    assert (
        "![The paper's product, the sum of independent directions, and the exact sum, by length: net-full-seed0."
        in text
    )
    assert "(cancellation-net-full-seed0.png)\n" in text


def test_a_figure_shows_what_is_lost_by_the_number_of_random_blocks(study: common.StudySetting) -> None:
    page = _page(study)
    stated._curve(page)
    assert "(retraining.png)" in page._parts[-1]
    names = ("network", "trained", "difference", "difference_low", "difference_high")
    given = [
        dict(zip(names, row, strict=True))
        for row in (
            ("deep", "m23", 0.04, 0.03, 0.06), ("deep", "m7", 0.05, 0.045, 0.055), ("other", "m20", 0.01, None, None),
        )
    ]  # fmt: skip
    figure = curve.curve_figure(given, {"deep": 20})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["deep", "other"]
    deep, other = figure.axes
    for axes, expected in ((deep, [(7, 5, 4.5, 5.5), (23, 4, 3, 6)]), (other, [(20, 1, 1, 1)])):
        (drawn,) = axes.containers
        line, _, (ends,) = drawn.lines
        heights = [sorted(y for _, y in segment) for segment in ends.get_segments()]
        found = [(x, y, low, high) for x, y, (low, high) in zip(*line.get_data(), heights, strict=True)]
        assert found == [pytest.approx(point) for point in expected]
    named = {line.get_label(): line for line in deep.lines}
    assert set(named["0.5 points worse"].get_ydata()) == {0.5}
    assert set(named["first plus last effective length"].get_xdata()) == {20}
    assert "first plus last effective length" not in {line.get_label() for line in other.lines}
    assert len(legend(figure)) == 4
    assert_legible(figure)
    assert_legible(curve.curve_figure(given[2:], {}))


def test_published_networks_have_tables_of_both_kinds_and_of_shares(study: common.StudySetting) -> None:
    name = "net-full-seed0"
    pretrained._put_derived(study, [name])
    for stem, (with_it, without) in (("many", (0.5, 0.11)), ("many-orders", (0.5, 0.2))):
        rows = study.tables[stem].rows
        assert [row["network"] for row in rows] == [name] * 4
        assert [row["median"] for row in rows[:2]] == pytest.approx([with_it, without])
    (row,) = study.tables["shares"].rows
    assert row == path_rules.share_row(name, study_tables.gradients())
