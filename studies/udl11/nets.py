"""Networks at initialisation: of one number, for shattered gradients; of many, for growth; and those to be counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPE = torch.float64


class BatchNorm(nn.Module):
    """Mean 0 and variance 1 of each unit over the batch; nothing learned.

    Args:
        constant: gradients do not run through mean and variance, as if these were numbers that the batch only happens
            to have. The gradient at one input is then that of a function of this input alone.
        epsilon: added to the variance.
    """

    def __init__(self, constant: bool, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.constant = constant
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(examples, units)``."""
        mean, variance = x.mean(0), x.var(0, correction=0)
        if self.constant:
            mean, variance = mean.detach(), variance.detach()
        return (x - mean) / (variance + self.epsilon).sqrt()


class Residual(nn.Module):
    """``scale * (x + share * branch(x))``."""

    def __init__(self, branch: nn.Module, share: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.branch = branch
        self.share = share
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = x + (self.branch(x) if self.share == 1 else self.share * self.branch(x))
        return out if self.scale == 1 else self.scale * out


def linear(inputs: int, outputs: int, variance: float, bias_variance: float = 0.0) -> nn.Linear:
    """A linear map in float64 with normal weights and biases; without biases where their variance is 0."""
    layer = nn.Linear(inputs, outputs, bias=bias_variance > 0, dtype=DTYPE)
    nn.init.normal_(layer.weight, std=math.sqrt(variance))
    if bias_variance:
        nn.init.normal_(layer.bias, std=math.sqrt(bias_variance))
    return layer


def square(width: int) -> nn.Linear:
    """A linear map in float64 without biases, as torch draws it."""
    return nn.Linear(width, width, bias=False, dtype=DTYPE)


@dataclass(frozen=True)
class Scalar:
    """A network from one number to one number.

    Attributes:
        name: for tables.
        depth: hidden layers; of a residual network, blocks.
        norm: a batch norm before every ReLU.
        residual: blocks ``x + share * W relu(norm(x))`` in place of layers.
        share: factor of the branch.
        gain: variance of a weight times the number of units of its layer's input; 2 is He's.
        first: variance of the weights of the first layer, whose input is one number.
        bias: variance of the biases of the first layer.
        biases: variance of the biases of all other layers.
        constant: see :class:`BatchNorm`.
    """

    name: str
    depth: int
    norm: bool = False
    residual: bool = False
    share: float = 1.0
    gain: float = 2.0
    first: float = 2.0
    bias: float = 2.0
    biases: float = 0.0
    constant: bool = True

    def build(self, width: int) -> nn.Sequential:
        """The network with weights from the global generator."""
        variance = self.gain / width

        def active() -> list[nn.Module]:
            return [*([BatchNorm(self.constant)] if self.norm else []), nn.ReLU()]

        layers: list[nn.Module] = [linear(1, width, self.first, self.bias)]
        if self.residual:
            layers += [
                Residual(nn.Sequential(*active(), linear(width, width, variance, self.biases)), self.share)
                for _ in range(self.depth)
            ]
        else:
            layers += active()
            for _ in range(self.depth - 1):
                layers += [linear(width, width, variance, self.biases), *active()]
        return nn.Sequential(*layers, linear(width, 1, variance, self.biases))


def residual_mlp(width: int, blocks: int, norm: bool = False, scale: float = 1.0) -> nn.Sequential:
    """Residual blocks ``scale * (x + W relu(x))``, with a batch norm before the ReLU or without, and a linear head."""
    return nn.Sequential(
        *(
            Residual(
                nn.Sequential(*([nn.BatchNorm1d(width, dtype=DTYPE)] if norm else []), nn.ReLU(), square(width)),
                1.0,
                scale,
            )
            for _ in range(blocks)
        ),
        square(width),
    )


def plain_mlp(width: int, layers: int) -> nn.Sequential:
    """Layers of a linear map, a batch norm and a ReLU, and a linear head."""
    return nn.Sequential(
        *(nn.Sequential(square(width), nn.BatchNorm1d(width, dtype=DTYPE), nn.ReLU()) for _ in range(layers)),
        square(width),
    )


def ten_layers(norm: bool) -> nn.Sequential:
    """One input, ten hidden layers of twenty units, one output; with batch norms before the ReLUs or without."""
    layers: list[nn.Module] = []
    for inputs in (1, *[20] * 9):
        layers += [nn.Linear(inputs, 20), *([nn.BatchNorm1d(20)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(20, 1))


def convolutions(channels: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    """Batch norm, ReLU and convolution, in this order, for each kernel: the branch of a residual block."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in zip(channels[:-1], channels[1:], kernels, strict=True):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)]
    return nn.Sequential(*layers)


def seeded(seed: int) -> None:
    """Draw what comes next from this seed."""
    torch.manual_seed(seed)
