"""Formats of graphs: everything comes back as it was, and names stay text."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import networkx as nx
import pydot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens import graph as graphs
from pathlens.errors import UsageError
from pathlens.graph import graphviz_layout, layout, unravel
from tests.helpers.graph_nets import UNet, WithOdd
from tests.helpers.nets_tokens import found

FORMATS = {
    "json": (graphs.to_json, graphs.from_json),
    "graphml": (graphs.to_graphml, graphs.from_graphml),
    "dot": (graphs.to_dot, graphs.from_dot),
}
ODD_TEXT = '<b>"q\\" & \x07\x00 ]]> _x0007_ é\U0001f600\r\n\t\\N $x_1$ {a|b} </script>\\'


def assert_same(one: nx.DiGraph, other: nx.DiGraph) -> None:
    assert dict(one.nodes(data=True)) == dict(other.nodes(data=True))
    assert {(u, v): d for u, v, d in one.edges(data=True)} == {(u, v): d for u, v, d in other.edges(data=True)}
    assert one.graph == other.graph
    for (_, data), (_, back) in zip(one.nodes(data=True), other.nodes(data=True), strict=True):
        assert {name: type(value) for name, value in data.items()} == {n: type(back[n]) for n in data}


def weighted(blocks: int) -> dict[tuple[int, int], float]:
    return {(i, k): 0.1 * abs(i) + 3.0**-k for i in range(-1, blocks + 1) for k in range(blocks - max(i, 0) + 1)}


@pytest.mark.parametrize("kind", ["dag", "tree", "lattice"])
@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name, kind):
    write, read = FORMATS[name]
    view = found("cifar")[1]
    more = {"tree": {"blocks": (1, 3)}, "lattice": {"gradients": weighted(len(view))}}.get(kind, {})
    graph = unravel(view, kind=kind, **more)
    data = write(graph)
    assert_same(graph, read(data))
    assert write(read(data)) == data


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_that_is_no_chain(name):
    write, read = FORMATS[name]
    graph = unravel(UNet(2).eval(), torch.zeros(2, 3, 16, 16))
    assert_same(graph, read(write(graph)))


@pytest.mark.parametrize("name", FORMATS)
def test_integers_of_any_size_are_exact(name):
    write, read = FORMATS[name]
    graph = nx.DiGraph(kind="dag", n_paths=3**400, n_paths_by_length=[1, 3**400 - 1])
    graph.add_node("a", n_paths=3**400, block=1)
    graph.add_node("b", n_paths=1, block=2)
    assert_same(graph, read(write(graph)))


def test_large_integers_are_text_where_others_would_read_them_wrong():
    graph = nx.DiGraph(kind="dag")
    graph.add_node("a", n_paths=2**53, block=2**53 - 1)
    node = json.loads(graphs.to_json(graph))["nodes"][0]
    assert (node["n_paths"], node["block"]) == ("9007199254740992", 2**53 - 1)
    graph.add_node("b", n_paths=2**64, block=0)
    keys = {
        key.get("attr.name"): key.get("attr.type") for key in ET.fromstring(graphs.to_graphml(graph)) if key.get("id")
    }
    assert keys["n_paths"] == "string"
    assert keys["block"] in ("int", "long")


@pytest.mark.parametrize("name", FORMATS)
def test_names_that_would_be_markup(name):
    write, read = FORMATS[name]
    graph = nx.DiGraph(kind="dag", network=ODD_TEXT)
    for node, text in (
        ("a", ODD_TEXT),
        ("b", "<b>bold</b>"),
        ("c", "node"),
        ("d", '"quoted"'),
        ("e", "\\"),
        ("f", "a:b;c"),
    ):
        graph.add_node(node, module=text, label=text)
    graph.add_edge("a", "b", role=ODD_TEXT)
    assert_same(graph, read(write(graph)))


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3))
def test_any_text_survives(texts):
    graph = nx.DiGraph(kind="dag")
    for number, text in enumerate(texts):
        graph.add_node(f"n{number}", module=text)
    for write, read in FORMATS.values():
        assert_same(graph, read(write(graph)))


def test_the_name_of_a_module_reaches_every_format_as_text():
    graph = unravel(WithOdd("<i>&{x}").eval(), torch.zeros(2, 3, 8, 8))
    assert b"<i>" not in graphs.to_graphml(graph)
    assert b'label="<i>&{x}"' in graphs.to_dot(graph)  # quoted, it is no HTML for Graphviz
    for write, read in FORMATS.values():
        assert read(write(graph)).nodes["branch0"]["module"] == "<i>&{x}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("json", b"{"),
        ("json", b"[]"),
        ("json", b'{"nodes": [{}], "edges": []}'),
        ("json", b'{"directed": true, "nodes": [{"id": 1, "block": "x"}], "edges": []}'),
        ("json", b'{"directed": true, "nodes": [{"id": 1, "block": null}], "edges": []}'),
        ("json", b'{"directed": true, "nodes": [{"id": 1, "block": Infinity}], "edges": []}'),
        ("json", b'{"directed": true, "graph": [], "nodes": [], "edges": []}'),
        ("json", b"[" * 100_000),
        ("graphml", b"<a"),
        ("graphml", b"<graphml/>"),
        ("dot", b"digraph {"),
        ("dot", b"graph { a -- b }"),
        ("dot", b'digraph { n_paths_by_length="5"; }'),
        ("dot", b"digraph { \x1b[2J -> "),
        ("dot", b"\xff"),
    ],
)
def test_what_is_no_graph_is_said_in_one_line(name, data, capsys):
    with pytest.raises(UsageError, match=r"^the graph is no .*; give one that pathlens wrote$"):
        FORMATS[name][1](data)
    assert capsys.readouterr().out == ""


needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz' program dot is not installed")


@needs_dot
def test_graphviz_layout_keeps_order_and_sizes():
    graph = unravel(UNet(2).eval(), torch.zeros(2, 3, 16, 16))
    sizes = dict.fromkeys(graph, (0.8, 0.3))
    found_layout = graphviz_layout(graph, sizes)
    assert set(found_layout.nodes) == set(graph)
    assert set(found_layout.edges) == set(graph.edges)
    for start, end in graph.edges:
        assert found_layout.nodes[start][1] > found_layout.nodes[end][1] + 0.3
        points = found_layout.edges[start, end]
        assert len(points) % 3 == 1
        assert points[0][1] == pytest.approx(found_layout.nodes[start][1] - 0.15, abs=0.2)
    for x, y in found_layout.nodes.values():
        assert 0.4 <= x + 1e-6 <= found_layout.width
        assert 0.1 <= y <= found_layout.height
    sideways = graphviz_layout(graph, sizes, "LR")
    assert all(sideways.nodes[a][0] < sideways.nodes[b][0] for a, b in graph.edges)


@needs_dot
def test_graphviz_reads_what_is_written():
    (parsed,) = pydot.graph_from_dot_data(graphs.to_dot(unravel(found("cifar")[1])).decode())
    assert b"<svg" in parsed.create(prog="dot", format="svg")


def test_without_graphviz_the_remedy_is_named(monkeypatch):
    graph = unravel(found("cifar")[1])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not graphs.has_graphviz()
    with pytest.raises(UsageError, match="needs its program dot, which is not installed: apt-get install graphviz"):
        graphviz_layout(graph, dict.fromkeys(graph, (1.0, 1.0)))


def test_without_pydot_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydot", None)
    assert not layout.has_graphviz()
    with pytest.raises(UsageError, match=r"need pydot: pip install 'pathlens\[graph\]'"):
        graphs.to_dot(nx.DiGraph())
