"""Tables of lesions made by hand, and what a figure draws of them."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.container import ErrorbarContainer

from pathlens import figures
from pathlens.tables import Table
from tests.helpers.figure_checks import table

INTERVAL = ["error", "error_low", "error_high", "loss", "n"]
LESION = ["block", "blocks", "name", "stage", "kind", "count", "sample", *INTERVAL]
REORDER = ["swaps", "sample", "kendall_tau", *INTERVAL, "order"]


def measured(error: float, n: int = 1000, **rest: object) -> dict:
    """A row with its error, the interval of so many images, and what else it says."""
    half = 1.96 * math.sqrt(error * (1 - error) / n)
    facts = {"error": error, "error_low": max(0.0, error - half), "error_high": min(1.0, error + half)}
    return {**facts, "loss": 3 * error, "n": n, **rest}


def single(stages: list[int], turn: str = "projection", base: float = 0.06, n: int = 1000) -> Table:
    """A table of single deletions, stage by stage; blocks that change shapes cost more."""
    generator = np.random.default_rng(0)
    rows, block = [measured(base, n, count=0)], 0
    for stage, length in enumerate(stages):
        for place in range(length):
            turns = stage > 0 and place == 0 and turn != "identity"
            error = base + 0.004 * generator.gamma(1.2) + 0.1 / (place + 1) + 0.4 * turns
            kind = turn if turns else "identity"
            facts = {"block": block, "blocks": str(block), "name": f"layer{stage + 1}.{place}", "stage": stage}
            rows.append(measured(float(min(0.9, error)), n, count=1, kind=kind, **facts))
            block += 1
    return table(LESION, rows)


def sets(top: int = 20, samples: int = 10) -> Table:
    """A table of random sets of blocks, with the mean over those of a size."""
    generator = np.random.default_rng(1)
    rows = [measured(0.06, count=0)]
    for count in range(1, top + 1):
        errors = np.clip(0.9 / (1 + np.exp((9 - count) / 3 + generator.normal(size=samples))), 0.06, 0.9)
        rows += [measured(float(error), count=count, sample=i, blocks="1,2") for i, error in enumerate(errors)]
        spread = float(errors.std())
        mean = float(errors.mean())
        rows.append({"count": count, "error": mean, "error_low": mean - spread, "error_high": mean + spread})
    return table(LESION, rows)


def bars(figure: figures.Figure) -> dict[str, dict[float, tuple[float, float, float]]]:
    """By label: x -> (y, lower end, upper end) of what was drawn with error bars."""
    found = {}
    for container in figure.axes[0].containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (ends,) = container.lines
        segments = ends.get_segments()
        found[container.get_label()] = {
            float(x): (float(y), float(s[0][1]), float(s[-1][1]))
            for x, y, s in zip(*line.get_data(), segments, strict=True)
        }
    return found
