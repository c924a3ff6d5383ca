"""Restricted backward passes where blocks are no chain: against paths counted by autograd, and the pass of chains."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import pathlens
from pathlens import deleted, find_blocks, plans, restrict_backward, skips_deleted
from pathlens.errors import ModelError, NoResidualBlocksError, UsageError
from pathlens.residual import restricted_graph
from pathlens.residual.restricted import Choice, RestrictedNetwork, restricted_chain
from pathlens.residual.restricted_graph import RestrictedGraph, restricted
from pathlens.training import Recipe
from pathlens.training.rules import Full, PathLengths
from tests.helpers.graph_nets import layer
from tests.helpers.joined import JOINED, branches, by_lengths, by_paths
from tests.helpers.path_oracle import NETS, drawn, images
from tests.helpers.random_graphs import PLANS, Random, told
from tests.helpers.restricted_oracle import Tuned, assert_freed_by_backward

LABELS = torch.tensor([0, 2])


def made(name, train=False):
    return drawn((JOINED | NETS)[name]()).train(train), images(2, 8)


def backward(net, x, call):
    """Gradients of the input (empty name) and of the parameters, and the outputs."""
    net.zero_grad()
    start = x.clone().requires_grad_()
    outputs = call(start)
    F.cross_entropy(outputs, LABELS, reduction="sum").backward()
    named = {"": start, **dict(net.named_parameters())}
    return {n: torch.zeros_like(t) if t.grad is None else t.grad.clone() for n, t in named.items()}, outputs


def assert_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


def allowed(parts, lengths, after):
    """The sum over allowed lengths; what comes after all blocks has its ordinary gradient."""
    return {
        name: sum(g for k, g in gradients.items() if k in lengths or name.startswith(after))
        for name, gradients in parts.items()
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", JOINED)
def test_gradients_are_those_of_the_paths_that_are_allowed(name, train):
    net, x = made(name, train)
    net(x)  # what follows sees the same statistics, which the batch alone gives
    view = find_blocks(net, x, additions="all", concat=name in ("U-Net", "dense"))
    parts = by_lengths(net, x, LABELS, branches(net, x, view.concat), len(view))
    for lengths in ({1}, {0, 2}, set(range(len(view) + 1))):
        lengths &= {k for k, gradient in parts[""].items() if bool(gradient.abs().max() > 1e-12)}
        plain, buffers = copy.deepcopy(net), {}
        with restrict_backward(view, lengths or {1}):
            found, outputs = backward(net, x, net)
        wanted, whole = backward(plain, x, plain)
        assert torch.equal(outputs, whole)
        buffers = dict(plain.named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
        assert_close(found, allowed(parts, lengths or {1}, ("head",)), 1e-10)
        if len(lengths) > 2:
            assert_close(found, wanted, 1e-12)


@pytest.mark.parametrize("name", ["U-Net", "nested"])
def test_the_input_gets_the_sum_over_enumerated_paths(name):
    net, x = made(name)
    sums, numbers = by_paths(net, x, LABELS, branches(net, x))
    view = find_blocks(net, x, additions="all")
    for length in numbers:
        with restrict_backward(view, length):
            found, _ = backward(net, x, net)
        assert_close({"": found[""]}, {"": sums[length]}, 1e-10)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(PLANS, st.booleans(), st.sets(st.integers(0, 4), min_size=1))
def test_random_graphs(plan, concat, lengths):
    net, x = drawn(Random(plan)), images(2, 4)
    try:
        view = find_blocks(net, x, additions="all", concat=concat)
    except NoResidualBlocksError:
        assume(False)
    counted = told(pathlens.residual.view_of(net, x, None, "all"), net, x, concat)
    sums, numbers = by_paths(net, x, LABELS, counted)
    assume(lengths & numbers.keys())
    network = RestrictedGraph(view.chain())
    assert list(network.flow.lengths) == sorted(numbers)
    found, _ = backward(net, x, lambda start: network.run(start, Choice(lengths=frozenset(lengths)))[0][0])
    assert_close({"": found[""]}, {"": sum(sums[k] for k in lengths & numbers.keys())}, 1e-10)


@pytest.mark.parametrize(
    ("name", "train", "lesion"),
    [
        ("pre-activation", True, None),
        ("minus", False, None),
        ("gated", False, plans.delete_skips([1])),
        ("norm after", False, plans.delete([0])),
    ],
)
def test_on_a_chain_it_is_the_pass_of_chains(name, train, lesion):
    net, x = made(name, train)
    chain = find_blocks(net, x).chain()
    route = plans.route([lesion] if lesion else [], len(chain.links))
    networks = restricted_chain(chain, route), RestrictedGraph(chain, route)
    for choice in (Choice(frozenset({1})), Choice(frozenset({0, 2, 3}))):
        fast, slow = (
            backward(net, x, lambda start, network=network, choice=choice: network.run(start, choice)[0][0])
            for network in networks
        )
        assert torch.equal(fast[1], slow[1])
        assert_close(slow[0], fast[0], 1e-12)


@pytest.mark.parametrize("lengths", [{1}, {0, 2}])
def test_learned_tensors_that_are_no_parameters_get_their_gradient(lengths):
    found = []
    for registered, make in ((True, restricted_chain), (False, RestrictedGraph)):
        net, x = Tuned(registered), images(2, 8)
        network = make(find_blocks(net, x).chain())
        network.run(x, Choice(frozenset(lengths)))[0][0].square().sum().backward()
        found.append({"scale": net.scale.grad, "shift": net.shift.grad})
    assert found[0]["scale"].any()
    assert_close(found[1], found[0], 1e-12)


def test_activations_are_freed_by_the_backward_pass_unless_they_are_to_be_kept():
    net, x = made("U-Net")
    with restrict_backward(find_blocks(net, x, additions="all"), [1, 2]):
        assert_freed_by_backward(lambda: F.cross_entropy(net(x), LABELS))


def test_a_trained_network():
    net = pathlens.load_model().model.double().eval()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    chain = find_blocks(net, x).chain()
    choice = Choice(lengths=frozenset({1}))
    fast, slow = (
        backward(net, x, lambda start, network=network: network.run(start, choice)[0][0])
        for network in (restricted_chain(chain), RestrictedGraph(chain))
    )
    assert_close(slow[0], fast[0], 1e-12)
    assert float(fast[0][""].abs().max()) > 0


@pytest.mark.parametrize("name", ["U-Net", "resolutions"])
def test_lesioned_networks(name):
    net, x = made(name)
    view, residual = find_blocks(net, x, additions="all"), list(branches(net, x))
    taken = branches(net, x) | {residual[0]: set(), residual[1]: {0}}
    net.rest = {residual[0]: "shortcut", residual[1]: "branch"}
    parts = by_lengths(net, x, LABELS, taken, len(view))
    net.rest = {}
    with deleted(view, 0), restrict_backward(view, [1, 2]), skips_deleted(view, 1):
        found, _ = backward(net, x, net)
    assert_close(found, allowed(parts, {1, 2}, ("head",)), 1e-10)


def test_a_chain_is_restricted_as_a_chain():
    """The general way takes every tensor apart; it must not run where the recurrence does."""
    chain, other = (find_blocks(*made(name), additions="all").chain() for name in ("post-activation", "U-Net"))
    assert isinstance(restricted(chain), RestrictedNetwork)
    assert isinstance(restricted(other), RestrictedGraph)


def test_training_without_a_trunk():
    """With all lengths it is ordinary training, of the statistics too, and with some it is not."""
    data = pathlens.open_data("digits", split="train", limit=8)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.1, momentum=0.0, nesterov=False, schedule="constant", crop=0, warmup=0)
    trained = []
    for rule in (Full(), PathLengths(0, 4), PathLengths(0, 1)):
        net = JOINED["resolutions"]()
        net.high, net.low, net.head = nn.Conv2d(1, 4, 3, 1, 1), layer(1, 4, 2), nn.Linear(4, 10)
        net = drawn(net, dtype=torch.float32)
        pathlens.train(net, data, rule=rule, recipe=recipe)
        trained.append(net.state_dict())
    whole, every, some = trained
    assert all(torch.allclose(whole[name], every[name], atol=1e-6) for name in whole)
    moved = (some["f.0.a.weight"] - whole["f.0.a.weight"]).abs().max()
    assert float(moved) > 1e-5


def test_what_is_refused(monkeypatch):
    net, x = made("U-Net")
    view = find_blocks(net, x, additions="all")
    nested = find_blocks(*made("nested"), additions="nested")
    for call, words in (
        (lambda: restrict_backward(view, path=[1]), "no chain, which is needed to name a path"),
        (lambda: restrict_backward(view, [5]), "outside 0..4"),
    ):
        with pytest.raises(UsageError, match=words) as error, call():
            pass
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="length of 0; paths have lengths of 1 to 4"):
        RestrictedGraph(view.chain(), plans.route([plans.delete_skips([0])], 4)).run(x, Choice(frozenset({0})))
    assert RestrictedGraph(nested.chain()).flow.lengths == (0, 1, 2)
    monkeypatch.setattr(restricted_graph, "MOST_DEGREES", 3)
    with pytest.raises(UsageError, match=r"paths of up to 4 branches are allowed.*by up to 3"):
        RestrictedGraph(view.chain()).run(x, Choice(frozenset({4, 7})))


class Aside(nn.Module):
    """A U-Net that also gives what its stem computes."""

    def __init__(self):
        super().__init__()
        self.net = JOINED["added levels"]()

    def forward(self, x):
        return {"logits": self.net(x), "early": self.net.stem(x).mean((2, 3))}


def test_an_output_beside_the_blocks_is_refused():
    net = drawn(Aside())
    view = find_blocks(net, images(2, 8), output="logits", additions="all")
    with restrict_backward(view, [1]), pytest.raises(ModelError, match="is not the end of all paths"):
        net(images(2, 8))
