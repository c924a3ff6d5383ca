"""Gradients by path length on any graph: against every path by autograd, the recurrence of chains, and autograd."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pathlens
from pathlens import plans
from pathlens.errors import NumericsError, PathlensError, UsageError
from pathlens.graph.choices import count_choices
from pathlens.residual import polynomials, view_of
from pathlens.residual.gradients import Linearisation
from pathlens.residual.polynomials import GraphLinearisation
from pathlens.residual.routes import Part, intact
from tests.helpers.graph_nets import layer
from tests.helpers.joined import JOINED, Times, branches, by_lengths, by_paths
from tests.helpers.path_oracle import NETS, drawn, images
from tests.helpers.random_graphs import PLANS, Random, told

LABELS = torch.tensor([0, 2])


def made(name):
    return drawn(JOINED[name]() if name in JOINED else NETS[name]()), images(2, 8)


@cache
def enumerated(name, concat):
    net, x = made(name)
    return by_paths(net, x, LABELS, branches(net, x, concat))


def close(profile, sums, tolerance=1e-10):
    """Whether the gradients of all lengths are those by paths; 1e-10 of the largest."""
    scale = float(sum(sums.values()).norm()) + max(float(gradient.norm()) for gradient in sums.values())
    for length, gradient in sums.items():
        found = profile.gradients[length - profile.first] if length in profile.lengths else torch.zeros_like(gradient)
        assert float((found - gradient).norm()) <= tolerance * scale, length
    return True


def counted(view, concat, route=None):
    chain = view.chain()
    counts = count_choices(chain, route or intact(len(view)), chain.trace.source, concat)
    return {length: count for length, count in enumerate(counts) if count}


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("name", JOINED)
def test_lengths_are_the_sums_over_all_paths(name, concat, stacked):
    net, x = made(name)
    view = view_of(net, x, None, "all", may_be_empty=True)
    sums, numbers = enumerated(name, concat)
    linear = GraphLinearisation(view, x, LABELS, concat=concat, stacked=stacked)
    profile = linear.exact()
    assert close(profile, sums)
    torch.testing.assert_close(profile.total(), linear.reference, rtol=1e-10, atol=1e-14)
    start = x.clone().requires_grad_()
    (own,) = torch.autograd.grad(nn.functional.cross_entropy(net(start), LABELS, reduction="sum"), start)
    torch.testing.assert_close(linear.reference, own, rtol=1e-10, atol=1e-14)
    assert counted(view, concat) == numbers
    assert max(numbers) == profile.lengths[-1]
    cut = linear.exact(max_length=1)
    assert close(cut, {length: gradient for length, gradient in sums.items() if length <= 1})
    assert cut.lengths[-1] <= 1


PLACES = {
    ("U-Net", "trunk"): (0, 4),
    ("U-Net", "off-trunk"): (1, 2),
    ("added levels", "nested"): (1, 2),
    ("nested", "trunk"): (2, 3),
}


@pytest.mark.parametrize(("name", "which"), PLACES)
def test_only_the_blocks_that_were_asked_for_are_counted(name, which):
    net, x = made(name)
    view = pathlens.find_blocks(net, x, additions=which)
    own = {place: operands for place, operands in branches(net, x).items() if place in PLACES[name, which]}
    assert len(own) == len(view)
    sums, numbers = by_paths(net, x, LABELS, own)
    assert close(GraphLinearisation(view, x, LABELS).exact(), sums)
    assert counted(view, False) == numbers


@pytest.mark.parametrize("name", NETS)
def test_on_a_chain_it_is_the_recurrence(name):
    net, x = made(name)
    view = pathlens.find_blocks(net, x)
    for at in ("input", "stem", f"block:{len(view) - 1}"):
        whole, graph = (kind(view, x, LABELS, at=at) for kind in (Linearisation, GraphLinearisation))
        wanted = whole.exact()
        found = graph.exact()
        assert found.lengths == wanted.lengths
        assert close(found, dict(zip(wanted.lengths, wanted.gradients, strict=True)), 1e-12)
        torch.testing.assert_close(graph.reference, whole.reference, rtol=1e-12, atol=1e-15)


def test_places_of_a_chain_are_those_of_the_recurrence():
    net, x = made("post-activation")
    view = pathlens.find_blocks(net, x)
    wanted, found = (
        {profile.boundary: (profile.lengths, profile.gradients.clone()) for profile in kind(view, x, LABELS).profiles()}
        for kind in (Linearisation, GraphLinearisation)
    )
    assert found.keys() == wanted.keys() == set(range(-1, 5))
    for boundary, (lengths, gradients) in wanted.items():
        assert found[boundary][0] == lengths
        torch.testing.assert_close(found[boundary][1], gradients, rtol=1e-12, atol=1e-15)


#: lengths of the paths from the loss to the branch points of the blocks, to the input, and to where all blocks end
COUNTS = {
    ("U-Net", False): {-1: [2, 6, 7, 4, 1], 0: [2, 6, 7, 4, 1], 1: [1, 3, 3, 1], 2: [1, 2, 1], 3: [1, 1], 4: [1]},
    ("U-Net", True): {
        -1: [1, 3, 5, 6, 4, 1],
        0: [1, 3, 5, 6, 4, 1],
        1: [0, 1, 3, 3, 1],
        2: [0, 1, 2, 1],
        3: [1, 1],
        4: [1],
    },
}


@pytest.mark.parametrize(("name", "concat"), COUNTS)
def test_a_lattice_has_the_branch_points_of_all_blocks(name, concat):
    net, x = made(name)
    table = pathlens.lattice(net, [(x, LABELS)], additions="all", concat=concat)
    parts = by_lengths(net, x, LABELS, branches(net, x, concat), 5, net.f)
    for boundary, numbers in COUNTS[name, concat].items():
        rows = {row["length"]: row for row in table.rows if row["boundary"] == boundary}
        assert {length: row["n_paths"] for length, row in rows.items()} == {k: n for k, n in enumerate(numbers) if n}
        for length, row in rows.items():
            if boundary < 4:
                gradient = parts[str(boundary) if boundary >= 0 else ""][length]
                assert row["norm"] == pytest.approx(float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-8)
    later = pathlens.lattice(pathlens.find_blocks(net, x, additions="all"), [(x, LABELS)], at="block:1", concat=concat)
    for row, before in zip(later.rows, (row for row in table.rows if row["boundary"] >= 1), strict=True):
        assert row == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("name", ["post-activation", "gated", "norm after"])
def test_lesioned_chains_too(name):
    net, x = made(name)
    view = pathlens.find_blocks(net, x)
    route = plans.route([plans.delete([0]), plans.delete_skips([1])], len(view))
    wanted = Linearisation(view, x, LABELS, route=route).exact()
    found = GraphLinearisation(view, x, LABELS, route=route).exact()
    assert found.lengths == wanted.lengths
    assert close(found, dict(zip(wanted.lengths, wanted.gradients, strict=True)), 1e-12)
    assert list(counted(view, False, route)) == list(wanted.lengths)


@pytest.mark.parametrize("name", ["U-Net", "added levels", "nested", "resolutions"])
def test_lesions_anywhere(name):
    """A shortcut that is deleted makes paths longer, and a branch that is deleted has none."""
    net, x = made(name)
    view = pathlens.find_blocks(net, x, additions="all")
    residual = list(branches(net, x))
    for first, second in ((0, 1), (1, 0), (2, 3)):
        route = plans.route([plans.delete([first]), plans.delete_skips([second])], len(view))
        assert (Part.SHORTCUT, first) in route
        taken = branches(net, x) | {residual[first]: set(), residual[second]: {0}}
        net.rest = {residual[first]: "shortcut", residual[second]: "branch"}
        sums, numbers = by_paths(net, x, LABELS, taken)
        net.rest = {}
        linear = GraphLinearisation(view, x, LABELS, route=route)
        assert close(linear.exact(), sums)
        assert counted(view, False, route) == numbers


def test_gradients_at_a_block_are_those_of_its_branch_point():
    net, x = made("U-Net")
    view = pathlens.find_blocks(net, x, additions="off-trunk")
    linear = GraphLinearisation(view, x, LABELS, at="block:1")
    profile = linear.exact()
    level = net.down(net.add(net.stem(x), net.f[0](net.stem(x))))
    level = (level + net.f[1](level)).detach().requires_grad_()
    with torch.no_grad():
        skip = net.stem(x) + net.f[0](net.stem(x))
    y = torch.relu(level + net.f[2](level))
    z = net.join(torch.cat([skip, net.up(y)], 1))
    logits = net.head((z + net.f[3](z)).mean((2, 3)))
    (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(logits, LABELS, reduction="sum"), level)
    torch.testing.assert_close(linear.reference, wanted, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(profile.total(), wanted, rtol=1e-10, atol=1e-15)
    assert list(profile.lengths) == [0, 1]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(PLANS, st.booleans())
def test_random_graphs(plan, concat):
    net, x = drawn(Random(plan)), images(2, 4)
    view = view_of(net, x, None, "all", may_be_empty=True)
    sums, numbers = by_paths(net, x, LABELS, told(view, net, x, concat))
    linear = GraphLinearisation(view, x, LABELS, concat=concat)
    profile = linear.exact()
    assert close(profile, sums)
    torch.testing.assert_close(profile.total(), linear.reference, rtol=1e-10, atol=1e-14)
    assert counted(view, concat) == numbers


def test_a_published_network_off_the_trunk():
    """HRNet of timm: multiplying the gradient of each branch by z, by hooks, must give the sum of z^k G_k."""
    torch.manual_seed(0)
    net = timm.create_model("hrnet_w18_small", pretrained=False, num_classes=3).double().eval()
    x = images(1, 32)
    view = pathlens.find_blocks(net, x, additions="all")
    linear = GraphLinearisation(view, x, LABELS[:1])
    profile = linear.exact()
    assert sum(counted(view, False).values()) > 10_000
    assert list(counted(view, False)) == list(profile.lengths)
    blocks = [module for module in net.modules() if type(module).__name__ in ("BasicBlock", "Bottleneck")]
    assert len(blocks) == len(view)
    for block in blocks:
        getattr(block, "bn3", block.bn2).register_forward_hook(lambda _m, _x, out: Times.apply(out, -0.5))
    start = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(net(start), LABELS[:1]), start)
    found = sum((-0.5) ** length * profile.gradients[row] for row, length in enumerate(profile.lengths))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


def test_small_gradients_do_not_vanish_in_float32():
    """Each branch makes the gradient smaller by 1e-8, and three of them are beyond a float32's range times 1e-24."""
    net = drawn(JOINED["nested"](), dtype=torch.float32)
    with torch.no_grad():
        for f in net.f:
            f.b.weight *= 1e-15
    x = images(2, 8, torch.float32)
    view = pathlens.find_blocks(net, x, additions="all")
    norms = GraphLinearisation(view, x, LABELS).exact().norms()
    wanted = GraphLinearisation(pathlens.find_blocks(net.double(), x.double(), additions="all"), x.double(), LABELS)
    torch.testing.assert_close(norms, wanted.exact().norms(), rtol=1e-4, atol=0)
    assert float(norms.min()) < 1e-44


