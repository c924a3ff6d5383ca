"""Survival probabilities in the weights: the whole network with them is the one with branches times probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.errors import UsageError
from pathlens.models import highway, preresnet, resnet
from pathlens.residual import view_of
from pathlens.training.fold import fold, last_layers
from tests.helpers import nets


class Body(nn.Module):
    """A block with a branch of one's own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Bodies(nets.Trunk):
    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.first, self.out = nets.conv(3, 6), nn.Linear(6, 5)
        self.blocks = nn.Sequential(*bodies)

    def stem(self, x: Tensor) -> Tensor:
        return self.first(x)

    def head(self, x: Tensor) -> Tensor:
        return self.out(x.mean((2, 3)))


class LayerScale(nn.Module):
    """ConvNeXt's block (Liu et al. 2022): channels last, linear layers, a scale for each channel, stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.wide, self.narrow = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.rand(6))
        self.drop = nets.StochasticDepth(0.3, "row")

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.narrow(F.gelu(self.wide(out)))
        return x + self.drop((self.gamma * out).permute(0, 3, 1, 2))


class Linear(LayerScale):
    """The same without the scale, so that weight and bias of the last linear layer take the factor."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(out))).permute(0, 3, 1, 2)


class Parallel(nn.Module):
    """Two branches, one of them subtracted and one with a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.one(F.gelu(x)) - self.two(F.silu(x)) * 0.5, alpha=0.7)


class Inside(nn.Module):
    """A branch that uses its last layer but one twice: no layer that the branch is proportional to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nets.conv(6, 6), nets.conv(6, 6), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.drop(self.one(x))
        return x + (inner + self.two(F.relu(inner)))


def with_bias() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Dropout(0.2))


FOLDABLE: dict[str, Callable[[], nn.Module]] = {
    "batch norms at the end": lambda: resnet(8, in_channels=3, widths=(4, 4, 6)),
    "convolutions at the end": lambda: preresnet(8, in_channels=3, widths=(4, 4, 6)),
    "bias": lambda: Bodies(Body(with_bias()), Body(nn.Sequential(nn.Tanh(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)))),
    "layer scale, linear": lambda: Bodies(LayerScale(), Linear()),
    "several branches": lambda: Bodies(Parallel(), Parallel()),
    "two branches in shares": nets.ShakeShake,
    "gain and number": nets.NormFree,
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_weights_multiply_the_branches(name: str) -> None:
    torch.manual_seed(0)
    net = FOLDABLE[name]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    net.eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    view = view_of(net, images)
    factors = [0.9, 0.25, 0.5][: len(view)]
    with torch.no_grad():
        x = view.stem(images)
        for index, factor in enumerate(factors):
            start = view.transition(index, x)
            x = view.post(index, view.shortcut(index, start) + factor * view.branch(index, start))
        wanted, before = view.head(x), net(images)
        names = last_layers(view)
        twin = copy.deepcopy(net)
        fold(twin, names, factors)
        torch.testing.assert_close(twin(images), wanted, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(wanted, before)
        fold(twin, names, [1 / factor for factor in factors])
        torch.testing.assert_close(twin(images), before, rtol=1e-10, atol=1e-12)


def tied_outside() -> nn.Module:
    """The last weight of the first block is the first one of the second."""
    net = Bodies(Body(nn.Sequential(nets.conv(6, 6), nn.ReLU(), nets.conv(6, 6))), Body(nn.Sequential(with_bias())))
    net.blocks[1].body[0][1].weight = net.blocks[0].body[2].weight
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a ReLU at the end": (
        lambda: Bodies(Body(with_bias()), Body(nn.Sequential(nets.conv(6, 6), nn.ReLU()))), "block 1 (blocks.1) ends"
    ),
    "a norm without weights": (
        lambda: Bodies(Body(nn.Sequential(nets.conv(6, 6), nn.BatchNorm2d(6, affine=False)))), "block 0"
    ),
    "gated": (lambda: highway(7, in_channels=3, widths=(4, 4, 4)), "block 0 (layer1.0) ends"),
    "used twice": (lambda: Bodies(Inside()), "block 0 (blocks.0) ends"),
    "weight with another use": (tied_outside, "block 0 (blocks.0) ends"),
    "one block three times": (nets.Shared, "block 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_branches_that_take_no_factor(name: str) -> None:
    build, words = REFUSED[name]
    net = build().eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UsageError) as caught:
        last_layers(view_of(net, torch.zeros(2, 3, 8, 8)))
    message = str(caught.value)
    assert words in message
    assert message.endswith("give --rescale train or --rescale none")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
