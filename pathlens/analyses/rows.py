"""Rows of the lesion tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pathlens.measure import ClassificationCounts, sample_interval
from pathlens.plans import Reordering
from pathlens.residual import ResidualView
from pathlens.tables import Column

_RESULT = (
    Column("error", "fraction", "share of images classified wrongly; of a summary row the mean over samples"),
    Column(
        "error_low", "fraction", "lower end of the 95 % interval: Wilson's, of a summary row Student's over samples"
    ),
    Column("error_high", "fraction", "upper end of that interval"),
    Column("loss", "nats", "mean cross-entropy; missing where the lesioned network gives NaN or infinity"),
    Column("nonfinite", "images", "images for which the lesioned network gives NaN or infinity (counted as errors)"),
    Column("n", "images", "images evaluated"),
)

LESION_COLUMNS = (
    Column("block", "", "index of the deleted block, from 0; missing for the intact network and for sets"),
    Column("name", "", "module of the deleted block"),
    Column("stage", "", "stage of the deleted block, from 0"),
    Column("kind", "", "shortcut of the deleted block, or layer of a plain network"),
    Column("count", "blocks", "number of deleted blocks; 0 is the intact network"),
    Column("sample", "", "number of the random set; missing where nothing was drawn and in summary rows"),
    Column("blocks", "", "all deleted blocks"),
    Column("stages", "", "their stages"),
    Column("kinds", "", "their kinds"),
    *_RESULT,
)

REORDERING_COLUMNS = (
    Column("swaps", "", "random exchanges of two blocks; 0 is the trained order"),
    Column("sample", "", "number of the random order; missing in the trained order and in summary rows"),
    Column("kendall_tau", "", "rank correlation of the order with the trained one"),
    Column("moved", "blocks", "blocks that are not at their trained position"),
    Column("blocks", "", "those blocks"),
    Column("stages", "", "their stages"),
    Column("kinds", "", "their kinds"),
    Column("order", "", "block that runs at each position"),
    *_RESULT,
)


def lesion(
    view: ResidualView, blocks: Sequence[int], sample: int | None, counts: ClassificationCounts
) -> dict[str, Any]:
    """The row of one network with some blocks deleted."""
    single = view[blocks[0]] if len(blocks) == 1 else None
    return {
        "block": single.index if single else None,
        "name": single.name if single else None,
        "stage": single.stage if single else None,
        "kind": single.kind if single else None,
        "count": len(blocks),
        "sample": sample,
        **_which(view, blocks),
        **_result(counts),
    }


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
    return {
        "swaps": swaps,
        "sample": sample,
        "kendall_tau": tau,
        "moved": len(moved),
        **_which(view, sorted(moved)),
        "order": _joined(plan.order),
        **_result(counts),
    }


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


def _which(view: ResidualView, blocks: Sequence[int]) -> dict[str, str | None]:
    return {
        "blocks": _joined(blocks) or None,
        "stages": _joined(view[block].stage for block in blocks) or None,
        "kinds": _joined(view[block].kind for block in blocks) or None,
    }


def _joined(items: Any) -> str:
    return ",".join(str(item) for item in items)


def _result(counts: ClassificationCounts) -> dict[str, Any]:
    low, high = counts.error_interval
    return {
        "error": counts.error,
        "error_low": low,
        "error_high": high,
        "loss": None if counts.nonfinite else counts.loss,
        "nonfinite": counts.nonfinite,
        "n": counts.n,
    }
