"""``pathlens unravel`` and its pictures."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from math import comb, log10

import pytest
import torch

import pathlens
from pathlens import figures
from pathlens import graph as graphs
from pathlens.cli import main
from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.tables import Column, Table, read_table
from tests.helpers import ROOT
from tests.helpers.graph_nets import DenseNet, NestedResiduals, UNet
from tests.helpers.nets_tokens import ODD, found

SMALL = ["--model", "FILE:build", "--input-shape", "3,8,8", "--quiet"]
FILE = """
from torch import nn

class Plus(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x):
        return x + self.body(x)

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Plus(), Plus(), Plus())
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("model") / "net.py"
    path.write_text(FILE)
    return [word.replace("FILE", str(path)) for word in SMALL]


def norms(blocks: int, **facts: object) -> Table:
    rows = [{"boundary": i, "length": k, "norm": 1.0 + i * k} for i in range(blocks + 1) for k in range(blocks - i + 1)]
    return Table((Column("boundary"), Column("length"), Column("norm")), tuple(rows), facts)


@pytest.mark.parametrize("kind", ["dag", "tree", "lattice"])
def test_the_summary_counts_paths(kind, small, capsys):
    assert main(["unravel", "--kind", kind, *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Sequential, {kind}: ")
    assert [line.split() for line in lines[-4:]] == [[str(k), str(comb(3, k))] for k in range(4)]


def test_formats_follow_the_name_of_the_file(small, tmp_path, capsys):
    beginnings = {"a.json": b"{", "a.graphml": b"<?xml", "a.dot": b"strict digraph", "a.gv": b"strict",
                  "a.svg": b"<?xml", "a.png": b"\x89PNG", "a.pdf": b"%PDF", "a.txt": b"Sequential",
                  "a.html": b"<!DOCTYPE html>"}  # fmt: skip
    for name, beginning in beginnings.items():
        assert main(["unravel", "--kind", "tree", "--blocks", "0:1", "--out", str(tmp_path / name), *small]) == 0
        assert (tmp_path / name).read_bytes().startswith(beginning)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(beginnings)
    assert capsys.readouterr().out == ""
    assert graphs.from_json((tmp_path / "a.json").read_bytes()).graph["n_paths"] == 4


def test_texts_go_to_standard_output(small, capsys):
    assert main(["unravel", "--kind", "lattice", "--format", "json", *small]) == 0
    assert graphs.from_json(capsys.readouterr().out.encode()).nodes[0, 2]["n_paths"] == 3
    assert main(["unravel", "--kind", "lattice", "--format", "html", *small]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")
    assert main(["unravel", "--kind", "equation", "--blocks", "1:2", *small]) == 0
    assert capsys.readouterr().out.startswith("y = x + f1[x] + f2[x + f1[x]]\n")
    assert main(["unravel", "--kind", "equation", "--format", "latex", *small]) == 0
    assert capsys.readouterr().out.startswith("\\documentclass")


def test_gradients_of_a_run_folder_weight_the_lattice(small, tmp_path, capsys):
    norms(3).write(tmp_path, "lattice")
    for place in (tmp_path, tmp_path / "lattice.csv"):
        command = ["unravel", "--kind", "lattice", "--gradients", str(place), "--format", "json", *small]
        assert main(command) == 0
        graph = graphs.from_json(capsys.readouterr().out.encode())
        assert graph.nodes[2, 1]["gradient_norm"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--kind", "tree", "--blocks", "1:3"], "1 to 3 is outside of the network: Sequential has 3 blocks", 2),
        (["--kind", "tree", "--blocks", "0,2"], "has gaps", 2),
        (["--kind", "tree", "--blocks", "x"], "is no range", 2),
        (["--blocks", "0:1"], "a dag shows the whole network", 2),
        (["--format", "gif"], "'gif' is not one of", 2),
        (["--kind", "forest"], "'forest' is not one of", 2),
        (["--format", "png"], "--format png is no text; give --out FILE", 2),
        (["--format", "latex"], "--format latex is not for --kind dag", 2),
        (["--kind", "equation", "--out", "HERE/x.html"], "not for --kind equation; give one of text, latex", 2),
        (["--kind", "equation", "--format", "svg"], "not for --kind equation; give one of text, latex", 2),
        (["--out", "HERE/x.gif"], "the ending .gif says no format", 2),
        (["--out", "HERE/x.svg", "--format", "png"], "do not agree", 2),
        (["--out", "HERE/file/x.svg"], "cannot write", 8),
        (["--out", "HERE/x.json/"], "cannot write", 8),
        (["--gradients", "HERE"], "--gradients belong to --kind lattice", 2),
        (["--kind", "lattice", "--gradients", "HERE"], "has no lattice.parquet; make one with", 8),
        (["--kind", "lattice", "--gradients", "HERE/none.csv"], "none.csv", 8),
        (["--kind", "lattice", "--gradients", "HERE/other/lattice.csv"], "boundary 0 and length 4", 2),
        (["--kind", "lattice", "--gradients", "HERE/foreign"], "was measured on resnet20 with other weights", 2),
        (["--kind", "lattice", "--gradients", "HERE/old", "--model", "preresnet20"], "or measure it again", 2),
        (["--kind", "lattice", "--gradients", "HERE/wrong/lattice.csv"], "has no column 'boundary'", 8),
        (["--layout", "rows", "--model", "torchvision:squeezenet1_1", "--out", "HERE/x.png"], "no chain of blocks", 2),
        (["--kind", "tree", "--model", "torchvision:squeezenet1_1"], "so only its dag can be made", 3),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, code, small, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x.json").mkdir()
    norms(4).write(tmp_path / "other", "lattice")
    norms(3, model="resnet20", model_sha256="0" * 64).write(tmp_path / "foreign", "lattice")
    norms(3, model="preresnet20", trained=False, model_sha256="0" * 64).write(tmp_path / "old", "lattice")
    Table((Column("block"),), ({"block": 1},)).write(tmp_path / "wrong", "lattice")
    before = sorted(tmp_path.rglob("*"))
    own = [word.replace("HERE", str(tmp_path)) for word in arguments]
    rest = small if "--model" not in own else ["--quiet", "--input-shape", "3,32,32"]
    assert main(["unravel", *own, *rest]) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("pathlens: error: ")]
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


# Pictures


def longer(view: ResidualView, blocks: int) -> ResidualView:
    """As if the network had that many blocks, all like the first, which is all that a lattice looks at."""
    other = copy.copy(view)
    other._blocks = tuple(replace(view.blocks[0], index=index) for index in range(blocks))
    return other


def texts(figure: figures.Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_tree_shows_each_copy():
    _, view = found("cifar")
    shown = texts(figures.unraveled(pathlens.unravel(view, kind="tree", blocks=(0, 3))))
    assert [shown.count(f"f{block}") for block in range(4)] == [8, 4, 2, 1]
    assert shown.count("S2") == 2
    assert any("16 paths" in text for text in shown)


def test_the_rows_show_each_block_once():
    _, view = found("cifar")
    shown = texts(figures.unraveled(pathlens.unravel(view)))
    for block in view:
        assert shown.count(block.name) == 1
    assert shown.count("relu") == len(view)
    assert "stage 1, 16×8×8" in shown


@pytest.mark.parametrize("model", [UNet(2), DenseNet(3), NestedResiduals(1)], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("layout", ["auto", "layers"])
def test_other_networks_show_every_node(model, layout):
    graph = pathlens.unravel(model.eval(), torch.zeros(2, 3, 16, 16))
    figure = figures.unraveled(graph, layout=layout)
    shown = texts(figure)
    for _, data in graph.nodes(data=True):
        if data["role"] != "add":
            assert any(text.startswith(data["label"]) for text in shown), data
    with pytest.raises(UsageError, match="is no chain of blocks, which rows could show"):
        figures.unraveled(graph, layout="rows")


def test_small_lattices_show_numbers_and_large_ones_colours():
    _, view = found("cifar")
    shown = texts(figures.unraveled(pathlens.unravel(view, kind="lattice")))
    assert [shown.count(str(number)) for number in (10, 6, 5)] == [2, 1, 2]
    figure = figures.unraveled(pathlens.unravel(longer(view, 54), kind="lattice"))
    values = figure.axes[0].collections[0].get_array()
    assert float(values.max()) == pytest.approx(54 * log10(2))
    assert figure.get_size_inches()[0] == figures.SINGLE


def test_gradient_norms_are_the_colours_where_there_are_any():
    _, view = found("cifar")
    figure = figures.unraveled(pathlens.unravel(longer(view, 9), kind="lattice", gradients=norms(9)))
    assert "gradient norm" in figure.axes[1].get_ylabel()
    assert float(figure.axes[0].collections[0].get_array().max()) == pytest.approx(log10(1.0 + 4 * 5))


def test_svg_keeps_names_as_text_and_is_the_same_every_time():
    graph = pathlens.unravel(found("preact")[1])
    graph.nodes["branch0"]["label"] = "<b>&$x_1$"
    one, two = (figures.files(figures.unraveled(graph), "g", ("svg",))["g.svg"] for _ in range(2))
    assert one == two
    assert "<b>&$x_1$" in [element.text for element in ET.fromstring(one).iter() if element.text]


def test_a_plain_network_and_unknown_things():
    graph = pathlens.unravel(ODD["plain"].model(), ODD["plain"].input())
    assert figures.unraveled(graph, layout="layers").axes
    with pytest.raises(UsageError, match="layout 'spiral' is unknown"):
        figures.unraveled(graph, layout="spiral")
    graph.graph["kind"] = "knot"
    with pytest.raises(UsageError, match="kind 'knot' cannot be drawn"):
        figures.unraveled(graph)
    with pytest.raises(UsageError, match="no format 'gif'"):
        figures.files(figures.Figure(), "x", ("gif",))


def test_the_manual_is_right(small, capsys):
    page = (ROOT / "docs" / "unravel.md").read_text()
    kinds = {"dag": {}, "tree": {"blocks": (0, 2)}, "lattice": {"gradients": norms(5)}}
    for kind, more in kinds.items():
        graph = pathlens.unravel(found("cifar")[1], kind=kind, **more)
        data = [graph.graph, *(d for _, d in graph.nodes(data=True)), *(d for *_, d in graph.edges(data=True))]
        for name in {name for each in data for name in each}:
            assert f"`{name}`" in page, (kind, name)
    assert json.dumps(sorted(kinds)) == '["dag", "lattice", "tree"]'


def test_a_network_that_is_named_has_its_own_weights(tmp_path, capsys):
    """Norms of the packaged weights belong to ``digits54`` also where it is named."""
    options = ["--model", "digits54", "--limit", "2", "--max-length", "1", "--lattice", "--quiet"]
    assert main(["path-gradients", *options, "--out", str(tmp_path / "g")]) == 0
    lattice = ["unravel", "--model", "digits54", "--kind", "lattice", "--blocks", "52:53", "--format", "json"]
    assert main([*lattice, "--gradients", str(tmp_path / "g"), "--out", str(tmp_path / "l.json")]) == 0
    assert capsys.readouterr().err.count("pathlens: error") == 0


def test_random_weights_are_those_that_were_measured(tmp_path, capsys):
    """They are drawn for the classes and channels of the data, which only ``path-gradients`` reads."""
    network = ["--model", "preresnet20", "--weights", "random", "--seed", "3", "--quiet"]
    measuring = ["--data", "digits", "--limit", "2", "--method", "exact", "--lattice", "--out", str(tmp_path / "g")]
    assert main(["path-gradients", *network, *measuring]) == 0
    capsys.readouterr()
    lattice = ["unravel", *network, "--kind", "lattice", "--gradients", str(tmp_path / "g"), "--format", "json"]
    assert main(lattice) == 0
    graph = graphs.from_json(capsys.readouterr().out.encode())
    rows = read_table(tmp_path / "g" / "lattice.parquet").rows
    (norm,) = [row["norm"] for row in rows if (row["boundary"], row["length"]) == (4, 2)]
    assert graph.nodes[4, 2]["gradient_norm"] == norm
    assert main([*lattice, "--seed", "4"]) == 2
    assert "with other weights than preresnet20 has here" in capsys.readouterr().err
