"""The twin without shortcuts: of its chain of layers, the two that are a block's branch in the other network."""

from __future__ import annotations

from typing import Any

from pathlens import plans
from pathlens.analyses.evaluation import run_plans
from pathlens.analyses.rows import counted
from pathlens.analyses.sources import Data
from pathlens.residual import ResidualView
from pathlens.results.lesions import DELETE_BLOCKS, LesionRow
from pathlens.tables import Table


def blocks_of_twin(view: ResidualView, data: Data, **options: Any) -> Table:
    """A table of ``delete-blocks`` for a plain network, with both layers of a block deleted at a time.

    Args:
        view: a stem and an even number of layers after it.
        data: an opened data set, or batches of (images, labels).
        **options: of a sweep.
    """
    pairs = [(first, first + 1) for first in range(1, len(view), 2)]
    result, record = run_plans("delete-blocks", view, [plans.delete(pair) for pair in ((), *pairs)], data, **options)
    whole, *lesioned = counted(result)
    rows = [vars(LesionRow(count=0, **whole))]
    for block, (pair, measured) in enumerate(zip(pairs, lesioned, strict=True)):
        first = view[pair[0]]
        named = {"block": block, "name": first.name.rpartition(".")[0], "stage": first.stage, "kind": "two layers"}
        rows.append(vars(LesionRow(**named, count=1, blocks=",".join(map(str, pair)), **measured)))
    return DELETE_BLOCKS.table(rows, {**record.entries(), "blocks": len(pairs)})
