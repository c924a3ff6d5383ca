"""Many answers an example: tokens of a sequence, pixels of an image. Counts that add up, with examples as clusters.

The answers of one example depend on each other, so that intervals and tests take the examples for what was drawn: rates
are ratios of sums over examples, with the variance of a ratio estimator (Cochran 1977, Sampling Techniques, third
edition, chapter 6) and Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathlens.errors import DataError, NumericsError
from pathlens.metrics.classification import holds_indices
from pathlens.metrics.intervals import ROUNDING, t_test, wilson_interval
from pathlens.metrics.sums import OfExamples, Sums

if TYPE_CHECKING:
    import torch

#: targets of this value are not counted, as torch's cross-entropy has it
IGNORED = -100

CHUNK = 2**22
"""Numbers that are brought to float64 at a time."""


@dataclass(frozen=True)
class UnitCounts(OfExamples):
    """What a network got right on some examples of many units.

    Attributes:
        n: examples seen.
        units: their units, such as tokens, without those that are not counted.
        correct: units whose highest logit is the target's; of equal logits, the first class counts.
        loss_sum: sum over the units of the cross-entropy in nats, in float64, without the ``nonfinite`` examples.
        nonfinite: examples with a logit that is NaN or infinite; none of their units is ``correct``.
        wrong_squares: sum over the examples of the square of the number of wrong units.
        wrong_units: sum over the examples of the number of wrong units times that of all.
        unit_squares: sum over the examples of the square of the number of units.
        judged: examples with a unit that is counted, which are the samples of intervals.
    """

    n: int = 0
    units: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    nonfinite: int = 0
    wrong_squares: int = 0
    wrong_units: int = 0
    unit_squares: int = 0
    judged: int = 0

    @property
    def error(self) -> float:
        """Share of units that are wrong, in [0, 1].

        Raises:
            NumericsError: no units were counted.
        """
        self._require_units()
        return (self.units - self.correct) / self.units

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a unit in nats; NaN where any example had a logit that is not finite.

        Raises:
            NumericsError: no units were counted.
        """
        self._require_units()
        return math.nan if self.nonfinite else self.loss_sum / self.units

    def columns(self) -> dict[str, float | None]:
        """Examples, error with its interval over examples, and loss; an interval needs two examples that differ.

        Where no unit is wrong, or all are, it is Wilson's of the share of examples with a wrong, or right, unit.

        Raises:
            NumericsError: no units were counted.
        """
        deviation = _deviation(
            self.error, self.judged, self.units, self.wrong_squares, self.wrong_units, self.unit_squares
        )
        low, high = _interval(self.error, deviation, self.judged, (0.0, 1.0))
        if deviation == 0 and self.error in (0, 1):
            low, high = wilson_interval(round(self.error) * self.judged, self.judged)
        loss = None if self.nonfinite else self.loss
        return {"n": self.n, "error": self.error, "error_low": low, "error_high": high, "loss": loss}

    def _require_units(self) -> None:
        _require_units(self.units)


