"""Numbers as targets: squared errors that add up over batches and processes, relative to the variance of the targets.

There are no mistakes to count. In the place of their share stands the relative squared error: the sum of squared errors
over that of the targets around their mean, 0 for a perfect network and 1 for one that always gives the mean (the
fraction of variance unexplained, 1 - R²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pathlens.errors import DataError, NumericsError
from pathlens.metrics.intervals import ROUNDING, deviation_of_sums, interval_of_sums, t_test
from pathlens.metrics.sums import OfExamples, Sums

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RegressionCounts(OfExamples):
    """How far a network's outputs are from the targets of some examples.

    Attributes:
        n: examples seen.
        loss_sum: sum over them of the mean squared error of an example.
        loss_squares: sum of its square.
        nonfinite: examples with an output that is NaN or infinite; they count as if all outputs were 0.
        elements: numbers of each component of the targets, over all examples.
        target_squares: sum of the squares of all targets.
        target_sums: sum of the targets of each component; components lie along the second axis.
    """

    n: int = 0
    loss_sum: float = 0.0
    loss_squares: float = 0.0
    nonfinite: int = 0
    elements: int = 0
    target_squares: float = 0.0
    target_sums: tuple[float, ...] = ()

    @property
    def variance(self) -> float:
        """Variance of the targets around the mean of their component.

        Raises:
            NumericsError: no examples were counted, or all their targets are equal.
        """
        if not self.n:
            raise NumericsError("no examples were counted, so there is no error; give at least one")
        squares = self.target_squares - math.fsum(total**2 for total in self.target_sums) / self.elements
        # what is left of equal numbers is rounding
        if squares <= ROUNDING * self.target_squares:
            raise NumericsError(
                f"all targets of the {self.n} examples are equal, but for less than a millionth of their size, and "
                "errors are stated relative to their variance; give examples of different targets, or subtract what "
                "they have in common"
            )
        return squares / (self.elements * len(self.target_sums))

    @property
    def error(self) -> float:
        """Relative squared error, 0 or more; errors as of :attr:`variance`."""
        variance = self.variance
        return self.loss_sum / self.n / variance

    @property
    def loss(self) -> float:
        """Mean squared error; NaN where an output is not finite. Errors as of :attr:`variance`."""
        return math.nan if self.nonfinite else self.loss_sum / self.n

    def columns(self) -> dict[str, float | None]:
        """Examples, error with its interval over examples, mean squared error and its root.

        The interval takes the variance of the targets as it is. Errors as of :attr:`variance`.
        """
        low, high = interval_of_sums(self.n, self.loss_sum, self.loss_squares)
        return {
            "n": self.n,
            "error": self.error,
            "error_low": None if low is None else max(0.0, low) / self.variance,
            "error_high": None if high is None else high / self.variance,
            "loss": None if self.nonfinite else self.loss,
            "rmse": None if self.nonfinite else math.sqrt(self.loss),
        }


@dataclass(frozen=True)
class RegressionPairs(Sums):
    """How a changed network's squared errors differ from the intact one's on the same examples.

    Attributes:
        counts: of the changed network.
        total: sum over the examples of the change of their mean squared error.
        squares: sum of its square.
        lost: there are no mistakes that could be counted.
        gained: likewise.
    """

    counts: RegressionCounts = field(default_factory=RegressionCounts)
    total: float = 0.0
    squares: float = 0.0
    lost: ClassVar[None] = None
    gained: ClassVar[None] = None

    @property
    def difference(self) -> float:
        """Error of the changed network minus that of the intact one."""
        return self.total / self.counts.n / self.counts.variance

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the difference over examples; missing for a single one and where all change alike."""
        low, high = interval_of_sums(self.counts.n, self.total, self.squares)
        return (
            None if low is None else low / self.counts.variance,
            None if high is None else high / self.counts.variance,
        )

    @property
    def p(self) -> float:
        """Two-sided paired t test of no difference over examples; 1 for a single one, which tells no spread."""
        n = self.counts.n
        return t_test(self.total / n, deviation_of_sums(n, self.total, self.squares), n) if n > 1 else 1.0


def squared_errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each example, shape ``[batch]``; differentiable.

    Args:
        outputs: of a network, any shape ``[batch, ...]``.
        targets: floating, of the same shape, or ``[batch]`` where outputs are ``[batch, 1]``.

    Raises:
        DataError: targets of another shape or type, or that are not finite.
    """
    require_numbers(targets)
    return (outputs - _like(outputs, targets)).square().reshape(len(outputs), -1).mean(1)


def count_errors(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch as float64 numbers, and the squared error of each example. Nothing here waits for the device.

    Args:
        outputs: as of :func:`squared_errors`.
        targets: likewise.

    Returns:
        The numbers of :class:`RegressionCounts` in order, and float64 of shape ``[batch]``.

    Raises:
        DataError: targets of another shape.
    """
    import torch

    with torch.no_grad():
        asked = _like(outputs, targets.to(outputs.device)).double().reshape(len(outputs), *_grid(outputs))
        given = outputs.double().reshape(asked.shape)
        finite = given.isfinite().flatten(1).all(1)
        errors = (given.where(finite[:, None, None], 0) - asked).square().mean((1, 2))
        elements = asked.new_full((), len(asked) * asked.shape[2])
        sums = [asked.new_full((), len(asked)), errors.sum(), errors.square().sum(), (~finite).sum().double()]
        sums += [elements, asked.square().sum()]
        return torch.cat([torch.stack(sums), asked.sum((0, 2))]), errors


def count_changes(errors: torch.Tensor) -> torch.Tensor:
    """By how much squared errors differ from those of the first network, without waiting for the device.

    Args:
        errors: of each network, as :func:`count_errors` gives them, shape ``[networks, batch]``.

    Returns:
        Float64 of shape ``[networks, 2]``: sum of the changes, and of their squares.
    """
    import torch

    changes = errors - errors[:1]
    return torch.stack([changes.sum(1), changes.square().sum(1)], dim=1)


def require_numbers(targets: torch.Tensor) -> None:
    """Raise unless targets are finite floating numbers.

    Args:
        targets: of a batch.

    Raises:
        DataError: another type, or NaN or infinity.
    """
    if not targets.is_floating_point():
        raise DataError(f"the targets of a regression are {targets.dtype}; give floating numbers")
    if not bool(targets.isfinite().all()):
        raise DataError("targets hold NaN or infinity; leave such examples out")


def _like(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The targets in the shape of the outputs.

    Raises:
        DataError: they have another one.
    """
    if targets.shape != outputs.shape and (*targets.shape, 1) != tuple(outputs.shape):
        raise DataError(
            f"targets have shape {tuple(targets.shape)} and the network gives {tuple(outputs.shape)}; give targets of "
            "the shape of the outputs"
        )
    return targets.reshape(outputs.shape)


def _grid(outputs: torch.Tensor) -> tuple[int, int]:
    """Components of an example, and how many numbers each has."""
    components = outputs.shape[1] if outputs.dim() > 1 else 1
    return components, outputs[0].numel() // components
