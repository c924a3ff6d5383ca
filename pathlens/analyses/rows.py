"""Rows of the lesion tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from pathlens.analyses.grouping import name_of
from pathlens.analyses.sweep import SweepResult
from pathlens.metrics import sample_interval
from pathlens.plans import Reordering
from pathlens.residual import ResidualView
from pathlens.results.lesions import LesionRow
from pathlens.results.measured import Measured
from pathlens.results.reordering import ReorderingRow
from pathlens.tables.declared import MutableRow, Row, Rows


def lesion(
    view: ResidualView, deleted: Sequence[tuple[int, ...]], numbers: Sequence[int], sample: int | None, measured: Row
) -> MutableRow:
    """The row of one network with some blocks, or layers of several blocks, deleted.

    Args:
        view: the network's blocks.
        deleted: the blocks of each thing that was deleted.
        numbers: of these things.
        sample: number of the set.
        measured: the network's own row of :func:`counted`.
    """
    columns: MutableRow = {}
    if len(deleted) == 1:
        (unit,) = deleted
        columns = {"block": numbers[0], "name": name_of(view, unit)}
        columns |= {"stage": view[unit[0]].stage, "kind": _joined(dict.fromkeys(view[block].kind for block in unit))}
    blocks = [block for unit in deleted for block in unit]
    return row_of(LesionRow, measured, **columns, count=len(deleted), sample=sample, **_which(view, blocks))


def reordering(
    view: ResidualView,
    plan: Reordering,
    swaps: int,
    sample: int | None,
    tau: float,
    measured: Row,
) -> MutableRow:
    """The row of one network with its blocks in another order; ``measured`` is its own of :func:`counted`."""
    moved = [block for position, block in enumerate(plan.order) if position != block]
    return row_of(
        ReorderingRow,
        measured,
        swaps=swaps,
        sample=sample,
        kendall_tau=tau,
        moved=len(moved),
        **_which(view, sorted(moved)),
        order=_joined(plan.order),
    )


def row_of(kind: type, measured: Row, /, **columns: Any) -> MutableRow:
    """A row of a table of lesions, with what its task measures beside the columns that are declared.

    Args:
        kind: dataclass of the row.
        measured: the network's own row of :func:`counted`.
        **columns: the others that are declared.
    """
    declared = {column.name for column in fields(kind)}
    return {**vars(kind(**columns, **{name: measured[name] for name in measured if name in declared})), **measured}


def mean_of(rows: Rows, is_sample: bool, also: Sequence[str] = (), keep: Sequence[str] | None = None) -> MutableRow:
    """The summary row of several samples: means, and their t intervals over samples.

    Args:
        rows: of the samples.
        is_sample: False where these are all that exist, so that their mean has no interval.
        also: further columns of which the mean is taken.
        keep: columns that are the same for all samples (default: how many blocks are deleted or exchanged).
    """
    first = rows[0]
    largest = math.inf if "rmse" in first else 1.0  # relative squared errors are no shares
    if keep is None:
        keep = ("count",) if "count" in first else ("swaps",)
    return {
        **dict.fromkeys(first),
        **{name: first[name] for name in keep},
        **{name: _mean([row[name] for row in rows]) for name in also},
        **_over_samples("error", rows, is_sample, (0.0, largest)),
        **_over_samples("difference", rows, is_sample, (-largest, largest)),
        "loss": _mean_of_known("loss", rows),
        "nonfinite": sum(row["nonfinite"] for row in rows),
        "n": first["n"],
        **{name: _mean_of_known(name, rows) for name in first if name.startswith(("iou", "rmse"))},
        **(_over_samples("iou", rows, is_sample, (0.0, 1.0)) if "iou" in first else {}),
    }


def _mean_of_known(name: str, rows: Rows) -> float | None:
    """The mean of a column, which is missing where one of its values is."""
    values = [row[name] for row in rows]
    return None if None in values else _mean(values)


def _over_samples(name: str, rows: Rows, is_sample: bool, bounds: tuple[float, float]) -> dict[str, float | None]:
    values = [row[name] for row in rows]
    low, high = sample_interval(values, bounds=bounds) if is_sample else (None, None)
    return {name: _mean(values), f"{name}_low": low, f"{name}_high": high}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _which(view: ResidualView, blocks: Sequence[int]) -> MutableRow:
    return {
        "blocks": _joined(blocks) or None,
        "stages": _joined(view[block].stage for block in blocks) or None,
        "kinds": _joined(view[block].kind for block in blocks) or None,
    }


def _joined(items: Iterable[object]) -> str:
    return ",".join(str(item) for item in items)


def counted(result: SweepResult) -> list[MutableRow]:
    """The columns that end a table of lesions, for each network: what was counted, and how it differs from the intact.

    Args:
        result: of a sweep whose first network is the intact one, which is compared with nothing.
    """
    tests = result.tests
    rows = []
    for route, counts, pair in zip(result.routes, result.counts, result.pairs, strict=True):
        row = {**vars(Measured()), **counts.columns(), "nonfinite": counts.nonfinite}
        if route in tests:
            low, high = pair.interval
            p, p_holm = tests[route]
            row |= {"difference": pair.difference, "difference_low": low, "difference_high": high}
            row |= {"lost": pair.lost, "gained": pair.gained, "p": p, "p_holm": p_holm}
        rows.append(row)
    return rows
