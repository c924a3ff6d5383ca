"""Intervals and tests of error rates, and of means over samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pathlens.errors import NumericsError, UsageError


def wilson_interval(failures: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for the rate of failures, from ``failures`` among ``n`` independent images.

    Args:
        failures: images that were classified wrongly.
        n: all images.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        Lower and upper end, fractions in [0, 1]. Source: Wilson 1927, Journal of the American Statistical Association.

    Raises:
        UsageError: ``n`` below 1, ``failures`` outside ``0 .. n``, or a confidence outside (0, 1).
    """
    # scipy.stats takes as long to import as a short sweep to run
    from scipy.special import ndtri

    _check_confidence(confidence)
    if n < 1 or not 0 <= failures <= n:
        raise UsageError(f"{failures} failures among {n} images is no rate; give 0 <= failures <= n and n >= 1")
    p, z = failures / n, float(ndtri(0.5 + 0.5 * confidence))
    spread = 2 * (n + z**2)
    center = (2 * n * p + z**2) / spread
    half = z / spread * math.sqrt(4 * n * p * (1 - p) + z**2)
    return (center - half if failures else 0.0), (center + half if failures < n else 1.0)


def paired_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Tango's score interval for the difference of two error rates on the same ``n`` images.

    The ends are the differences :math:`\theta` at which the score statistic
    :math:`(b - c - n\theta) / \sqrt{n (2 \tilde q + \theta (1 - \theta))}` is plus and minus the normal quantile,
    where b is ``lost``, c is ``gained``, and :math:`\tilde q` is the likeliest rate of gained images where the
    difference is :math:`\theta`. At :math:`\theta = 0` it is McNemar's statistic.

    Args:
        lost: images that the first network alone gets right.
        gained: images that the second network alone gets right.
        n: all images.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        Lower and upper end of the second error minus the first, fractions in [-1, 1]. Source: Tango 1998, Statistics in
        Medicine 17, 891-908; recommended by Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, 2850-2875.

    Raises:
        UsageError: ``n`` below 1, counts that are negative or more than ``n`` together, or a confidence outside (0, 1).
    """
    from scipy.special import ndtri

    _check_confidence(confidence)
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise UsageError(f"{lost} lost and {gained} gained among {n} images do not fit; give counts of the same images")
    z = float(ndtri(0.5 + 0.5 * confidence))
    # the lower end is the upper end of the difference the other way round
    return -_score_end(gained, lost, n, z), _score_end(lost, gained, n, z)


def _score_end(lost: int, gained: int, n: int, z: float) -> float:
    """The upper end of Tango's interval, by bisection: outside, the squared statistic is above z squared."""
    inside, outside = (lost - gained) / n, 1.0
    while inside < (middle := (inside + outside) / 2) < outside:
        slope = (2 * n - lost + gained) * middle - lost - gained
        root = math.sqrt(max(0.0, slope**2 + 8 * n * gained * middle * (1 - middle)))
        variance = n * ((root - slope) / (2 * n) + middle * (1 - middle))
        if (lost - gained - n * middle) ** 2 <= z**2 * variance:
            inside = middle
        else:
            outside = middle
    return outside


def mcnemar_p(lost: int, gained: int) -> float:
    """McNemar's exact test of two networks on the same images: the two-sided binomial test of ``lost`` at one half.

    Args:
        lost: images that the first network alone gets right.
        gained: images that the second network alone gets right.

    Returns:
        The p-value; 1 where the networks differ on no image, and 0 where it is smaller than a float can be. Source:
        McNemar 1947, Psychometrika 12, 153-157, with the binomial distribution itself.

    Raises:
        UsageError: a negative count.
    """
    # scipy.stats takes as long to import as a short sweep to run
    from scipy.special import bdtr

    if lost < 0 or gained < 0:
        raise UsageError(f"{lost} lost and {gained} gained images are no counts; give 0 or more")
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted so that any false rejection among them is as rare as is said.

    Args:
        p_values: of the family, in any order; the tests may depend on each other.

    Returns:
        Adjusted p-values in the same order: each test is rejected at a level at or above its own. Source: Holm 1979,
        Scandinavian Journal of Statistics 6, 65-70.

    Raises:
        UsageError: a p-value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise UsageError("a p-value is outside [0, 1]; give those of tests")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for before, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - before) * p_values[index]))
        adjusted[index] = largest
    return adjusted


