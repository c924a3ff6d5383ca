r"""The root mean square norm of single paths, by random signs of the blocks, or of all ways where blocks are no chain.

With independent signs :math:`\epsilon`, :math:`E\|\sum_p \epsilon_p g_p\|^2 = \sum_p \|g_p\|^2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np

from pathlens.estimators.estimator import NORM, Estimator, Problem
from pathlens.estimators.exact import placed
from pathlens.estimators.resampling import example_weights
from pathlens.tables import Json
from pathlens.tables.declared import MutableRow, Shown, column, formatted

if TYPE_CHECKING:
    from torch import Tensor

_STREAM = 1  # part of the random seed, different from those of other estimators


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Root mean square norms of single paths."""

    path_norm_rms: float | None = column(NORM, "root mean square over all paths and examples, by random signs")
    path_norm_rms_error: float | None = column(
        NORM, "its standard error over draws of signs, for these examples; missing for a single draw"
    )
    tail: float | None = column(
        "", "path_norm_rms over path_norm_mean: far above 1 means that few paths carry most of the norm"
    )


class Rademacher(Estimator):
    """Second moments of the norms of single paths."""

    columns = Columns
    shown: ClassVar[Mapping[str, Shown]] = {
        "path_norm_rms": Shown("\nrms", formatted(".3g")),
        "path_norm_rms_error": Shown("standard\nerror", formatted(".2g"), gives_way=6),
    }
    norm = "path_norm_rms"
    of_one = True
    rank = 2
    on_terminal = "root mean square contribution"
    in_headline = "root mean squares"
    in_chart = "paths × root mean square"
    look: ClassVar[Mapping[str, Any]] = {"colour": 1, "line": "dash"}

    def estimate(self, problem: Problem, rows: Sequence[MutableRow]) -> Mapping[str, Json]:
        """See :meth:`Estimator.estimate`."""
        results = list(problem.measure(self.name, partial(_measure, problem)).values())
        # draws of signs, lengths, examples
        norms = np.concatenate([result["norms"] for result in results], axis=2)
        scales = scales_of(norms.max((0, 2)))
        squares = np.square(norms / scales[:, None])
        examples = squares.shape[2]
        _fill(rows, squares.sum(2) / examples, scales)
        if examples > 1:
            # signs of an example are drawn anew with it, as if they were its own; relative to the mean, because numbers
            # of paths may exceed the range of floats
            means = squares.mean((0, 2))
            relative = example_weights(problem.request.seed, examples) @ squares.mean(0).T / examples
            relative /= np.where(means > 0, means, 1.0)
            rms = np.array([np.nan if row["path_norm_rms"] is None else row["path_norm_rms"] for row in rows])
            self.resampled = np.sqrt(relative) * rms
        return {"draws": problem.request.num_samples}


class _Norms(TypedDict):
    """For each sample of signs, length and example of a batch the norm."""

    norms: list[list[list[float]]]


def _measure(problem: Problem, batch: int, images: Tensor, labels: Tensor) -> _Norms:
    import torch

    linear = problem.linearise(images, labels)
    rng = np.random.default_rng([problem.request.seed % 2**64, _STREAM, batch])
    norms = []
    for _ in range(problem.request.num_samples):
        # where batch norms mix examples, a path that goes through several has one sign in all
        bits = rng.integers(0, 2, size=(problem.signs, 1 if problem.mixes else len(images)))
        signs = torch.as_tensor(bits * 2 - 1, dtype=problem.dtype, device=problem.device).expand(-1, len(images))
        profile = linear.exact(problem.lengths[-1], 0.0, signs)
        norms.append(placed(profile.norms(), profile.lengths, problem.lengths).tolist())
    return {"norms": norms}


def scales_of(norms: np.ndarray) -> np.ndarray:
    """Powers of two by which norms are divided before they are squared, so that the squares of small ones are no zeros.

    Args:
        norms: the largest of each length.
    """
    return np.ldexp(1.0, np.frexp(np.where(norms > 0, norms, 1.0))[1])


def _fill(rows: Sequence[MutableRow], samples: np.ndarray, scales: np.ndarray | None = None) -> None:
    """Root mean squares, and how far they are above the mean where that was estimated before.

    Args:
        rows: of the table.
        samples: for each sample of signs, which are independent of each other, means of squares over all examples by
            length, of norms that were divided by the scales.
        scales: by length (default: 1).
    """
    scales = np.ones(len(rows)) if scales is None else scales
    for index, row in enumerate(rows):
        mean, count = float(samples[:, index].mean()), row["n_paths"]
        if not count:
            continue
        row["path_norm_rms"] = float(scales[index]) * math.sqrt(float(Fraction(mean) / count))
        if len(samples) > 1 and mean > 0:
            error = float(samples[:, index].std(ddof=1)) / math.sqrt(len(samples))
            row["path_norm_rms_error"] = row["path_norm_rms"] * error / (2 * mean)
        elif mean == 0:
            row["path_norm_rms_error"] = 0.0
        if row.get("path_norm_mean"):
            row["tail"] = row["path_norm_rms"] / row["path_norm_mean"]
