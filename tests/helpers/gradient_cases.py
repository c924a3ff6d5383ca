"""What the tests of gradients share: linearised small networks, the oracle's gradients, and comparisons."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.residual import ResidualView, find_blocks
from pathlens.residual.gradients import Linearisation
from pathlens.residual.losses import cross_entropy
from tests.helpers.path_oracle import NETS, Net, Path, drawn, enumerated, images

LABELS = torch.tensor([0, 2])


@functools.cache
def prepared(name: str) -> tuple[Net, ResidualView]:
    net = drawn(NETS[name]())
    return net, find_blocks(net, images())


@functools.cache
def oracle(name: str, boundary: int = -1) -> dict[Path, Tensor]:
    return enumerated(prepared(name)[0], images(), LABELS, cross_entropy, boundary)


def linearised(name: str, **options: object) -> Linearisation:
    return Linearisation(prepared(name)[1], images(), LABELS, **options)


def assert_lengths_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Every length by its own scale, so that a wrong small one does not hide behind a large one."""
    assert found.shape == expected.shape
    for length, (one, other) in enumerate(zip(found.double(), expected, strict=True)):
        assert other.isfinite().all()
        difference = torch.linalg.vector_norm(one - other)
        assert difference <= tolerance * torch.linalg.vector_norm(other), (length, float(difference))


def ordinary(net: nn.Module, x: Tensor, labels: Tensor = LABELS) -> Tensor:
    """The gradient at the input through the module itself, which is left as it is."""
    x = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(copy.deepcopy(net)(x), labels, reduction="sum"), x)
    return found
