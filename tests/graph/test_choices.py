"""Single paths through any graph, and random signs of its ways: against every path by autograd."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import pathlens
from pathlens import figures, plans
from pathlens.errors import UsageError
from pathlens.graph.choices import GraphPaths, _below, count_choices, number_of_ways, ways
from pathlens.residual import view_of
from pathlens.residual.gradients import Linearisation
from pathlens.residual.polynomials import GraphLinearisation
from pathlens.residual.routes import intact
from tests.helpers.joined import JOINED, Block, branches, each_path
from tests.helpers.path_oracle import NETS, drawn, images

LABELS = torch.tensor([0, 2])


def linearised(net, x, labels, concat, route=None):
    """The network linearised, its paths, and their numbers by length."""
    view = view_of(net, x, None, "all", may_be_empty=True)
    chain = view.chain()
    route = route or intact(len(view))
    counts = count_choices(chain, route, chain.trace.source, concat)
    shortest = next(length for length, count in enumerate(counts) if count)
    paths = GraphPaths(chain, route, chain.trace.source, concat, shortest)
    assert [paths.count(longer) for longer in range(len(counts) - shortest)] == counts[shortest:]
    linear = GraphLinearisation(view, x, labels, concat=concat, ways=ways, route=route)
    return linear, {length: paths.every(length - shortest) for length in range(shortest, len(counts))}


def assert_are_the_paths(linear, paths, wanted):
    """Every gradient along a path is one of those that were enumerated, and each of these is met."""
    assert {length for length, each in paths.items() if each} == wanted.keys()
    for length, gradients in wanted.items():
        assert len(set(paths[length])) == len(paths[length]) == len(gradients)
        found, left = linear.through(paths[length]).values(), torch.stack(gradients)
        linear._at_once, whole = 2, linear._at_once  # a few at a time are the same
        torch.testing.assert_close(linear.through(paths[length]).values(), found, rtol=1e-9, atol=0)
        linear._at_once = whole
        scale = float(left.abs().max()) + 1e-6
        distances = (found[:, None] - left[None]).flatten(2).abs().amax(2)
        assert float(distances.amin(0).max()) <= 1e-10 * scale
        assert float(distances.amin(1).max()) <= 1e-10 * scale
        torch.testing.assert_close(found.sum(0), left.sum(0), rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize(
    ("name", "concat"), [("U-Net", True), ("U-Net", False), ("nested", False), ("resolutions", False), ("dense", True)]
)
def test_single_paths_are_those_that_autograd_goes(name, concat):
    net, x = drawn(JOINED[name]()), images(2, 8)
    linear, paths = linearised(net, x, LABELS, concat)
    assert_are_the_paths(linear, paths, each_path(net, x, LABELS, branches(net, x, concat)))
    # ways that are told apart do not change their sums
    whole = linear.exact()
    for length in whole.lengths:
        if paths[length]:
            wanted = linear.through(paths[length]).values().sum(0)
            torch.testing.assert_close(whole.gradients[length - whole.first], wanted, rtol=1e-9, atol=1e-13)


def test_single_paths_of_a_lesioned_network():
    net, x = drawn(JOINED["U-Net"]()), images(2, 8)
    residual = list(branches(net, x))
    route = plans.route([plans.delete([0]), plans.delete_skips([1])], 4)
    taken = branches(net, x) | {residual[0]: set(), residual[1]: {0}}
    linear, paths = linearised(net, x, LABELS, False, route)
    net.rest = {residual[0]: "shortcut", residual[1]: "branch"}
    assert_are_the_paths(linear, paths, each_path(net, x, LABELS, taken))


@pytest.mark.parametrize("name", ["minus", "gated"])
def test_on_a_chain_a_path_is_the_blocks_that_it_takes(name):
    net, x = drawn(NETS[name]()), images(2, 8)
    linear, paths = linearised(net, x, LABELS, False)
    chain = Linearisation(pathlens.find_blocks(net, x), x, LABELS)
    for length, each in paths.items():
        blocks = list(itertools.combinations(range(3), length))
        norms, wanted = linear.through(each).norms().sum(1), chain.through(blocks).norms().sum(1)
        torch.testing.assert_close(norms.sort().values, wanted.sort().values, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "concat"), [("nested", False), ("U-Net", True)])
def test_over_all_signs_the_mean_is_the_sum_of_squares(name, concat):
    """All sign vectors at once, each for a copy of one image."""
    net, x = drawn(JOINED[name]()), images(1, 4)
    count = number_of_ways(view_of(net, x, None, "all").chain())
    wanted = each_path(net, x, LABELS[:1], branches(net, x, concat))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)), dtype=torch.float64).T
    copies = signs.shape[1]
    linear, _ = linearised(net, x.repeat(copies, 1, 1, 1), LABELS[:1].repeat(copies), concat)
    profile = linear.exact(signs=signs)
    assert set(wanted) <= set(profile.lengths)
    for length, norms in zip(profile.lengths, profile.norms(), strict=True):
        squares = sum(float(gradient.square().sum()) for gradient in wanted[length])
        assert float(norms.square().mean()) == pytest.approx(squares, rel=1e-9)


class Terms(nn.Module):
    """Two trunks: a sum with two branches, and a branch that is subtracted, which lesions put together anew."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(8, 3)
        self.f = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        a, b = x + self.f[0](x) + self.f[1](x), torch.relu(x - self.f[2](x))
        return self.head(torch.cat([a, b + self.f[3](b)], 1).mean((2, 3)))


