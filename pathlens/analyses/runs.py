"""Runs of neighbouring blocks or layers that are carried out in another way than one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Unpack

import numpy as np
from torch import nn

from pathlens import plans
from pathlens.analyses import rows
from pathlens.analyses.evaluation import run_plans, view_for
from pathlens.analyses.grouping import GROUPS, name_of, units_of
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.sources import Data
from pathlens.errors import UsageError
from pathlens.plans import Plan
from pathlens.residual import ResidualView
from pathlens.results.runs import RUNS, WAYS, RunRow
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow

REVERSE = "reverse"


def reorder_blocks_runs(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    runs: str = REVERSE,
    count: int | Iterable[int] = 2,
    times: int | None = None,
    group: str = GROUPS[0],
    **options: Unpack[SweepOptions],
) -> Table:
    """Error with every run of neighbours of some sizes carried out in another way.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        runs: ``reverse``, which exchanges the two neighbours of a run of 2; ``parallel``: all start from what enters
            the run, and what they give is averaged; ``middle``: the middle one in the place of each; or ``repeat``:
            the run again.
        count: blocks, or layers, of a run.
        times: how often, of ``parallel`` (default: 1) and ``repeat`` (default: 2).
        group: ``block``, or ``layer`` for runs of whole layers (the attention and the MLP of a transformer together).
        **options: see :func:`.evaluating`.

    Returns:
        A row for the intact network and one for each run whose blocks can run in each other's place.

    Raises:
        UsageError: there is no such run, or another way or number of times.
        NoResidualBlocksError, DataError, NumericsError, ResourceError: see :func:`.delete_blocks`.

    Source: Sun et al. 2024, "Transformer Layers as Painters", arXiv 2407.09298 (parallel, looped parallel, middle
    repeat, reverse).
    """
    if runs not in WAYS:
        raise UsageError(f"runs {runs!r} are unknown; give {', '.join(WAYS)}")
    view = view_for(model, data, options)
    units = units_of(view, group)
    sizes = sorted({count} if isinstance(count, (int, np.integer)) else set(count))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"count must be 1 or more; found {', '.join(map(str, sizes)) or 'none'}")
    if runs == REVERSE and (sizes[0] < 2 or times is not None):
        raise UsageError("a run of one is its own reverse, and is reversed once; give a count of 2 or more, no times")
    alike = plans.interchangeable(view, units, alone=True)
    places = [(size, first) for size in sizes for first in range(len(units) - size + 1)]
    places = [(size, first) for size, first in places if any({*range(first, first + size)} <= {*one} for one in alike)]
    without = [size for size in sizes if all(size != other for other, _ in places)]
    if without:
        raise UsageError(f"no {without[0]} {group}s in a row can run in each other's place; give a smaller count")
    lesions = [plans.delete([]), *(_plan(view, units, size, first, runs, times) for size, first in places)]
    result, record = run_plans(RUNS.name, view, lesions, data, **options)
    record = dataclasses.replace(record, group=group, runs=runs, times=times, counts=tuple(sizes))
    intact, *measured = rows.counted(result)
    table_rows = [rows.row_of(RunRow, intact, count=0)]
    for (size, first), row in zip(places, measured, strict=True):
        blocks = [block for unit in units[first : first + size] for block in unit]
        about: MutableRow = {
            "name": name_of(view, units[first]),
            "stages": ",".join(str(view[block].stage) for block in blocks),
            "blocks": ",".join(map(str, blocks)),
        }
        table_rows.append(rows.row_of(RunRow, row, count=size, first=first, **about))
    return RUNS.table(table_rows, record.entries())


def _plan(
    view: ResidualView, units: Sequence[tuple[int, ...]], size: int, first: int, runs: str, times: int | None
) -> Plan:
    """The plan that carries out a run in another way."""
    run = units[first : first + size]
    if runs != REVERSE:
        return plans.rewire(run, runs, times).check(view)
    order = [*units[:first], *run[::-1], *units[first + size :]]
    return plans.reorder([block for unit in order for block in unit]).check(view)
