r"""The root mean square norm of single paths, by random signs of the blocks.

With independent signs :math:`\epsilon`, :math:`E\|\sum_p \epsilon_p g_p\|^2 = \sum_p \|g_p\|^2`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathlens.analyses.estimators.estimator import Estimator, Problem, Rows
from pathlens.analyses.provenance import Json

_STREAM = 1  # of random numbers


class Rademacher(Estimator):
    """Second moments of the norms of single paths."""

    def estimate(self, problem: Problem, rows: Rows) -> dict[str, Json]:
        """See :meth:`Estimator.estimate`."""
        _fill(rows, problem.measured(self.name, _measure))
        return {"draws": problem.request.draws}


def _measure(problem: Problem, batch: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """For each draw, the sum over examples of the squared norm at each length."""
    runner, linear = problem.opened.runner, problem.linearise(images, labels)
    rng = np.random.default_rng([problem.request.seed, _STREAM, batch])
    squares = []
    for _ in range(problem.request.draws):
        bits = rng.integers(0, 2, size=(len(problem.opened.view), len(images)))
        signs = torch.as_tensor(bits * 2 - 1, dtype=runner.dtype, device=runner.device)
        profile = linear.exact(problem.lengths[-1], 0.0, signs)
        squares.append(profile.norms().square().sum(1).tolist())
    return {"examples": len(images), "squares": squares}


def _fill(rows: Rows, results: list[dict[str, Any]]) -> None:
    """Root mean squares, and how far they are above the mean where that was estimated before."""
    examples = sum(result["examples"] for result in results)
    # for each draw the mean over all examples; draws are independent of each other
    draws = np.sum([result["squares"] for result in results], axis=0) / examples
    for index, row in enumerate(rows):
        mean, count = float(draws[:, index].mean()), row["n_paths"]
        row["path_norm_rms"] = math.sqrt(mean / count)
        if len(draws) > 1 and mean > 0:
            error = float(draws[:, index].std(ddof=1)) / math.sqrt(len(draws))
            row["path_norm_rms_error"] = error / (2 * math.sqrt(mean * count))
        elif mean == 0:
            row["path_norm_rms_error"] = 0.0
        if row["path_norm_mean"]:
            row["tail"] = row["path_norm_rms"] / row["path_norm_mean"]
