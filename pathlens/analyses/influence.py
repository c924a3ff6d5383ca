"""Deletion in the order of block influence: what changes its input least goes first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens import plans
from pathlens.analyses import rows
from pathlens.analyses.evaluation import Evaluation, evaluating, view_for
from pathlens.analyses.grouping import name_of, units_of
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.searches import USUAL
from pathlens.analyses.sources import Data
from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.residual.routes import Part
from pathlens.results.searches import INFLUENCE, InfluenceRow
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow


def delete_blocks_influence(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    count: int | None = None,
    group: str = "block",
    **options: Unpack[SweepOptions],
) -> Table:
    """Delete the blocks in the order of their influence: first the one whose output is most like its input.

    The influence of a block is 1 minus the cosine of its input and output over the channels, averaged over positions
    and examples of the intact network. It needs no labels. What changes the shape has none, and goes last.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        count: how many blocks to delete, 1 to all (default: 20, or all where there are fewer).
        group: ``block``, or ``layer`` to delete whole layers.
        **options: see :func:`.evaluating`.

    Returns:
        A row for the intact network and one for each step, with the influence of what was deleted last.

    Raises:
        UsageError: a number of blocks that the network does not have, or blocks that are no chain.
        NoResidualBlocksError, DataError, NumericsError, ResourceError: see :func:`.delete_blocks`.

    Source: Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", section 3.2
    (block influence, by which layers are removed).
    """
    view = view_for(model, data, options)
    plans.require_chain(view, "to compare what goes into a block with what leaves it")
    units = units_of(view, group)
    count = min(USUAL, len(units)) if count is None else count
    if not 1 <= count <= len(units):
        raise UsageError(f"count {count}: give 1 to {len(units)}, the number of {group}s")
    with evaluating(INFLUENCE.name, view, data, [count, group], count + 1, **options) as evaluation:
        influence = _influences(evaluation, units)
        # what has no influence goes last
        known = [math.inf if value is None else value for value in influence]
        order = sorted(range(len(units)), key=known.__getitem__)
        deleted = [[block for unit in order[:size] for block in units[unit]] for size in range(count + 1)]
        result = evaluation.sweep([plans.delete(sorted(blocks)).check(view) for blocks in deleted])
        record = evaluation.record([result])
    intact, *measured = rows.counted(result)
    table_rows: list[MutableRow] = [rows.row_of(InfluenceRow, intact, count=0)]
    for step, (unit, row) in enumerate(zip(order[:count], measured, strict=True), start=1):
        first = view[units[unit][0]]
        about: MutableRow = {
            "block": unit,
            "name": name_of(view, units[unit]),
            "stage": first.stage,
            "kind": first.kind if len(units[unit]) == 1 else None,
            "influence": influence[unit],
            "blocks": ",".join(map(str, deleted[step])),
        }
        table_rows.append(rows.row_of(InfluenceRow, row, count=step, **about))
    return INFLUENCE.table(table_rows, record.entries())


def _influences(evaluation: Evaluation, units: Sequence[tuple[int, ...]]) -> list[float | None]:
    """Of each unit, averaged over all examples; None where it changes the shape."""
    network, runner = evaluation.network, evaluation.runner
    links = network.chain.links

    def compute(_batch: int, images: Tensor, _labels: Tensor) -> list[list[float]]:
        parts = network.each(lambda part: influences(part[0]), network.parts(images))
        return sum(parts[1:], start=parts[0]).tolist()

    def influences(images: Tensor) -> Tensor:
        """Examples, and the sum of their influences, for each unit; NaN where the shape changes."""
        x, sums = network.stem(network.prepare(images)), []
        for unit in units:
            before = x
            for block in unit:
                x = network.step(Part.BLOCK, block)(x)
            axis, examples = links[unit[0]].channel_axis, float(len(images))
            if before.shape == x.shape:
                cosine = F.cosine_similarity(before.double(), x.double(), dim=axis).reshape(len(x), -1).mean(1)
                # rows may be no examples: pieces of them in the batch, or tokens
                total = (1 - cosine).sum().cpu() * (examples / len(x))
                sums.append(torch.stack([torch.tensor(examples), total]))
            else:
                sums.append(torch.tensor([examples, math.nan]))
        return torch.stack(sums)

    with torch.inference_mode():
        batches = runner.run("influence", compute)
    totals = [[math.fsum(values) for values in zip(*unit, strict=True)] for unit in zip(*batches.values(), strict=True)]
    return [None if math.isnan(total) else total / examples for examples, total in totals]