@dataclass(frozen=True)
class UnitPairs(Sums):
    """How a changed network's answers differ from the intact one's on the same examples of many units.

    Attributes:
        n: examples with a unit that is counted.
        units: their units.
        lost: units that the intact network alone gets right.
        gained: units that the changed network alone gets right.
        squares: sum over the examples of the square of lost minus gained.
        products: sum over the examples of lost minus gained, times the number of units.
        unit_squares: sum over the examples of the square of the number of units.
    """

    n: int = 0
    units: int = 0
    lost: int = 0
    gained: int = 0
    squares: int = 0
    products: int = 0
    unit_squares: int = 0

    @property
    def difference(self) -> float:
        """Error of the changed network minus that of the intact one, in [-1, 1].

        Raises:
            NumericsError: no units were counted.
        """
        _require_units(self.units)
        return (self.lost - self.gained) / self.units

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the difference over examples; missing for a single one and where all change alike.

        Where none changes, it is Wilson's of the share of examples that change, in both directions.
        """
        if self.n > 1 and self.lost == self.gained == 0:
            _, high = wilson_interval(0, self.n)
            return -high, high
        return _interval(self.difference, self._deviation, self.n, (-1.0, 1.0))

    @property
    def p(self) -> float:
        """Two-sided t test of no difference, over examples; 1 for a single one, which tells no spread."""
        return t_test(self.difference, self._deviation, self.n)

    @property
    def _deviation(self) -> float | None:
        return _deviation(self.difference, self.n, self.units, self.squares, self.products, self.unit_squares)


def count_unit_answers(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch as numbers, and the answer to each unit. Nothing here waits for the device.

    Args:
        logits: shape ``[batch, ..., classes]``, any floating type; the log-softmax is taken in float64.
        targets: class indices, shape ``[batch, ...]``, an integer type; ``IGNORED`` where nothing is asked.

    Returns:
        Ten float64 numbers: those of :class:`UnitCounts` in order, and targets outside the classes; and for each unit
        1 where it is right, 0 where it is wrong and -1 where it is not counted, int8, shape ``[batch, units]``.
    """
    import torch

    with torch.no_grad():
        judged = judge(logits, targets)
        return judged.sums(judged.losses.where(judged.counted & judged.finite, 0).sum()), judged.answers


@dataclass(frozen=True)
class Judged:
    """One network's answers for a batch, unit by unit; all of shape ``[batch, units]``, but for ``whole``.

    Attributes:
        losses: cross-entropies in nats, float64, also of units that are not counted.
        best: class of the highest logit.
        target: class that is right, clamped to the classes.
        counted: whether the unit is counted.
        outside: whether it is, and its target is no class.
        finite: whether all logits of the example are finite.
        whole: likewise, of each example.
    """

    losses: torch.Tensor
    best: torch.Tensor
    target: torch.Tensor
    counted: torch.Tensor
    outside: torch.Tensor
    finite: torch.Tensor
    whole: torch.Tensor

    @property
    def correct(self) -> torch.Tensor:
        """Whether a unit counts and its target has the highest logit."""
        return (self.best == self.target) & self.counted & self.finite & ~self.outside

    @property
    def answers(self) -> torch.Tensor:
        """1 where right, 0 where wrong, -1 where not counted; int8."""
        import torch

        return self.correct.to(torch.int8).where(self.counted, -1)

    def sums(self, loss: torch.Tensor) -> torch.Tensor:
        """The numbers of :class:`UnitCounts`, and how many targets are outside the classes.

        Args:
            loss: sum of the losses.
        """
        import torch

        units = self.counted.sum(1).double()
        wrong = (self.answers == 0).sum(1).double()
        sums = [units.new_full((), len(units)), units.sum(), self.correct.sum(), loss, (~self.whole).sum()]
        sums += [wrong.square().sum(), (wrong * units).sum(), units.square().sum(), (units > 0).sum()]
        sums += [self.outside.sum()]
        return torch.stack([value.double() for value in sums])


