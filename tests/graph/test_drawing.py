"""Drawings: what is drawn stands apart, fits the page, and is the same in figures and pages."""

from __future__ import annotations

import json
import re
import string

import pytest
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.textpath import text_to_path

import pathlens
from pathlens import figures
from pathlens.graph import place
from pathlens.graph.cells import lattice_cells
from pathlens.graph.drawing import shortened, text_width
from pathlens.pages import graph_html
from tests.helpers.page_graphs import chain, longer, norms, unet


@pytest.mark.parametrize("page", [{}, {"widths": (3.5, 7.2), "height": 8.5}], ids=["screen", "paper"])
@pytest.mark.parametrize(("kind", "layout"), [("dag", "rows"), ("dag", "layers"), ("tree", "auto")])
def test_nothing_is_drawn_outside_or_over_another(kind, layout, page):
    drawing = place(pathlens.unravel(chain(6), kind=kind), layout, **page)
    boxes = list(drawing.nodes.values())
    for box in boxes:
        assert box.width / 2 <= box.x + 1e-9
        assert box.x + box.width / 2 <= drawing.width
        assert box.height / 2 <= box.y + 1e-9
        assert box.y + box.height / 2 <= drawing.height
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            apart = abs(one.x - other.x) - (one.width + other.width) / 2
            above = abs(one.y - other.y) - (one.height + other.height) / 2
            assert max(apart, above) > 0, (one, other)
    for (start, end), line in drawing.edges.items():
        for node, (x, y) in ((start, line.pieces[0][0]), (end, line.pieces[-1][-1])):
            box = drawing.nodes[node]
            assert abs(x - box.x) <= box.width / 2 + 1e-9, (start, end)
            assert abs(y - box.y) <= box.height / 2 + 1e-9, (start, end)


def test_long_chains_are_broken_into_rows():
    drawing = place(pathlens.unravel(chain(12)))
    assert len({round(box.y, 6) for node, box in drawing.nodes.items() if str(node).startswith("add")}) > 1
    broken = [line.pieces for line in drawing.edges.values() if len(line.pieces) == 2]
    assert broken
    assert all(end[0][0] < 0.1 for _, end in broken)


@pytest.mark.parametrize("text", [string.printable.strip(), "layer1.0", "conv2d, batch_norm", "input 3×64×64", "…W_m"])
def test_texts_are_about_as_wide_as_the_widest_common_letters(text):
    wide, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(family="DejaVu Sans", size=6), ismath=False
    )
    assert wide / 72 <= text_width(text) <= 1.2 * wide / 72


def test_long_names_keep_their_end_and_lists_their_beginning():
    assert shortened("encoder.layers.encoder_layer_11.self_attention") == "…layer_11.self_attention"
    assert shortened("conv1, bn1, relu, maxpool, another") == "conv1, bn1, relu, …"
    assert shortened("x" * 40) == "…" + "x" * 25


@pytest.mark.parametrize(
    ("kind", "blocks", "column"),
    [("dag", 2, True), ("dag", 4, False), ("dag", 12, False), ("tree", 4, True), ("tree", 8, False)],
)
def test_a_drawing_takes_the_narrowest_page_that_holds_it(kind, blocks, column):
    graph = pathlens.unravel(chain(blocks), kind=kind)
    drawing = place(graph, widths=(3.5, 7.2), height=8.5)
    assert drawing.width <= 7.2
    assert (drawing.width <= 3.5) == column
    assert drawing.height <= 8.7
    width, height = figures.unraveled(graph).get_size_inches()
    assert width == (figures.SINGLE if column else figures.DOUBLE)
    assert height <= 9.2


@pytest.mark.parametrize("graph", [chain(5), unet()], ids=["rows", "layers"])
def test_figures_and_pages_draw_the_same_boxes(graph):
    graph = pathlens.unravel(*graph) if isinstance(graph, tuple) else pathlens.unravel(graph)
    drawing = place(graph, "auto", (7.2,), 8.5)
    figure = figures.unraveled(graph, width=7.2)
    (axes,) = figure.axes
    patches = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch | Circle)]
    for box, patch in zip(drawing.nodes.values(), patches, strict=False):
        if isinstance(patch, Circle):
            assert (*patch.center, patch.radius) == pytest.approx((box.x, box.y, box.width / 2))
        else:
            corner = (box.x - box.width / 2, box.y - box.height / 2)
            assert patch.get_bbox().bounds == pytest.approx((*corner, box.width, box.height))
    (source,) = re.findall(r'id="data">(.*?)</script>', graph_html(graph).decode())
    page = place(graph)
    for (node, box), shown in zip(page.nodes.items(), json.loads(source)["nodes"], strict=True):
        assert shown["id"] == node
        assert shown["box"] == pytest.approx([160 * value for value in (box.x, box.y, box.width, box.height)], abs=0.06)


def test_stages_part_after_the_input_of_their_first_block():
    view = pathlens.find_blocks(pathlens.load_model("resnet20", "random").model, torch.zeros(2, 3, 32, 32))
    cells = lattice_cells(pathlens.unravel(view, kind="lattice", blocks=(2, 8)))
    # x3 is the input of block 3, which begins stage 1, but was made in stage 0
    assert cells.stages == (("stage 0", 3, 3), ("stage 1", 4, 6), ("stage 2", 7, 9))
    figure = figures.unraveled(pathlens.unravel(view, kind="lattice"))
    assert [line.get_xdata()[0] for line in figure.axes[0].lines[2:]] == [3.5, 6.5]


def test_the_line_goes_through_the_largest_norms():
    given = norms(9)
    graph = pathlens.unravel(longer(chain(), 9), kind="lattice", gradients=given)
    for place_, length in lattice_cells(graph).ridge:
        assert given[place_, length] == max(norm for (at, _), norm in given.items() if at == place_)
