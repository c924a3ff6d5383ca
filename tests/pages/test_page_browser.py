"""Pages in a real browser: nothing is loaded, tables sort and filter, charts and lattices answer, text stays text."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

import pathlens
from pathlens.report import write_run
from pathlens.results import named
from tests.helpers.page_browser import CONTRAST, opened
from tests.helpers.page_runs import HOSTILE, RESULTS, norm, profile, write_hostile, write_lesions, write_paths


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "lesions": [RESULTS / "digits54"],
        "paths": [write_paths(folder / "paths"), write_lesions(folder / "lesions")],
        "hostile": [write_hostile(folder / "<i>run"), write_lesions(folder / "plain")],
        "compared": [RESULTS / "resnet20", RESULTS / "resnet56"],
    }
    return {name: pathlens.report_page(found, folder / f"{name}.html") for name, found in runs.items()}


def column(page: Any, index: int, table: str = "table.data") -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({index})").all_inner_texts()


def errors_of(folder: Path) -> list[float]:
    with (folder / "delete-blocks.csv").open() as stream:
        return [float(row["error"]) for row in csv.DictReader(stream)]


def test_a_column_sorts_by_click_and_by_keys(browser, pages):
    with opened(browser, pages["lesions"]) as page:
        head = page.locator("table.data thead th", has=page.get_by_text("error", exact=True))
        index = page.locator("table.data thead th").all_inner_texts().index(head.inner_text()) + 1
        assert head.get_attribute("aria-sort") == "none"
        in_file = [float(text) for text in column(page, index)]
        assert in_file == pytest.approx(errors_of(RESULTS / "digits54"), rel=1e-4)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(text) for text in column(page, index)] == sorted(in_file)
        page.keyboard.press("Enter")  # the button has the focus
        assert head.get_attribute("aria-sort") == "descending"
        assert [float(text) for text in column(page, index)] == sorted(in_file, reverse=True)
        page.keyboard.press("Space")
        assert head.get_attribute("aria-sort") == "none"
        assert [float(text) for text in column(page, index)] == in_file
        # texts sort with their numbers: layer1.2 before layer1.10; the intact network has no name and stays last
        page.get_by_role("button", name="name", exact=True).first.click()
        names = column(page, 2)
        assert names == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(18)] + [""]
        page.get_by_role("button", name="name", exact=True).first.click()
        assert column(page, 2)[-1] == ""


def test_a_table_filters(browser, pages):
    with opened(browser, pages["lesions"]) as page:
        page.get_by_label("Filter").fill("padding LAYER2")
        assert column(page, 2) == ["layer2.0"]
        assert page.get_by_text("1 of 55 rows").is_visible()
        page.get_by_label("Filter").fill("no such text")
        assert column(page, 2) == []
        page.get_by_label("Filter").fill("")
        assert len(column(page, 2)) == 55


def test_a_table_is_saved_as_it_was(browser, pages):
    with opened(browser, pages["lesions"]) as page:
        with page.expect_download() as caught:
            page.get_by_role("button", name="Save as CSV").click()
        saved = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text())))
        with (RESULTS / "digits54" / "delete-blocks.csv").open() as stream:
            expected = list(csv.DictReader(stream))
        assert [list(row) for row in saved] == [list(row) for row in expected]
        for mine, row in zip(saved, expected, strict=True):
            for name, text in row.items():
                same = mine[name] == text or float(mine[name]) == float(text)
                assert same, name


def test_a_chart_answers_to_pointer_and_keys(browser, pages):
    errors = errors_of(RESULTS / "digits54")
    with opened(browser, pages["lesions"]) as page:
        chart = page.locator("figure.chart").first
        stage = chart.get_by_role("application")
        assert chart.locator("svg .mark").count() == 54
        stage.hover(position={"x": 100, "y": 100})
        assert chart.locator(".tooltip").is_visible()
        stage.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        read = chart.locator(".readout").inner_text()
        assert read.startswith("block 2, layer1.2, stage 0, identity. ")
        assert f"{100 * errors[3]:.2f} %" in read
        page.keyboard.press("End")
        assert "block 53" in chart.locator(".tooltip").inner_text()
        page.keyboard.press("Escape")
        assert not chart.locator(".tooltip").is_visible()


def test_curves_of_two_runs_can_be_hidden(browser, pages):
    with opened(browser, pages["compared"]) as page:
        chart = page.locator("#together figure.chart").first
        assert chart.locator("svg .line.solid").count() >= 2
        one = chart.locator("button.entry").first
        marks = chart.locator(".stage svg .mark").count()
        one.press("Enter")
        assert one.get_attribute("aria-pressed") == "false"
        assert chart.locator(".stage svg .mark").count() == marks - 9  # blocks of ResNet-20
        one.press("Enter")
        assert chart.locator(".stage svg .mark").count() == marks


def said_of(place: int, length: int, blocks: int) -> str:
    """What the lattice should say of a cell."""
    after = blocks - max(0, place)
    here = sum(norm(place, other) for other in range(after + 1))
    paths = f"{math.comb(after, length):,} path{'s' if 0 < length < after else ''}"
    return f"length {length}: {paths}, norm {{}}, {100 * norm(place, length) / here:.2f} %"


def test_a_lattice_answers_to_pointer_and_keys(browser, pages):
    with opened(browser, pages["paths"]) as page:
        figure = page.locator("figure.lattice")
        stage, host = figure.get_by_role("application"), figure.locator("[data-lattice]")
        stage.scroll_into_view_if_needed()
        box = figure.locator(".stage canvas").bounding_box()
        # 8 places from the input to the output of block 5; lengths 0 to 6, from below
        page.mouse.move(box["x"] + box["width"] * 3.5 / 8, box["y"] + box["height"] * (1 - 2.5 / 7))
        read = figure.locator(".readout").inner_text()
        assert (host.get_attribute("data-place"), host.get_attribute("data-length")) == ("2", "2")
        assert read.startswith("At x₂, the input of block 2 (layer2), length 2: 6 paths, norm 0.0025,")
        before, after = said_of(2, 2, 6).split("{}")
        assert before in read
        assert after in read
        assert figure.locator(".tooltip").is_visible()
        assert "block 2 (layer2)" in figure.locator(".tooltip").inner_text()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2)  # no path is that long so late
        assert not figure.locator(".tooltip").is_visible()
        stage.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        assert (host.get_attribute("data-place"), host.get_attribute("data-length")) == ("3", "3")
        before, after = said_of(3, 3, 6).split("{}")
        assert before in figure.locator(".readout").inner_text()
        assert after in figure.locator(".readout").inner_text()
        page.keyboard.press("End")
        assert host.get_attribute("data-place") == "6"
        assert host.get_attribute("data-length") == "0"  # the only one there is
        assert "the output of block 5 (layer5), length 0: 1 path," in figure.locator(".readout").inner_text()
        page.keyboard.press("Home")
        assert "the input of the network" in figure.locator(".readout").inner_text()
        assert stage.get_attribute("aria-label")
        assert stage.evaluate("element => element === document.activeElement")


def test_colours_of_the_lattice_are_those_of_the_norms(browser, pages):
    with opened(browser, pages["paths"]) as page:
        look = """(cells) => { const canvas = document.querySelector('figure.lattice .stage canvas');
            const { width, height, data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return cells.map(([x, y]) => 4 * (Math.floor(height * y) * width + Math.floor(width * x)))
                .map((at) => [...data.slice(at, at + 4)]); }"""
        page.locator("figure.lattice .stage canvas").wait_for()
        largest, smallest, none = page.evaluate(look, [[0.5 / 8, 6.5 / 7], [1.5 / 8, 0.5 / 7], [7.5 / 8, 0.5 / 7]])
        assert largest == [253, 231, 37, 255]  # the ends of viridis
        assert smallest == [68, 1, 84, 255]
        assert none[3] == 0  # there are no paths


def test_hostile_text_is_shown_as_text(browser, pages):
    with opened(browser, pages["hostile"]) as page:
        assert page.locator("img").count() == 0
        assert HOSTILE in page.locator("h1").inner_text() or page.locator("h1", has_text="img src").count()
        assert f"{HOSTILE}0" in column(page, 2)
        assert page.get_by_role("heading", name="<i>run").count() == 1
        chart = page.locator("#run-0 figure.chart").first
        chart.get_by_role("application").focus()
        page.keyboard.press("Home")
        assert f"{HOSTILE}0" in chart.locator(".tooltip").inner_text()
        assert page.locator("#run-0 img, i, #run-0 script").count() == 0


def test_places_that_a_browser_cannot_count_do_not_hang_it(browser, tmp_path):
    history = named("history")
    row = {**vars(history.row()), "epoch": 10**17, "lr": 0.1, "train_loss": 2.0, "train_error": 0.5}
    write_run(tmp_path / "run", {"history": history.table([row], {})}, {}, {"verb": "train"})
    with opened(browser, pathlens.report_page(tmp_path / "run", tmp_path / "page.html")) as page:
        assert page.locator("figure.chart .stage svg .mark").count() == 2  # error and loss
        found = page.evaluate("[steps(0, 7, 4, true), steps(-0.3, 1, 5), steps(1e17, 1e17, 6, true)]")
        assert found == [[0, 2, 4, 6], [0, 0.5, 1], [1e17]]


def test_intervals_that_reach_zero_go_down_to_the_bottom_of_the_axis(browser, tmp_path):
    rows = [
        dict(row) | {"total_low": 0.5 * row["total_norm"], "total_high": 2 * row["total_norm"]}
        for row in profile(6).rows
    ]
    rows[2] |= {"total_low": 0.0, "path_norm_q05": 0.0}
    rows[4] |= {"path_norm_q05": None, "path_norm_q95": None}
    table = named("path-gradients").table(rows, {})
    write_run(tmp_path / "run", {"path-gradients": table}, {}, {"verb": "path-gradients"})

    def heights(path: str) -> list[float]:
        return [float(y) for y in re.findall(r"[ML][\d.]+ (-?[\d.]+)", path)]

    with opened(browser, pathlens.report_page(tmp_path / "run", tmp_path / "page.html")) as page:
        one, every = (page.locator("figure.chart .stage svg").nth(number) for number in (1, 2))
        every.wait_for()
        bands = one.locator("path.band").get_attribute("d").split("Z")[:-1]
        # lengths 0 to 3 and 5 to 6: there is no band where there is no interval
        assert [len(heights(band)) for band in bands] == [8, 4]
        lows = heights(bands[0])[:3:-1]
        whiskers = every.locator("g.c2 path.whisker").evaluate_all("all => all.map((one) => one.getAttribute('d'))")
        ends = [heights(whisker)[0] for whisker in whiskers]
        for chart, low in ((one, lows), (every, ends)):
            (bottom,) = {
                float(found.group(1))
                for path in chart.locator("path.axis").evaluate_all("all => all.map((one) => one.getAttribute('d'))")
                if (found := re.search(r"V([\d.]+)H", path))
            }
            assert [height == pytest.approx(bottom, abs=0.01) for height in low[:4]] == [False, False, True, False]
            assert max(low) <= bottom + 0.01


def test_a_logarithmic_axis_has_two_numbers_or_more(browser, pages):
    ends = [[0.9e-3, 20], [0.5, 12], [1.9, 7.5], [1.5e-6, 8e-6], [0.6, 1.9]]
    with opened(browser, pages["paths"]) as page:
        look = "all => all.map((ends) => decades(...ends.map(Math.log10), 6).map(([at, text]) => [10 ** at, text]))"
        found = page.evaluate(look, ends)
    assert [[text for _, text in ticks] for ticks in found] == [
        ["10⁻³", "10⁻²", "10⁻¹", "10⁰", "10¹"], ["10⁰", "10¹"], ["2", "5"], ["2×10⁻⁶", "5×10⁻⁶"], ["1", "1.5"],
    ]  # fmt: skip
    assert [at for at, _ in found[2]] == pytest.approx([2, 5])


def background(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark(browser, pages):
    with opened(browser, pages["lesions"], color_scheme="dark") as page:
        assert background(page) == "rgb(20, 23, 26)"
        page.get_by_role("button", name="Change to the light theme").click()
        assert background(page) == "rgb(255, 255, 255)"
        page.get_by_role("button", name="Change to the dark theme").press("Enter")
        assert background(page) == "rgb(20, 23, 26)"
    with opened(browser, pages["lesions"], color_scheme="light") as page:
        assert background(page) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, pages, scheme):
    with opened(browser, pages["paths"], color_scheme=scheme) as page:
        assert page.evaluate(CONTRAST) == {}


@pytest.mark.parametrize("name", ["lesions", "paths", "hostile", "compared"])
def test_a_narrow_screen_does_not_scroll_sideways(browser, pages, name):
    with opened(browser, pages[name], viewport={"width": 375, "height": 800}) as page:
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_everything_can_be_reached_by_keys(browser, pages):
    with opened(browser, pages["paths"]) as page:
        reached = set()
        look = """() => { const at = document.activeElement;
            return [at.getAttribute('role') || at.tagName, getComputedStyle(at).outlineStyle]; }"""
        for _ in range(100):
            page.keyboard.press("Tab")
            what, outline = page.evaluate(look)
            if what == "BODY":
                break
            reached.add(what)
            assert outline == "solid", what
        assert {"A", "BUTTON", "application", "SUMMARY", "INPUT", "region"} <= reached


def test_without_scripts_the_numbers_are_there(browser, pages):
    with opened(browser, pages["lesions"], java_script_enabled=False) as page:
        assert page.get_by_text("39.44 %").first.is_visible()
        assert page.locator("noscript p").is_visible()


@pytest.mark.slow
def test_a_lattice_of_600_blocks_opens_fast(browser, tmp_path):
    path = pathlens.report_page(write_paths(tmp_path / "run", 600), tmp_path / "page.html")
    with opened(browser, path) as page:
        began = time.monotonic()
        page.reload()
        page.locator("figure.lattice .stage canvas").wait_for()
        assert time.monotonic() - began < 3
        stage = page.locator("figure.lattice").get_by_role("application")
        page.locator("figure.lattice").get_by_label("all lengths").check()
        stage.focus()
        page.keyboard.press("Home")
        for _ in range(30):
            page.keyboard.press("PageUp")
        read = page.locator("figure.lattice .readout").inner_text()
        length = int(page.locator("[data-lattice]").get_attribute("data-length") or -1)
        assert length > 290
        assert f"length {length}: {math.comb(600, length):,} paths" in read  # all of some 180 digits
        began = time.monotonic()
        page.get_by_text("Table lattice").click()
        rows = page.locator("details", has_text="Table lattice").locator("tbody tr")
        rows.first.wait_for()
        assert rows.count() <= 200
        page.locator("details", has_text="Table lattice").get_by_role("button", name="norm", exact=True).click()
        assert rows.first.locator("td").nth(1).inner_text() == "600"  # the smallest norm
        assert time.monotonic() - began < 5
