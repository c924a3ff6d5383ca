"""Rows of the tables of path gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pathlens.analyses.estimators.sampled import Sampler
from pathlens.paths import path_counts
from pathlens.residual.routes import Route, path_blocks
from pathlens.results import path_profile
from pathlens.results.lattice import LatticeRow
from pathlens.results.path_profile import PathRow


class Rows:
    """Collects what the methods found, length by length."""

    def __init__(self, free: int, shortest: int, longest: int) -> None:
        """Rows for paths that choose at ``free`` blocks and take ``shortest`` others in any case."""
        self._counts = path_counts(free)[: longest - shortest + 1]
        self._rows: list[dict[str, Any]] = [
            vars(PathRow(length=shortest + chosen, n_paths=count)) for chosen, count in enumerate(self._counts)
        ]

    def exact(self, results: list[dict[str, Any]]) -> None:
        """Norms of the sums over all paths of each length."""
        examples = sum(result["examples"] for result in results)
        sums = np.sum([result["sums"] for result in results], axis=0)
        squares = np.sum([result["squares"] for result in results], axis=0)
        means = sums / examples
        everything = math.fsum(means)
        for row, mean, square in zip(self._rows, means, squares, strict=True):
            spread = math.sqrt(max(0.0, square / examples - mean**2) / max(1, examples - 1))
            row["total_norm"] = float(mean)
            row["total_low"], row["total_high"] = float(max(0.0, mean - 1.96 * spread)), float(mean + 1.96 * spread)
            row["total_share"] = float(mean / everything) if everything else 0.0

    def signed(self, results: list[dict[str, Any]]) -> None:
        """Root mean square norms of single paths."""
        examples = sum(result["examples"] for result in results)
        # for each draw the mean over all examples; draws are independent of each other
        draws = np.sum([result["squares"] for result in results], axis=0) / examples
        for index, (row, count) in enumerate(zip(self._rows, self._counts, strict=True)):
            mean = float(draws[:, index].mean())
            row["path_norm_rms"] = math.sqrt(mean / count)
            if len(draws) > 1 and mean > 0:
                error = float(draws[:, index].std(ddof=1)) / math.sqrt(len(draws))
                row["path_norm_rms_error"] = error / (2 * math.sqrt(mean * count))
            elif mean == 0:
                row["path_norm_rms_error"] = 0.0

    def sampled(self, sampler: Sampler) -> None:
        """Norms of sampled single paths; the sampler counts the blocks that a path chose."""
        for chosen, row in enumerate(self._rows):
            norms = np.array(sampler.norms[chosen])
            row["path_norm_mean"] = sampler.mean(chosen)
            row["path_norm_low"], row["path_norm_high"] = sampler.intervals[chosen]
            row["path_norm_q05"], row["path_norm_median"], row["path_norm_q95"] = (
                float(value) for value in np.quantile(norms, (0.05, 0.5, 0.95))
            )
            row["samples"] = len(sampler.means[chosen])
            row["stopped"] = sampler.stopped[chosen]
        contributions: list[Any] = path_profile.contributions(self._rows, "sampled")
        everything = math.fsum(contributions)
        for row, contribution in zip(self._rows, contributions, strict=True):
            row["contribution"] = contribution
            row["contribution_share"] = contribution / everything if everything else 0.0

    def finished(self) -> list[dict[str, Any]]:
        """The rows, with what follows from two methods together."""
        for row in self._rows:
            if row["path_norm_rms"] is not None and row["path_norm_mean"]:
                row["tail"] = row["path_norm_rms"] / row["path_norm_mean"]
        return self._rows

    def contributions(self) -> dict[str, list[float]]:
        """What each length contributes, by method: sampled (the paper's), exact, and from the second moment."""
        found: dict[str, list[Any]] = {
            method: path_profile.contributions(self._rows, method) for method in path_profile.METHODS
        }
        return {method: values for method, values in found.items() if any(values)}


def lattice(sums: dict[tuple[int, int], float], examples: int, route: Route) -> list[dict[str, Any]]:
    """Rows of the lattice, from the loss down."""
    rows = []
    boundaries = sorted({boundary for boundary, _ in sums}, reverse=True)
    for boundary in boundaries:
        here = {length: total / examples for (place, length), total in sums.items() if place == boundary}
        everything = math.fsum(here.values())
        free, forced = path_blocks(route, max(0, boundary))
        counts = path_counts(len(free))
        for length in sorted(here):
            rows.append(
                vars(
                    LatticeRow(
                        boundary=boundary,
                        length=length,
                        n_paths=counts[length - len(forced)],
                        norm=here[length],
                        share=here[length] / everything if everything else 0.0,
                    )
                )
            )
    return rows
