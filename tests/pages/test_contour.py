"""The contour map of a loss surface: what the page holds, and what it answers in a real browser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import pytest

import pathlens
from pathlens.pages.compare import overlays
from pathlens.pages.words import charts
from pathlens.report import write_run
from pathlens.report.reading import read_runs
from pathlens.results.charts import Chart
from pathlens.results.surface import LOSS_SURFACE, SurfaceRow
from pathlens.tables import Table
from tests.helpers.page_browser import CONTRAST, opened
from tests.helpers.page_runs import write_lesions

PLACES = np.linspace(-1, 1, 9).tolist()
LOWEST = (0.25, -0.5)


def loss(x: float, y: float, depth: float = 0.01) -> float | None:
    """A bowl beside the centre; beyond 10 nats in two corners, and missing in one of them."""
    return None if x == y == 1 else depth + 4 * (x - LOWEST[0]) ** 2 + 3 * (y - LOWEST[1]) ** 2


def surface(draws: int = 1, depth: float = 0.01) -> Table:
    rows = [
        vars(SurfaceRow(
            draw=draw, x=x, y=y, loss=loss(x, y, depth), error=min(0.9, 0.1 + abs(x) / 2), error_low=None,
            error_high=None, nonfinite=0, n=100, largest_eigenvalue=None, smallest_eigenvalue=None,
        ))
        for draw in range(draws) for x in PLACES for y in PLACES
    ]  # fmt: skip
    return LOSS_SURFACE.table(rows, {})


def write(folder: Path, table: Table, **facts: str) -> Path:
    manifest = {
        "verb": "loss-surface", "model": folder.name, "directions": ["random", "random"], "one_dimensional": "kept",
        "batch_norm": "kept", "seed": 0, **facts,
    }  # fmt: skip
    write_run(folder, {"loss-surface": table}, {}, manifest)
    return folder


def maps(folder: Path) -> list[Chart]:
    (run,) = read_runs([folder])
    return [chart for chart in charts(run) if "surfaces" in chart]


def test_values_are_those_of_the_table(tmp_path: Path) -> None:
    (chart,) = maps(write(tmp_path / "run", surface()))
    (one,) = chart["surfaces"]
    assert one["x"] == one["y"] == PLACES
    assert one["loss"] == [loss(x, y) for y in PLACES for x in PLACES]
    assert one["error"] == pytest.approx([100 * min(0.9, 0.1 + abs(x) / 2) for _ in PLACES for x in PLACES])
    assert [layer["key"] for layer in chart["layers"]] == ["loss", "error"]
    several = maps(write(tmp_path / "several", surface(2)))[0]["surfaces"]
    assert [item["name"] for item in several] == ["draw 0", "draw 1"]


@pytest.mark.parametrize("what", ["a line", "a gap", "a diagonal", "a point twice"])
def test_what_is_no_grid_has_no_map(what: str, tmp_path: Path) -> None:
    rows = list(surface().rows)
    if what == "a line":
        rows = [dict(row) | {"y": None} for row in rows if row["y"] == 0]
    elif what == "a gap":
        rows.pop(17)
    elif what == "a point twice":
        rows[17] = rows[16]
    else:  # as a grid this would have a million points
        rows = [dict(rows[0]) | {"x": place / 999, "y": place / 999} for place in range(1000)]
    assert maps(write(tmp_path / "run", LOSS_SURFACE.table(rows, {}))) == []


def test_surfaces_of_several_runs_are_beside_each_other(tmp_path: Path) -> None:
    folders = [write(tmp_path / "with", surface()), write(tmp_path / "without", surface(2, 0.5))]
    runs = read_runs([*folders, write_lesions(tmp_path / "lesions")])
    (chart,) = (chart for chart in overlays(runs, [charts(run) for run in runs]) if "surfaces" in chart)
    assert [item["name"] for item in chart["surfaces"]] == ["with", "without, draw 0", "without, draw 1"]
    assert chart["surfaces"][1]["loss"][0] == loss(-1, -1, 0.5)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("surfaces")
    runs = [write(folder / "<i>with", surface()), write(folder / "without", surface(1, 0.5))]
    return {
        "one": pathlens.report_page(runs[0], folder / "one.html"),
        "two": pathlens.report_page(runs, folder / "two.html"),
    }


def test_it_answers_to_keys_and_pointer(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        chart = page.locator("figure.contour")
        stage, readout = chart.get_by_role("application"), chart.locator(".readout")
        stage.focus()
        page.keyboard.press("End")
        assert readout.inner_text() == "At 0.25, −0.5. loss 0.01 nats, error 22.50 %."
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        assert readout.inner_text().startswith(f"At 0.25, 0.25. loss {loss(0.25, 0.25):.4g} nats")
        assert chart.locator(".tooltip").inner_text().startswith("at 0.25, 0.25")
        for _ in range(9):
            page.keyboard.press("ArrowUp")
            page.keyboard.press("ArrowRight")
        assert readout.inner_text() == "At 1, 1. loss is not finite, error 60.00 %."
        page.keyboard.press("Escape")
        assert not chart.locator(".tooltip").is_visible()
        box = chart.locator("canvas:not(.ramp)").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.26, box["y"] + box["height"] * 0.99)
        assert readout.inner_text().startswith(f"At −0.5, −1. loss {loss(-0.5, -1):.4g} nats")


def test_a_loss_without_a_unit_is_told_too(browser: Any, tmp_path: Path) -> None:
    run = write(tmp_path / "run", surface(), loss="soft-iou")
    with opened(browser, pathlens.report_page(run, tmp_path / "page.html")) as page:
        chart = page.locator("figure.contour")
        chart.get_by_role("application").focus()
        page.keyboard.press("End")
        assert chart.locator(".readout").inner_text() == "At 0.25, −0.5. soft-iou loss 0.01, error 22.50 %."
        assert "soft-iou loss 0.01" in chart.locator(".tooltip").inner_text()


def test_loss_and_error_take_turns(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        chart = page.locator("figure.contour")
        colours = """canvas => {
            const {width, height} = canvas;
            const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
            return [[0.626, 0.748], [0.99, 0.01]].map(([x, y]) => {
                const at = 4 * (Math.floor(y * height) * width + Math.floor(x * width));
                return [...data.slice(at, at + 3)];
            });
        }"""
        lowest, highest = chart.locator("canvas:not(.ramp)").evaluate(colours)
        assert math.dist(lowest, (68, 1, 84)) < 40
        assert math.dist(highest, (253, 231, 37)) < 10
        assert "≥ 10" in chart.locator(".legend").inner_text()
        heights = chart.locator("text.height").all_inner_texts()
        button = chart.get_by_role("button", name="error")
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert chart.get_by_role("button", name="loss").get_attribute("aria-pressed") == "false"
        legend = chart.locator(".legend").inner_text()
        assert "10.00 %" in legend
        assert "60.00 %" in legend
        assert chart.locator("text.height").all_inner_texts() != heights


def test_two_surfaces_tell_of_one_place_on_one_scale(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["two"]) as page:
        chart = page.locator("#together figure.contour")
        assert chart.locator("h5").all_inner_texts() == ["<i>with", "without"]
        chart.get_by_role("application").last.focus()
        page.keyboard.press("End")
        told = chart.locator(".readout").inner_text()
        assert told == ("At 0.25, −0.5. <i>with: loss 0.01 nats, error 22.50 %; without: loss 0.5 nats, error 22.50 %.")
        assert chart.locator(".cursor circle.under").count() == 2
        assert chart.locator(".legend").inner_text().count("0.01") == 1
        assert page.evaluate(CONTRAST) == {}
    with opened(browser, pages["two"], viewport={"width": 375, "height": 800}, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate(CONTRAST) == {}


def test_lines_are_those_of_contourpy(browser: Any, pages: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    x, y, heights = np.array([0, 1, 2.5, 3, 4, 5, 7]), np.array([-2, -1, 0, 2, 3, 3.5]), rng.normal(size=(6, 7))
    with opened(browser, pages["one"]) as page:
        for level in (-0.8, 0.0, 0.3, 1.1):
            given = [x.tolist(), y.tolist(), heights.ravel().tolist(), level]
            segments = np.array(page.evaluate("given => contour(...given)", given))
            lines = contourpy.contour_generator(x, y, heights).lines(level)
            wanted = {tuple(point) for line in lines for point in np.round(line, 9).tolist()}
            assert {tuple(point) for point in np.round(segments.reshape(-1, 2), 9).tolist()} == wanted
            length = sum(float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) for line in lines)
            assert float(np.linalg.norm(segments[:, 0] - segments[:, 1], axis=1).sum()) == pytest.approx(length)
