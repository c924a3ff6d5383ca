"""What figures of lesions tell apart where they are asked to: critical blocks, chance, and small errors."""

from __future__ import annotations

import pandas as pd
import pytest

from pathlens import figures
from pathlens.errors import UsageError
from studies.language.__main__ import deletions_beside
from tests.helpers.figure_checks import assert_legible, legend, table
from tests.helpers.lesion_tables import LESION, REORDER, bars, measured, sets, single


def test_sets_and_orders_with_a_critical_block_stand_apart():
    chosen = ["3,4", "0,3", "1,2", "10,11"]
    cut = [measured(0.1 * i, count=2, sample=i, blocks=blocks) for i, blocks in enumerate(chosen)]
    moved = [
        measured(0.1 * i, swaps=1, kendall_tau=0.9, sample=i, blocks=blocks) for i, blocks in enumerate(chosen)
    ]  # fmt: skip
    for figure, words in (
        (figures.deletion(table(LESION, [measured(0.06, count=0), *cut]), critical=[1, 0]), "set holds"),
        (figures.reordering(table([*REORDER, "blocks"], moved), critical=[1, 0]), "order moves"),
    ):
        what, does = words.split()
        drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
        assert drawn[f"one {what}"] == pytest.approx([0, 30])
        assert drawn[f"one {what} that {does} block 0 or 1"] == pytest.approx([10, 20])
        assert_legible(figure)
    # a data frame reads single blocks as numbers
    frame = pd.DataFrame([{**dict.fromkeys(LESION), **row, "blocks": float(row["sample"])} for row in cut])
    drawn = {line.get_label(): list(line.get_ydata()) for line in figures.deletion(frame, critical=[2]).axes[0].lines}
    assert drawn["one set that holds block 2"] == pytest.approx([20])
    many = figures.deletion(table(LESION, cut), critical=range(2, 12))
    assert "one set that holds one of 10 critical blocks" in legend(many)
    every = legend(figures.deletion(table(LESION, cut), critical=range(12)))
    assert "one set that holds one of 12 critical blocks" in every
    assert "one set" not in every  # of which there is none
    for draw, columns in ((figures.deletion, LESION), (figures.reordering, REORDER)):
        without = [{name: row[name] for name in columns if name in row and name != "blocks"} for row in (*cut, *moved)]
        with pytest.raises(UsageError, match="needs column 'blocks'"):
            draw(table([name for name in columns if name != "blocks"], without), critical=[1])


def test_errors_of_tokens_and_of_images_are_told_apart():
    figure = deletions_beside({"tokens": sets(6), "images": sets(9)})
    assert figure.axes[0].get_ylabel() == "test error (% of tokens;\nResNet-56: % of images)"
    assert_legible(figure)


def test_chance_and_small_errors_are_shown_where_asked_for():
    tables = {"plain": single([14], base=0.5), "residual": single([18, 18, 18])}
    figure = figures.deletions(tables, chance=0.9, zoom=0.1)
    whole, below = figure.axes
    for axes in (whole, below):
        (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
        assert list(chance.get_ydata()) == pytest.approx([90, 90])
    assert whole.get_ylim()[1] > 90
    assert below.get_ylim() == pytest.approx((0, 10))
    for name, found in bars(figure).items():
        assert [y for y, _, _ in found.values()] == pytest.approx([100 * row["error"] for row in tables[name].rows[1:]])
    assert legend(figure) == ["chance", "intact network", "plain", "residual"]
    assert_legible(figure)
    for given in (sets(3), single([4])):
        figure = figures.deletion(given, chance=0.9)
        assert "chance" in legend(figure)
        assert figure.axes[0].get_ylim()[1] > 90
