"""Residual additions wherever they lie: found, named, and deleted as by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import pathlens
from pathlens import plans
from pathlens.analyses.sweep import evaluate, routes_of
from pathlens.errors import NoResidualBlocksError, PathlensError, UsageError
from pathlens.residual import engines
from pathlens.residual.inference import Inference
from tests.helpers.joined import JOINED, additions
from tests.helpers.path_oracle import drawn, images

PLACES = {
    "U-Net": {"trunk": [0, 3], "nested": [], "off-trunk": [1, 2]},
    "added levels": {"trunk": [0, 3, 4], "nested": [1, 2], "off-trunk": []},
    "nested": {"trunk": [2, 3], "nested": [0, 1], "off-trunk": []},
    "resolutions": {"trunk": [], "nested": [], "off-trunk": [0, 1, 2, 3]},
}
PARTS = (None, "shortcut", "branch")
LABELS = torch.tensor([0, 2, 1, 1])


def made(name):
    net, x = drawn(JOINED[name]()), images(4, 8)
    return net, x, additions(net, x)


def by_hand(net, x, numbers, rest):
    """Logits with the additions of some numbers reduced to a part."""
    net.rest = {number: part for number, part in zip(numbers, rest, strict=True) if part}
    try:
        with torch.no_grad():
            return net(x)
    finally:
        net.rest = {}


def plans_of(rest):
    deleted, bare = ([block for block, part in enumerate(rest) if part == wanted] for wanted in PARTS[1:])
    return plans.delete(deleted), plans.delete_skips(bare)


@pytest.mark.parametrize("name", PLACES)
def test_every_lesion_of_every_addition_is_the_one_by_hand(name):
    net, x, numbers = made(name)
    view = pathlens.find_blocks(net, x, additions="all")
    assert len(view) == len(numbers)
    some = list(product(PARTS, repeat=len(numbers)))[:: 3 if len(numbers) > 4 else 1]
    for rest in some:
        wanted = by_hand(net, x, numbers, rest)
        deletion, bare = plans_of(rest)
        with torch.no_grad(), pathlens.intervene.applied(view, deletion), pathlens.intervene.applied(view, bare):
            torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("which", ["trunk", "nested", "off-trunk"])
def test_additions_are_told_apart_by_where_they_lie(name, which):
    net, x, numbers = made(name)
    places = PLACES[name]
    if not places[which]:
        message = "parallel trunks" if which == "trunk" else f"has no {which} additions"
        with pytest.raises(NoResidualBlocksError, match=message):
            pathlens.find_blocks(net, x, additions=which)
        return
    view = pathlens.find_blocks(net, x, additions=which)
    assert (len(view), view.additions) == (len(places[which]), which)
    wanted = by_hand(net, x, numbers, ["shortcut" if block in places[which] else None for block in range(len(numbers))])
    with torch.no_grad(), pathlens.deleted(view, range(len(view))):
        torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


def test_by_default_the_trunk_and_else_everything():
    for name, places in PLACES.items():
        net, x, _ = made(name)
        view = pathlens.find_blocks(net, x)
        assert view.additions == ("trunk" if places["trunk"] else "all")
        assert len(view) == len(places["trunk"] or places["off-trunk"])
    net = pathlens.load_model().model
    view = pathlens.find_blocks(net.eval(), torch.zeros(2, 1, 8, 8), additions="all")
    assert view.additions == "trunk"  # nothing else is there, so that it is the chain
    assert not view.has_others


def test_names_say_module_and_addition_whichever_are_blocks():
    net, x, _ = made("added levels")
    names = [block.name for block in pathlens.find_blocks(net, x, additions="all")]
    assert names == ["add", "add1", "add2", "add3", "add4"]
    assert [block.name for block in pathlens.find_blocks(net, x, additions="nested")] == ["add1", "add2"]
    with torch.no_grad():
        net.train()
        assert [block.name for block in pathlens.find_blocks(net, x, additions="nested")] == ["add1", "add2"]
    notes = " ".join(pathlens.find_blocks(net, x, additions="nested").notes)
    assert "wherever they lie" in notes


def test_in_train_mode_only_what_runs_updates_its_statistics():
    net, x, _ = made("U-Net")
    twin, _, _ = made("U-Net")
    view = pathlens.find_blocks(net, x, additions="off-trunk")
    net.train()
    twin.train()
    twin.rest = {1: "shortcut"}
    with pathlens.deleted(view, 0):
        logits = net(x)
    torch.testing.assert_close(logits, twin(x), rtol=1e-12, atol=1e-12)
    # by hand the branch was computed and thrown away
    for name, buffer in net.state_dict().items():
        ran = name.startswith("f.") and not name.startswith("f.1.")
        if ran:
            torch.testing.assert_close(buffer, twin.state_dict()[name])
    assert int(net.f[1].n.num_batches_tracked) == 0


@pytest.mark.parametrize("form", ["plain", "folded-2", "packed-3"])
def test_every_engine_computes_every_lesion(form):
    if form.startswith("packed") and not engines.packs(torch.device("cpu"), torch.float32):
        pytest.skip("no packed convolutions here")
    net = drawn(JOINED["resolutions"](), dtype=torch.float32)
    x = images(4, 8, torch.float32)
    numbers = additions(net, x)
    view = pathlens.find_blocks(net, x)
    lesions = [plans.delete([]), plans.delete([0]), plans.delete([1, 2]), plans.delete_skips([0, 3])]
    rests = [[None] * 4, ["shortcut", None, None, None], [None, "shortcut", "shortcut", None]]
    rests.append(["branch", None, None, "branch"])
    with torch.inference_mode(), Inference(view, engine=engines.named(form, torch.device("cpu"), x.dtype)) as network:
        for index, logits in evaluate(network, routes_of(lesions, len(view)), x):
            torch.testing.assert_close(logits, by_hand(net, x, numbers, rests[index]), rtol=1e-4, atol=1e-5)


def test_a_table_counts_what_is_counted_by_hand():
    net, x, numbers = made("U-Net")
    batches = [(x, LABELS)]
    for call, part in ((pathlens.delete_blocks, "shortcut"), (pathlens.delete_skips, "branch")):
        table = call(net, batches, additions="off-trunk", dtype="float64")
        assert table.provenance["additions"] == "off-trunk"
        rows = table.rows
        assert [row["name"] for row in rows] == [None, "add1", "add2"]
        for row, lesioned in zip(rows, (None, 1, 2), strict=True):
            logits = by_hand(net, x, numbers, [part if number == lesioned else None for number in numbers])
            assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-9)
            assert row["error"] == float((logits.argmax(1) != LABELS).double().mean())
    searched = pathlens.analyses.delete_blocks_greedy(net, batches, additions="all", count=2, dtype="float64")
    assert searched.provenance["blocks"] == 4


REFUSED = {
    "reorder": lambda view, x: plans.reorder([1, 0, 2, 3]).check(view),
    "reorder_blocks": lambda view, x: pathlens.reorder_blocks(view, [(x, LABELS)]),
    "restrict": lambda view, x: plans.restrict(path=[1]).check(view),
    "run": lambda view, x: view.run(x),
    "signal": lambda view, x: pathlens.signal_propagation(view, [(x, LABELS)]),
    "tree": lambda view, x: pathlens.unravel(view, kind="tree"),
    "whole": lambda view, x: pathlens.unravel(view, detail="blocks"),
    "other": lambda view, x: pathlens.delete_blocks(view, [(x, LABELS)], additions="nested"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_a_chain_is_refused_in_one_line(what):
    net, x, _ = made("U-Net")
    view = pathlens.find_blocks(net, x, additions="all")
    with pytest.raises(PathlensError) as error:
        REFUSED[what](view, x)
    assert "\n" not in str(error.value)
    assert "additions" in str(error.value) or "no chain" in str(error.value) or "no residual" in str(error.value)


def test_unknown_additions_and_blocks_counted_in_two_ways():
    net, x, _ = made("U-Net")
    with pytest.raises(UsageError, match="trunk, all, nested, off-trunk"):
        pathlens.find_blocks(net, x, additions="some")
    trunk, beside = (pathlens.find_blocks(net, x, additions=which) for which in ("trunk", "off-trunk"))
    with pathlens.deleted(trunk, 0), pytest.raises(UsageError, match="by two views"), pathlens.deleted(beside, 0):
        pass
    with pathlens.deleted(beside, 0), pytest.raises(UsageError, match="by two views"):
        pathlens.path_gradients(trunk, [(x, LABELS)])
    graph = pathlens.unravel(beside)
    assert graph.graph["n_paths"] == pathlens.unravel(trunk).graph["n_paths"]
