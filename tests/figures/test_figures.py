"""Figures: the marks stand where the numbers are, nothing overlaps, and the user's matplotlib is left alone."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from pathlens import figures
from pathlens.errors import ResourceError, RunError, UsageError
from pathlens.figures.searches import greedy
from pathlens.tables import Table
from tests.helpers import ROOT
from tests.helpers.figure_checks import assert_legible, legend, table, words
from tests.helpers.lesion_tables import LESION, REORDER, bars, measured, sets, single

BLOCK = ["block", "name", "stage", "kind", "post_activation", "in_shape", "out_shape", "parameters", "multiply_adds"]


def reordered() -> Table:
    generator = np.random.default_rng(2)
    rows = [measured(0.06, swaps=0, kendall_tau=1.0)]
    for swaps in range(1, 21):
        for sample in range(10):
            tau = float(1 - 0.013 * swaps * generator.uniform(0.3, 1.2))
            error = float(np.clip(0.06 + 3 * (1 - tau) * generator.normal(1, 0.3), 0, 0.9))
            rows.append(measured(error, swaps=swaps, sample=sample, kendall_tau=tau, order=f"{swaps},{sample}"))
    return table(REORDER, rows)


def blocks(stages: list[int], turn: str = "projection", name: str = "layer{s}.{p}") -> list[dict]:
    rows: list[dict] = []
    for stage, length in enumerate(stages):
        for place in range(length):
            width, side = 16 * 2 ** min(stage, 5), 32 // 2 ** min(stage, 5)
            facts = {"stage": stage, "name": name.format(s=stage + 1, p=place), "post_activation": "relu"}
            facts["kind"] = turn if stage and not place else "identity"
            facts |= {"in_shape": "3x32x32", "out_shape": f"{width}x{side}x{side}"}
            facts |= {"parameters": 18 * width**2, "multiply_adds": 18 * width**2 * side**2}
            rows.append({"block": len(rows)} | facts)
    return rows


@pytest.mark.parametrize("draw", [figures.deletion, figures.skips])
def test_each_block_stands_at_its_error(draw):
    given = single([18, 18, 18], "padding")
    figure = draw(given)
    drawn = bars(figure)
    assert set(drawn) == {"identity shortcut", "padded shortcut"}
    assert set(drawn["padded shortcut"]) == {18, 36}
    together = drawn["identity shortcut"] | drawn["padded shortcut"]
    for row in given.rows[1:]:
        expected = [100 * row[name] for name in ("error", "error_low", "error_high")]
        assert together.pop(row["block"]) == pytest.approx(expected)
    assert not together
    (joining,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 54]
    assert list(joining.get_ydata()) == [100 * row["error"] for row in given.rows[1:]]
    (dashed,) = [line for line in figure.axes[0].lines if line.get_label() == "intact network"]
    assert set(dashed.get_ydata()) == {6.0}
    assert dashed.get_linestyle() == "--"
    band = [patch.get_extents().transformed(figure.axes[0].transData.inverted()) for patch in figure.axes[0].patches]
    intact = given.rows[0]
    assert any(
        b.y0 == pytest.approx(100 * intact["error_low"]) and b.y1 == pytest.approx(100 * intact["error_high"])
        for b in band
    )
    assert {"stage 0", "stage 1", "stage 2", "test error (%)"} <= set(words(figure))
    assert legend(figure) == ["identity shortcut", "intact network", "padded shortcut"]
    expected = {figures.deletion: "deleted block", figures.skips: "block whose shortcut is deleted"}
    assert figure.axes[0].get_xlabel() == expected[draw]


def test_marks_of_shape_changing_blocks_differ_in_marker_and_colour():
    for turn in ("padding", "projection", "layer-resized"):
        lines = [container.lines[0] for container in figures.deletion(single([3, 3], turn)).axes[0].containers]
        assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2


@pytest.mark.parametrize(
    "stages",
    [
        [1],
        [2],
        [3, 3, 3],
        [24],
        [2, 2, 2, 2],
        [3, 4, 6, 3],
        [18, 18, 18],
        [3, 8, 36, 3],
        [1] * 12,
        [1] * 110,
        [200] * 3,
    ],
)
def test_single_deletions_are_legible(stages):
    assert_legible(figures.deletion(single(stages)))
    assert_legible(figures.skips(single(stages, "identity")))


def test_all_kinds_are_legible_together():
    kinds = ["identity", "projection", "padding", "gated", "scaled", "someone's own", None]
    rows = [measured(0.1 + 0.02 * i, block=i, stage=0, kind=kind, count=1) for i, kind in enumerate(kinds)]
    figure = figures.deletion(table(LESION, rows))
    assert_legible(figure)
    assert "someone's own" in legend(figure)
    assert len(legend(figure)) == 7  # no intact network was given, so none is drawn


def test_plain_networks_speak_of_layers():
    rows = [measured(0.1, count=0)]
    rows += [measured(0.3, block=i, stage=None, kind="layer-resized" if i % 3 else "layer", count=1) for i in range(15)]
    figure = figures.deletion(table(LESION, rows))
    assert figure.axes[0].get_xlabel() == "deleted layer"
    assert legend(figure) == ["intact network", "layer", "layer that changes shape"]
    assert_legible(figure)


def test_sets_are_drawn_against_their_size():
    given = sets()
    figure = figures.deletion(given)
    (drawn,) = bars(figure).values()
    for row in given.rows:
        if row["count"] and row["sample"] is None:
            expected = [100 * row[name] for name in ("error", "error_low", "error_high")]
            assert drawn.pop(row["count"]) == pytest.approx(expected)
    assert not drawn
    (points,) = [line for line in figure.axes[0].lines if line.get_label() == "one set"]
    found = sorted(zip(*points.get_data(), strict=True))
    assert found == sorted((r["count"], 100 * r["error"]) for r in given.rows if r["sample"] is not None)
    assert figure.axes[0].get_xlabel() == "number of deleted blocks"
    assert figures.skips(given).axes[0].get_xlabel() == "number of deleted shortcuts"
    assert_legible(figure)


def test_sets_without_interval_or_summary():
    rows = [measured(0.1, count=0, error_low=None, error_high=None)]
    rows += [{"count": 3, "sample": 0, "error": 0.4}, {"count": 3, "error": 0.4}]
    assert_legible(figures.deletion(table(LESION, rows)))
    figure = figures.deletion(table(LESION, rows[:2]))
    assert legend(figure) == ["intact network", "one set"]


def test_random_sets_of_one_block_are_sets():
    rows = [measured(0.06, count=0)]
    rows += [measured(0.1 + 0.1 * i, count=1, sample=i, block=3, stage=0, kind="identity") for i in range(3)]
    figure = figures.deletion(table(LESION, [*rows, measured(0.2, count=1)]))
    assert figure.axes[0].get_xlabel() == "number of deleted blocks"
    (drawn,) = bars(figure).values()
    assert drawn[1][0] == pytest.approx(20)
    layers = [row | {"kinds": "layer,layer-resized"} for row in sets(3).rows if row["count"]]
    assert figures.deletion(table([*LESION, "kinds"], layers)).axes[0].get_xlabel() == "number of deleted layers"


def test_reordering_points_and_bins():
    given = reordered()
    figure = figures.reordering(given, bins=5)
    rows = [row for row in given.rows if row["swaps"]]
    (points,) = [line for line in figure.axes[0].lines if line.get_label() == "one order"]
    expected = sorted((r["kendall_tau"], 100 * r["error"]) for r in rows)
    assert sorted(zip(*points.get_data(), strict=True)) == expected
    lowest = min(row["kendall_tau"] for row in rows)
    groups: dict[int, list[dict]] = {}
    for row in rows:
        groups.setdefault(min(4, int(5 * (row["kendall_tau"] - lowest) / (1 - lowest))), []).append(row)
    (drawn,) = bars(figure).values()
    assert len(drawn) == len(groups)
    for group in groups.values():
        x = np.mean([row["kendall_tau"] for row in group])
        y, low, high = drawn[min(drawn, key=lambda found, x=x: abs(found - x))]
        errors = np.array([100 * row["error"] for row in group])
        assert y == pytest.approx(errors.mean())
        interval = ttest_1samp(errors, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((max(0, interval.low), min(100, interval.high)))
    assert figure.axes[0].get_xlim()[0] > 1 > figure.axes[0].get_xlim()[1]
    assert_legible(figure)


def test_a_mean_is_of_five_orders_or_more():
    taus = [0.99] * 2 + [0.9] * 4 + [0.8] * 6 + [0.7]
    rows = [
        measured(0.1 + 0.01 * number, swaps=1, sample=number, kendall_tau=tau) for number, tau in enumerate(taus)
    ]  # fmt: skip
    (drawn,) = bars(figures.reordering(table(REORDER, rows), bins=6)).values()
    # 0.99 is pooled with 0.9, and what is left at 0.7 with 0.8
    pools = [range(6), range(6, 13)]
    expected = [(np.mean([taus[i] for i in pool]), 10 + np.mean(pool)) for pool in pools]
    np.testing.assert_allclose([(x, y) for x, (y, _, _) in drawn.items()], expected)
    few = figures.reordering(table(REORDER, rows[:4]))
    assert legend(few) == ["one order"]
    assert not few.axes[0].containers


def test_relative_squared_errors_may_exceed_one_and_are_named_so() -> None:
    def large(error: float, **rest: object) -> dict:
        return {**measured(0.5, **rest), "error": error, "error_low": error - 0.1, "error_high": error + 0.1}

    rows = [large(1.5 + 0.5 * n, swaps=1, sample=n, kendall_tau=0.9, order=f"{n}") for n in range(6)]
    numbers = {"task": "regression"}
    figure = figures.reordering(replace(table(REORDER, rows), provenance=numbers))
    ((found,),) = (drawn.values() for drawn in bars(figure).values())
    interval = ttest_1samp([150, 200, 250, 300, 350, 400], 0).confidence_interval(0.95)
    assert found == pytest.approx((275, interval.low, interval.high))
    steps = [large(0.5, count=0), large(1.2, count=1, block=2), large(1.4, count=2, block=0)]
    searched = replace(table(LESION, steps), provenance=numbers)
    assert greedy(searched).axes[0].get_ylabel() == "relative squared error (%)"


def test_an_order_that_was_drawn_again_counts_once():
    facts = [(0.9, 0.3, "a"), (0.9, 0.5, "b"), (0.8, 0.6, "c"), (0.8, 0.7, "d"), (0.8, 0.2, "e")]
    rows = [
        measured(error, swaps=1 + number // 5, sample=number, kendall_tau=tau, order=order)
        for number, (tau, error, order) in enumerate(facts + 7 * facts[:1])
    ]
    figure = figures.reordering(table(REORDER, rows))
    (points,) = [line for line in figure.axes[0].lines if line.get_label() == "one order"]
    assert sorted(points.get_ydata()) == pytest.approx([20, 30, 50, 60, 70])
    ((found,),) = (drawn.values() for drawn in bars(figure).values())
    interval = ttest_1samp([30, 50, 60, 70, 20], 0).confidence_interval(0.95)
    assert found == pytest.approx((46, interval.low, interval.high))
    few = figures.reordering(table(REORDER, [row for row in rows if row["order"] != "e"]))
    assert not few.axes[0].containers  # four orders in eleven rows are no five
    assert_legible(figure)


def test_several_networks_stand_in_one_panel():
    tables = {"plain": single([14]), "residual": single([18, 18, 18], "padding")}
    figure = figures.deletions(tables)
    drawn = bars(figure)
    assert list(drawn) == list(tables)
    for name, given in tables.items():
        rows = given.rows[1:]
        assert list(drawn[name]) == [row["block"] for row in rows]
        expected = [[100 * row[end] for end in ("error", "error_low", "error_high")] for row in rows]
        np.testing.assert_allclose(list(drawn[name].values()), expected)
    top = 100 * max(row["error_high"] for given in tables.values() for row in given.rows)
    assert figure.axes[0].get_ylim()[1] >= top
    assert legend(figure) == ["intact network", "plain", "residual"]
    assert figure.get_size_inches()[0] == figures.DOUBLE
    assert_legible(figure)


def test_rules_are_laid_over_each_other_by_the_number_of_blocks():
    tables = {"any": sets(6), "first": sets(9), "last": sets(4)}
    figure = figures.deletions(tables)
    for name, found in bars(figure).items():
        rows = [row for row in tables[name].rows if row["count"] and row["sample"] is None]
        assert [round(x) for x in found] == [row["count"] for row in rows]
        assert [y for y, _, _ in found.values()] == pytest.approx([100 * row["error"] for row in rows])
    assert figure.axes[0].get_xlabel() == "number of deleted blocks"
    # no interval covers that of another table
    assert len({x for found in bars(figure).values() for x in found}) == 6 + 9 + 4
    assert_legible(figure)
    assert_legible(figures.deletions({f"network {number}": single([4]) for number in range(7)}))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({}, "there are no tables"),
        ({"a": single([3]), "b": sets(3)}, "table 'a' has neither"),
        ({"a": table(LESION, [measured(0.1, count=0)])}, "table 'a' has neither"),
        ({"a": table(["block"], [{"block": 1}])}, "needs column 'stage'"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tables, words):
    with pytest.raises(UsageError, match=words):
        figures.deletions(tables)


def test_the_interval_of_an_error_along_a_line_is_not_cut_off():
    interval = {"error": 0.2, "error_low": 0.1, "error_high": 0.35}
    rows = [{"draw": 0, "x": x, "loss": 1.0 + x * x, **interval} for x in (-1.0, 0.0, 1.0)]
    (_, right) = figures.loss_surface(table(["draw", "x", "y", "loss", *interval], rows)).axes
    (band,) = right.collections
    assert max(height for _, height in band.get_paths()[0].vertices) == pytest.approx(35)
    assert right.get_ylim()[1] > 35
    # of several draws the mean is drawn, without intervals
    several = [{**row, "draw": draw} for draw in (0, 1) for row in rows]
    (_, right) = figures.loss_surface(table(["draw", "x", "y", "loss", *interval], several)).axes
    assert 20 < right.get_ylim()[1] < 35


def test_reordering_of_a_single_order():
    rows = [measured(0.06, swaps=0, kendall_tau=1.0), measured(0.5, swaps=1, sample=0, kendall_tau=0.9)]
    assert_legible(figures.reordering(table(REORDER, rows)))
    assert_legible(figures.reordering(table(REORDER, [rows[1] | {"kendall_tau": 1.0}])))


@pytest.mark.parametrize(
    ("stages", "turn"),
    [
        ([1], "identity"),
        ([2], "identity"),
        ([3, 3, 3], "padding"),
        ([2, 2, 2, 2], "projection"),
        ([24], "identity"),
        ([30], "scaled"),
        ([18, 18, 18], "padding"),
        ([3, 8, 36, 3], "projection"),
        ([67, 67, 66], "projection"),
        ([1] * 40, "gated"),
        ([1] * 110, "scaled"),
        ([200, 200, 200], "padding"),
    ],
)
def test_structure_is_legible(stages, turn):
    rows = blocks(stages, turn)
    figure = figures.structure(rows, "torchvision:some_network_of_a_longer_name")
    assert_legible(figure)
    heights = [[bar.get_height() for bar in axes.containers[0]] for axes in figure.axes[1:]]
    assert heights == [[row[name] for row in rows] for name in ("parameters", "multiply_adds")]
    assert any(f"{len(rows)} block" in text for text in words(figure))


def test_structure_names_blocks_and_counts_shortcuts():
    rows = [
        row | {"shortcut_parameters": 100, "shortcut_multiply_adds": None}
        for row in blocks([2, 2], name="encoder.layers.block_{s}_{p}.a_very_long_name_of_a_module")
    ]
    figure = figures.structure(table([*BLOCK, "shortcut_parameters", "shortcut_multiply_adds"], rows), "net")
    assert_legible(figure)
    assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [r["parameters"] + 100 for r in rows]
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert [label.rpartition("  ")[2] for label in labels] == ["0", "1", "2", "3"]
    assert all(label.startswith("…") and "a_very_long_name_of_a_module" in label for label in labels)


def test_structure_of_a_plain_network_without_costs():
    rows = [row | {"kind": "layer", "parameters": None, "multiply_adds": None, "stage": None} for row in blocks([5])]
    figure = figures.structure(rows, "vgg: costs 5$ or 6$")
    assert len(figure.axes) == 1
    assert "vgg: costs 5$ or 6$" in words(figure)[0] + words(figure)[-1]
    assert_legible(figure)
    assert not figure.axes[0].patches  # no shortcuts, no arcs
    assert any("5 layers" in text for text in words(figure))


def test_frames_are_drawn_like_tables():
    for draw, given in ((figures.deletion, single([3, 3])), (figures.deletion, sets(4)), (figures.skips, single([3]))):
        assert figures.files(draw(given), "a") == figures.files(draw(given.to_frame()), "a")


@pytest.mark.parametrize(
    ("draw", "columns"),
    [
        (figures.deletion, LESION),
        (figures.skips, LESION),
        (figures.reordering, REORDER),
        (figures.structure, BLOCK),
    ],
)
def test_tables_with_nothing_to_draw_are_refused(draw, columns):
    with pytest.raises(UsageError, match="without rows"):
        draw(table(columns, []))
    with pytest.raises(UsageError, match="needs column"):
        draw(table(["a"], [{"a": 1}]))
    if draw is not figures.structure:
        with pytest.raises(UsageError, match="give one from"):
            draw(_intact_only(columns))


def _intact_only(columns: list[str]) -> Table:
    row = measured(0.1) | {"count": 0, "swaps": 0}
    return table(columns, [{name: row.get(name) for name in columns}])


def test_structure_refuses_no_rows_and_rows_without_block():
    with pytest.raises(UsageError, match="without rows"):
        figures.structure([])
    with pytest.raises(UsageError, match="row without a block"):
        figures.structure([row | {"block": None} for row in blocks([2])])
    with pytest.raises(UsageError, match="0 bins"):
        figures.reordering(reordered(), bins=0)


@pytest.mark.usefixtures("fine_figures")
def test_saved_files_are_fit_for_print(tmp_path):
    figure = figures.deletion(single([18, 18, 18]))
    png, pdf = figures.save(figure, tmp_path / "new", "sweep")
    assert (png.name, pdf.name) == ("sweep.png", "sweep.pdf")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["sweep.pdf", "sweep.png"]
    with Image.open(png) as image:
        assert image.size == (round(300 * figures.DOUBLE), 720)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.5)
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/FontFile2" in data  # TrueType, not Type 3 outlines
    assert b"/Type3" not in data
    box = [float(x) for x in re.search(rb"/MediaBox \[([^]]*)\]", data).group(1).split()]
    assert box == pytest.approx([0, 0, 72 * figures.DOUBLE, 72 * 2.4])


def test_same_table_gives_the_same_bytes():
    one, two = (figures.files(figures.deletion(single([3, 3])), "a") for _ in range(2))
    assert one == two


def test_stage_colours_can_be_told_apart_in_grey():
    png = figures.files(figures.structure(blocks([3, 3, 3])), "a")["a.png"]
    with Image.open(io.BytesIO(png)) as image:
        found = image.convert("RGB").getcolors(1 << 20)
    solid = [colour for count, colour in sorted(found, reverse=True)[1:4] if count > 1000]
    assert len(solid) == 3
    grey = sorted(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in solid)
    assert min(b - a for a, b in itertools.pairwise(grey)) > 5


def test_save_faults(tmp_path, monkeypatch):
    figure = figures.deletion(single([3]))
    with pytest.raises(UsageError, match="plain file name"):
        figures.save(figure, tmp_path, "a/b")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot write"):
        figures.save(figure, tmp_path / "file", "a")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        figures.save(figure, tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_the_users_matplotlib_is_left_alone(tmp_path):
    code = """
import sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plt.rcParams.update({"font.size": 33, "axes.facecolor": "black", "axes.labelweight": "bold", "text.parse_math": True})
before = dict(plt.rcParams)
from tests.figures import test_figures as t
from pathlens import figures
for figure in (figures.deletion(t.single([3, 3])), figures.reordering(t.reordered()), figures.structure(t.blocks([2]))):
    figures.save(figure, sys.argv[1], "a")
    assert tuple(figure.axes[0].get_facecolor()) == (1, 1, 1, 1), "the user's style leaks in"
    assert figure.axes[-1].xaxis.label.get_weight() == "normal", "the user's style leaks in"
assert dict(plt.rcParams) == before, "rcParams changed"
assert matplotlib.get_backend().lower() == "svg", "backend changed"
assert not plt.get_fignums(), "figures are left in pyplot"
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert mpl.rcParams["text.parse_math"]
