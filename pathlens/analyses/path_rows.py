"""Rows of the tables of path gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pathlens.analyses.estimators.sampled import Sampler
from pathlens.paths import path_counts
from pathlens.residual.routes import Route, path_blocks
from pathlens.tables import Column

_NORM = "loss per unit of input"

COLUMNS = (
    Column("length", "blocks", "number of branches that a path takes"),
    Column("n_paths", "", "number of paths of this length, exact"),
    Column("total_norm", _NORM, "norm of the sum over all paths of this length, mean over examples (exact)"),
    Column("total_low", _NORM, "lower end of its 95 % interval over examples"),
    Column("total_high", _NORM, "upper end of that interval"),
    Column("total_share", "fraction", "total_norm over the sum of total_norm of all lengths"),
    Column("path_norm_mean", _NORM, "mean norm of one path, over sampled paths and examples; heavy-tailed: see rms"),
    Column("path_norm_low", _NORM, "lower end of its 95 % bootstrap interval over paths"),
    Column("path_norm_high", _NORM, "upper end of that interval"),
    Column("path_norm_median", _NORM, "median over sampled paths and examples"),
    Column("path_norm_q05", _NORM, "5 % quantile"),
    Column("path_norm_q95", _NORM, "95 % quantile"),
    Column("path_norm_rms", _NORM, "root mean square over all paths and examples, by random signs"),
    Column("path_norm_rms_error", _NORM, "its standard error over draws of signs"),
    Column("tail", "", "path_norm_rms over path_norm_mean: far above 1 means that few paths carry most of the norm"),
    Column("contribution", _NORM, "n_paths times path_norm_mean (the paper's)"),
    Column("contribution_share", "fraction", "contribution over its sum over all lengths"),
    Column("samples", "", "sampled paths, those of different batches counted apart"),
    Column(
        "stopped", "", "why sampling ended: interval (narrow enough), budget (spent) or all paths (nothing to draw)"
    ),
)

LATTICE_COLUMNS = (
    Column("boundary", "", "i for the gradient at x_i; -1 is the input"),
    Column("length", "blocks", "branches between the loss and there"),
    Column("n_paths", "", "paths of that length from the loss to there, exact"),
    Column("norm", _NORM, "norm of the summed gradient, mean over examples"),
    Column("share", "fraction", "norm over the sum of norms at this boundary"),
)


class Rows:
    """Collects what the methods found, length by length."""

    def __init__(self, free: int, shortest: int, longest: int) -> None:
        """Rows for paths that choose at ``free`` blocks and take ``shortest`` others in any case."""
        self._counts = path_counts(free)[: longest - shortest + 1]
        names = [column.name for column in COLUMNS]
        self._rows: list[dict[str, Any]] = [dict.fromkeys(names) for _ in self._counts]
        for chosen, (row, count) in enumerate(zip(self._rows, self._counts, strict=True)):
            row["length"], row["n_paths"] = shortest + chosen, count

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
            row["contribution"] = float(row["n_paths"]) * row["path_norm_mean"]
            row["samples"] = len(sampler.means[chosen])
            row["stopped"] = sampler.stopped[chosen]
        everything = math.fsum(row["contribution"] for row in self._rows)
        for row in self._rows:
            row["contribution_share"] = row["contribution"] / everything if everything else 0.0

    def finished(self) -> list[dict[str, Any]]:
        """The rows, with what follows from two methods together."""
        for row in self._rows:
            if row["path_norm_rms"] is not None and row["path_norm_mean"]:
                row["tail"] = row["path_norm_rms"] / row["path_norm_mean"]
        return self._rows

    def contributions(self) -> dict[str, list[float]]:
        """What each length contributes, by method: sampled (the paper's), exact, and from the second moment."""
        found = {}
        if self._rows[0]["contribution"] is not None:
            found["sampled"] = [row["contribution"] for row in self._rows]
        if self._rows[0]["total_norm"] is not None:
            found["exact"] = [row["total_norm"] for row in self._rows]
        if self._rows[0]["path_norm_rms"] is not None:
            found["signed"] = [float(row["n_paths"]) * row["path_norm_rms"] for row in self._rows]
        return {kind: values for kind, values in found.items() if any(values)}


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
                {
                    "boundary": boundary,
                    "length": length,
                    "n_paths": counts[length - len(forced)],
                    "norm": here[length],
                    "share": here[length] / everything if everything else 0.0,
                }
            )
    return rows
