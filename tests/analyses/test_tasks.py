"""Loss surfaces and signal propagation of every task, against the networks' own forward with other weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens import figures
from pathlens.metrics.mask_losses import soft_iou
from pathlens.results import named


class Trunk(nn.Module):
    """Two residual blocks of a layer each, between a stem and a head."""

    def __init__(self, stem: nn.Module, layer: Callable[[], nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = stem, head
        self.blocks = nn.ModuleList(nn.Sequential(layer(), nn.Tanh()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def masks() -> Trunk:
    return Trunk(nn.Conv2d(3, 2, 1), lambda: nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1))


def tokens() -> Trunk:
    return Trunk(nn.Embedding(6, 4), lambda: nn.Linear(4, 4), nn.Linear(4, 6))


def numbers() -> Trunk:
    return Trunk(nn.Linear(5, 4), lambda: nn.Linear(4, 4), nn.Linear(4, 2))


def of_masks(outputs: Tensor, targets: Tensor) -> Tensor:
    return soft_iou(outputs.flatten(2).movedim(1, 2), targets.flatten(1)).mean()


def of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    classes = outputs.movedim(1, -1) if outputs.dim() == 4 else outputs
    return F.cross_entropy(classes.flatten(0, -2), targets.flatten())


CASES: dict[str, tuple[Callable[[], Trunk], str | None, Callable[[Tensor, Tensor], Tensor], str]] = {
    "segmentation": (masks, None, of_classes, "nats"),
    "soft-iou": (masks, "soft-iou", of_masks, ""),
    "next-token": (tokens, None, of_classes, "nats"),
    "regression": (numbers, "squared-error", F.mse_loss, "targets^2"),
}


def batch_for(make: Callable[[], Trunk]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if make is tokens:
        drawn = torch.randint(6, (6, 8), generator=generator)
        return drawn[:, :-1], drawn[:, 1:]
    shape, size = ((6, 3, 5, 5), (6, 5, 5)) if make is masks else ((6, 5), (6, 2))
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    if make is masks:
        return inputs, torch.randint(3, size, generator=generator)
    return inputs, torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_a_surface_is_the_loss_of_networks_with_those_weights(case: str) -> None:
    make, name, loss, unit = CASES[case]
    torch.manual_seed(0)
    net, other = make().double().eval(), make().double().eval()
    inputs, targets = batch_for(make)
    batches: Any = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    asked: dict[str, Any] = {"loss": name, "dtype": "float64", "dimensions": 1, "points": 3, "probes": 2}
    table = pathlens.loss_surface(net, batches, towards=other, curvature="none", **asked)
    before = copy.deepcopy(net)
    with torch.no_grad():
        for weight, own, its in zip(before.parameters(), net.parameters(), other.parameters(), strict=True):
            weight.copy_(2 * own - its)
        for row, network in zip(table.rows, (before, net, other), strict=True):
            assert row["loss"] == pytest.approx(loss(network(inputs), targets).item(), rel=1e-9)
    sweep = pathlens.delete_blocks(net, batches, loss=name, dtype="float64").rows[0]
    assert {key: table.rows[1][key] for key in sweep if key in table.rows[1]} == pytest.approx(
        {key: value for key, value in sweep.items() if key in table.rows[1]}, rel=1e-9
    )
    units = {column.name: column.unit for column in table.columns}
    assert (units["loss"], units["largest_eigenvalue"]) == (unit, f"{unit or 1} / weight^2")
    result = named("loss-surface")
    assert result.fits(table)
    assert result.headlines(table.rows, table.provenance)[0].value.endswith(unit)
    assert figures.draw("loss-surface", table).axes[0].get_ylabel() != "loss (nats)" or unit == "nats"
    if case != "regression":  # of others the curvature and the pictures are tested elsewhere, or take long
        return
    # along a unit eigenvector the second difference is the eigenvalue
    step = 1e-4
    along = pathlens.loss_surface(net, batches, span=step, directions="hessian", one_dimensional="moved", **asked)
    low, centre, high = (row["loss"] for row in along.rows)
    largest = along.provenance["curvature"]["largest"]
    assert (low - 2 * centre + high) / step**2 == pytest.approx(largest, rel=1e-3, abs=1e-5)
    grid = pathlens.loss_surface(net, batches, curvature="none", **{**asked, "dimensions": 2})
    assert figures.draw("loss-surface", grid).axes
    assert result.charts(grid.rows, grid.provenance)[0]["layers"][0]["high"] >= max(r["loss"] for r in grid.rows)


@pytest.mark.parametrize("case", CASES)
def test_signals_are_those_of_the_loss(case: str) -> None:
    make, name, loss, _ = CASES[case]
    torch.manual_seed(0)
    net = make().double().eval()
    inputs, targets = batch_for(make)
    table = pathlens.signal_propagation(net, [(inputs, targets)], mode="eval", loss=name, dtype="float64")
    assert table.provenance.get("loss", "cross-entropy") == (name or "cross-entropy")
    x = net.stem(inputs)
    x = (x + net.blocks[0](x)).detach().requires_grad_()
    # the gradient is that of the sum over examples, each with the mean over its pixels, tokens or numbers
    (gradient,) = torch.autograd.grad(len(inputs) * loss(net.head(x + net.blocks[1](x)), targets), x)
    (row,) = (row for row in table.rows if (row["block"], row["place"]) == (0, "output"))
    assert row["second_moment"] == pytest.approx(x.square().mean().item(), rel=1e-9)
    assert row["gradient_second_moment"] == pytest.approx(gradient.square().mean().item(), rel=1e-9)
