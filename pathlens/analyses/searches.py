"""Searches among sets of blocks: the best next deletion each time, and all sets up to a size."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Unpack

from torch import nn

from pathlens import plans
from pathlens.analyses import rows
from pathlens.analyses.evaluation import BATCH_SIZE, comparison, evaluating, run_plans, view_for
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.runner import Progress
from pathlens.analyses.sources import Data
from pathlens.analyses.sweep import PHASE, SweepResult
from pathlens.data import DataSet
from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.results.searches import EXHAUSTIVE, GREEDY, SELECTED, GreedyRow, SetRow
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow, Row

#: sets beyond which nobody waits for an exhaustive search
MOST = 50_000
#: blocks that a greedy search deletes where nothing is said
USUAL = 20


def delete_blocks_greedy(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    count: int | None = None,
    additions: str | None = None,
    concat: bool = False,
    **options: Unpack[SweepOptions],
) -> Table:
    """Delete the block without which the network errs least, then the next one, and so on.

    Of n blocks step k evaluates the n - k + 1 that are left, with all activations up to the first deleted block shared.
    Of equal errors the smaller loss is taken, then the earlier block.

    Args:
        model: the network or its view; in a plain network layers are deleted instead.
        data: an opened data set, or batches of (images, labels).
        count: how many blocks to delete, 1 to all (default: 20, or all where there are fewer).
        additions: as for :func:`.delete_blocks`.
        concat: as for :func:`.delete_blocks`.
        **options: see :func:`.evaluating`.

    Returns:
        A row for the intact network and one for each step. Which sets are evaluated depends on the images, so that
        Holm's correction over these would not account for the choice: ``p_holm`` is corrected by Bonferroni's for all
        sets of a step's size and for the steps. ``difference`` and its interval are those of the chosen set on the
        images that it was chosen on.

    Raises:
        UsageError: a number of blocks that the network does not have.
        NoResidualBlocksError, DataError, NumericsError, ResourceError: see :func:`.delete_blocks`.
    """
    view = view_for(model, data, options, additions, concat)
    count = min(USUAL, len(view)) if count is None else count
    if not 1 <= count <= len(view):
        raise UsageError(f"count {count}: give 1 to {len(view)}, the number of blocks")
    deleted: list[int] = []
    table_rows: list[MutableRow] = []
    p_values: list[float] = []
    corrected: list[float] = []
    chosen: list[int] = []
    results: list[SweepResult] = []
    networks = sum(len(view) - step + 1 for step in range(count))
    options["progress"] = _over_steps(options.get("progress"), count, data, options)
    with evaluating(GREEDY.name, view, data, count, networks, **options) as evaluation:
        for step in range(count):
            left = [block for block in range(len(view)) if block not in deleted]
            lesions = [plans.delete([]), *(plans.delete([*deleted, block]).check(view) for block in left)]
            results.append(evaluation.sweep(lesions, " ".join([PHASE, *map(str, deleted)])))
            intact, *measured = rows.counted(results[-1])
            best = min(range(len(left)), key=lambda index: cost(measured[index]))
            chosen.append(len(p_values) + best)
            p_values += [row["p"] for row in measured]
            corrected += [min(1.0, row["p"] * count * math.comb(len(view), step + 1)) for row in measured]
            deleted.append(left[best])
            block = view[left[best]]
            table_rows += [] if step else [rows.row_of(GreedyRow, intact, count=0)]
            about: MutableRow = {"block": block.index, "name": block.name, "stage": block.stage, "kind": block.kind}
            blocks = ",".join(map(str, deleted))
            table_rows.append(rows.row_of(GreedyRow, measured[best], count=step + 1, **about, blocks=blocks))
        record = evaluation.record(results)
    for row, index in zip(table_rows[1:], chosen, strict=True):
        row["p_holm"] = corrected[index]
    compared = comparison(evaluation.task, list(zip(p_values, corrected, strict=True))) or {}
    compared["correction"] = f"Bonferroni's, over all sets of a step's size and over the {count} steps"
    record = replace(record, comparison=compared, notes=(*record.notes, SELECTED))
    return GREEDY.table(table_rows, record.entries())


def cost(row: Row) -> tuple[float, float]:
    """What deletions are ordered by: the error, then the loss; one that is not finite comes last.

    Args:
        row: of a lesioned network.
    """
    return row["error"], math.inf if row["loss"] is None else row["loss"]


def _over_steps(progress: Progress | None, steps: int, data: Data, options: SweepOptions) -> Progress | None:
    """Progress of which the total is that of all steps from the beginning, where the number of batches is known."""
    if progress is None or not isinstance(data, DataSet):
        return progress
    batches = data.num_batches(options.get("batch_size", BATCH_SIZE))
    return lambda done, total: progress(done, max(total, steps * batches))


def delete_blocks_exhaustive(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    count: int = 2,
    additions: str | None = None,
    concat: bool = False,
    **options: Unpack[SweepOptions],
) -> Table:
    """Delete every set of up to so many blocks, and compare each with the sum of its blocks deleted alone.

    Args:
        model: the network or its view; in a plain network layers are deleted instead.
        data: an opened data set, or batches of (images, labels).
        count: size of the largest sets, 2 or more.
        additions: as for :func:`.delete_blocks`.
        concat: as for :func:`.delete_blocks`.
        **options: see :func:`.evaluating`.

    Returns:
        A row for the intact network and one for each set, in the order of their sizes. ``interaction`` is by how much
        deleting the set costs more than the sum of deleting its blocks one at a time: 0 if blocks act independently.

    Raises:
        UsageError: sizes that the network does not have, or more than 50,000 sets.
        NoResidualBlocksError, DataError, NumericsError, ResourceError: see :func:`.delete_blocks`.
    """
    view = view_for(model, data, options, additions, concat)
    if not 2 <= count <= len(view):
        raise UsageError(f"count {count}: give 2 to {len(view)}, the number of blocks, for sets of up to so many")
    networks = sum(math.comb(len(view), size) for size in range(1, count + 1))
    if networks > MOST:
        raise UsageError(
            f"count {count}: {len(view)} blocks have {networks:,} sets of up to {count}, and at most {MOST:,} are "
            "deleted one after the other; give a smaller count, or random sets"
        )
    sets = [blocks for size in range(count + 1) for blocks in combinations(range(len(view)), size)]
    result, record = run_plans(
        EXHAUSTIVE.name, view, [plans.delete(blocks).check(view) for blocks in sets], data, **options
    )
    measured = dict(zip(sets, rows.counted(result), strict=True))
    table_rows = [
        rows.row_of(
            SetRow,
            row,
            count=len(blocks),
            blocks=",".join(map(str, blocks)) or None,
            interaction=_beyond(measured, blocks, "error"),
            loss_interaction=_beyond(measured, blocks, "loss"),
        )
        for blocks, row in measured.items()
    ]
    return EXHAUSTIVE.table(table_rows, record.entries())


def _beyond(measured: dict[tuple[int, ...], MutableRow], blocks: tuple[int, ...], name: str) -> float | None:
    """What deleting a set costs beyond the sum of its blocks."""
    values = [measured[alone][name] for alone in ((), blocks, *((block,) for block in blocks))]
    if len(blocks) < 2 or None in values:
        return None
    intact, together, *each = values
    return float(together - intact - math.fsum(value - intact for value in each))
