"""Growth laws of wide networks at initialisation, in float64: what is measured, what is expected, and the textbook."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.propagation import PLACES, expectation

WIDE, MANY = 128, 8
Step = Callable[[nn.ModuleList, Tensor], Tensor]


class Block(nn.Module):
    """A map, batch norms, and what is done with them."""

    def __init__(self, step: Step, norms: int) -> None:
        super().__init__()
        self.step = step
        self.parts = nn.ModuleList([nn.Linear(WIDE, WIDE), *[nn.BatchNorm1d(WIDE) for _ in range(norms)]])

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.parts, x)


class Stack(nn.Module):
    """Blocks of one width between two linear maps; a step is (map and norms of a block, input) -> output."""

    def __init__(self, step: Step, norms: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDE, WIDE), *[Block(step, norms) for _ in range(MANY)], nn.Linear(WIDE, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def table(step: Step, init: str = "he-fan-in", norms: int = 0, seeds: int = 4):
    """Rows of each place, by block."""
    torch.manual_seed(0)
    net = Stack(step, norms=norms).double()
    data = [(torch.randn(256, WIDE, dtype=torch.float64), torch.randint(0, 10, (256,)))]
    rows = pathlens.signal_propagation(net, data, init=init, seeds=seeds, standardise=init == "brock").rows
    return {place: [row for row in rows if row["place"] == place] for place in PLACES}


def assert_about(row: dict, name: str, due: float, tolerance: float = 0.02) -> None:
    """Within three half intervals over seeds, and a little for the finite width."""
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    assert abs(row[name] - due) <= 3 * half + tolerance * abs(due)
    assert half < 0.3 * abs(due) + 0.02


def plain(block: nn.ModuleList, x: Tensor) -> Tensor:
    return x + block[0](F.relu(x))


@pytest.mark.parametrize(
    ("step", "growth"),
    [
        (plain, 2.0),
        (lambda block, x: (x + block[0](F.relu(x))) * math.sqrt(0.5), 1.0),
        (lambda block, x: x + block[0](x), 2.0),  # linear, where the scheme knows that no ReLU stands before the map
        (lambda block, x: x + 0.5 * block[0](torch.tanh(0 * x) + x), 1.25),
    ],
)
def test_variance_and_gradient_grow_by_a_factor_a_block(step, growth: float) -> None:
    """Prince, Understanding Deep Learning, problems 11.5 and 11.6: 2^k, and 1 with the root of 1/2."""
    found = table(step)
    last, first = found["output"][-1], found["stem"][0]
    for name in ("growth", "gradient_growth"):
        assert_about(last, name, growth)
    if growth != 1.25:
        for index, row in enumerate(found["output"]):
            assert row["expected_second_moment"] == pytest.approx(
                growth ** (index + 1) * first["second_moment"], rel=0.05
            )
            assert row["second_moment"] == pytest.approx(row["expected_second_moment"], rel=0.25)
            back = growth ** (MANY - 1 - index) * last["gradient_second_moment"]
            assert row["expected_gradient_second_moment"] == pytest.approx(back, rel=0.05)


def test_gradients_at_the_ends_of_branch_and_shortcut_are_expected_where_they_are_measured() -> None:
    """At their sum: 2^k behind it, and not what the branch sends back to the block before as well."""
    found = table(plain)
    last = found["output"][-1]["gradient_second_moment"]
    for place in ("branch", "shortcut", "sum"):
        for index, row in enumerate(found[place]):
            due = 2.0 ** (MANY - 1 - index) * last
            assert row["expected_gradient_second_moment"] == pytest.approx(due, rel=0.05), place
            assert row["gradient_second_moment"] == pytest.approx(due, rel=0.4), place


def test_batch_norm_before_relu_grows_linearly() -> None:
    """Brock et al. 2021, section 3.2: branches of variance 1 - 1/pi and squared mean 1/pi; each block adds 1."""
    found = table(lambda block, x: x + block[0](F.relu(block[1](x))), norms=1)
    for row in found["branch"]:
        assert_about(row, "channel_variance", 1 - 1 / math.pi)
        assert_about(row, "squared_mean", 1 / math.pi, 0.04)
        assert row["expected_channel_variance"] == pytest.approx(1 - 1 / math.pi, rel=0.05)
        assert row["expected_squared_mean"] == pytest.approx(1 / math.pi, rel=0.25)  # few rows
    start = found["stem"][0]["second_moment"]
    for index, row in enumerate(found["output"]):
        assert_about(row, "second_moment", start + index + 1, 0.04)
        assert row["expected_second_moment"] == pytest.approx(start + index + 1, rel=0.04)


def test_batch_norm_behind_relu_leaves_no_mean() -> None:
    found = table(lambda block, x: x + block[0](block[1](F.relu(x))), norms=1)
    for row in found["branch"]:
        assert_about(row, "channel_variance", 1.0)
        assert row["squared_mean"] < 0.01
        assert row["expected_channel_variance"] == pytest.approx(1.0, rel=0.05)
        assert row["expected_squared_mean"] == pytest.approx(0.0, abs=1e-9)


def test_scaled_networks_follow_the_variance_that_is_due() -> None:
    """Brock et al. 2021, section 4.1: x + alpha f(x / beta), beta^2 the expected variance, adds alpha^2 a block."""
    alpha = 0.5

    def step(block: nn.ModuleList, x: Tensor) -> Tensor:
        beta = math.sqrt(1 + alpha**2 * step.block)
        step.block = (step.block + 1) % MANY
        return x + alpha * block[0](F.relu(x / beta))

    step.block = 0
    found = table(step, init="brock")
    start = found["stem"][0]["second_moment"]
    assert start == pytest.approx(1, abs=0.1)
    for index, row in enumerate(found["output"]):
        assert row["channel_variance"] == pytest.approx(1 + alpha**2 * (index + 1), rel=0.15)
        assert row["expected_variance"] == pytest.approx(row["variance"], rel=0.1)
        assert row["squared_mean"] < 0.05


def test_gradients_of_batch_normed_layers_grow_backwards() -> None:
    """Prince, problem 11.13: the root of pi / (pi - 1), 1.21, a layer; its square for the second moment."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [m for _ in range(MANY) for m in (nn.Linear(WIDE, WIDE), nn.BatchNorm1d(WIDE), nn.ReLU())]
            self.layers = nn.Sequential(*layers, nn.Linear(WIDE, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    data = [(torch.randn(256, WIDE, dtype=torch.float64), torch.randint(0, 10, (256,)))]
    rows = pathlens.signal_propagation(Layers().double(), data, init="he-fan-in", seeds=5).rows
    assert {row["place"] for row in rows} == {"stem", "output"}
    assert rows[-1]["gradient_growth"] == pytest.approx(math.pi / (math.pi - 1), rel=0.05)


def test_activations_without_a_closed_form_are_integrated() -> None:
    found = table(lambda block, x: x + block[0](F.gelu(x)))
    for row in found["output"]:
        assert row["second_moment"] == pytest.approx(row["expected_second_moment"], rel=0.2)
        assert row["gradient_second_moment"] == pytest.approx(row["expected_gradient_second_moment"], rel=0.35)


@pytest.mark.parametrize("common", [0.0, 0.3, 1.0])
def test_quadrature_against_the_closed_form_of_relu(common: float) -> None:
    """``leaky_relu`` of slope 0 is a ReLU that goes the long way."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    short = graph.call_function(torch.ops.aten.relu.default, (x,))
    long = graph.call_function(torch.ops.aten.leaky_relu.default, (x, 0.0))
    signal = expectation._Signal(3.0, 3.0 * common, 0.0, True)
    (due, gain), (got, integrated) = (expectation._activated(node, signal) for node in (short, long))
    assert integrated == pytest.approx(gain, rel=1e-3)
    assert (got.q, got.c, got.m) == pytest.approx((due.q, due.c, due.m), rel=2e-3)
    assert due.c == pytest.approx({0.0: 3 / (2 * math.pi), 1.0: 1.5}.get(common, due.c))


@pytest.mark.parametrize(
    ("target", "phi"),
    [
        (torch.ops.aten.gelu.default, lambda x: x * stats.norm.cdf(x)),
        (torch.ops.aten.tanh.default, np.tanh),
        (torch.ops.aten.silu.default, lambda x: x / (1 + np.exp(-x))),
    ],
)
@pytest.mark.parametrize("size", [1.0, 2.5])
def test_quadrature_against_integrals(target: Any, phi: Callable[[Any], Any], size: float) -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(target, (graph.placeholder("x"),))
    got, gain = expectation._activated(node, expectation._Signal(size**2, 0.0, 0.0, True))

    def mean(function: Callable[[float], float]) -> float:
        return float(integrate.quad(lambda u: function(size * u) * stats.norm.pdf(u), -12, 12)[0])

    assert got is not None
    assert (got.q, got.m) == pytest.approx((mean(lambda x: phi(x) ** 2), mean(phi)), rel=1e-3, abs=1e-6)
    assert gain == pytest.approx(mean(lambda x: ((phi(x + 1e-5) - phi(x - 1e-5)) / 2e-5) ** 2), rel=1e-3)
    if target is torch.ops.aten.gelu.default and size == 1:
        assert got.q == pytest.approx(1 / 3 + 1 / (2 * math.pi * math.sqrt(3)), rel=1e-3)


def square(block: nn.ModuleList, x: Tensor) -> Tensor:
    bounded = torch.tanh(x)
    return x + block[0](bounded * bounded)


def similarity(block: nn.ModuleList, x: Tensor) -> Tensor:
    return x + block[0](x) * F.linear(x, x).mean(1, keepdim=True)


def ones_of_the_batch(block: nn.ModuleList, x: Tensor) -> Tensor:
    return x + block[0](x) * torch.ones(x.shape[0], 1, dtype=x.dtype)


@pytest.mark.parametrize("step", [square, similarity, ones_of_the_batch])
def test_nothing_is_expected_behind_factors_and_weights_that_come_from_the_input(step: Step) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(16, WIDE, dtype=torch.float64) / WIDE, torch.randint(0, 10, (16,)))]
    rows = pathlens.signal_propagation(Stack(step).double(), data, init="he-fan-in", seeds=1).rows
    stem, branch = rows[:2]
    assert (stem["place"], branch["place"]) == ("stem", "branch")
    assert stem["expected_second_moment"] == pytest.approx(stem["second_moment"])
    assert branch["second_moment"] > 0
    assert branch["expected_second_moment"] is None


def test_nothing_is_expected_of_networks_that_rectify_their_sums() -> None:
    found = table(lambda block, x: F.relu(x + block[0](x)), seeds=2)
    assert found["output"][0]["expected_second_moment"] is not None  # the stem gives normal values
    assert found["output"][1]["expected_second_moment"] is None
    assert found["output"][1]["second_moment"] is not None