def judge(logits: torch.Tensor, targets: torch.Tensor) -> Judged:
    """Compare a network's answers with the targets, without waiting for the device; arguments as above."""
    import torch
    from torch.nn.functional import cross_entropy

    batch, classes = len(logits), logits.shape[-1]
    rows, asked = logits.reshape(-1, classes), targets.to(logits.device).reshape(-1).long()
    # clamped, because an index out of range is fatal on a GPU and would only be noticed later
    inside = asked.clamp(0, classes - 1)
    step = max(1, CHUNK // classes)  # rows at a time, because a vocabulary in float64 is large
    parts = [
        (cross_entropy(part.double(), right, reduction="none"), part.argmax(-1), part.isfinite().all(-1))
        for part, right in zip(rows.split(step), inside.split(step), strict=True)
    ]
    losses, best, finite = (torch.cat(items).reshape(batch, -1) for items in zip(*parts, strict=True))
    whole = finite.all(1)
    asked = asked.reshape(batch, -1)
    return Judged(
        losses,
        best,
        inside.reshape(batch, -1),
        asked != IGNORED,
        _outside(asked, classes),
        whole[:, None].expand_as(finite),
        whole,
    )


def count_unit_pairs(answers: torch.Tensor) -> torch.Tensor:
    """What networks lose and gain against the first one, without waiting for the device.

    Args:
        answers: of each network, as :func:`count_unit_answers` gives them, shape ``[networks, batch, units]``.

    Returns:
        Float64 of shape ``[networks, 4]``: lost, gained, squares and products, as in :class:`UnitPairs`.
    """
    import torch

    first = answers[:1]
    lost = ((first == 1) & (answers == 0)).sum(2).double()
    gained = ((first == 0) & (answers == 1)).sum(2).double()
    units = (first >= 0).sum(2).double()
    change = lost - gained
    return torch.stack([lost.sum(1), gained.sum(1), change.square().sum(1), (change * units).sum(1)], dim=1)


def unit_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the units of each example in nats, shape ``[batch]``; differentiable.

    Args:
        logits: shape ``[batch, ..., classes]``.
        targets: class indices, an integer type, shape ``[batch, ...]``; ``IGNORED`` where nothing is asked.

    Raises:
        DataError: targets outside the classes.
    """
    from torch.nn.functional import cross_entropy

    classes = logits.shape[-1]
    require_inside(targets, classes)
    asked = targets.long().reshape(-1)
    losses = cross_entropy(logits.reshape(-1, classes), asked, reduction="none", ignore_index=IGNORED)
    units = (asked != IGNORED).reshape(len(logits), -1).sum(1)
    return losses.reshape(len(logits), -1).sum(1) / units.clamp_min(1)


def require_targets(targets: torch.Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise unless there is one class index for each unit.

    Args:
        targets: what a batch has.
        shape: of what is asked.
        what: targets are called.

    Raises:
        DataError: another shape or type.
    """
    if tuple(targets.shape) != tuple(shape) or not holds_indices(targets):
        raise DataError(
            f"{what} are {targets.dtype} of shape {tuple(targets.shape)}; give one class index for each of "
            f"{tuple(shape)}"
        )


def require_inside(targets: torch.Tensor, classes: int) -> None:
    """Raise where a target that counts is no class, which would be fatal on a GPU.

    Args:
        targets: class indices of a batch.
        classes: of the network.

    Raises:
        DataError: how many there are.
    """
    outside = int(_outside(targets, classes).sum())
    if outside:
        raise DataError(
            f"{outside} of {targets.numel()} targets are outside the {classes} classes of the network; take the data, "
            "or the tokenizer, that the network was trained with"
        )


def _require_units(units: int) -> None:
    if not units:
        raise NumericsError("no targets were counted, so there is no error; give some that are not left out")


def _outside(asked: torch.Tensor, classes: int) -> torch.Tensor:
    """Which of the targets that count are no classes of the network."""
    return (asked != IGNORED) & ((asked < 0) | (asked >= classes))


def _deviation(rate: float, n: int, units: int, squares: float, products: float, unit_squares: float) -> float | None:
    """Standard error of a ratio of sums over examples; None for a single example."""
    if n < 2:
        return None
    residual = max(0.0, squares - 2 * rate * products + rate**2 * unit_squares)
    # sums of whole numbers are exact; what is left of them where all examples agree is rounding
    if residual <= ROUNDING * max(squares, rate**2 * unit_squares):
        return 0.0
    return math.sqrt(residual * n / (n - 1)) / units


def _interval(
    rate: float, deviation: float | None, n: int, bounds: tuple[float, float]
) -> tuple[float | None, float | None]:
    from scipy.special import stdtrit

    if not deviation:  # a single example, or nothing that tells the spread
        return None, None
    half = float(stdtrit(n - 1, 0.975)) * deviation
    return max(bounds[0], rate - half), min(bounds[1], rate + half)