#: what is left of a sum of squares where all is alike, as a part of it
ROUNDING = 1e-12


def sample_interval(
    values: Sequence[float], confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float | None, float | None]:
    """Student's t interval for the mean of independent samples.

    Args:
        values: the samples.
        confidence: coverage of the interval, in (0, 1).
        bounds: where the mean must lie, such as (0, 1) for an error; the interval is cut off there.

    Returns:
        Lower and upper end in the unit of the values; ``(None, None)`` for a single sample, which tells no spread.

    Raises:
        NumericsError: a sample that is not finite.
        UsageError: no samples, or a confidence outside (0, 1).
    """
    import numpy as np
    from scipy.special import stdtrit

    _check_confidence(confidence)
    if not len(values):
        raise UsageError("an interval over no samples was asked for; give at least two")
    if not all(map(math.isfinite, values)):
        raise NumericsError("a sample is NaN or infinite; an interval needs finite values")
    if len(values) == 1:
        return None, None
    mean = math.fsum(values) / len(values)
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * standard_error)
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def interval_of_sums(n: int, total: float, squares: float) -> tuple[float | None, float | None]:
    """Student's 95 % interval for the mean of independent samples of which only sums are known.

    Args:
        n: samples.
        total: their sum.
        squares: the sum of their squares.

    Returns:
        Lower and upper end; ``(None, None)`` for fewer than two samples, sums that are not finite, and samples that are
        alike but for rounding, which tell no spread unless all are 0.
    """
    from scipy.special import stdtrit

    if n < 2 or not (math.isfinite(total) and math.isfinite(squares)):
        return None, None
    deviation = deviation_of_sums(n, total, squares)
    if not deviation and squares:
        return None, None
    mean, half = total / n, float(stdtrit(n - 1, 0.975)) * deviation
    return mean - half, mean + half


def deviation_of_sums(n: int, total: float, squares: float) -> float:
    """Standard error of the mean of samples of which only sums are known; 0 where they are alike but for rounding.

    Args:
        n: samples, at least two.
        total: their sum.
        squares: the sum of their squares.
    """
    spread = squares / n - (total / n) ** 2
    return math.sqrt(spread / (n - 1)) if spread > ROUNDING * squares / n else 0.0


def t_test(mean: float, deviation: float | None, n: int) -> float:
    """Two-sided p value of Student's t test that a mean is 0; of the sign test where all samples are alike.

    1 for a single sample, which tells no spread, and for a mean of 0.

    Args:
        mean: over independent samples.
        deviation: its standard error; None for a single sample, 0 where all are alike.
        n: samples.
    """
    from scipy.special import stdtr

    if deviation is None or not mean:
        return 1.0
    if not deviation:
        return float(0.5 ** (n - 1))
    return min(1.0, 2 * float(stdtr(n - 1, -abs(mean) / deviation)))


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation between an order of blocks and the trained order.

    Args:
        order: position by position, the index of the block that stands there; all different.

    Returns:
        1 for the trained order (also of a single block), -1 for its reverse. Source: Veit, Wilber, Belongie 2016,
        section 4.3.

    Raises:
        UsageError: no blocks, or one twice.
    """
    from scipy.stats import kendalltau

    if not len(order) or len(set(order)) < len(order):
        raise UsageError(f"the order {list(order)} is empty or names a block twice; give every block once")
    if len(order) == 1:
        return 1.0
    return float(kendalltau(range(len(order)), list(order)).statistic)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is outside (0, 1); give 0.95 for 95 %")
