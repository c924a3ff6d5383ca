"""Directions in the space of the weights, as vectors over the buffer of :class:`pathlens.surface.Weights`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathlens.surface.weights import Weights

DIMENSIONAL = ("still", "moved", "copied")
"""What happens to parameters of one dimension (biases, and scales and shifts of norms).

``still``: they stay where they are, which is what the published script does (its option ``biasbn``). ``moved``: they
move as other parameters do, as one filter each. ``copied``: a random direction holds their own values, so that they are
scaled alike; so the published script without that option.
"""

_TINY = 1e-10  # added to the norm of a drawn filter, as in the published script


def random(weights: Weights, generator: torch.Generator, one_dimensional: str = "still") -> Tensor:
    """A random direction of which each filter has the norm of the network's own filter.

    Filters are what belongs to one index of a parameter's first dimension. What is drawn does not depend on the
    device, nor on ``one_dimensional``.

    Args:
        weights: of the network, in any place.
        generator: of the CPU.
        one_dimensional: see :data:`pathlens.surface.directions.DIMENSIONAL`.

    Returns:
        Shape (P,).

    Source: Li et al. 2018, section 4, and github.com/tomgoldstein/loss-landscape, ``net_plotter.py``.
    """
    direction = torch.empty_like(weights.start)
    for part, own in zip(weights.parts(direction), weights.parts(weights.start), strict=True):
        filters = torch.randn(own.shape, generator=generator).to(own)
        if own.dim() > 1:
            norms = own.flatten(1).norm(dim=1) / (filters.flatten(1).norm(dim=1) + _TINY)
            part.copy_(filters * norms.reshape(-1, *([1] * (own.dim() - 1))))
        elif one_dimensional == "still":
            part.zero_()
        else:
            part.copy_(own if one_dimensional == "copied" else filters * (own.norm() / (filters.norm() + _TINY)))
    return direction


def between(weights: Weights, other: nn.Module, one_dimensional: str = "moved") -> Tensor:
    """The direction from the network to another one of the same kind, which lies at coordinate 1.

    Args:
        weights: of the network, in any place.
        other: with parameters of the same names and shapes.
        one_dimensional: ``moved``, or ``still``, with which the other network is not reached.

    Returns:
        Shape (P,).

    Source: Goodfellow, Vinyals, Saxe 2015, section 3.
    """
    end = torch.cat([other.get_parameter(name).detach().reshape(-1) for name in weights.names])
    direction = end.to(weights.start) - weights.start
    if one_dimensional == "still":
        still = torch.ones_like(direction, dtype=torch.bool)
        still[weights.at_least(2)] = False
        direction[still] = 0
    return direction
