"""The norm of the sum over all paths of each length, by the recurrence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np

from pathlens.errors import NumericsError
from pathlens.estimators.estimator import NORM, Estimator, Problem
from pathlens.tables import Json
from pathlens.tables.declared import MutableRow, Shown, column, formatted

if TYPE_CHECKING:
    import torch

#: largest relative difference between the sum over lengths and autograd's gradient that rounding explains
_ROUNDING = {"torch.float64": 1e-9, "torch.float32": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Norms of the sums over all paths of a length."""

    total_norm: float | None = column(NORM, "norm of the sum over all paths of this length, mean over examples (exact)")
    total_low: float | None = column(NORM, "lower end of its 95 % interval over examples")
    total_high: float | None = column(NORM, "upper end of that interval")
    total_share: float | None = column("fraction", "total_norm over the sum of total_norm of all lengths")


class Exact(Estimator):
    r"""The norm :math:`\|G_k\|` of the sum over all paths of length k, and how exact their sum is."""

    columns = Columns
    shown: ClassVar[Mapping[str, Shown]] = {"total_norm": Shown("total norm\n(exact)", formatted(".3g"))}
    norm = "total_norm"
    of_one = False
    rank = 1
    on_terminal = "exact sums"
    in_headline = "exact sums"
    in_chart = "sum over all paths (exact)"
    look: ClassVar[Mapping[str, Any]] = {"colour": 2}

    def estimate(self, problem: Problem, rows: Sequence[MutableRow]) -> Mapping[str, Json]:
        """See :meth:`Estimator.estimate`.

        Raises:
            NumericsError: the sum over lengths is not autograd's gradient.
        """
        results = list(problem.measure(self.name, partial(_measure, problem)).values())
        _fill(rows, results)
        difference = math.sqrt(sum(r["missing"] for r in results) / max(sum(r["whole"] for r in results), 1e-300))
        cut = problem.request.max_length is not None or problem.request.tolerance > 0
        limit = _ROUNDING.get(str(problem.dtype))
        if not cut and limit is not None and not difference <= limit:
            raise NumericsError(
                f"the sum over all path lengths differs from autograd's gradient by {difference:.1e} of its norm, more "
                f"than rounding explains (limit {limit:.0e}); use --dtype float64"
            )
        return {
            "gradient_norm": sum(r["gradient"] for r in results) / sum(r["examples"] for r in results),
            "relative_difference_to_autograd": difference,
            "lengths_kept": [min(r["kept"][0] for r in results), max(r["kept"][1] for r in results)],
            "left_out": "lengths beyond those kept; their sum is the relative difference" if cut else "nothing",
        }


class _Sums(TypedDict):
    """Measurements on one batch.

    Attributes:
        examples: their number.
        sums: for each length, the sum over examples of the norm.
        squares: likewise of its square.
        missing: squared norm of the difference between the sum over lengths and autograd's gradient.
        whole: squared norm of autograd's gradient.
        gradient: sum over examples of the norm of autograd's gradient.
        kept: shortest and longest length that was not left out.
    """

    examples: int
    sums: list[float]
    squares: list[float]
    missing: float
    whole: float
    gradient: float
    kept: list[int]


def _measure(problem: Problem, _batch: int, images: torch.Tensor, labels: torch.Tensor) -> _Sums:
    import torch

    lengths, linear = problem.lengths, problem.linearise(images, labels)
    profile = linear.exact(lengths[-1], problem.request.tolerance)
    norms = torch.zeros(len(lengths), len(images), dtype=torch.float64)
    norms[profile.lengths.start - lengths.start : profile.lengths.stop - lengths.start] = profile.norms().cpu()
    reference = linear.reference.double()
    missing = (profile.total().double() - reference).square().sum()
    per_example = torch.linalg.vector_norm(reference.flatten(1), dim=1)
    return {
        "examples": len(images),
        "sums": norms.sum(1).tolist(),
        "squares": norms.square().sum(1).tolist(),
        "missing": float(missing),
        "whole": float(reference.square().sum()),
        "gradient": float(per_example.sum()),
        "kept": [profile.lengths.start, profile.lengths.stop - 1],
    }


def _fill(rows: Sequence[MutableRow], results: Sequence[_Sums]) -> None:
    """Means over examples with their intervals, and the share of each length."""
    examples = sum(result["examples"] for result in results)
    means = np.sum([result["sums"] for result in results], axis=0) / examples
    squares = np.sum([result["squares"] for result in results], axis=0)
    everything = math.fsum(means)
    for row, mean, square in zip(rows, means, squares, strict=True):
        spread = math.sqrt(max(0.0, square / examples - mean**2) / max(1, examples - 1))
        row["total_norm"] = float(mean)
        row["total_low"], row["total_high"] = float(max(0.0, mean - 1.96 * spread)), float(mean + 1.96 * spread)
        row["total_share"] = float(mean / everything) if everything else 0.0
