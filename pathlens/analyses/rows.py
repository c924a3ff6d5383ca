"""Rows of the lesion tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.analyses.sweep import SweepResult
from pathlens.metrics import sample_interval
from pathlens.plans import Reordering
from pathlens.residual import ResidualView
from pathlens.results.lesions import LesionRow
from pathlens.results.measured import Measured
from pathlens.results.reordering import ReorderingRow


def lesion(
    view: ResidualView, blocks: Sequence[int], sample: int | None, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of one network with some blocks deleted; ``measured`` is its own of :func:`counted`."""
    single = view[blocks[0]] if len(blocks) == 1 else None
    named: dict[str, Any] = {}
    if single:
        named = {"block": single.index, "name": single.name, "stage": single.stage, "kind": single.kind}
    return vars(LesionRow(**named, count=len(blocks), sample=sample, **_which(view, blocks), **measured))


def reordering(
    view: ResidualView,
    plan: Reordering,
    swaps: int,
    sample: int | None,
    tau: float,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """The row of one network with its blocks in another order; ``measured`` is its own of :func:`counted`."""
    moved = [block for position, block in enumerate(plan.order) if position != block]
    return vars(
        ReorderingRow(
            swaps=swaps,
            sample=sample,
            kendall_tau=tau,
            moved=len(moved),
            **_which(view, sorted(moved)),
            order=_joined(plan.order),
            **measured,
        )
    )


def mean_of(rows: Sequence[dict[str, Any]], sampled: bool, also: Sequence[str] = ()) -> dict[str, Any]:
    """The summary row of several samples: means, and their t intervals over samples.

    Args:
        rows: of the samples.
        sampled: False where these are all that exist, so that their mean has no interval.
        also: further columns of which the mean is taken.
    """
    first = rows[0]
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    keep = ("count",) if "count" in first else ("swaps",)
    return {
        **dict.fromkeys(first),
        **{name: first[name] for name in keep},
        **{name: _mean([row[name] for row in rows]) for name in also},
        **_over_samples("error", rows, sampled, (0.0, 1.0)),
        **_over_samples("difference", rows, sampled, (-1.0, 1.0)),
        "loss": _mean(losses) if len(losses) == len(rows) else None,
        "nonfinite": sum(row["nonfinite"] for row in rows),
        "n": first["n"],
    }


def _over_samples(
    name: str, rows: Sequence[dict[str, Any]], sampled: bool, bounds: tuple[float, float]
) -> dict[str, float | None]:
    values = [row[name] for row in rows]
    low, high = sample_interval(values, bounds=bounds) if sampled else (None, None)
    return {name: _mean(values), f"{name}_low": low, f"{name}_high": high}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _which(view: ResidualView, blocks: Sequence[int]) -> dict[str, Any]:
    return {
        "blocks": _joined(blocks) or None,
        "stages": _joined(view[block].stage for block in blocks) or None,
        "kinds": _joined(view[block].kind for block in blocks) or None,
    }


def _joined(items: Any) -> str:
    return ",".join(str(item) for item in items)


def counted(result: SweepResult) -> list[dict[str, Any]]:
    """The columns that end a table of lesions, for each network: what was counted, and how it differs from the intact.

    Args:
        result: of a sweep whose first network is the intact one, which is compared with nothing.
    """
    tests = result.tests()
    rows = []
    for route, counts, pair in zip(result.routes, result.counts, result.pairs, strict=True):
        error_low, error_high = counts.error_interval
        found = {"error": counts.error, "error_low": error_low, "error_high": error_high}
        if route in tests:
            low, high = pair.interval
            p, p_holm = tests[route]
            found |= {"difference": pair.difference, "difference_low": low, "difference_high": high}
            found |= {"lost": pair.lost, "gained": pair.gained, "p": p, "p_holm": p_holm}
        loss = None if counts.nonfinite else counts.loss
        rows.append({**vars(Measured()), **found, "loss": loss, "nonfinite": counts.nonfinite, "n": counts.n})
    return rows
