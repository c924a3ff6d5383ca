"""What depth does to activations and gradients at initialisation: figure 11.6, and gradients of normed plain layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pathlens
from pathlens.metrics import sample_interval
from studies.udl11.nets import DTYPE, plain_mlp, residual_mlp

Array = NDArray[np.float64]

#: growth of the gradient by a plain layer with batch norm, backwards: He's weights keep it, and the norm divides by the
#: standard deviation of what enters it, the root of 1 - 1/pi
NORMED_LAYER = math.sqrt(math.pi / (math.pi - 1))

#: as in ``studies.udl11.shattered``
FIRST_SEED = 1000

GROWTH = (
    ("network", "", "which"),
    ("networks", "", "networks drawn"),
    ("block", "", "index of the block or layer that begins here, from 0"),
    ("second_moment", "", "mean square of the activations over inputs and units, mean over networks"),
    ("variance", "", "their variance over inputs and units together, mean over networks"),
    ("unit_variance", "", "variance of a unit over the inputs, mean over units and networks"),
    ("unit_mean_square", "", "square of a unit's mean over the inputs, mean over units and networks"),
    ("log2_variance", "", "logarithm to base 2 of the variance, mean over networks"),
    ("log2_variance_low", "", "lower end of Student's 95 % interval over networks"),
    ("log2_variance_high", "", "upper end"),
    (
        "log2_gradient",
        "",
        "logarithm to base 2 of the gradient's mean square over that at the last, mean over networks",
    ),
    ("log2_gradient_low", "", "lower end of Student's 95 % interval over networks"),
    ("log2_gradient_high", "", "upper end"),
)
RATES = (
    ("network", "", "which"),
    ("seed", "", "of the weights, inputs and cotangents"),
    ("forward", "", "factor of the variance a block: 2 to the power of the slope of its logarithm, by least squares"),
    ("backward", "", "factor of the gradient's mean square a block backwards, likewise"),
    ("second_moment_slope", "", "growth of the second moment a block, by least squares"),
    ("unit_variance_slope", "", "growth of a unit's variance over the inputs a block, by least squares"),
    ("branch_unit_variance", "", "unit variance of what a branch adds, mean over the blocks"),
    ("branch_unit_mean_square", "", "square of a unit's mean of what a branch adds, mean over the blocks"),
)


@dataclass(frozen=True)
class Case:
    """Networks to draw.

    Attributes:
        name: for tables.
        build: from (width, blocks).
        width: units.
        blocks: blocks or layers.
        networks: how many are drawn.
        inputs: of each.
        plain: layers in place of residual blocks.
        first: the place from which on growth is fitted; 1 leaves the input out, which no ReLU has halved.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    width: int = 100
    blocks: int = 50
    networks: int = 50
    inputs: int = 1000
    plain: bool = False
    first: int = 0


RESIDUAL = Case("residual", residual_mlp)
WIDE = Case("residual, 400 wide", residual_mlp, width=400, networks=20, inputs=250)
SCALED = Case("residual, 1/sqrt 2", lambda width, blocks: residual_mlp(width, blocks, scale=math.sqrt(0.5)))
NORMED = Case("residual, batch norm", lambda width, blocks: residual_mlp(width, blocks, norm=True))
PLAIN = Case("plain, batch norm", plain_mlp, width=200, blocks=20, plain=True, first=1)
CASES = (RESIDUAL, WIDE, SCALED, NORMED, PLAIN)


@dataclass(frozen=True)
class Walk:
    """What one network did.

    Attributes:
        moments: second moment, variance, unit variance and squared unit mean, shape ``(blocks, 4)``.
        gradients: mean square of the gradient, shape ``(blocks,)``.
        branches: unit variance and squared unit mean of what each branch adds, shape ``(blocks, 2)``.
    """

    moments: Array
    gradients: Array
    branches: Array


def moments(x: Tensor) -> list[float]:
    """Second moment, variance, unit variance and squared unit mean of activations ``(inputs, units)``."""
    x = x.detach()
    parts = x.square().mean(), x.var(correction=0), x.var(0, correction=0).mean(), x.mean(0).square().mean()
    return [float(part) for part in parts]


def walk(view: pathlens.ResidualView, x: Tensor, cotangent: Tensor) -> Walk:
    """Activations where every block of the view begins, and gradients of a random projection of the output there.

    A factor after the sum is thus counted to the block before. What follows the last sum is counted to none.

    Args:
        view: of the network, which is in train mode.
        x: inputs, shape ``(inputs, units)``.
        cotangent: what the outputs are multiplied with, of their shape.
    """
    x = view.stem(x.requires_grad_())
    starts, branches = [], []
    for block in range(len(view)):
        starts.append(view.transition(block, x))
        branch = view.branch(block, starts[-1])
        branches.append(moments(branch)[2:])
        x = view.post(block, branch if view.is_plain else view.shortcut(block, starts[-1]) + branch)
    gradients = torch.autograd.grad((view.head(x) * cotangent).sum(), starts)
    return Walk(
        np.array([moments(start) for start in starts]),
        np.array([float(one.square().mean()) for one in gradients]),
        np.array(branches),
    )


def walks(case: Case) -> list[Walk]:
    """One network after the other, with He's weights; the blocks are found once."""
    find = pathlens.find_layers if case.plain else pathlens.find_blocks
    view = find(case.build(case.width, case.blocks), torch.zeros(2, case.width, dtype=DTYPE))
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + case.networks):
        draws = torch.Generator().manual_seed(seed)
        pathlens.initialise(view, "he-fan-in", generator=draws)
        x, cotangent = torch.randn(2, case.inputs, case.width, dtype=DTYPE, generator=draws)
        found.append(walk(view, x, cotangent))
    return found


def slope(values: Sequence[float] | Array) -> float:
    """Of a straight line through equally spaced values, by least squares."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def growth_rows(case: Case, found: Sequence[Walk]) -> list[dict[str, Any]]:
    """Rows of ``growth``."""
    each = np.array([one.moments for one in found])
    forward = np.log2(each[:, :, 1])
    backward = np.log2([one.gradients / one.gradients[-1] for one in found])
    rows = []
    for block in range(each.shape[1]):
        row: dict[str, Any] = {"network": case.name, "networks": len(found), "block": block}
        names = ("second_moment", "variance", "unit_variance", "unit_mean_square")
        row |= dict(zip(names, each[:, block].mean(0).tolist(), strict=True))
        for name, values in (("log2_variance", forward[:, block]), ("log2_gradient", backward[:, block])):
            low, high = sample_interval(values.tolist())
            row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def rate_rows(case: Case, found: Sequence[Walk]) -> list[dict[str, Any]]:
    """Rows of ``rates``."""
    return [
        {
            "network": case.name,
            "seed": seed,
            "forward": 2 ** slope(np.log2(one.moments[case.first :, 1])),
            "backward": 2 ** -slope(np.log2(one.gradients[case.first :])),
            "second_moment_slope": slope(one.moments[case.first :, 0]),
            "unit_variance_slope": slope(one.moments[case.first :, 2]),
            "branch_unit_variance": float(one.branches[:, 0].mean()),
            "branch_unit_mean_square": float(one.branches[:, 1].mean()),
        }
        for seed, one in enumerate(found, FIRST_SEED)
    ]