def test_what_is_refused(monkeypatch):
    net, x = made("U-Net")
    view = pathlens.find_blocks(net, x, additions="all")
    with pytest.raises(UsageError, match="no chain; give input, or block:I"):
        GraphLinearisation(view, x, LABELS, at="stem")
    with pytest.raises(UsageError, match="I from 0 to 3"):
        GraphLinearisation(view, x, LABELS, at="block:4")
    bare = plans.route([plans.delete(range(4))], 4)
    added = pathlens.find_blocks(*made("added levels"), additions="all")
    with pytest.raises(UsageError, match="nothing runs there in the lesioned network"):
        GraphLinearisation(added, x, LABELS, at="block:2", route=plans.route([plans.delete(range(5))], 5))
    assert GraphLinearisation(view, x, LABELS, route=bare).exact().lengths == range(1)
    monkeypatch.setattr(polynomials, "MOST_DEGREES", 3)
    with pytest.raises(UsageError, match=r"take up to 4 branches.*--max-length") as error:
        GraphLinearisation(view, x, LABELS).exact()
    assert "\n" not in str(error.value)
    assert GraphLinearisation(view, x, LABELS).exact(max_length=3).lengths == range(4)
    net.f[2].b.weight.data[0] = float("nan")
    with pytest.raises(NumericsError, match="loss is NaN"):
        GraphLinearisation(view, x, LABELS)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: torch.ones(2),
        lambda z, y: z.detach().sum(1),
        lambda z, y: z.sum(1) * 0,
        lambda z, y: torch.ones(2, requires_grad=True),
    ],
)
def test_losses_that_do_not_depend_on_the_output(loss):
    net, x = made("nested")
    view = pathlens.find_blocks(net, x, additions="all")
    with pytest.raises(NumericsError, match="does not depend on the output of the network: its gradient") as error:
        GraphLinearisation(view, x, LABELS, loss=loss)
    assert "\n" not in str(error.value)


