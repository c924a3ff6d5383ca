"""The norm of the sum over all paths of each length, by the recurrence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathlens.analyses.estimators.estimator import Estimator, Problem, Rows
from pathlens.analyses.provenance import Json
from pathlens.errors import NumericsError

#: largest relative difference between the sum over lengths and autograd's gradient that rounding explains
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


class Exact(Estimator):
    r"""The norm :math:`\|G_k\|` of the sum over all paths of length k, and how exact their sum is."""

    def estimate(self, problem: Problem, rows: Rows) -> dict[str, Json]:
        """See :meth:`Estimator.estimate`.

        Raises:
            NumericsError: the sum over lengths is not autograd's gradient.
        """
        results = problem.measured(self.name, _measure)
        _fill(rows, results)
        difference = math.sqrt(sum(r["missing"] for r in results) / max(sum(r["whole"] for r in results), 1e-300))
        cut = problem.request.max_length is not None or problem.request.tolerance > 0
        limit = _ROUNDING.get(problem.opened.runner.dtype)
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


def _measure(problem: Problem, _batch: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Sums over the examples of norms and their squares, and the gradient that autograd gives."""
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


def _fill(rows: Rows, results: list[dict[str, Any]]) -> None:
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
