"""Rows of the lesion tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pathlens.metrics import ClassificationCounts, sample_interval
from pathlens.plans import Reordering
from pathlens.residual import ResidualView
from pathlens.results.lesions import LesionRow
from pathlens.results.reordering import ReorderingRow


def lesion(
    view: ResidualView, blocks: Sequence[int], sample: int | None, counts: ClassificationCounts
) -> dict[str, Any]:
    """The row of one network with some blocks deleted."""
    single = view[blocks[0]] if len(blocks) == 1 else None
    named: dict[str, Any] = {}
    if single:
        named = {"block": single.index, "name": single.name, "stage": single.stage, "kind": single.kind}
    return vars(
        LesionRow(
            **named,
            count=len(blocks),
            sample=sample,
            **_which(view, blocks),
            **counted(counts),
        )
    )


def reordering(
    view: ResidualView,
    plan: Reordering,
    swaps: int,
    sample: int | None,
    tau: float,
    counts: ClassificationCounts,
) -> dict[str, Any]:
    """The row of one network with its blocks in another order."""
    moved = [block for position, block in enumerate(plan.order) if position != block]
    return vars(
        ReorderingRow(
            swaps=swaps,
            sample=sample,
            kendall_tau=tau,
            moved=len(moved),
            **_which(view, sorted(moved)),
            order=_joined(plan.order),
            **counted(counts),
        )
    )


def mean_of(rows: Sequence[dict[str, Any]], also: Sequence[str] = ()) -> dict[str, Any]:
    """The summary row of several samples: means, and the t interval of the error over samples."""
    first = rows[0]
    errors = [row["error"] for row in rows]
    low, high = sample_interval(errors, bounds=(0.0, 1.0))
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    keep = ("count",) if "count" in first else ("swaps",)
    return {
        **dict.fromkeys(first),
        **{name: first[name] for name in keep},
        **{name: math.fsum(row[name] for row in rows) / len(rows) for name in also},
        "error": math.fsum(errors) / len(errors),
        "error_low": low,
        "error_high": high,
        "loss": math.fsum(losses) / len(losses) if len(losses) == len(rows) else None,
        "nonfinite": sum(row["nonfinite"] for row in rows),
        "n": first["n"],
    }


def _which(view: ResidualView, blocks: Sequence[int]) -> dict[str, Any]:
    return {
        "blocks": _joined(blocks) or None,
        "stages": _joined(view[block].stage for block in blocks) or None,
        "kinds": _joined(view[block].kind for block in blocks) or None,
    }


def _joined(items: Any) -> str:
    return ",".join(str(item) for item in items)


def counted(counts: ClassificationCounts) -> dict[str, Any]:
    """The columns that end a table of lesions: what was counted of one network."""
    low, high = counts.error_interval
    return {
        "error": counts.error,
        "error_low": low,
        "error_high": high,
        "loss": None if counts.nonfinite else counts.loss,
        "nonfinite": counts.nonfinite,
        "n": counts.n,
    }
