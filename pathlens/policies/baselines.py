"""Sets of blocks that are the same for all examples: random, by single lesions, and by greedy deletion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pathlens import plans
from pathlens.analyses import delete_blocks, delete_blocks_greedy
from pathlens.analyses.drawing import different
from pathlens.analyses.searches import cost
from pathlens.data import DataSet
from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.results.measured import members
from pathlens.tables import Table
from pathlens.tables.declared import Row


@dataclass(frozen=True)
class Fixed:
    """Blocks that run for all examples.

    Attributes:
        network: ``random``, ``single`` or ``greedy``.
        kept: the blocks, in order.
        sample: number of the random set.
        is_drawn: whether the random sets are some of those that there are; of all of them a mean has no interval.
    """

    network: str
    kept: tuple[int, ...]
    sample: int | None = None
    is_drawn: bool = True


def fixed_sets(
    view: ResidualView,
    kept: int,
    samples: int,
    seed: int,
    single: Callable[[], Table],
    greedy: Callable[[int], Table],
) -> list[Fixed]:
    """The baselines of a number of blocks; none where all blocks run.

    Args:
        view: of the network.
        kept: how many blocks run.
        samples: random sets, all different; all there are, where they are fewer.
        seed: of the draws.
        single: the table of ``delete-blocks``, block by block.
        greedy: number of deletions -> the table of a greedy search.

    Raises:
        UsageError: a table that is not of this network, or has too few steps.
    """
    blocks, left_out = len(view), len(view) - kept
    if not left_out:
        return []
    rng = np.random.default_rng([seed % 2**64, 0xB10C])
    none: tuple[int, ...] = ()
    draws = different(
        left_out, lambda: plans.random_set(blocks, left_out, rng), samples, math.comb(blocks, left_out), none
    )

    def without(deleted: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(set(range(blocks)).difference(deleted)))

    sets = [
        Fixed("random", without(deleted), number, not draws.exhausted) for number, deleted in enumerate(draws.plans)
    ]
    alone: dict[Any, Row] = {row["block"]: row for row in single().rows if row["block"] is not None}
    if set(alone) != set(range(blocks)):
        raise UsageError(f"single: a table of {len(alone)} blocks; give delete_blocks of all {blocks} of this network")
    dearest = sorted(range(blocks), key=lambda block: (*(-part for part in cost(alone[block])), block))
    sets.append(Fixed("single", tuple(sorted(dearest[:kept]))))
    steps = {row["count"]: row for row in greedy(left_out).rows}
    if left_out not in steps:
        raise UsageError(f"greedy: the table has no row of {left_out} deletions; give a search of so many or more")
    deleted = set(members(steps[left_out]))
    if not deleted <= set(range(blocks)):
        raise UsageError(f"greedy: the table deletes block {max(deleted)}, and the network has {blocks}")
    return [*sets, Fixed("greedy", without(deleted))]


def chosen_on(
    view: ResidualView, data: DataSet, examples: int, options: dict[str, Any]
) -> tuple[Callable[[], Table], Callable[[int], Table]]:
    """What the baselines are chosen by, measured on training examples, as the policy is trained on them.

    Args:
        view: of the network.
        data: training examples.
        examples: how many of them, drawn once for all seeds.
        options: of the sweeps.
    """
    picked = np.sort(np.random.default_rng(0).permutation(data.n)[:examples])
    part = data.subset(torch.from_numpy(picked), data.split)
    return (
        lambda: delete_blocks(view, part, **options),
        lambda count: delete_blocks_greedy(view, part, count=count, **options),
    )
