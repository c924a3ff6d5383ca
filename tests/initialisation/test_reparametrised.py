"""What schemes attach to a network: taken off and put back, on copies, and on weights that several layers share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.errors import ModelError
from tests.helpers.initialised_nets import Net, X, drawn


class EndsInNorm(Net):
    """A block that ends in a norm, which takes a factor, but no weight of zero."""

    def __init__(self) -> None:
        super().__init__(blocks=1)
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.norm(self.blocks[0].first(F.relu(x)))).mean((2, 3)))


@pytest.mark.parametrize("as_view", [False, True])
def test_a_scheme_that_is_refused_leaves_what_an_earlier_one_attached(as_view: bool) -> None:
    model = EndsInNorm().eval()
    pathlens.initialise(model, "rezero", example=X)
    factor, weight = model.norm.parametrizations.weight[0].factor, model.norm.parametrizations.weight.original
    with torch.no_grad():
        factor.fill_(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 16, 16)
    out = model(x).detach()
    given = (pathlens.find_blocks(model, X), None) if as_view else (model, X)
    with pytest.raises(ModelError, match="ends in norm and not in a weight layer"):
        pathlens.initialise(given[0], "fixup", example=given[1])
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x).detach(), out)
    # also those that an optimizer has
    assert {id(factor), id(weight)} <= {id(parameter) for parameter in model.parameters()}
    pathlens.initialise(given[0], "he-fan-in", example=given[1])
    assert not any("parametrizations" in name for name in model.state_dict())


def test_another_scheme_for_a_copy_takes_nothing_from_the_original() -> None:
    net, _ = drawn("stable")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    out, other = net(x), copy.deepcopy(net)
    pathlens.initialise(other, "he-normal", example=X.double())
    torch.testing.assert_close(net(x), out, rtol=0, atol=0)
    assert net.blocks[0].second.weight.shape == other.blocks[0].second.weight.shape
    pathlens.initialise(net, "he-normal", example=X.double())
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=0)


@pytest.mark.parametrize(("scheme", "factor"), [("rezero", 0.0), ("stable", 3**-0.5)])
def test_blocks_whose_ends_share_a_weight_are_all_scaled(scheme: str, factor: float) -> None:
    net = Net().double()
    tied, apart, other = (block.second for block in net.blocks)
    apart.weight = tied.weight
    rows = pathlens.initialise(net, scheme, example=X.double()).rows
    assert sum(row["factor"] is not None for row in rows) == 5  # two weights and three biases
    weight = tied.parametrizations.weight.original
    assert apart.parametrizations.weight.original is weight
    factors = {layer.parametrizations[leaf][0] for layer in (tied, apart) for leaf in ("weight", "bias")}
    assert len(factors) == 1
    assert other.parametrizations.weight[0] not in factors
    with torch.no_grad():
        for block in net.blocks:
            block.second.parametrizations.bias.original.normal_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    hidden = net.stem(x)
    for block in net.blocks:
        second = block.second.parametrizations
        branch = F.conv2d(F.relu(block.first(hidden)), second.weight.original, second.bias.original, padding=1)
        hidden = hidden + factor * branch
    torch.testing.assert_close(net(x), net.head(hidden.mean((2, 3))))
    pathlens.initialise(net, "he-fan-in", example=X.double())
    assert apart.weight is tied.weight


def test_a_weight_that_two_layers_share_is_standardised_in_both() -> None:
    net = Net().double()
    net.blocks[1].second.weight = net.blocks[0].second.weight
    pathlens.initialise(net, "scaled-ws", example=X.double())
    channels = net.blocks[1].second.weight.detach().flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(channels, net.blocks[0].second.weight.detach().flatten(1), rtol=0, atol=0)


def test_an_end_whose_shared_weight_is_used_by_neither_of_its_layers_is_refused() -> None:
    class Borrowed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            first, second, _ = self.blocks
            x = x + F.conv2d(F.relu(x), second.first.weight, padding=1)
            return self.head((x + first.first(F.relu(x))).mean((2, 3)))

    model = Borrowed()
    model.blocks[1].first.weight = model.blocks[0].first.weight
    with pytest.raises(ModelError, match=r"branch of block 0 .* ends in weight and not in a weight layer"):
        pathlens.initialise(model, "stable", example=X)
