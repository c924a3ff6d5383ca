"""The numbers of a signal propagation plot, of one tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Moments of a tensor over a batch.

    Attributes:
        squared_mean: mean over channels of the squared mean of a channel (Brock et al. 2021, "average channel squared
            mean").
        channel_variance: mean over channels of the variance of a channel ("average channel variance"); the two add up
            to the second moment.
        variance: over everything.
        second_moment: mean of the squares.
    """

    squared_mean: float
    channel_variance: float
    variance: float
    second_moment: float


QUANTITIES = Moments._fields


def moments(x: Tensor, axis: int) -> Moments | None:
    """Moments over a batch, summed in float64, so that squares of what the type holds do not overflow.

    Args:
        x: shape (N, ...).
        axis: of the channels.

    Returns:
        None where a value is NaN or infinite.

    Source: Brock, De, Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", section 3.
    """
    over = [other for other in range(x.dim()) if other != axis % x.dim()]
    count = x.numel() // x.shape[axis]
    with torch.no_grad():
        means = x.sum(over, dtype=torch.float64) / count
        squares = torch.linalg.vector_norm(x, 2, over, dtype=torch.float64).square() / count
        both = torch.stack([means.square(), squares, means]).mean(1).tolist()
    squared_mean, second_moment, mean = both
    if not all(map(math.isfinite, both)):
        return None
    # clamped, because rounding can make the difference of two equal numbers negative
    return Moments(
        squared_mean,
        max(0.0, second_moment - squared_mean),
        max(0.0, second_moment - mean**2),
        second_moment,
    )