@pytest.mark.parametrize("lesion", [(), (plans.delete_skips([0]),), (plans.delete_skips([1]), plans.delete([0]))])
def test_sums_of_several_terms_part_into_them(lesion):
    net, x = drawn(Terms()), images(1, 4)
    view = pathlens.find_blocks(net, x, additions="all")
    route = plans.route(lesion, len(view))
    linear, paths = linearised(net, x, LABELS[:1], False, route)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=number_of_ways(view.chain()))), dtype=x.dtype).T
    copies = signs.shape[1]
    signed, _ = linearised(net, x.repeat(copies, 1, 1, 1), LABELS[:1].repeat(copies), False, route)
    whole, squares = linear.exact(), signed.exact(signs=signs).norms().square().mean(1)
    for length, gradient, square in zip(whole.lengths, whole.gradients, squares, strict=True):
        each = linear.through(paths[length]).values()
        torch.testing.assert_close(each.sum(0), gradient, rtol=1e-9, atol=1e-14)
        assert float(square) == pytest.approx(float(each.square().sum()), rel=1e-9)


def test_paths_are_drawn_uniformly():
    chain = pathlens.find_blocks(drawn(JOINED["U-Net"]()), images(2, 8), additions="all").chain()
    paths = GraphPaths(chain, intact(4), chain.trace.source, False, 0)
    every = paths.every(2)
    drawn_paths = paths.sample(2, 700, np.random.default_rng(0))
    counts = Counter(drawn_paths)
    assert counts.keys() == set(every)
    assert len(every) == 7
    # 100 of each are expected, with a standard deviation of 9.3
    assert all(70 < count < 130 for count in counts.values())
    assert paths.sample(2, 5, np.random.default_rng(1)) == paths.sample(2, 5, np.random.default_rng(1))
    large = [_below(3 * 2**200, np.random.default_rng(seed)) for seed in range(60)]
    assert max(large) < 3 * 2**200
    assert {number // 2**200 for number in large} == {0, 1, 2}


def test_a_table_has_the_columns_of_a_chain():
    net, x = drawn(JOINED["U-Net"]()), images(2, 8)
    wanted = each_path(net, x, LABELS, branches(net, x))
    table = pathlens.path_gradients(net, [(x, LABELS)], additions="all", draws=12, max_samples=16)
    for row in table.rows:
        norms = torch.stack(wanted[row["length"]]).flatten(2).norm(dim=2)
        assert row["n_paths"] == len(norms)
        if row["stopped"] == "all paths":
            assert row["path_norm_mean"] == pytest.approx(float(norms.mean()), rel=1e-9)
        assert row["path_norm_mean"] == pytest.approx(float(norms.mean()), rel=0.5)
        assert row["path_norm_rms"] == pytest.approx(float(norms.square().mean().sqrt()), rel=0.5)
    assert table.rows[0]["stopped"] == "all paths"
    assert table.provenance["effective"].keys() == {"exact", "sampled", "signed"}
    gaps = pathlens.path_gradients(
        drawn(JOINED["nested"]()), [(x, LABELS)], additions="all", lesion=plans.delete_skips([0, 1]), draws=1
    )
    assert [row["n_paths"] for row in gaps.rows] == [1, 1, 0, 1, 1]
    figures.path_gradients(gaps)
    assert gaps.rows[2]["path_norm_mean"] is gaps.rows[2]["path_norm_rms"] is gaps.rows[2]["stopped"] is None


def test_a_sign_needs_a_row_for_each_image():
    net, x = drawn(JOINED["nested"]()), images(2, 8)
    linear, _ = linearised(net, x, LABELS, False)
    with pytest.raises(UsageError, match="no row for each of 3 images"):
        linear.exact(signs=torch.ones(8, 3))
