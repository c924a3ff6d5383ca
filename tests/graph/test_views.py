"""Views as graphs: numbers of paths against combinatorics, enumeration and hand-written networks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain as chained
from itertools import combinations
from math import comb

import networkx as nx
import pytest
import torch
import torchvision
from torch import nn

import pathlens
from pathlens import find_blocks, find_layers
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.graph import unravel
from pathlens.residual.gradients import Linearisation
from pathlens.tables import Column, Table
from tests.helpers.graph_nets import (
    Beside,
    DenseNet,
    Gated,
    Inception,
    NestedResiduals,
    Projected,
    Rotary,
    SharedLayer,
    UNet,
    Weightless,
    WithOdd,
    layer,
)
from tests.helpers.nets_tokens import CASES, CIFAR_NAMES, ODD, found

IMAGE = torch.zeros(2, 3, 16, 16)
MERGES_INSIDE = ("repvgg", "shake_shake", "shake_shake_stages", "unet", "edsr", "parallel")
PLAIN_CHAINS = [name for name in CASES if name not in MERGES_INSIDE]


@cache
def whole(name: str, detail: str = "merges") -> nx.DiGraph:
    """The dag of a network, made once for all tests that only read it."""
    return unravel(found(name)[1], detail=detail)


def every_path(graph: nx.DiGraph) -> Iterator[list[str]]:
    """All ways from input to output, one after the other."""

    def go_on(path: list[str]) -> Iterator[list[str]]:
        if path[-1] == graph.graph["output"]:
            yield path
        for following in graph[path[-1]]:
            yield from go_on([*path, following])

    yield from go_on([graph.graph["input"]])


def lengths_of(graph: nx.DiGraph) -> list[int]:
    counts = Counter(sum(graph.nodes[node]["is_branch"] for node in path) for path in every_path(graph))
    return [counts[length] for length in range(max(counts) + 1)]


def binomial(n: int) -> list[int]:
    return [comb(n, k) for k in range(n + 1)]


# The network as it is


@pytest.mark.parametrize("name", CASES)
def test_chains_of_blocks_have_n_over_k_paths_of_length_k(name):
    _, view = found(name)
    graph = whole(name, "blocks")
    assert graph.graph["n_paths_by_length"] == binomial(len(view)) == lengths_of(graph)
    assert graph.graph["n_paths"] == 2 ** len(view)
    assert [d["kind"] for _, d in graph.nodes(data=True) if d["role"] == "add"] == CASES[name].kinds
    assert sum(d["role"] == "shortcut" for *_, d in graph.edges(data=True)) == len(view)


@pytest.mark.parametrize("name", PLAIN_CHAINS)
def test_chains_without_merges_inside_look_the_same_in_full_detail(name):
    _, view = found(name)
    graph = whole(name)
    assert graph.graph["n_paths_by_length"] == binomial(len(view))
    assert graph.graph["n_skips_add"] == len(view)


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_enumeration(name):
    graph = whole(name)
    assert graph.graph["n_paths_by_length"] == lengths_of(graph)
    through = Counter(node for path in every_path(graph) for node in path)
    for node, data in graph.nodes(data=True):
        assert data["n_paths"] == through[node] == data["n_paths_in"] * data["n_paths_out"]


@pytest.mark.parametrize("detail", ["merges", "blocks"])
@pytest.mark.parametrize("name", CASES)
def test_all_that_the_network_computes_is_in_the_graph(name, detail):
    model, _ = found(name)
    graph = whole(name, detail)
    assert nx.is_directed_acyclic_graph(graph)
    assert all(data["n_paths"] > 0 for _, data in graph.nodes(data=True))
    parameters = sum(data["parameters"] for _, data in graph.nodes(data=True))
    used_often = ("shared", "arithmetic", "gpt", "folded_windows")  # there a parameter counts wherever it is used
    own = sum(parameter.numel() for parameter in model.parameters())
    assert parameters >= own if name in used_often else parameters == own


@pytest.mark.parametrize("detail", ["merges", "blocks"])
@pytest.mark.parametrize("name", ["shared", "gpt", "folded_windows"])
def test_parameters_that_several_parts_use_count_once_in_the_whole(name, detail):
    model, _ = found(name)
    graph = whole(name, detail)
    own = sum(parameter.numel() for parameter in model.parameters())
    assert graph.graph["parameters"] == own
    assert sum(data["parameters"] for _, data in graph.nodes(data=True)) > own


def test_nodes_say_what_they_are():
    model, view = found("cifar")
    graph = unravel(view)
    block = view.blocks[2]
    branch, shortcut, total, post = (graph.nodes[f"{role}2"] for role in ("branch", "shortcut", "add", "post"))
    assert branch["module"] == total["module"] == block.name == "layer2.0"
    assert (branch["block"], branch["stage"], total["kind"]) == (2, 1, "padding")
    assert branch["parameters"] == block.parameters
    assert branch["multiply_adds"] == block.multiply_adds
    assert branch["out_shape"] == total["out_shape"] == "16x8x8"
    assert shortcut["operations"] == "slice, pad"
    assert post["operations"] == "relu"
    assert graph.edges["post0", "add1"] == {"role": "shortcut", "skip": "add"}
    assert graph.nodes["stem"]["parameters"] == sum(p.numel() for m in (model.conv1, model.bn1) for p in m.parameters())
    assert graph.graph["network"] == "CifarResNet"


def polynomial(*factors: list[int]) -> list[int]:
    product = [1]
    for factor in factors:
        longer = [0] * (len(product) + len(factor) - 1)
        for i, a in enumerate(product):
            for j, b in enumerate(factor):
                longer[i + j] += a * b
        product = longer
    return product


#: network, expected paths by length (worked out by hand), skips by addition and by concatenation
BY_HAND = {
    # every layer of a dense block is passed or not
    "densenet": (DenseNet(4), binomial(4), 0, 4 + 3 + 2 + 1),
    # at each of three levels the skip, or down, deeper, and up: D3 = z, Di = 1 + z D z
    "unet": (UNet(3), [1, 0, 1, 0, 1, 1], 0, 3),
    # x + g(y + f(y)), y = c(x): the inner block lies in the branch of the outer
    "nested": (NestedResiduals(2), polynomial([1, 0, 1, 1], [1, 0, 1, 1]), 4, 0),
    # four towers of equal depth, none of which leads past another
    "inception": (Inception(), [0, 4], 0, 0),
    # a gate and a rotary embedding part and join without adding or concatenating branches
    "gated": (Gated(), [1, 1], 1, 0),
    "rotary": (Rotary(), [1, 1], 1, 0),
    # y = x + b(a(x)), and then y + a(x)
    "shared layer": (SharedLayer(), [1, 1, 1], 2, 0),
    # a pooling and a norm are branches as the layer after them is
    "weightless": (Weightless(), binomial(3), 3, 0),
    # x + g(p(y) + f(y)), y = c(x), with p a convolution
    "projection inside": (
        nn.Sequential(nn.Conv2d(3, 4, 3), WithOdd.Plus(nn.Sequential(layer(4, 4), Projected(), nn.Conv2d(4, 4, 1)))),
        [1, 0, 1, 1],
        2,
        0,
    ),
    # p(x) + f(x) beside g(x)
    "projection beside the trunk": (Beside(), [1, 2], 1, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_networks_that_are_no_chain(name):
    model, lengths, added, concatenated = BY_HAND[name]
    graph = unravel(model.eval(), IMAGE)
    assert graph.graph["n_paths_by_length"] == lengths == lengths_of(graph)
    assert (graph.graph["n_skips_add"], graph.graph["n_skips_concat"]) == (added, concatenated)
    parameters = sum(data["parameters"] for _, data in graph.nodes(data=True))
    assert parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_projection_inside_of_a_branch_is_a_shortcut():
    graph = unravel(BY_HAND["projection inside"][0].eval(), IMAGE)
    edges = [(graph.nodes[start].get("module"), data) for start, _, data in graph.edges(data=True)]
    marked = {module: data for module, data in edges if data["role"] == "shortcut"}
    assert marked == {module: {"role": "shortcut", "skip": "add"} for module in ("0", "1.body.1.shortcut")}


def test_what_is_joined_inside_of_a_shortcut_skips_nothing():
    about = whole("shake_shake_stages").graph  # its second shortcut is a concatenation of two projections
    assert (about["n_skips_add"], about["n_skips_concat"]) == (3, 0)


def test_the_skips_of_a_unet_join_levels_of_one_size():
    graph = unravel(UNet(3).eval(), IMAGE)
    skips = [(start, end) for start, end, data in graph.edges(data=True) if data.get("skip") == "concat"]
    assert [graph.nodes[start]["out_shape"].split("x")[1] for start, _ in skips] == ["16", "8", "4"]
    assert [graph.nodes[end]["role"] for _, end in skips] == ["concat"] * 3


def test_densenet_of_torchvision():
    layers = (2, 3, 1)
    model = torchvision.models.DenseNet(4, layers, 8, num_classes=3).eval()
    graph = unravel(model, torch.zeros(2, 3, 32, 32))
    assert graph.graph["n_paths_by_length"] == binomial(sum(layers)) == lengths_of(graph)
    assert graph.graph["n_skips_concat"] == sum(n * (n + 1) // 2 for n in layers)
    assert sum(d["parameters"] for _, d in graph.nodes(data=True)) == sum(p.numel() for p in model.parameters())


def test_a_plain_network_is_one_path():
    model = ODD["plain"].model()
    assert unravel(model, ODD["plain"].input()).graph["n_paths_by_length"] == [1]
    layers = unravel(find_layers(model, ODD["plain"].input()))
    assert layers.graph["n_paths"] == 1
    assert next(data["role"] for _, data in layers.nodes(data=True)) == "input"
    assert "layer" in {data["role"] for _, data in layers.nodes(data=True)}


def test_names_of_modules_are_kept_as_they_are():
    graph = unravel(WithOdd("<script>&{x}").eval(), IMAGE)
    assert graph.nodes["branch0"]["module"] == "<script>&{x}"


# The unraveled network


@pytest.mark.parametrize("name", ["cifar", "norm_free", "highway", "post_norm", "tuple_out"])
def test_the_tree_computes_what_the_network_computes(name):
    _, view = found(name)
    graph = unravel(view, kind="tree")
    x = view.stem(CASES[name].input())
    values = {graph.graph["input"]: x}
    for node in list(nx.topological_sort(graph))[1:]:
        data = graph.nodes[node]
        given = [values[above] for above in graph.predecessors(node)]
        run = {"branch": view.branch, "shortcut": view.shortcut, "post": view.post, "transition": view.transition}
        values[node] = given[0] + given[1] if data["role"] == "add" else run[data["role"]](data["block"], given[0])
    assert torch.allclose(values[graph.graph["output"]], view.run(x), atol=1e-5)


@pytest.mark.parametrize("window", [(0, 4), (1, 3), (2, 2)])
def test_every_path_is_there_once(window):
    _, view = found("cifar")
    graph = unravel(view, kind="tree", blocks=window)
    blocks = range(window[0], window[1] + 1)
    subsets = set(chained.from_iterable(combinations(blocks, k) for k in range(len(blocks) + 1)))
    begins = [data["path"] for *_, data in graph.edges(graph.graph["input"], data=True)]
    assert len(begins) == len(subsets)
    assert set(begins) == subsets
    assert graph.graph["n_paths_by_length"] == binomial(len(blocks)) == lengths_of(graph)
    taken = {tuple(graph.nodes[n]["block"] for n in path if graph.nodes[n]["is_branch"]) for path in every_path(graph)}
    assert taken == subsets
    for block in blocks:
        copies = [data for _, data in graph.nodes(data=True) if data["role"] == "branch" and data["block"] == block]
        assert len(copies) == 2 ** (window[1] - block) == len({data["later"] for data in copies})


def test_copies_say_what_they_are_applied_to():
    _, view = found("preact")
    graph = unravel(view, kind="tree", blocks=(2, 3))
    copies = {data["expression"] for _, data in graph.nodes(data=True) if data["role"] == "branch"}
    assert copies == {"f2[x]", "f3[x + f2[x]]"}


# The lattice


@pytest.mark.parametrize(("name", "window"), [("cifar", (0, 4)), ("preact", (1, 3)), ("edsr", (0, 0))])
def test_the_lattice_counts_what_enumeration_counts(name, window):
    _, view = found(name)
    graph = unravel(view, kind="lattice", blocks=window)
    end = window[1] + 1
    blocks = range(window[0], end)
    nodes: Counter[tuple[int, int]] = Counter()
    edges: Counter[tuple[tuple[int, int], str]] = Counter()
    for path in chained.from_iterable(combinations(blocks, k) for k in range(len(blocks) + 1)):
        for place in range(window[0], end + 1):
            here = (place, sum(block >= place for block in path))
            nodes[here] += 1
            if place < end:
                edges[here, "branch" if place in path else "shortcut"] += 1
    assert {node: data["n_paths"] for node, data in graph.nodes(data=True)} == nodes
    assert {(a, d["role"]): d["n_paths"] for a, _, d in graph.edges(data=True)} == edges
    for start, stop, data in graph.edges(data=True):
        assert stop == (start[0] + 1, start[1] - (data["role"] == "branch"))


def test_a_lattice_of_600_blocks_is_exact():
    view = copy.copy(found("highway")[1])  # tracing so many blocks would take longer than all the rest
    view._blocks = tuple(replace(view.blocks[0], index=index) for index in range(600))
    graph = unravel(view, kind="lattice")
    assert len(graph) == 601 * 602 // 2
    assert graph.nodes[0, 300]["n_paths"] == comb(600, 300)
    assert sum(graph.graph["n_paths_by_length"]) == graph.graph["n_paths"] == 2**600
    assert graph.nodes[599, 1]["n_paths_in"] == 2**599


def test_gradients_lie_on_the_lattice_and_add_up_to_the_gradient():
    _, view = found("cifar")
    images, labels = CASES["cifar"].input(4), torch.tensor([0, 1, 2, 3])
    table = pathlens.lattice(view, [(images, labels)], at="stem")
    graph = unravel(view, kind="lattice", gradients=table)
    norms = {node: data["gradient_norm"] for node, data in graph.nodes(data=True)}
    assert norms == {(row["boundary"], row["length"]): row["norm"] for row in table.rows}
    for start, end, data in graph.edges(data=True):
        assert data["gradient_norm"] == norms[end], start
    # the norms are those of gradients whose sum at the stem is autograd's
    profiles = list(Linearisation(view, images, labels, at="stem").profiles())
    for profile in profiles:
        for length, own in zip(profile.lengths, profile.norms(), strict=True):
            assert norms[profile.boundary, length] == pytest.approx(float(own.mean()), rel=1e-5)
    assert profiles[-1].boundary == 0
    x = view.stem(images).detach().requires_grad_()
    loss = nn.functional.cross_entropy(view.head(view.run(x)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(profiles[-1].gradients.sum(0), gradient, atol=1e-5)


def norms_stating(**stated: object) -> Table:
    """Norms of as many blocks as the network "cifar" has."""
    rows = tuple({"boundary": i, "length": k, "norm": 1.0} for i in range(6) for k in range(6 - i))
    return Table((Column("boundary"), Column("length"), Column("norm")), rows, stated)


@pytest.mark.parametrize("stated", [{}, {"network": "of another"}, {"block_names": CIFAR_NAMES}])
def test_gradients_that_state_this_network_or_none_are_taken(stated):
    graph = unravel(found("cifar")[1], kind="lattice", gradients=norms_stating(**stated))
    assert graph.nodes[5, 0]["gradient_norm"] == 1.0


# What cannot be made


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"block_names": (*CIFAR_NAMES[:2], "other", *CIFAR_NAMES[3:])}, "block 2 is other, and here it is layer2.0"),
        ({"block_names": CIFAR_NAMES[:4]}, "block 4 is missing, and here it is layer2.2"),
        ({"block_names": (*CIFAR_NAMES, "layer3.0")}, "block 5 is layer3.0, and here it is missing"),
    ],
)
def test_gradients_that_state_another_network_are_refused(stated, message):
    with pytest.raises(UsageError) as caught:
        unravel(found("cifar")[1], kind="lattice", gradients=norms_stating(**stated))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "forest"}, "kind 'forest' is unknown; give one of dag, tree, lattice"),
        ({"detail": "all"}, "detail 'all' is unknown"),
        ({"kind": "dag", "blocks": (0, 1)}, "a dag shows the whole network"),
        ({"kind": "tree", "blocks": (3, 5)}, "3 to 5 is outside of the network: CifarResNet has 5 blocks, 0 to 4"),
        ({"kind": "tree", "blocks": (3, 2)}, "3 to 2 is outside"),
        ({"kind": "tree", "blocks": (-1, 2)}, "-1 to 2 is outside"),
        ({"kind": "lattice", "blocks": 3}, "is no pair"),
        ({"kind": "lattice", "blocks": "01"}, "is no pair"),
        ({"kind": "tree", "gradients": {}}, "gradients belong to a lattice"),
        ({"kind": "lattice", "gradients": {(6, 0): 1.0}}, "boundary 6 and length 0, which a network of 5 blocks"),
        ({"kind": "lattice", "gradients": {(5, 1): 1.0}}, "boundary 5 and length 1"),
        ({"kind": "lattice", "gradients": {(5, 0): float("nan")}}, "is nan; give finite norms"),
        ({"kind": "lattice", "gradients": {(4, 0): 1.0}}, "nothing at boundary 5"),
        ({"kind": "lattice", "gradients": [{"block": 1}]}, "need the columns boundary, length and norm"),
        ({"kind": "lattice", "gradients": 3}, "need the columns boundary, length and norm"),
        ({"kind": "lattice", "gradients": {(5, 0): 1.0}, "blocks": (0, 3)}, "ends with the last block, 4"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(arguments, message):
    _, view = found("cifar")
    with pytest.raises(UsageError) as caught:
        unravel(view, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tree_that_is_too_large_names_the_lattice():
    model = nn.Sequential(nn.Linear(2, 2), *(WithOdd.Plus(nn.Linear(2, 2)) for _ in range(11)))
    view = find_blocks(model, torch.zeros(2, 2))
    with pytest.raises(UsageError, match=r"2\^11 paths, more than 1024; .* at most 10 blocks, such as 0:9, .* lattice"):
        unravel(view, kind="tree")
    assert unravel(view, kind="tree", blocks=(1, 10)).graph["n_paths"] == 1024


def test_only_networks_of_blocks_have_trees_and_lattices():
    model = UNet(2).eval()
    for kind in ("tree", "lattice"):
        with pytest.raises(NoResidualBlocksError, match="UNet is no chain of residual blocks, so only its dag"):
            unravel(model, IMAGE, kind=kind)
    with pytest.raises(NoResidualBlocksError, match="give detail='merges'"):
        unravel(model, IMAGE, detail="blocks")
    with pytest.raises(UsageError, match="UNet is no view: give an example input"):
        unravel(model)
    with pytest.raises(UsageError, match="found str"):
        unravel("resnet18", IMAGE)
