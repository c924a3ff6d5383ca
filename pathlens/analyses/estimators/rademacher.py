r"""The root mean square norm of single paths, by random signs of the blocks.

With independent signs :math:`\epsilon`, :math:`E\|\sum_p \epsilon_p g_p\|^2 = \sum_p \|g_p\|^2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pathlens.analyses.estimators.estimator import Estimator, Problem
from pathlens.analyses.provenance import Json

if TYPE_CHECKING:
    from pathlens.analyses.path_rows import Rows

_STREAM = 1  # of random numbers


class Rademacher(Estimator):
    """Second moments of the norms of single paths."""

    def estimate(self, problem: Problem, rows: Rows) -> dict[str, Json]:
        """See :meth:`Estimator.estimate`."""
        rows.signed(problem.measured(self.name, _measure))
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
