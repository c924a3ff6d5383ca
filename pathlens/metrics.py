"""Accumulators of error and loss, and the intervals and tests that go with them.

Counts are added up batch by batch and process by process; an interval or a test is computed once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from pathlens.errors import DataError, ModelError, NumericsError, UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClassificationCounts:
    """What a classifier got right on some images. Counts of disjoint sets of images add up with ``+``.

    Attributes:
        n: images seen.
        correct: images whose highest logit is the label's; of equal logits, the first class counts.
        loss_sum: sum over the images of the cross-entropy in nats, in float64, without the ``nonfinite`` images.
        nonfinite: images with a logit that is NaN or infinite; they are never ``correct``.
    """

    n: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    nonfinite: int = 0

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor) -> ClassificationCounts:
        """Count one batch.

        Args:
            logits: shape ``[batch, classes]``, any floating type; the log-softmax is taken in float64.
            labels: class indices, shape ``[batch]``, an integer type.

        Raises:
            DataError: labels of another shape or type, or outside ``0 .. classes - 1``.
            ModelError: logits that are not ``[batch, classes]``.
        """
        return cls.from_values(count_values(logits, labels).tolist())

    @classmethod
    def from_values(cls, values: Sequence[float]) -> ClassificationCounts:
        """Counts from the five numbers of :func:`count_values`, or from a sum of such.

        Args:
            values: n, correct, loss sum, non-finite, labels outside.

        Raises:
            DataError: labels outside the classes were counted.
        """
        n, correct, loss_sum, nonfinite, outside = values
        if outside:
            raise DataError(
                f"{int(outside)} of {int(n)} labels are outside the classes of the network; "
                "take the data set that the network was trained for"
            )
        return cls(int(n), int(correct), float(loss_sum), int(nonfinite))

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        """Counts of both sets of images together."""
        if not isinstance(other, ClassificationCounts):
            return NotImplemented
        return ClassificationCounts(
            *(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    @property
    def error(self) -> float:
        """Share of images that were classified wrongly, in [0, 1].

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return (self.n - self.correct) / self.n

    @property
    def error_interval(self) -> tuple[float, float]:
        """The 95 % interval of the error; see :func:`wilson_interval`.

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return wilson_interval(self.n - self.correct, self.n)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN where any image had a logit that is not finite.

        Raises:
            NumericsError: no images were counted.
        """
        self._require_images()
        return math.nan if self.nonfinite else self.loss_sum / self.n

    def columns(self) -> dict[str, float | None]:
        """Images, error with its interval, and loss, as tables have them: a loss that is not finite is missing.

        Raises:
            NumericsError: no images were counted.
        """
        low, high = self.error_interval
        loss = None if self.nonfinite else self.loss
        return {"n": self.n, "error": self.error, "error_low": low, "error_high": high, "loss": loss}

    def require_finite(self, what: str) -> None:
        """Raise if the network gave a logit that is NaN or infinite.

        Args:
            what: which network this was, for the message, such as "the network without block 3".

        Raises:
            NumericsError: naming ``what`` and the number of images.
        """
        if self.nonfinite:
            raise NumericsError(
                f"{what} gives NaN or infinity for {self.nonfinite} of {self.n} images; "
                "check the weights and the normalisation of the data, or use --dtype float32"
            )

    def _require_images(self) -> None:
        if not self.n:
            raise NumericsError("no images were counted, so there is no error; give at least one image")


@dataclass(frozen=True)
class PairedCounts:
    """How a changed network's answers differ from the intact one's on the same images. Counts add up with ``+``.

    Attributes:
        n: images seen.
        lost: images that the intact network alone gets right (b in McNemar's table).
        gained: images that the changed network alone gets right (c).
    """

    n: int = 0
    lost: int = 0
    gained: int = 0

    def __add__(self, other: PairedCounts) -> PairedCounts:
        """Counts of both sets of images together."""
        if not isinstance(other, PairedCounts):
            return NotImplemented
        return PairedCounts(self.n + other.n, self.lost + other.lost, self.gained + other.gained)

    @property
    def difference(self) -> float:
        """Error of the changed network minus that of the intact one, in [-1, 1].

        Raises:
            NumericsError: no images were counted.
        """
        if not self.n:
            raise NumericsError("no images were counted, so there is no difference; give at least one image")
        return (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference; see :func:`paired_interval`."""
        return paired_interval(self.lost, self.gained, self.n)

    @property
    def p(self) -> float:
        """The p-value of no difference; see :func:`mcnemar_p`."""
        return mcnemar_p(self.lost, self.gained)


def count_values(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One batch as five float64 numbers on the logits' device: n, correct, loss sum, non-finite, labels outside.

    Arguments and errors as :func:`count_answers`.
    """
    return count_answers(logits, labels)[0]


def count_answers(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of :func:`count_values`, and for each image whether it was classified correctly, shape ``[batch]``.

    Nothing here waits for the device. The results of many batches and processes may be summed (integers stay exact
    below 2^53) and read once with :meth:`ClassificationCounts.from_values`.

    Args:
        logits: shape ``[batch, classes]``, any floating type; the log-softmax is taken in float64.
        labels: class indices, shape ``[batch]``, an integer type.

    Raises:
        DataError: labels of another shape or type.
        ModelError: logits that are not ``[batch, classes]``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ModelError(
            f"the network gives {logits.dtype} of shape {tuple(logits.shape)}, not logits [batch, classes]; "
            "give a network that classifies"
        )
    require_labels(labels, logits.shape[0])
    with torch.no_grad():
        exact = logits.double()
        labels = labels.to(device=logits.device, dtype=torch.int64)
        outside = (labels < 0) | (labels >= logits.shape[1])
        # Clamped, because an index out of range is fatal on a GPU and would only be noticed later.
        labels = labels.clamp(0, logits.shape[1] - 1)
        finite = exact.isfinite().all(dim=1)
        losses = cross_entropy(exact, labels, reduction="none").where(finite, exact.new_zeros(()))
        correct = (exact.argmax(dim=1) == labels) & finite & ~outside
        count = exact.new_full((), logits.shape[0])
        return torch.stack([count, correct.sum(), losses.sum(), (~finite).sum(), outside.sum()]), correct


def count_pairs(correct: torch.Tensor) -> torch.Tensor:
    """What networks lose and gain against the first one, as float64 on the answers' device, without waiting for it.

    Args:
        correct: whether each network classifies each image correctly, bool, shape ``[networks, batch]``.

    Returns:
        Shape ``[networks, 2]``: images that the first network alone gets right, and that this one alone gets right.
    """
    import torch

    first = correct[:1]
    return torch.stack([(first & ~correct).sum(1), (correct & ~first).sum(1)], dim=1).double()


def require_labels(labels: torch.Tensor, images: int) -> None:
    """Raise unless there is one class index for each image.

    Args:
        labels: what a batch has for labels.
        images: how many images the batch has.

    Raises:
        DataError: labels of another shape or type.
    """
    import torch

    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape != (images,) or not whole:
        raise DataError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {images} images; "
            "give one class index per image"
        )


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
