r"""The sum over all paths of each length, by the recurrence: its norm, and its share in the gradient.

Norms do not add up: sums of different lengths cancel each other. What adds up are their components along the gradient g
of the same example: :math:`\sum_k \langle G_k, g \rangle / \|g\|^2 = 1`. A length's share may be negative, where its
paths pull against the whole.

Over examples the shares are averaged with the weights :math:`\|g\|`, so the share of a table is the mean of
:math:`\langle G_k, g \rangle / \|g\|` over the mean of :math:`\|g\|`: both in the unit of ``total_norm`` and weighted
as it is, and ``total_norm`` is at least the former, with equality where all of :math:`G_k` points along the gradient.
Without weights the shares of examples whose gradient is next to nothing, and rounding, would count like all others;
with :math:`\|g\|^2` a few examples with large gradients would be all that counts. With any of these shares sum to 1.
The interval is that of a ratio of means over independent examples (Cochran 1977, Sampling Techniques, section 6.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np

from pathlens.errors import NumericsError
from pathlens.estimators.estimator import NORM, Estimator, Problem
from pathlens.estimators.resampling import example_weights
from pathlens.tables import Json
from pathlens.tables.declared import MutableRow, Row, Shown, column, formatted

if TYPE_CHECKING:
    import torch

#: largest relative difference between the sum over lengths and autograd's gradient that rounding explains, by type; for
#: those that round more coarsely none is known
_ROUNDING = {"float64": 1e-9, "float32": 1e-3}


def _percent(row: Row, name: str) -> str:
    return "" if row[name] is None else f"{100 * row[name]:+.2f}"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Norms of the sums over all paths of a length."""

    total_norm: float | None = column(NORM, "norm of the sum over all paths of this length, mean over examples (exact)")
    total_low: float | None = column(
        NORM, "lower end of its 95 % interval over examples (Student's); missing for a single one"
    )
    total_high: float | None = column(NORM, "upper end of that interval")
    total_share: float | None = column(
        "fraction", "total_norm over the sum of total_norm of all lengths; missing where max_length leaves some out"
    )
    share: float | None = column(
        "fraction",
        "component of that sum along the gradient, mean over examples, over the mean norm of the gradient: sums to 1 "
        "over all lengths, negative where the length pulls against the whole (exact)",
    )
    share_low: float | None = column(
        "fraction", "lower end of its 95 % interval over examples (Student's); missing for a single one"
    )
    share_high: float | None = column("fraction", "upper end of that interval")


