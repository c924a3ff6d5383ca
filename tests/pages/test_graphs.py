"""Pages of graphs: what they hold, that text stays text, that nothing is loaded, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import pathlens
from pathlens.errors import PathlensError, RunError, UsageError
from pathlens.pages import graph_html, graph_page
from tests.helpers.nets_tokens import found
from tests.helpers.page_graphs import chain, hostile, longer, norms, unet
from tests.helpers.page_runs import HOSTILE

KINDS = ("dag", "tree", "lattice")


class Page(HTMLParser):
    def __init__(self, source: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(source.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)

    @property
    def data(self) -> dict[str, Any]:
        (text,) = [text for text in self.texts["script"] if text.startswith('{"kind"')]
        return json.loads(text)


def facts(item: dict[str, Any]) -> dict[str, str]:
    return dict(item["facts"])


@pytest.mark.parametrize("kind", ["dag", "tree"])
def test_every_node_and_edge_is_there_with_its_exact_numbers(kind):
    graph = pathlens.unravel(chain(), kind=kind)
    data = Page(graph_html(graph)).data
    assert [node["id"] for node in data["nodes"]] == list(graph)
    for node in data["nodes"]:
        own, shown = graph.nodes[node["id"]], facts(node)
        assert shown["Paths through it"] == f"{own['n_paths']:,}"
        assert shown["Paths to it"] == f"{own['n_paths_in']:,}"
        assert shown["Role"] == own["role"]
        assert shown["Output shape"] == own["out_shape"].replace("x", "×")
        if kind == "dag":
            assert shown["Parameters"] == f"{own['parameters']:,}"
    ids = list(graph)
    assert [tuple(ids[end] for end in edge["ends"]) for edge in data["edges"]] == list(graph.edges)
    # every path has exactly one edge that enters the output
    last = [edge for edge in data["edges"] if edge["ends"][1] == data["output"]]
    assert sum(int(facts(edge)["Paths through it"]) for edge in last) == 16 or kind == "dag"
    first = [edge for edge in data["edges"] if edge["ends"][0] == data["input"]]
    assert sum(int(edge["paths"]) for edge in first) == 16


def test_other_networks_are_laid_out_downward():
    graph = pathlens.unravel(*unet())
    page = Page(graph_html(graph, "layers"))
    heights = {node["id"]: node["box"][1] for node in page.data["nodes"]}
    assert all(heights[start] < heights[end] for start, end in graph.edges)
    skips = [edge["skip"] for edge in page.data["edges"] if edge["skip"]]
    assert skips == ["concat"] * graph.graph["n_skips_concat"]
    with pytest.raises(UsageError, match="is no chain of blocks, which rows could show"):
        graph_html(graph, "rows")


def test_norms_of_a_lattice_are_exact():
    graph = pathlens.unravel(chain(), kind="lattice", gradients=norms(4))
    data = Page(graph_html(graph)).data
    values = struct.unpack("<25d", base64.b64decode(data["norms"]))
    for length in range(5):
        for place in range(5):
            found = values[5 * length + place]
            if place + length > 4:
                assert math.isnan(found)
            else:
                assert found == graph.nodes[place, length]["gradient_norm"]
    assert data["names"] == [f"layer{block}" for block in range(4)]


def test_numbers_of_paths_stand_in_the_page_without_scripts():
    page = Page(graph_html(pathlens.unravel(longer(chain(), 60), kind="lattice", blocks=(0, 59))))
    assert f"{math.comb(60, 30):,}" in page.texts["td"]
    assert "norms" not in page.data
    assert "1.15×10¹⁸" in page.texts["strong"]


def test_parameters_that_are_tied_count_once():
    model, view = found("gpt")
    page = Page(graph_html(pathlens.unravel(view)))
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in page.texts["strong"]


def test_a_lattice_of_other_numbers_is_refused():
    graph = pathlens.unravel(chain(), kind="lattice")
    graph.nodes[2, 1]["n_paths_out"] += 1
    with pytest.raises(UsageError, match=r"node \(2, 1\) is missing or has other numbers"):
        graph_html(graph)
    graph = pathlens.unravel(chain(), kind="lattice")
    graph.add_edge((0, 0), (3, 0))
    with pytest.raises(UsageError, match="it has 15 nodes and 21 edges"):
        graph_html(graph)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_text(kind):
    graph = pathlens.unravel(hostile(), kind=kind)
    if kind == "dag":
        graph.nodes["branch0"]["<b>mine"] = HOSTILE
    source = graph_html(graph)
    page = Page(source)
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "b", "iframe", "link"})
    assert source.count(b"</script>") == 2
    assert any(HOSTILE in text for text in page.texts["h1"])
    assert any(f"{HOSTILE}1" in text for text in json.dumps(page.data).split('"'))
    if kind == "dag":
        assert any(facts(node).get("<b>mine") == HOSTILE for node in page.data["nodes"])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded(kind):
    source = graph_html(pathlens.unravel(chain(), kind=kind))
    page = Page(source)
    assert not [attributes for _, attributes in page.tags if {"src", "srcset", "data", "action"} & attributes.keys()]
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)
    # the name of a vocabulary, which is never asked for
    assert re.findall(rb"https?://[\w./]+", source) == [b"http://www.w3.org/2000/svg"]
    assert not re.search(rb"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacentHTML|eval\(", source)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    style, *_ = page.texts["style"]
    (script,) = [text for text in page.texts["script"] if text.startswith('"use strict"')]
    for kind_of, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind_of}-src 'sha256-{digest}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none'")


def test_the_same_graph_gives_the_same_bytes():
    one, two = (graph_html(pathlens.unravel(chain(), kind="tree")) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("name", "kind", "error", "words"),
    [
        ("page.txt", "dag", UsageError, "let it end with .html"),
        ("", "dag", RunError, "is a folder"),
        ("none/file/page.html", "dag", RunError, "cannot write"),
        ("page.html", "knot", UsageError, "kind 'knot' has no page"),
        ("page.html", None, UsageError, "kind None has no page"),
    ],
)
def test_what_is_refused(name, kind, error, words, tmp_path: Path):
    (tmp_path / "none").write_text("mine")
    graph = pathlens.unravel(chain())
    graph.graph["kind"] = kind
    with pytest.raises(error, match=re.escape(words)) as caught:
        graph_page(graph, tmp_path / name)
    assert isinstance(caught.value, PathlensError)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["none"]
