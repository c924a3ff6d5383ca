"""Figures of gradients by path length: the curves are the numbers of the table, and nothing overlaps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from pathlens import figures
from pathlens.errors import UsageError
from pathlens.figures.style import COLOURS, INK
from pathlens.results.text import power_of_ten
from pathlens.tables import Table
from tests.helpers.figure_checks import assert_legible, legend, table, words

SAMPLED = ["path_norm_mean", "path_norm_low", "path_norm_high", "path_norm_median", "path_norm_q05", "path_norm_q95"]
SIGNED = ["path_norm_rms", "path_norm_rms_error"]
EXACT = ["total_norm", "total_share"]
COLUMNS = [
    "length", "n_paths", *EXACT, *SAMPLED, *SIGNED, "contribution", "contribution_share", "samples", "stopped",
]  # fmt: skip
METHODS = {"sampled": SAMPLED, "signed": SIGNED, "exact": EXACT}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def measured(
    blocks: int, methods: str = "exact sampled signed", decay: float = 0.8, longest: int | None = None
) -> Table:
    """Norms that fall by ``decay`` powers of ten a block, until a float holds no more."""
    generator = np.random.default_rng(blocks)
    rows = []
    for length in range((blocks if longest is None else longest) + 1):
        norm = 10.0 ** (-decay * length) * float(generator.lognormal(0, 0.2))
        count = math.comb(blocks, length)
        row = {"path_norm_mean": norm, "path_norm_low": 0.7 * norm, "path_norm_high": 1.4 * norm}
        row |= {"path_norm_median": 0.2 * norm, "path_norm_q05": 0.01 * norm, "path_norm_q95": 5 * norm}
        row |= {"path_norm_rms": 3 * norm, "path_norm_rms_error": 0.1 * norm, "samples": 9, "stopped": "budget"}
        total = 10 ** (0.5 * math.log10(count) - decay * length)
        row |= {"total_norm": total, "total_share": None}
        kept = {"length", "n_paths", *(name for method in methods.split() for name in METHODS[method])}
        row |= {"length": length, "n_paths": count}
        rows.append({name: value for name, value in row.items() if name in kept})
    return table(COLUMNS, rows)


def curve(axes, colour: str, dashed: bool | None = None) -> Line2D:
    """The one curve with data in a colour."""
    found = [
        line
        for line in axes.lines
        if line.get_color() == colour and len(line.get_xdata()) and dashed in (None, line.get_linestyle() != "-")
    ]
    assert len(found) == 1
    return found[0]


BLUE, GREEN, ORANGE = COLOURS[0], COLOURS[2], COLOURS[3]


def test_curves_are_the_numbers_of_the_table():
    given = measured(12, decay=0.1)
    figure = figures.path_gradients(given, effective=(1, 4))
    paths, one, everything = figure.axes
    rows = given.rows
    (line,) = paths.lines
    assert list(line.get_xdata()) == list(range(13))
    assert list(line.get_ydata()) == pytest.approx([100 * math.comb(12, k) / 2**12 for k in range(13)])

    assert one.get_yscale() == "log"
    assert list(curve(one, ORANGE).get_ydata()) == pytest.approx([row["path_norm_rms"] for row in rows])
    assert list(curve(one, BLUE, dashed=True).get_ydata()) == pytest.approx([row["path_norm_median"] for row in rows])
    (bars,) = one.containers
    assert isinstance(bars, ErrorbarContainer)
    mean, _, (ends,) = bars.lines
    assert list(mean.get_ydata()) == pytest.approx([row["path_norm_mean"] for row in rows])
    found = [[float(y) for _, y in segment] for segment in ends.get_segments()]
    expected = [[row["path_norm_low"], row["path_norm_high"]] for row in rows]
    np.testing.assert_allclose(found, expected)
    (band,) = [area for area in one.collections if len(area.get_paths()) and area is not ends]
    corners = band.get_paths()[0].vertices
    for row in rows:
        heights = [y for x, y in corners if x == row["length"]]
        assert (min(heights), max(heights)) == pytest.approx((row["path_norm_q05"], row["path_norm_q95"]))

    def contributions(name: str, of_one: bool) -> list[float]:
        return [float(Fraction(row[name]) * (row["n_paths"] if of_one else 1)) for row in rows]

    assert list(curve(everything, ORANGE).get_ydata()) == pytest.approx(contributions("path_norm_rms", True))
    assert list(curve(everything, GREEN).get_ydata()) == pytest.approx(contributions("total_norm", False))
    (bars,) = everything.containers
    mean, _, (ends,) = bars.lines
    sampled = contributions("path_norm_mean", True)
    assert list(mean.get_ydata()) == pytest.approx(sampled)
    found = [[float(y) for _, y in segment] for segment in ends.get_segments()]
    np.testing.assert_allclose(found, [[0.7 * share, 1.4 * share] for share in sampled])
    assert legend(figure) == sorted(
        [
            "mean of sampled paths, 95 % interval", "median of sampled paths and examples",
            "5 to 95 % of sampled paths and examples",
            "root mean square (random signs)", "sum over all paths (exact)",
            "effective lengths, 1 to 4: 19 % of all paths",
        ]
    )  # fmt: skip


def test_the_effective_range_is_shaded_in_every_panel():
    for axes in figures.path_gradients(measured(54), effective=(5, 17)).axes:
        spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
        assert [(span.x0, span.x1) for span in spans] == [pytest.approx((4.5, 17.5))]
    found = legend(figures.path_gradients(measured(54), effective=(5, 17)))
    assert "effective lengths, 5 to 17: 0.45 % of all paths" in found  # the paper's
    plain = figures.path_gradients(measured(54))
    assert not any(axes.patches for axes in plain.axes)
    assert not any("effective" in text for text in legend(plain))


@pytest.mark.parametrize(
    ("effective", "words_for_it"),
    [((0, 9), "100 %"), ((2, 7), "96 %"), ((0, 0), "0.2 %"), ((9, 9), "0.2 %")],
)
def test_share_of_paths_in_words(effective, words_for_it):
    found = legend(figures.path_gradients(measured(9), effective=effective))
    assert sum(text.endswith(f": {words_for_it} of all paths") for text in found) == 1


def test_tiny_shares_are_powers_of_ten():
    found = legend(figures.path_gradients(measured(600), effective=(0, 2)))
    share = 100 * (1 + 600 + 179700) / 2**600
    mantissa, exponent = f"{share:.1e}".split("e")
    superscript = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in exponent[1:])
    assert f"effective lengths, 0 to 2: {mantissa}×10⁻{superscript} % of all paths" in found


@pytest.mark.parametrize(
    ("methods", "panels", "entries"),
    [
        ("exact", 2, ["sum over all paths (exact)"]),
        ("signed", 3, ["root mean square (random signs)"]),
        ("exact signed", 3, ["root mean square (random signs)", "sum over all paths (exact)"]),
        (
            "sampled",
            3,
            [
                "5 to 95 % of sampled paths and examples",
                "mean of sampled paths, 95 % interval",
                "median of sampled paths and examples",
            ],
        ),
    ],
)
def test_methods_that_were_not_run_are_not_drawn(methods, panels, entries):
    figure = figures.path_gradients(measured(20, methods))
    assert len(figure.axes) == panels
    assert legend(figure) == entries
    letters = [axes.get_title("left")[0] for axes in figure.axes]
    assert letters == ["a", "b", "c"][:panels]
    assert_legible(figure)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("path_norm_q95", "5 to 95 % of sampled paths and examples"),
        ("path_norm_median", "median of sampled paths and examples"),
    ],
)
def test_the_legend_lists_what_is_drawn(name, entry):
    rows = [dict(row) for row in measured(9).rows]
    whole = legend(figures.path_gradients(table(COLUMNS, rows)))
    for row in rows[1:]:
        row[name] = 0.0  # so many sampled paths have no gradient, and a single length makes no line
    found = legend(figures.path_gradients(table(COLUMNS, rows)))
    assert found == [one for one in whole if one != entry]
    assert len(found) == len(whole) - 1


def test_intervals_that_reach_zero_go_down_to_the_bottom_of_the_axis():
    columns = [*COLUMNS, "total_low", "total_high"]
    rows = [
        dict(row) | {"total_low": 0.5 * row["total_norm"], "total_high": 2 * row["total_norm"]}
        for row in measured(6, decay=0.3).rows
    ]
    rows[3] |= {"total_low": 0.0, "path_norm_q05": 0.0}
    figure = figures.path_gradients(table(columns, rows))
    _, one, everything = figure.axes
    for axes, low, high in ((one, "path_norm_q05", "path_norm_q95"), (everything, "total_low", "total_high")):
        areas = [area for area in axes.collections if isinstance(area, PolyCollection) and area.get_paths()]
        (path,) = [path for area in areas for path in area.get_paths()]
        bottom = axes.get_ylim()[0]
        assert bottom > 0
        for row in rows:
            heights = [y for x, y in path.vertices if x == row["length"]]
            assert (min(heights), max(heights)) == pytest.approx((row[low] or bottom, row[high]))
    everywhere = [{**row, "total_low": 0.0, "path_norm_q05": 0.0} for row in rows]
    assert legend(figures.path_gradients(table(columns, everywhere))) == legend(figure)
    assert "sum over all paths (exact), 95 % interval" in legend(figure)


@pytest.mark.parametrize("blocks", [1, 2, 3, 9, 24, 54, 110, 600, 1200])
@pytest.mark.parametrize("effective", [None, (0, 1)])
def test_path_gradients_are_legible(blocks, effective):
    assert_legible(figures.path_gradients(measured(blocks), effective=effective))


@pytest.mark.parametrize(("width", "methods"), [(5.0, "exact"), (6.0, "exact sampled signed"), (10.0, "signed")])
def test_other_widths(width, methods):
    figure = figures.path_gradients(measured(54, methods), width, (3, 12))
    assert figure.get_size_inches()[0] == width
    assert_legible(figure)


def test_default_widths():
    assert figures.path_gradients(measured(9)).get_size_inches()[0] == figures.DOUBLE
    assert figures.lattice(triangle(9)).get_size_inches()[0] == figures.SINGLE


def test_counts_beyond_floats_and_counts_as_text():
    given = measured(1200)
    assert given.rows[600]["n_paths"] > 10**308
    figure = figures.path_gradients(given)
    (line,) = figure.axes[0].lines
    assert max(line.get_ydata()) == pytest.approx(float(Fraction(100 * math.comb(1200, 600), 2**1200)))
    drawn = figure.axes[2].containers[0].lines[0].get_ydata()
    assert np.nanmax(drawn) > 1e70
    for row, found in zip(given.rows, drawn, strict=True):
        expected = float(row["n_paths"] * Fraction(row["path_norm_mean"]))
        assert math.isnan(found) or found == pytest.approx(expected)
    text = given.to_frame()
    text["n_paths"] = text["n_paths"].map(str)
    assert figures.files(figures.path_gradients(text), "a") == figures.files(figure, "a")


def test_lengths_that_were_left_out_still_count_as_paths():
    figure = figures.path_gradients(measured(54, longest=10), effective=(2, 8))
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([100 * math.comb(54, k) / 2**54 for k in range(11)])
    share = 100 * sum(math.comb(54, k) for k in range(2, 9)) / 2**54
    assert any(text.startswith("effective lengths, 2 to 8: 6.9×10⁻⁶ %") for text in legend(figure))
    assert share == pytest.approx(6.9e-6, rel=0.01)
    assert_legible(figure)
    assert_legible(figures.path_gradients(measured(54, longest=0)))


def test_shares_are_of_all_paths_that_the_table_states():
    given = replace(measured(9, longest=1), provenance={"all_paths": 5000})  # of blocks that are no chain
    (line,) = figures.path_gradients(given).axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([0.02, 0.18])


def test_panels_share_their_lengths_and_no_axis_is_longer_than_can_be_read():
    given = measured(54, decay=1.5)
    figure = figures.path_gradients(given, effective=(0, 3))
    _, one, everything = figure.axes
    assert {axes.get_xlim() for axes in figure.axes} == {(-0.5, 54.5)}
    (b,) = [text.get_text() for text in one.texts]
    (c,) = [text.get_text() for text in everything.texts]
    norms = [row["path_norm_rms"] for row in given.rows]
    # the largest norm is about 3, the peaks of the curves are at lengths 0 to 2
    assert b == "below 10⁻¹⁶ not drawn"
    assert [not math.isnan(y) for y in curve(one, ORANGE).get_ydata()] == [norm >= 1e-16 for norm in norms]
    power = next(p for p in range(-16, 1) if c == f"below {power_of_ten(p)} not drawn")
    for colour in (ORANGE, GREEN):
        values = curve(everything, colour).get_ydata()
        assert np.nanmin(values) >= 10.0**power
        assert np.nanmax(values) >= 1000 * 10.0**power
    assert not any(axes.texts for axes in figures.path_gradients(measured(9, decay=0.1)).axes)


def test_all_bars_and_curves_are_whole_and_in_one_unit():
    figure = figures.path_gradients(measured(54))
    for axes in figure.axes[1:]:
        low, high = axes.get_ylim()
        (bars,) = axes.containers
        for segment in filter(len, bars.lines[2][0].get_segments()):
            assert low <= min(y for _, y in segment) <= max(y for _, y in segment) <= high
        for line in axes.lines:
            assert all(low <= y <= high for y in line.get_ydata() if not math.isnan(y))
    assert figure.axes[2].get_ylabel() == "contribution of a length\n(loss per unit of input)"
    assert figure.axes[2].get_yscale() == "log"


def test_zeros_leave_gaps():
    rows = [dict(row) for row in measured(6).rows]
    for name in (*SAMPLED, *SIGNED, "total_norm"):
        rows[2][name] = 0.0
    figure = figures.path_gradients(table(COLUMNS, rows))
    assert math.isnan(curve(figure.axes[1], ORANGE).get_ydata()[2])
    assert all(math.isnan(curve(figure.axes[2], colour).get_ydata()[2]) for colour in (ORANGE, GREEN))
    assert_legible(figure)


def test_no_formula_is_drawn():
    for figure in (figures.path_gradients(measured(54)), figures.lattice(triangle(54))):
        found = words(figure)
        assert not any("$" in text or "mathdefault" in text for text in found)
        assert any(text.startswith("10⁻") for text in found)


def triangle(blocks: int, decay: float = 0.6, first: int = -1) -> Table:
    rows = []
    for boundary in range(blocks, first - 1, -1):
        after = blocks - max(0, boundary)
        for length in range(after + 1):
            norm = 10 ** (0.55 * math.log10(math.comb(after, length)) - decay * length)
            rows.append({"boundary": boundary, "length": length, "n_paths": math.comb(after, length), "norm": norm})
    return table(["boundary", "length", "n_paths", "norm", "share"], rows)


def cells(figure: figures.Figure) -> np.ma.MaskedArray:
    (mesh,) = [item for item in figure.axes[0].collections if item.get_array() is not None]
    return np.ma.power(10.0, mesh.get_array())


def test_cells_are_the_norms():
    given = triangle(6)
    figure = figures.lattice(given)
    found = cells(figure)
    assert found.shape == (7, 8)
    expected = {(row["length"], row["boundary"]): row["norm"] for row in given.rows}
    for length in range(7):
        for column, boundary in enumerate(range(-1, 7)):
            value = found[length, column]
            if (length, boundary) in expected:
                assert value == pytest.approx(expected[length, boundary])
            else:
                assert value is np.ma.masked
    axes = figure.axes[0]
    assert axes.get_xlim() == (-1.5, 6.5)
    assert axes.get_ylim() == (-0.5, 6.5)
    (mesh,) = [item for item in axes.collections if item.get_array() is not None]
    ends = math.log10(min(expected.values())), math.log10(max(expected.values()))
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx(ends)
    ridge = axes.lines[-1]
    for boundary, length in zip(*ridge.get_data(), strict=True):
        assert expected[length, boundary] == max(value for (_, at), value in expected.items() if at == boundary)
    assert len(ridge.get_xdata()) == 8
    assert legend(figure) == ["largest at its place"]
    assert any("gradient norm" in text and "loss per unit" in text for text in words(figure))


def test_colours_get_lighter_evenly():
    figure = figures.lattice(triangle(6))
    (mesh,) = [item for item in figure.axes[0].collections if item.get_array() is not None]
    colours = mesh.get_cmap()(np.linspace(0, 1, 64))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = 116 * np.cbrt(luminance) - 16  # CIE 1976
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert steps.max() < 2 * steps.mean()
    assert rgb_to_hsv(to_rgb(INK))[2] < 0.2  # the line on it is dark, with a light edge


def test_zeros_and_gaps_are_blank():
    rows = [row | {"norm": 0.0} if row["length"] == 1 else row for row in triangle(3).rows]
    rows = [row for row in rows if not (row["boundary"] == 2 and row["length"] == 0)]
    figure = figures.lattice(
        table(["boundary", "length", "norm"], [{k: r[k] for k in ("boundary", "length", "norm")} for r in rows])
    )
    found = cells(figure)
    assert found.mask[1].all()
    assert not found.mask[2, :2].any()
    assert found.mask[:, 3].all()  # at place 2 nothing is left
    assert_legible(figure)


def test_norms_below_the_colours():
    given = triangle(54, decay=2.0)
    figure = figures.lattice(given)
    found, top = cells(figure), max(row["norm"] for row in given.rows)
    assert found.min() == pytest.approx(1e-12 * top)
    assert found.shape[0] < 20  # lengths that nothing would be seen of are left out
    hidden = [row["norm"] for row in given.rows if row["length"] >= found.shape[0]]
    assert max(hidden) < 1e-12 * top
    assert_legible(figure)


@pytest.mark.parametrize("blocks", [1, 2, 3, 9, 24, 54, 300])
def test_lattices_are_legible(blocks):
    assert_legible(figures.lattice(triangle(blocks)))


def test_lattice_of_the_last_blocks_and_of_one_cell():
    figure = figures.lattice(triangle(12, first=9))
    assert figure.axes[0].get_xlim() == (8.5, 12.5)
    assert "network" not in figure.axes[0].get_xlabel()
    assert_legible(figure)
    assert_legible(figures.lattice(table(["boundary", "length", "norm"], [{"boundary": 3, "length": 0, "norm": 2.0}])))


def test_frames_are_drawn_like_tables_and_left_alone():
    for draw, given in ((figures.path_gradients, measured(9)), (figures.lattice, triangle(5))):
        frame = given.to_frame().sample(frac=1, random_state=0)  # the order of rows does not matter
        before = frame.copy()
        assert figures.files(draw(given), "a") == figures.files(draw(frame), "a")
        pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(("draw", "given"), [(figures.path_gradients, measured(3)), (figures.lattice, triangle(3))])
def test_tables_with_nothing_to_draw_are_refused(draw, given):
    names = [column.name for column in given.columns]
    with pytest.raises(UsageError, match="without rows"):
        draw(table(names, []))
    with pytest.raises(UsageError, match="needs column"):
        draw(table(["length"], [{"length": 1}]))
    for value in (None, 0.0):
        empty = [row | {n: value for n in names if "norm" in n} for row in given.rows]
        with pytest.raises(UsageError, match="give one"):
            draw(table(names, empty))


@pytest.mark.usefixtures("fine_figures")
def test_files_for_print(tmp_path):
    for draw, given in ((figures.path_gradients, measured(54)), (figures.lattice, triangle(54))):
        png, pdf = figures.save(draw(given), tmp_path, draw.__name__)
        assert png.stat().st_size > 10_000
        assert b"/Type3" not in pdf.read_bytes()
