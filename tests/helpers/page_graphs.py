"""Graphs for the tests of their pages."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from pathlens.residual import ResidualView, find_blocks
from tests.helpers.graph_nets import UNet
from tests.helpers.page_runs import HOSTILE


class Plus(nn.Module):
    """x + f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


IMAGES = torch.zeros(2, 3, 8, 8)


@cache
def chain(blocks: int = 4) -> ResidualView:
    """Blocks layer0, layer1, ... after a stem."""
    layers = [("stem", nn.Conv2d(3, 4, 3)), *((f"layer{block}", Plus()) for block in range(blocks))]
    return find_blocks(nn.Sequential(OrderedDict(layers)).eval(), IMAGES)


@cache
def hostile() -> ResidualView:
    """The same with markup for names."""
    layers = [("stem", nn.Conv2d(3, 4, 3)), *((f"{HOSTILE}{block}", Plus()) for block in range(3))]
    network = nn.Sequential(OrderedDict(layers)).eval()
    network.__class__ = type(HOSTILE, (nn.Sequential,), {})
    return find_blocks(network, IMAGES)


def unet() -> tuple[nn.Module, torch.Tensor]:
    return UNet(2).eval(), torch.zeros(2, 3, 16, 16)


def longer(view: ResidualView, blocks: int) -> ResidualView:
    """As if the network had that many blocks, all like the first, which is all that a lattice looks at."""
    other = copy.copy(view)
    other._blocks = tuple(replace(view.blocks[0], index=index, name=f"layer{index}") for index in range(blocks))
    return other


def norms(blocks: int) -> dict[tuple[int, int], float]:
    return {
        (place, length): 0.1 ** (1 + length / 2) / (2 + place)
        for place in range(blocks + 1)
        for length in range(blocks - place + 1)
    }
