"""One declaration of a result gives its files, its terminal table, its figure and its page; nothing else is told."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pathlens
from pathlens import figures, results
from pathlens.cli.show import show
from pathlens.errors import UsageError
from pathlens.pages.words import charts, headlines, title
from pathlens.report import write_run
from pathlens.report.reading import read_runs
from pathlens.results.blockdrop import BLOCKDROP, rows_of
from pathlens.results.charts import Chart, StageRun, chart, cut_off, stage_runs
from pathlens.results.path_profile import (
    PATH_GRADIENTS,
    PathRow,
    all_paths,
    contribution_series,
    contributions,
    path_shares,
)
from pathlens.results.result import Headline, Provenance, Result, Rows, Shown, column, formatted
from pathlens.results.signal import SIGNAL_PROPAGATION, SignalRow
from pathlens.results.text import power_of_ten
from pathlens.tables import Column, Table, read_table


@dataclass(frozen=True, kw_only=True)
class TemperatureRow:
    """One block that was warmed."""

    place: int = column("", "which block")
    warmth: float | None = column("K", "how warm it got")
    who: str | None = column("", "who measured")


class Temperatures(Result):
    name = "warm-blocks"
    row = TemperatureRow
    needed = ("place", "warmth")
    shown: ClassVar[Mapping[str, Shown]] = {
        "place": Shown(),
        "warmth": Shown("warmth K", formatted(".1f")),
        "who": Shown(left=True, gives_way=1),
    }
    what = "blocks warmed"
    figure = "training.training"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        return [Headline("Warmest", f"{max(row['warmth'] for row in rows):.1f} K", f"of {len(rows)}")]

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        x, y = ([row[name] for row in rows] for name in ("place", "warmth"))
        series = {"key": "warmth", "name": "warmth", "colour": 0, "x": x, "y": y}
        return [chart("warmth", "Warmth by block", "block", {"label": "warmth (K)"}, [series])]


ROWS = [vars(TemperatureRow(place=place, warmth=300.25 + place, who="Ada" if place else None)) for place in range(3)]


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Temperatures:
    """The only thing that a new result has to be put into."""
    monkeypatch.setitem(results.RESULTS, "warm-blocks", Temperatures())
    return Temperatures()


def test_a_new_result_is_printed(warm, capsys):
    show(warm.table(ROWS, {"model": "net", "data": "digits"}), "warm-blocks")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["place", "warmth", "K", "who"]
    assert [line.split() for line in lines[2:5]] == [["0", "300.2"], ["1", "301.2", "Ada"], ["2", "302.2", "Ada"]]
    assert lines[5].startswith("net, weights as given; digits")


def test_a_new_result_describes_its_files(warm, tmp_path):
    warm.table(ROWS, {"seed": 3}).write(tmp_path, "warm-blocks")
    described = json.loads((tmp_path / "warm-blocks.meta.json").read_text())
    assert described["columns"] == [
        {"name": "place", "unit": "", "description": "which block", "type": "int"},
        {"name": "warmth", "unit": "K", "description": "how warm it got", "type": "float"},
        {"name": "who", "unit": "", "description": "who measured", "type": "str"},
    ]
    assert read_table(tmp_path / "warm-blocks.parquet").rows[2]["warmth"] == 302.25


def test_a_new_result_has_its_section_of_a_page(warm, tmp_path):
    folder = tmp_path / "run"
    write_run(folder, {"warm-blocks": warm.table(ROWS, {})}, {}, {"verb": "warm-blocks", "model": "net"})
    (run,) = read_runs([folder])
    assert title(run) == "net: blocks warmed"
    assert headlines(run) == [Headline("Warmest", "302.2 K", "of 3")]
    (drawn,) = charts(run)
    assert drawn["series"][0]["y"] == [300.25, 301.25, 302.25]
    page = pathlens.report_page(folder, tmp_path / "page.html").read_text()
    for text in ("net: blocks warmed", "Warmest", "302.2 K", "Warmth by block", "how warm it got"):
        assert text in page


def test_a_table_that_only_has_the_name_is_shown_as_it_is(warm, tmp_path):
    """A file can say that it is any result; headlines and charts are made of checked columns alone."""
    odd = (
        Table((Column("place"), Column("warmth")), ({"place": 1, "warmth": "hot"},)),
        Table((Column("place"), Column("warmth")), ({"place": None, "warmth": 1.0},)),
        Table((Column("place"),), ({"place": 1},)),
        Table((Column("place"), Column("warmth")), ({"place": 1, "warmth": 10**400},)),
        Table(warm.columns, ()),
    )
    for number, table in enumerate(odd):
        write_run(tmp_path / str(number), {"warm-blocks": table}, {}, {"verb": "warm-blocks", "model": "net"})
        (run,) = read_runs([tmp_path / str(number)])
        assert title(run) == "net: warm-blocks"
        assert headlines(run) == [Headline("Rows", str(len(table.rows)), "warm-blocks")]
        assert charts(run) == []


def test_a_result_without_a_figure_says_so():
    row = {"split": "test", "n": 1, "error": 0.0, "error_low": 0.0, "error_high": 0.8, "loss": 0.1}
    table = results.RESULTS["result"].table([row], {})
    with pytest.raises(UsageError, match="no figure"):
        figures.draw("result", table)


def test_a_figure_is_the_one_that_the_result_names(warm):
    history = results.named("history").table(
        [{**vars(results.named("history").row()), "epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_error": 0.5}], {}
    )
    axes = figures.draw("warm-blocks", history).axes
    assert [line.get_label() for line in axes[0].lines] == ["as trained"]


_TRAINED, _WATCHED = "as trained by the step's sub-network, mean over", "of the validation"
_ANY = "if there are any"
_TOKENS = {
    "train_loss": f"{_TRAINED} sequences: mean cross-entropy of the tokens",
    "train_error": f"{_TRAINED} sequences: share of tokens predicted wrongly",
    "validation_loss": f"{_WATCHED} sequences, {_ANY}: mean cross-entropy of the tokens",
    "validation_error": f"{_WATCHED} sequences, {_ANY}: share of tokens predicted wrongly",
    "validation_error_low": (f"{_WATCHED} sequences, {_ANY}: lower end of the 95 % interval: Student's over sequences"),
}
_NUMBERS = {
    "train_loss": f"{_TRAINED} examples: mean squared error",
    "validation_loss": f"{_WATCHED} examples, {_ANY}: mean squared error",
    "validation_error": (
        f"{_WATCHED} examples, {_ANY}: relative squared error: of squared errors over the variance of the targets, 1 "
        "for always giving their mean"
    ),
}
_MASKS = {
    "train_loss": f"{_TRAINED} images: mean batch-iou loss of the images",
    "validation_loss": f"{_WATCHED} images, {_ANY}: mean soft-iou loss of the images",
}


@pytest.mark.parametrize(
    ("stated", "columns", "unit"),
    [
        ({"task": "next-token"}, _TOKENS, "nats"),
        ({"task": "regression", "loss": "squared-error"}, _NUMBERS, "targets^2"),
        ({"task": "segmentation", "loss": "batch-iou"}, _MASKS, ""),
        ({}, {"validation_error": "share of validation images classified wrongly"}, "nats"),
    ],
)
def test_a_training_is_described_in_the_words_of_its_task(stated, columns, unit):
    history = results.named("history")
    described = {one.name: one for one in history.table([vars(history.row())], stated).columns}
    assert {name: described[name].description for name in columns} == columns
    assert {name: described[name].unit for name in columns} == {
        name: unit if name.endswith("_loss") else "fraction" for name in columns
    }


def test_the_final_loss_of_a_training_by_batches_is_that_of_single_images():
    result, stated = results.named("result"), {"task": "segmentation", "loss": "batch-iou"}
    (loss,) = [one for one in result.table([vars(result.row())], stated).columns if one.name == "loss"]
    assert loss.description.startswith("mean soft-iou loss of the images")


def test_an_unknown_result_is_one_line():
    with pytest.raises(UsageError, match="no result is called 'warm-blocks'; there are delete-blocks"):
        show(Table((Column("n"),), ({"n": 1},)), "warm-blocks")


@pytest.mark.parametrize("result", results.RESULTS.values(), ids=results.RESULTS)
def test_declarations_speak_of_their_own_columns(result):
    names = [column.name for column in result.columns]
    assert {*result.needed, *result.shown, *filter(None, [result.bar])} <= set(names)
    assert all(column.description for column in result.columns)
    assert result.name == next(name for name, other in results.RESULTS.items() if other is result)


def test_declarations_load_nothing_heavy():
    code = "import sys, pathlens.results; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pathlens" in done.stdout.split()
    assert not {"torch", "pandas", "pyarrow", "scipy", "matplotlib", "networkx"} & set(done.stdout.split())


def test_declarations_are_found_by_their_names_first(tmp_path):
    rows = [{**vars(results.named("delete-blocks").row()), "count": 1, "block": 0, "error": 0.5}]
    table = results.named("delete-blocks").table(rows, {})
    for names, found in (
        (("delete-skips",), "delete-skips"),
        (("a", "delete-skips"), "delete-skips"),
        ((), "delete-blocks"),
    ):
        result = results.find(table, *names)
        assert result is not None
        assert result.name == found


def test_an_interval_that_reaches_zero_is_not_a_missing_one():
    where = {"network": "n", "weights": "w", "stage": 0, "place": "output", "second_moment": 2.0}
    rows = [
        vars(SignalRow(**where, block=block, second_moment_low=low, second_moment_high=high))
        for block, (low, high) in enumerate([(1.0, 3.0), (0.0, 4.0), (-1.0, 5.0), (None, None)])
    ]
    (chart,) = SIGNAL_PROPAGATION.charts(rows, {})
    (series,) = chart["series"]
    assert (series["low"], series["high"]) == ([1.0, 0.0, 0.0, None], [3.0, 4.0, 5.0, None])


def test_a_single_random_set_stands_where_there_is_no_mean():
    measured = {"blocks": 4.0, "error_low": 0.1, "error_high": 0.4}
    rows = [
        {"network": kind, "sample": sample, "error": error, **measured}
        for kind, sample, error in (("intact", None, 0.1), ("policy", None, 0.2), ("random", 0, 0.3))
    ]
    assert [row["error"] for row in rows_of(rows, "random")] == [0.3]
    assert "Error, random set" in [line.label for line in BLOCKDROP.headlines(rows, {})]
    (chart,) = BLOCKDROP.charts(rows, {})
    assert [one["name"] for one in chart["series"]] == ["policy", "random set"]
    several = [*rows, {**rows[2], "sample": 1}]
    assert rows_of(several, "random") == []
    assert [row["error"] for row in rows_of([*several, {**rows[2], "sample": None, "error": 0.4}], "random")] == [0.4]


# Contributions


@given(st.lists(st.tuples(st.integers(1, 10**400), st.floats(1e-300, 1e300) | st.just(0.0)), min_size=1, max_size=8))
def test_contributions_are_exact_to_the_last_digits_at_any_size(drawn):
    rows = [{"n_paths": count, "path_norm_mean": norm, "total_norm": None} for count, norm in drawn]
    exact = [count * Fraction(norm) for count, norm in drawn]
    found = contributions(rows, "sampled")
    scale = max(map(Fraction, found)) / (max(exact) or 1)  # a power of two, or one where a float has room for all
    for contributed, value in zip(found, exact, strict=True):
        assert contributed == pytest.approx(float(scale * value), rel=1e-12, abs=1e-280)
    if max(exact) < 2**900 and all(count < 2**1000 for count, _ in drawn):
        assert contributions(rows, "sampled") == [float(count) * norm for count, norm in drawn]
    assert contributions(rows, "exact") == [None] * len(rows)


def test_contributions_of_all_methods_have_one_unit_and_lose_only_what_is_said():
    rows = [
        {"length": k, "n_paths": math.comb(40, k), "path_norm_mean": 10.0**-k, "path_norm_low": 0.5 * 10.0**-k,
         "path_norm_high": 2 * 10.0**-k, "path_norm_rms": 50 * 10.0**-k, "total_norm": 0.01 * 10.0**-k}
        for k in range(41)
    ]  # fmt: skip
    curves, note = contribution_series(rows)
    assert set(curves) == {"sampled", "exact", "signed"}
    (floor,) = (10.0**power for power in range(-20, 1) if note == f"below {power_of_ten(power)} not drawn")
    of_one = {"sampled": 1, "signed": 50}
    for method, curve in curves.items():
        for k, value in enumerate(curve["y"]):
            expected = of_one[method] * math.comb(40, k) * 10.0**-k if method in of_one else 0.01 * 10.0**-k
            assert value == (pytest.approx(expected) if expected >= floor else None)
            if method == "sampled" and value is not None:
                assert (curve["low"][k], curve["high"][k]) == pytest.approx((0.5 * expected, 2 * expected))
        assert max(value for value in curve["y"] if value) >= 1000 * floor
    beyond = [{"length": 0, "n_paths": 10**400, "path_norm_mean": 1.0, "total_norm": 1.0}]
    assert contribution_series(beyond)[0]["exact"]["y"] == [1.0]


def test_norms_below_zero_are_no_curve():
    rows = [{"length": 0, "n_paths": 1, "path_norm_mean": -1.0, "total_norm": 2.0}]
    assert list(contribution_series(rows)[0]) == ["exact"]


def test_logarithmic_axes_end_sixteen_powers_below_their_top():
    series, note = cut_off([{"x": [0, 1, 2, 3], "y": [5.0, 2e-16, 0.9e-16, 0.0], "low": [1.0, 1e-17, 1e-18, 0.0]}])
    assert note == "below 10⁻¹⁶ not drawn"
    assert series == [{"x": [0, 1, 2, 3], "y": [5.0, 2e-16, None, 0.0], "low": [1.0, 1e-17, None, 0.0]}]
    assert cut_off([{"x": [0], "y": [0.0]}]) == ([{"x": [0], "y": [0.0]}], "")
    assert cut_off([{"x": [0, 1], "y": [1.0, 1e-3]}])[1] == ""


def test_shares_are_of_all_paths_also_where_long_ones_are_left_out():
    rows = [{"length": 2 + k, "n_paths": math.comb(30, k)} for k in range(5)]
    assert path_shares(rows) == pytest.approx([100 * math.comb(30, k) / 2**30 for k in range(5)])
    assert path_shares([{"length": 0, "n_paths": 1}, {"length": 1, "n_paths": 10**12}])[1] == pytest.approx(100)
    assert path_shares([{"length": 0, "n_paths": 0}]) == path_shares([{"length": 0, "n_paths": -1}]) == []


def test_shares_are_of_the_number_of_all_paths_that_is_stated():
    rows = [{"length": 0, "n_paths": 1}, {"length": 1, "n_paths": 4}]  # as of a chain of 4 blocks
    of_a_chain = path_shares(rows)
    assert of_a_chain == pytest.approx([100 / 16, 400 / 16])
    assert path_shares(rows, all_paths({"all_paths": 10})) == pytest.approx([10, 40])
    assert path_shares(rows[:1], all_paths({"all_paths": 10})) == pytest.approx([10])
    many = 4 * 10**400
    assert path_shares([{"length": 3, "n_paths": 10**400}], all_paths({"all_paths": str(many)})) == [25]
    # an older table, what no table of this package says, and a number below that of the paths that are there
    for stated in ({}, {"all_paths": None}, {"all_paths": "many"}, {"all_paths": [10]}, {"all_paths": 4}):
        assert path_shares(rows, all_paths(stated)) == of_a_chain
    (first, *_) = PATH_GRADIENTS.charts([vars(PathRow(**row)) for row in rows], {"all_paths": 10})
    assert first["series"][0]["y"] == pytest.approx([10, 40])


def test_a_length_that_no_path_has_is_printed_without_a_share(capsys):
    known = ((0, 1, 0.75), (1, 0, None), (2, 1, 0.25))
    rows = [vars(PathRow(length=k, n_paths=n, path_norm_mean=norm, contribution_share=norm)) for k, n, norm in known]
    show(PATH_GRADIENTS.table(rows, {}), "path-gradients")
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert ["0", "1", "0.75", "75.00"] in lines
    assert ["1", "0"] in lines
    assert ["2", "1", "0.25", "25.00"] in lines


def test_counts_of_any_size_are_printed(capsys):
    rows = [vars(PathRow(length=k, n_paths=n, total_norm=1.0)) for k, n in enumerate((7_000, 123_456_789_012, 10**400))]
    show(PATH_GRADIENTS.table(rows, {}), "path-gradients")
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[:1] in (["0"], ["1"], ["2"])] == ["7,000", "1.235e+11", "1.000e+400"]


# Stages


def test_stages_part_where_they_change_and_at_gaps():
    stages, blocks = [0, 0, None, 0, 1, 1, float("nan")], [0, 1, 2, 3, 4, 6, 7]
    assert stage_runs(stages, blocks) == [StageRun(0, 0, 1), StageRun(0, 3, 3), StageRun(1, 4, 4), StageRun(1, 6, 6)]
    assert stage_runs(stages, blocks, over_gaps=True) == [StageRun(0, 0, 3), StageRun(1, 4, 6)]
    assert [str(run.stage) for run in stage_runs([0.0, 0.0, 1.0, 1.5, "a"], range(5))] == ["0", "1", "1.5", "a"]


def test_help_on_a_row_tells_its_columns():
    lines = (Temperatures.row.__doc__ or "").splitlines()
    assert lines[2:5] == ["Attributes:", "    place: which block", "    warmth: how warm it got (K)"]
