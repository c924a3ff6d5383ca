"""How fast a quantity grows from block to block, and where that leaves the range of a type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathlens.metrics import sample_interval

_FARTHEST = 10_000  # blocks; an overflow beyond is not worth a warning


class Growth(NamedTuple):
    """A factor per block, with its 95 % interval; None where it cannot be estimated."""

    factor: float | None
    low: float | None
    high: float | None


def growth_of(curves: Sequence[Sequence[float | None]], stages: Sequence[int], backward: bool = False) -> Growth:
    """The factor per block of an exponential fit: one slope for all stages, an intercept for each.

    A stage begins with a change of shape, which is why the step into it does not count. The interval is Student's: over
    the curves where there are several, else of the regression's slope.

    Args:
        curves: a value for each block, one curve for each seed; values that are missing or zero are left out.
        stages: of each block.
        backward: give the factor from a block to the one before.
    """
    # scipy.stats takes as long to import as a short sweep to run
    from scipy.special import stdtrit

    fits = [fit for curve in curves if (fit := _slope(curve, stages)) is not None]
    if not fits:
        return Growth(None, None, None)
    slopes = [-slope if backward else slope for slope, _, _ in fits]
    centre = math.fsum(slopes) / len(slopes)
    low, high = sample_interval(slopes)
    _, error, freedom = fits[0]
    if len(fits) == 1 and freedom > 0:
        half = float(stdtrit(freedom, 0.975)) * error
        low, high = centre - half, centre + half
    return Growth(_exp(centre), _exp(low), _exp(high))


def _exp(value: float | None) -> float | None:
    return math.exp(value) if value is not None and abs(value) < 700 else None


def _slope(curve: Sequence[float | None], stages: Sequence[int]) -> tuple[float, float, int] | None:
    """Slope of the logarithm, its standard error, and degrees of freedom."""
    points = [(x, stage, math.log(y)) for x, (y, stage) in enumerate(zip(curve, stages, strict=True)) if y]
    inside = {stage for _, stage, _ in points if sum(other == stage for _, other, _ in points) > 1}
    if inside:
        points = [point for point in points if point[1] in inside]
    groups = inside or {0}
    x, y = np.array([p[0] for p in points], float), np.array([p[2] for p in points], float)
    if len(x) < 2:
        return None
    for stage in groups:
        own = np.array([not inside or p[1] == stage for p in points])
        x[own] -= x[own].mean()
        y[own] -= y[own].mean()
    slope = float(x @ y / (x @ x))
    freedom = len(x) - len(groups) - 1
    rest = float(((y - slope * x) ** 2).sum())
    return slope, math.sqrt(rest / freedom / float(x @ x)) if freedom > 0 else math.nan, freedom


def overflow_block(last: int, second_moment: float, growth: Growth, largest: float) -> int | None:
    """The block at which values of one standard size would leave the range of a type, if growth goes on.

    Args:
        last: index of the last block that was measured.
        second_moment: there.
        growth: of the second moment per block.
        largest: number of the type.

    Returns:
        None where growth is not surely above 1, or that block is beyond any network.
    """
    if growth.factor is None or growth.low is None or growth.low <= 1 or second_moment <= 0:
        return None
    more = (2 * math.log(largest) - math.log(second_moment)) / math.log(growth.factor)
    return last + math.ceil(more) if more < _FARTHEST else None
