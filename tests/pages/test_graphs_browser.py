"""Pages of graphs in a real browser: hover, keys, filter and zoom answer with exact numbers, and text stays text."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import pathlens
from pathlens.pages import graph_page
from tests.helpers.page_browser import CONTRAST, opened
from tests.helpers.page_graphs import chain, hostile, longer, norms, unet
from tests.helpers.page_runs import HOSTILE


@pytest.fixture(scope="module")
def graphs() -> dict[str, nx.DiGraph]:
    return {
        "dag": pathlens.unravel(chain()),
        "tree": pathlens.unravel(chain(), kind="tree"),
        "lattice": pathlens.unravel(chain(), kind="lattice", gradients=norms(4)),
        "unet": pathlens.unravel(*unet()),
        "hostile": pathlens.unravel(hostile()),
        "hostile-lattice": pathlens.unravel(hostile(), kind="lattice"),
    }


@pytest.fixture(scope="module")
def pages(graphs: dict[str, nx.DiGraph], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: graph_page(graph, folder / f"{name}.html", "auto") for name, graph in graphs.items()}


def chosen(page: Any) -> str | None:
    return page.locator("#stage").get_attribute("data-at")


def told(page: Any) -> dict[str, str]:
    """What the panel says."""
    panel = page.locator("#panel dl.facts")
    return dict(zip(panel.locator("dt").all_inner_texts(), panel.locator("dd").all_inner_texts(), strict=True))


def middle(page: Any, text: str) -> tuple[float, float]:
    """The middle of the box with a text, in pixels."""
    box = page.locator("#stage .node", has_text=text).first.locator("rect").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_a_node_answers_to_hover_and_shows_its_paths(browser, pages, graphs):
    graph = graphs["dag"]
    with opened(browser, pages["dag"]) as page:
        page.mouse.move(*middle(page, "layer1"))
        assert chosen(page) == "branch1"
        assert page.locator(".tooltip").is_visible()
        own = graph.nodes["branch1"]
        expected = {
            "Module": "layer1", "Parameters": f"{own['parameters']}", "Paths through it": "8", "Output shape": "4×6×6",
            "Adds to the length": "yes",
        }  # fmt: skip
        assert expected.items() <= told(page).items()
        # lit: the ancestors, the descendants, and the edges between them
        on = {*nx.ancestors(graph, "branch1"), "branch1", *nx.descendants(graph, "branch1")}
        assert page.locator("#stage .node.on").count() == len(on)
        before, after = (nx.ancestors(graph, "branch1") | {"branch1"}, nx.descendants(graph, "branch1") | {"branch1"})
        edges = [edge for edge in graph.edges if set(edge) <= before or set(edge) <= after]
        assert page.locator("#stage .edge.on").count() == len(edges) < graph.number_of_edges()
        page.mouse.move(5, 5)
        assert chosen(page) == ""
        assert not page.locator(".tooltip").is_visible()
        assert page.locator("#panel h2").inner_text() == "Nothing chosen"


def test_an_edge_answers_to_hover_and_stays_by_click(browser, pages):
    with opened(browser, pages["dag"]) as page:
        x, _ = middle(page, "layer1")
        line = page.locator("#stage .edge").first.bounding_box()  # from the input to the stem: level with the shortcuts
        page.mouse.move(x, line["y"] + line["height"] / 2)
        assert chosen(page) == "add0 → add1"
        assert told(page)["Paths through it"] == "8"
        assert told(page)["Role"] == "shortcut"
        page.mouse.down()
        page.mouse.up()
        page.mouse.move(5, 5)
        assert chosen(page) == "add0 → add1"
        page.locator("#panel").get_by_role("button", name="add1").click()
        assert chosen(page) == "add1"
        assert told(page)["Paths through it"] == "16"


def test_keys_walk_along_the_paths(browser, pages, graphs):
    with opened(browser, pages["dag"]) as page:
        page.locator("#stage").focus()
        seen = []
        for _ in graphs["dag"]:
            press(page, "ArrowRight")
            seen.append(chosen(page))
        assert seen == list(graphs["dag"])  # every node, in the order in which they are computed
        assert page.locator("#readout").inner_text() == "add3, 4×6×6, 16 paths through it."
        press(page, "Home", "ArrowRight", "ArrowRight", "ArrowDown")
        assert chosen(page) in ("add0", "stem")
        press(page, "End", "ArrowLeft")
        assert chosen(page) == "branch3"
        press(page, "Escape")
        assert chosen(page) == ""
        assert page.locator("#stage").evaluate("element => element === document.activeElement")


def test_the_tree_has_a_copy_for_every_way_on(browser, pages):
    with opened(browser, pages["tree"]) as page:
        assert page.locator("#stage .node", has_text="f0").count() == 8
        page.mouse.move(*middle(page, "f1"))
        assert told(page)["Applied as"] == "f1[x + f0[x]]"
        assert told(page)["Paths through it"] == "2"
        assert page.locator("#stage .node.on", has_text="f").count() == 4  # f0, f1, f2, f3 of the longest path


def test_other_networks_are_walked_downward(browser, pages):
    with opened(browser, pages["unet"]) as page:
        page.locator("#stage").focus()
        press(page, "ArrowDown", "ArrowDown")
        assert told(page)["Module"] == "first"
        assert page.locator("#stage .edge.skip-concat").count() == 2


def test_a_filter_marks_and_goes_on(browser, pages):
    with opened(browser, pages["dag"]) as page:
        page.get_by_label("Find").fill("LAYER2")
        assert page.locator("#tools .status").inner_text().startswith("2 of 10 nodes")
        assert page.locator("#stage .node.match").count() == 2  # the branch and its addition
        page.keyboard.press("Enter")
        assert chosen(page) == "branch2"
        page.get_by_label("Find").fill("conv2d")
        assert page.locator("#stage .node.match").count() == 5
        press(page, "Enter", "Enter", "Shift+Enter")
        assert chosen(page) == "stem"
        press(page, "Shift+Enter")
        assert chosen(page) == "branch3"
        page.get_by_label("Find").fill("")
        assert page.locator("#stage .node.match").count() == 0


def test_wheel_buttons_keys_and_drags_move_the_view(browser, pages):
    with opened(browser, pages["dag"]) as page:
        look = "document.querySelector('#stage .world').getAttribute('transform')"

        def scale() -> float:
            page.wait_for_timeout(60)
            return float(page.evaluate(look).split("scale(")[1].rstrip(")"))

        page.mouse.move(*middle(page, "layer1"))
        start = scale()
        page.mouse.wheel(0, -300)
        assert scale() > start * 1.2
        assert chosen(page) == "branch1"  # what is under the pointer stays there
        page.get_by_role("button", name="Zoom out").click()
        page.locator("#stage").focus()
        press(page, "+", "+", "+", "+", "+")
        near = scale()
        assert near > start * 2
        before = page.evaluate(look)
        x, y = 400, 500
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 30, steps=3)
        page.mouse.up()
        assert scale() == near
        assert page.evaluate(look) != before
        press(page, "0")
        assert scale() <= start


def test_the_lattice_answers_to_pointer_and_keys(browser, pages):
    with opened(browser, pages["lattice"]) as page:
        page.locator("#stage").focus()
        press(page, "ArrowRight", "Home", "ArrowRight", "ArrowUp")
        # at first the largest norm, which is that of length 0
        assert chosen(page) == "1,1"
        expected = {
            "Module": "layer1", "Paths to it": "2", "Paths from it": "3", "Paths through it": "6",
            "Gradient norm": f"{norms(4)[1, 1]:.6g}",
        }  # fmt: skip
        assert expected.items() <= told(page).items()
        links = page.locator("#panel .links .link")
        assert links.all_inner_texts() == [
            "shortcut of block 0: 3 paths", "branch of block 0: 3 paths",
            "shortcut of block 1: 4 paths", "branch of block 1: 2 paths",
        ]  # fmt: skip
        links.nth(2).click()
        assert chosen(page) == "shortcut 1,1"
        assert told(page)["Paths through it"] == "4"
        assert told(page)["Gradient norm"] == f"{norms(4)[2, 1]:.6g}"
        page.keyboard.press("Escape")
        stage = page.locator("#stage").bounding_box()
        left, top = stage["x"] + 56, stage["y"] + 10
        size = (stage["width"] - 78) / 5, (stage["height"] - 50) / 5  # of one of 5 by 5 cells
        size = min(size[0], 110), min(size[1], 110)
        left += (stage["width"] - 78 - 5 * size[0]) / 2
        top += (stage["height"] - 50 - 5 * size[1]) / 2
        page.mouse.move(left + 2.5 * size[0], top + 3.5 * size[1])
        assert chosen(page) == "2,1"
        assert page.locator(".tooltip").is_visible()
        page.mouse.move(left + 3 * size[0], top + 3.5 * size[1])
        assert chosen(page) == "shortcut 2,1"
        page.mouse.move(left + 3 * size[0], top + 4 * size[1])
        assert chosen(page) == "branch 2,1"
        page.mouse.move(left + 4.5 * size[0], top + 0.5 * size[1])  # no path is that long so late
        assert chosen(page) == ""
        page.get_by_label("Find").fill("layer3")
        assert page.locator("#tools .status").inner_text().startswith("1 of 4 blocks")
        page.keyboard.press("Enter")
        assert chosen(page) == "3,0"


def test_hostile_names_are_text(browser, pages):
    for name in ("hostile", "hostile-lattice"):
        with opened(browser, pages[name]) as page:
            page.locator("#stage").focus()
            press(page, "ArrowRight", "ArrowRight", "ArrowRight")
            assert HOSTILE in page.locator("#panel").inner_text()
            assert HOSTILE in page.locator("h1").inner_text()
            page.get_by_label("Find").fill(HOSTILE)
            page.keyboard.press("Enter")
            assert HOSTILE in page.locator("#readout").inner_text()
            assert page.locator("img, iframe, main script").count() == 0


@pytest.mark.parametrize("name", ["dag", "tree", "lattice", "hostile"])
def test_a_narrow_screen_does_not_scroll_sideways(browser, pages, name):
    with opened(browser, pages[name], viewport={"width": 375, "height": 800}) as page:
        page.locator("#stage").focus()
        press(page, "ArrowRight", "ArrowRight")
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert told(page)["Paths through it"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, pages, scheme):
    for name in ("dag", "lattice"):
        with opened(browser, pages[name], color_scheme=scheme) as page:
            page.locator("#stage").focus()
            press(page, "ArrowRight")
            assert page.evaluate(CONTRAST) == {}


def test_a_lattice_of_600_blocks_opens_fast(browser, tmp_path):
    path = graph_page(pathlens.unravel(longer(chain(), 600), kind="lattice"), tmp_path / "page.html")
    with opened(browser, path) as page:
        began = time.monotonic()
        page.reload()
        page.locator("#stage canvas").wait_for()
        page.locator("#stage").focus()
        press(page, "ArrowRight")
        assert time.monotonic() - began < 3
        assert chosen(page) == "0,300"
        assert told(page)["Paths from it"] == f"{math.comb(600, 300):,}"  # all of some 180 digits
        press(page, *["PageDown"] * 3, *["ArrowRight"] * 5)
        assert told(page)["Paths through it"] == f"{2**5 * math.comb(595, 270):,}"