def test_a_view_of_other_blocks_is_refused():
    net, x = made("U-Net")
    data = [(x, LABELS)]
    trunk, everywhere = (pathlens.find_blocks(net, x, additions=which) for which in ("trunk", "all"))
    for measure in (pathlens.path_gradients, pathlens.lattice):
        for view, asked in ((trunk, "all"), (trunk, "nested"), (everywhere, "trunk")):
            with pytest.raises(UsageError, match=f"additions '{asked}': the view has those of '{view.additions}'"):
                measure(view, data, additions=asked)
    table = pathlens.path_gradients(everywhere, data, additions="all", method="exact")
    assert table.provenance["additions"] == "all"
    chain, x = made("post-activation")
    view = pathlens.find_blocks(chain, x)  # all additions are on its trunk
    assert pathlens.path_gradients(view, [(x, LABELS)], additions="all", method="exact").rows


def test_a_table_of_path_gradients():
    net, x = made("U-Net")
    sums, numbers = enumerated("U-Net", True)
    table = pathlens.path_gradients(net, [(x, LABELS)], additions="all", concat=True, method="exact")
    assert table.provenance["method"] == "exact"
    assert (table.provenance["additions"], table.provenance["concatenations_are_choices"]) == ("all", True)
    assert {row["length"]: row["n_paths"] for row in table.rows} == numbers
    for row in table.rows:
        norm = float(sums[row["length"]].flatten(1).norm(dim=1).mean())
        assert row["total_norm"] == pytest.approx(norm, rel=1e-9)
    assert sum(row["share"] for row in table.rows) == pytest.approx(1)
    short = pathlens.path_gradients(net, [(x, LABELS)], additions="all", concat=True, method="exact", max_length=1)
    assert short.provenance["all_paths"] == sum(numbers.values())
    lesioned = pathlens.path_gradients(
        net, [(x, LABELS)], additions="all", lesion=plans.delete_skips([1]), method="exact"
    )
    assert lesioned.provenance["lesion"]["deleted_shortcuts"] == [1]
    dense, x = made("dense")
    table = pathlens.path_gradients(dense, [(x, LABELS)], concat=True, max_length=2, method="exact")
    assert [row["n_paths"] for row in table.rows] == [1, 3, 3]
    chain, x = made("post-activation")
    options = {"method": "sampled", "max_samples": 1}
    alike = [pathlens.path_gradients(chain, [(x, LABELS)], concat=concat, **options).rows for concat in (False, True)]
    assert alike[0] == alike[1]  # no concatenation, so that the chain's own estimators are used


def test_tables_that_are_refused():
    net, x = made("U-Net")
    for call, words in (
        (lambda: pathlens.path_gradients(net, [(x, LABELS)], lesion=plans.delete([0], "mean")), "delete_blocks alone"),
        (lambda: pathlens.path_gradients(nn.Sequential(layer(3, 4), nn.Flatten()), [(x, LABELS)], concat=True), "no r"),
    ):
        with pytest.raises(PathlensError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
