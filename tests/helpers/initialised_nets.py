"""A small residual network for the schemes of initialisation, and drawn by them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens

X = torch.zeros(2, 3, 16, 16)


class Block(nn.Module):
    """x + conv(relu(conv(x))), biased."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Net(nn.Module):
    """Three blocks between two maps; the weight ``unused`` is on no way to the output."""

    def __init__(self, width: int = 24, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 5)
        self.unused = nn.Parameter(torch.full((2, 2), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def drawn(scheme: str, seed: int = 0, **options: bool) -> tuple[Net, list[dict]]:
    net = Net().double()
    generator = torch.Generator().manual_seed(seed)
    table = pathlens.initialise(net, scheme, example=X.double(), generator=generator, **options)
    return net, [dict(row) for row in table.rows]