class Exact(Estimator):
    r"""The norm :math:`\|G_k\|` of the sum over all paths of length k, and how exact their sum is."""

    columns = Columns
    shown: ClassVar[Mapping[str, Shown]] = {
        "total_norm": Shown("total norm\n(exact)", formatted(".3g")),
        "share": Shown("along the\ngradient %", _percent, gives_way=3),
    }
    norm = "total_norm"
    interval = ("total_low", "total_high")
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
        norms = np.concatenate([result["norms"] for result in results], axis=1)
        examples = norms.shape[1]
        if examples > 1:
            self.resampled = example_weights(problem.request.seed, examples) @ norms.T / examples
        _fill(rows, norms, problem.is_whole)
        _fill_shares(rows, results, examples)
        difference = math.sqrt(sum(r["missing"] for r in results) / max(sum(r["whole"] for r in results), 1e-300))
        cut = problem.request.max_length is not None or problem.request.tolerance > 0
        limit = _ROUNDING.get(problem.dtype_name)
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
        norms: for each length, the norm for each example.
        along: for each length, the sum over examples of the component along the example's gradient.
        along_squares: likewise of its square.
        along_gradient: likewise of its product with the norm of the gradient.
        missing: squared norm of the difference between the sum over lengths and autograd's gradient.
        whole: squared norm of autograd's gradient.
        gradient: sum over examples of the norm of autograd's gradient.
        kept: shortest and longest length that was not left out.
    """

    examples: int
    norms: list[list[float]]
    along: list[float]
    along_squares: list[float]
    along_gradient: list[float]
    missing: float
    whole: float
    gradient: float
    kept: list[int]


def _measure(problem: Problem, _batch: int, images: torch.Tensor, labels: torch.Tensor) -> _Sums:
    import torch

    lengths, linear = problem.lengths, problem.linearise(images, labels)
    profile = linear.exact(lengths[-1], problem.request.tolerance)
    gradients, reference = profile.gradients, linear.reference.double()
    missing = (gradients.sum(0).double() - reference).square().sum()
    flat = reference.flatten(1)
    size = torch.linalg.vector_norm(flat, dim=1)
    direction = flat / size.where(size > 0, torch.ones_like(size))[:, None]
    # length by length, because all of them in float64 take much memory
    along = torch.stack([(gradient.flatten(1).double() * direction).sum(1) for gradient in gradients])
    norms, along = (placed(values, profile.lengths, lengths) for values in (profile.norms(), along))
    return {
        "examples": len(images),
        "norms": norms.tolist(),
        "along": along.sum(1).tolist(),
        "along_squares": along.square().sum(1).tolist(),
        "along_gradient": (along * size.cpu()).sum(1).tolist(),
        "missing": float(missing),
        "whole": float(reference.square().sum()),
        "gradient": float(size.sum()),
        "kept": [profile.lengths.start, profile.lengths.stop - 1],
    }


def placed(values: torch.Tensor, computed: range, lengths: range) -> torch.Tensor:
    """Values of the lengths that were computed as rows among all lengths of the table, on the CPU; others are zero."""
    rows = values.new_zeros(len(lengths), values.shape[1], device="cpu")
    rows[computed.start - lengths.start : computed.stop - lengths.start] = values.cpu()
    return rows


def half_interval(examples: int) -> float:
    """Half a 95 % interval of a mean over examples, in standard errors (Student)."""
    from scipy.special import stdtrit

    return float(stdtrit(examples - 1, 0.975))


def _fill(rows: Sequence[MutableRow], norms: np.ndarray, is_whole: bool = True) -> None:
    """Means over examples with their intervals, and where all lengths are there their shares."""
    examples = norms.shape[1]
    means = norms.sum(1) / examples
    everything = math.fsum(means)
    for row, mean, own in zip(rows, means, norms, strict=True):
        row["total_norm"] = float(mean)
        if is_whole:
            row["total_share"] = float(mean / everything) if everything else 0.0
        if examples > 1:
            # norms of very long paths are so small that their squares are zeros
            scale = float(own.max()) or 1.0
            half = half_interval(examples) * float(np.std(own / scale, ddof=1)) * scale / math.sqrt(examples)
            row["total_low"], row["total_high"] = float(max(0.0, mean - half)), float(mean + half)


def _fill_shares(rows: Sequence[MutableRow], results: Sequence[_Sums], examples: int) -> None:
    """Components along the gradient over its norm, each a ratio of means over examples, with their intervals."""
    norms, squares = sum(result["gradient"] for result in results), sum(result["whole"] for result in results)
    along = np.sum([result["along"] for result in results], axis=0)
    along_squares = np.sum([result["along_squares"] for result in results], axis=0)
    along_gradient = np.sum([result["along_gradient"] for result in results], axis=0)
    if not norms:
        return
    shares = along / norms
    # the squares of what each example's component differs from the mean share of its gradient
    left = (along_squares - 2 * shares * along_gradient + shares**2 * squares).clip(0)
    for row, share in zip(rows, shares, strict=True):
        row["share"] = float(share)
    if examples > 1:
        halves = half_interval(examples) * np.sqrt(left * examples / (examples - 1)) / norms
        for row, share, half in zip(rows, shares, halves, strict=True):
            row["share_low"], row["share_high"] = float(share - half), float(share + half)
