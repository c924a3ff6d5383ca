"""What figures of lesions tell apart where they are asked to: critical blocks, chance, and small errors."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from pathlens import figures
from pathlens.errors import UsageError
from pathlens.figures.blockdrop import trade_off
from pathlens.figures.runs import runs
from pathlens.figures.searches import greedy
from pathlens.figures.style import COLOURS, MUTED, new_figure, powers_of_ten
from studies.language.__main__ import deletions_beside
from tests.helpers.figure_checks import assert_legible, legend, table, texts
from tests.helpers.lesion_tables import INTERVAL, LESION, REORDER, bars, measured, sets, single


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


def _medians(figure):
    """What is drawn as medians, which show where there is one alone: colour -> places and heights."""
    lines = [line for line in figure.axes[0].lines if (line.get_linestyle(), line.get_marker()) == ("-", "_")]
    return {line.get_color(): [list(ends) for ends in line.get_data()] for line in lines if len(line.get_xdata())}


def test_each_kind_of_sets_has_the_line_of_its_medians():
    drawn = [
        (1, "0", 0.5),
        (1, "2", 0.1),
        (1, "3", 0.3),
        (1, "4", 0.12),
        (2, "0,2", 0.6),
        (2, "1,3", 0.8),
        (2, "2,3", 0.2),
    ]
    rows = [measured(0.06, count=0)]
    rows += [measured(e, count=count, sample=i, blocks=blocks) for i, (count, blocks, e) in enumerate(drawn)]
    rows += [measured(0.25, count=1), measured(0.5, count=2)]  # means over all sets of a size
    figure = figures.deletion(table(LESION, rows), critical=[0, 1])
    apart = _medians(figure)
    assert list(apart) == [COLOURS[0], COLOURS[3]]
    assert [places for places, _ in apart.values()] == [[1, 2], [1, 2]]
    assert [heights for _, heights in apart.values()] == [pytest.approx([12, 20]), pytest.approx([50, 70])]
    assert "median of each kind" in legend(figure)
    (mean,) = figure.axes[0].containers
    assert mean.lines[0].get_color() == MUTED  # which is of neither kind
    assert_legible(figure)
    whole = figures.deletion(table(LESION, rows))
    assert not _medians(whole)
    assert "median of each kind" not in legend(whole)
    assert whole.axes[0].containers[0].lines[0].get_color() == COLOURS[0]


def test_a_median_of_orders_is_of_five_or_more_of_a_kind():
    taus, errors = (0.9, 0.8, 0.8, 0.7, 0.6), (0.1, 0.2, 0.6, 0.7, 0.9)
    given = [("0,3", tau, error) for tau, error in zip(taus, errors, strict=True)]
    given += [("2,3", 0.95, 0.1)] * 4
    rows = [
        measured(error, swaps=1, kendall_tau=tau, sample=i, blocks=blocks)
        for i, (blocks, tau, error) in enumerate(given)
    ]  # fmt: skip
    figure = figures.reordering(table([*REORDER, "blocks"], rows), bins=1, critical=[0])
    assert _medians(figure) == {COLOURS[3]: [pytest.approx([0.76]), pytest.approx([60])]}
    assert_legible(figure)
    few = figures.reordering(table([*REORDER, "blocks"], rows[1:]), bins=1, critical=[0])
    assert not _medians(few)
    assert "median of each kind" not in legend(few)


def test_errors_of_tokens_and_of_images_are_told_apart():
    figure = deletions_beside({"tokens": sets(6), "images": sets(9)})
    assert figure.axes[0].get_ylabel() == "test error (% of tokens;\nResNet-56: % of images)"
    assert_legible(figure)


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        ({}, "test error (%)"),
        ({"split": None}, "test error (%)"),
        ({"split": "test"}, "test error (%)"),
        ({"split": "validation"}, "validation error (%)"),
        ({"split": "train"}, "training error (%)"),
        ({"split": "train", "task": "next-token"}, "token error (%)"),
    ],
)
def test_errors_are_called_after_the_split_that_was_measured(facts, label):
    assert figures.deletion(replace(single([2]), provenance=facts)).axes[0].get_ylabel() == label


def test_every_figure_of_errors_names_the_split():
    order = table(REORDER, [measured(0.5, swaps=1, sample=0, kendall_tau=0.9)])
    run = table(["count", "first", *INTERVAL], [measured(0.1, count=0), measured(0.3, count=2, first=1)])
    steps = table(LESION, [measured(0.1, count=0), measured(0.2, count=1, block=2)])
    for draw, given in (
        (figures.deletion, sets(3)), (figures.skips, single([2])), (figures.reordering, order), (runs, run),
        (greedy, steps), (trade_off, _traded(0.2, 0.6)),
    ):  # fmt: skip
        figure = draw(replace(given, provenance={"split": "validation"}))
        assert figure.axes[0].get_ylabel() == "validation error (%)"
    parts = {split: replace(single([2]), provenance={"split": split}) for split in ("train", "test")}
    assert figures.deletions(parts).axes[0].get_ylabel() == "error (%)"
    assert figures.deletions({"one": parts["train"]}).axes[0].get_ylabel() == "training error (%)"


def test_stages_are_whole_numbers_in_a_table_that_pandas_reads():
    given = single([3, 3])
    frame = pd.read_csv(io.StringIO(given.to_frame().to_csv(index=False)))
    assert frame["stage"].dtype == float  # because the intact network has none
    assert {"stage 0", "stage 1"} <= {text.get_text() for text in texts(figures.deletion(frame))}


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


def _traded(policy, random):
    kinds = [("intact", 0.01, 54), ("policy", policy, 36.5), ("random", random, 37), ("greedy", 0.02, 37)]
    rows = [
        {"network": kind, "sample": None, "blocks": blocks, "error": error, "error_low": 0.5 * error,
         "error_high": 1.5 * error}
        for kind, error, blocks in kinds
    ]  # fmt: skip
    return table(rows[0], [*rows, {**rows[2], "sample": 0}])


def test_small_errors_of_a_policy_stand_beside_large_ones_of_random_sets():
    (axes,) = trade_off(_traded(0.012, 0.6)).axes
    assert axes.get_yscale() == "symlog"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2", "5", "10", "20", "50"]
    # as far from each other as the errors' ratio: 1.2 % is not drawn upon 2 %
    low, high = (axes.transData.transform((37, error))[1] for error in (1.2, 2.0))
    assert (high - low) / axes.bbox.height > 0.05
    (axes,) = trade_off(_traded(0.2, 0.6)).axes
    assert axes.get_yscale() == "linear"
    near = [{**row, "blocks": 53.8} if row["blocks"] == 37 else row for row in _traded(0.2, 0.6).rows]
    (axes,) = trade_off(table(near[0], near)).axes
    assert axes.get_xlim() == (35, 54.5)  # no network runs more blocks than it has


def test_a_single_random_set_stands_where_there_is_no_mean():
    rows = [row for row in _traded(0.2, 0.6).rows if row["network"] != "random" or row["sample"] is not None]
    figure = trade_off(table(rows[0], rows))
    assert legend(figure) == ["greedy deletion", "intact network", "policy", "random set"]
    assert bars(figure)["random set"] == {37: pytest.approx((60, 30, 90))}


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0.9e-3, 20), ["10⁻³", "10⁻²", "10⁻¹", "10⁰", "10¹"]),
        ((0.5, 12), ["10⁰", "10¹"]),
        ((1.9, 7.5), ["2", "5"]),
        ((1.5e-6, 8e-6), ["2×10⁻⁶", "5×10⁻⁶"]),
        ((0.6, 1.9), ["1", "1.5"]),
        ((1.00005, 1.00035), ["1.0001", "1.0002", "1.0003"]),
    ],
)
def test_a_logarithmic_axis_has_two_numbers_or_more(ends, ticks):
    figure = new_figure(3.5, 2.4)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    powers_of_ten(axes)
    axes.set_ylim(ends)
    axes.set_xticks([])
    assert [text.get_text() for text in texts(figure)] == ticks


def test_columns_that_are_drawn_are_asked_for():
    curve = {"network": "n", "weights": "w", "block": 0, "stage": 0}
    summand = {**curve, "summand": "block", "share": 0.5, "norm": 1.0, "norm_ratio": 1.0}
    for name in ("norm_ratio", "stage"):
        with pytest.raises(UsageError, match=f"needs column '{name}'"):
            figures.decomposition([{key: value for key, value in summand.items() if key != name}])
    signal = {**curve, "place": "output", "second_moment": 1.0, "gradient_second_moment": 1.0}
    with pytest.raises(UsageError, match="needs column 'variance'"):
        figures.signal_propagation([signal], quantity="variance")
    with pytest.raises(UsageError, match="needs column 'gradient_variance'"):
        figures.signal_propagation([{**signal, "variance": 1.0}], quantity="variance")


def test_a_signal_whose_interval_reaches_zero_has_a_band_all_along():
    row = {"network": "n", "weights": "w", "stage": 0, "place": "output", "gradient_second_moment": None}
    rows = [
        {**row, "block": block, "second_moment": 2.0, "second_moment_low": 2 - half, "second_moment_high": 2 + half}
        for block, half in enumerate((0.2, 2.0, 6.0))
    ]
    axes = figures.signal_propagation(table(rows[0], rows)).axes[0]
    (band,) = (one for one in axes.collections if one.get_label() != "stages")
    heights = {x: sorted(y for at, y in band.get_paths()[0].vertices if at == x) for x in range(3)}
    for block, half in enumerate((0.2, 2.0, 6.0)):
        assert heights[block][0] == pytest.approx(2 * math.exp(-half / 2))
        assert heights[block][-1] == pytest.approx(2 * math.exp(half / 2))


def test_networks_under_one_name_are_no_one_line():
    signal = {"stage": 0, "place": "output", "gradient_second_moment": 1.0}
    summand = {"stage": 0, "summand": "block", "share": 0.5, "norm": 1.0, "norm_ratio": 1.0}
    for draw, more in ((figures.signal_propagation, signal), (figures.decomposition, summand)):
        deep, shallow = (
            [{"network": "Net", "weights": "he", "block": i, "second_moment": 2.0**i, **more} for i in range(blocks)]
            for blocks in (3, 2)
        )
        with pytest.raises(UsageError, match="the curve 'he' has block 0 twice"):
            draw([*deep, *shallow])
        axes = draw([*deep, *({**row, "network": "Shallow"} for row in shallow)]).axes[0]
        drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
        assert drawn["Net, he"] == [0, 1, 2]
        assert drawn["Shallow, he"] == [0, 1]
