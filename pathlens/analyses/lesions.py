"""The lesion studies: delete blocks, delete skips, reorder blocks; error and loss of every lesioned network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
from torch import nn

from pathlens import metrics, plans, results
from pathlens.analyses import drawing, rows
from pathlens.analyses.evaluation import run_plans, view_for
from pathlens.analyses.grouping import GROUPS, units_of
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.sources import Data
from pathlens.errors import UsageError
from pathlens.plans import Deletion, SkipDeletion
from pathlens.residual import ResidualView
from pathlens.residual.chain import check_index
from pathlens.results.reordering import REORDER_BLOCKS
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow, Rows

#: random networks of a size, and blocks of one, that nobody waits for
_MOST = 1_000_000


def delete_blocks(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    blocks: int | Iterable[int] | None = None,
    count: int | Iterable[int] | None = None,
    samples: int = 10,
    group: str = GROUPS[0],
    contiguous: bool = False,
    additions: str | None = None,
    concat: bool = False,
    replace: str = "zero",
    **options: Unpack[SweepOptions],
) -> Table:
    """Error and loss of the intact network, then with blocks deleted (Veit et al. 2016, sections 4.1 and 4.2).

    Args:
        model: the network or its view; in a plain network layers are deleted instead.
        data: an opened data set, or batches of (images, labels).
        blocks: which single blocks to delete (default: each in turn).
        count: instead of single blocks, the sizes of random sets to delete.
        samples: sets of each size, all different; where no more exist, each one once.
        group: ``block``, or ``layer`` to delete all blocks of a layer together (the attention and the MLP of a
            transformer); ``blocks`` and ``count`` then count layers.
        contiguous: instead of random sets, all runs of neighbours of each size of ``count``.
        additions: which residual additions are blocks, as for :func:`pathlens.find_blocks`.
        concat: concatenations are blocks too, of which the new channels are deleted (DenseNets, U-Nets).
        replace: what the sum, or the concatenation, has in the place of a deleted branch: ``zero``; ``mean``, what the
            branch is on average over the data in the intact network, at each position; or ``resample``, the branch of
            another image of the batch, drawn with the seed anew for each batch and block.
        **options: see :func:`.evaluating`.

    Returns:
        One row for each lesioned network, with a 95 % Wilson interval and a paired comparison with the intact network
        (:class:`pathlens.results.lesions.LesionRow`); where sets were sampled also a row for each size with the mean
        over samples and its t interval. Errors are fractions, losses in nats.

    Raises:
        UsageError: a block or a size that the network does not have, or branches replaced in a network where there
            is nothing beside them.
        NoResidualBlocksError: the network has neither residual blocks nor a plain chain of layers.
        DataError, NumericsError, ResourceError: see :func:`.evaluating`.
    """
    view = view_for(model, data, options, additions, concat)
    make = partial(plans.delete, replace=replace)
    plans.delete([], replace).check(view)
    return _lesions("delete-blocks", view, data, blocks, count, samples, make, options, group, contiguous, replace)


def delete_skips(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    blocks: int | Iterable[int] | None = None,
    count: int | Iterable[int] | None = None,
    samples: int = 10,
    additions: str | None = None,
    **options: Unpack[SweepOptions],
) -> Table:
    """The control experiment: the shortcut is removed and the branch kept. Arguments as :func:`delete_blocks`.

    Raises:
        UsageError: as :func:`delete_blocks`, and for plain networks, which have no shortcuts.
    """
    view = view_for(model, data, options, additions)
    if view.is_plain:
        raise UsageError(
            f"{type(view.model).__name__} is a plain network without shortcuts; use delete-blocks, which deletes layers"
        )
    return _lesions("delete-skips", view, data, blocks, count, samples, plans.delete_skips, options)


def reorder_blocks(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    swaps: int | Iterable[int] = range(1, 21),
    samples: int = 10,
    group: str = GROUPS[0],
    **options: Unpack[SweepOptions],
) -> Table:
    """Error against how far the blocks are from their trained order (Veit et al. 2016, section 4.3).

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        swaps: how many random pairs of interchangeable blocks to exchange.
        samples: orders for each number of swaps, all different and none the trained one; where no more exist, each
            one once.
        group: ``block``, or ``layer`` to exchange whole layers (the attention and the MLP of a transformer together).
        **options: see :func:`.evaluating`.

    Returns:
        A row for each order with Kendall's tau against the trained one, and a row for each number of swaps with the
        means over samples.

    Raises:
        UsageError: no two blocks can be exchanged, or numbers below 1.
    """
    view = view_for(model, data, options)
    sizes = _sizes(swaps, "swaps")
    _check_samples(samples)
    rng, units = _generator(options), units_of(view, group)
    intact = plans.random_swaps(view, 0, rng, units)
    sampled = []
    for size in sizes:
        existing = drawing.existing_orders(view, size, units)
        draw = partial(plans.random_swaps, view, size, rng, units)
        sampled.append(drawing.different(size, draw, samples, existing, intact))
    labels = [(0, None), *((item.size, sample) for item in sampled for sample in range(len(item.plans)))]
    lesions = [intact, *(plan for item in sampled for plan in item.plans)]
    result, record = run_plans("reorder-blocks", view, lesions, data, **options)
    table_rows = []
    for (size, sample), plan, measured in zip(labels, lesions, rows.counted(result), strict=True):
        table_rows.append(rows.reordering(view, plan, size, sample, metrics.kendall_tau(plan.order), measured))
    table_rows += _means(table_rows, "swaps", sampled, samples, ("kendall_tau",))
    few = drawing.note_on_few(sampled, samples, "orders", "swaps")
    notes = (*record.notes, *filter(None, [few]))
    record = dataclasses.replace(record, group=group, swaps=sizes, samples=samples, few=few, notes=notes)
    return REORDER_BLOCKS.table(table_rows, record.entries())


def _lesions(
    verb: str,
    view: ResidualView,
    data: Data,
    blocks: int | Iterable[int] | None,
    count: int | Iterable[int] | None,
    samples: int,
    make: Callable[[Sequence[int]], Deletion | SkipDeletion],
    options: SweepOptions,
    group: str = GROUPS[0],
    contiguous: bool = False,
    replace: str = "zero",
) -> Table:
    units, what = units_of(view, group), f"{group}s"
    labels: list[int | None] = [None]
    sets: list[tuple[int, ...]] = [()]
    sizes: tuple[int, ...] = ()
    sampled: list[drawing.Samples[tuple[int, ...]]] = []
    if count is None:
        if contiguous:
            raise UsageError("contiguous sets need a size; give count (--count) with contiguous (--contiguous)")
        chosen = (
            range(len(units)) if blocks is None else [int(blocks)] if isinstance(blocks, int | np.integer) else blocks
        )
        single = [index for unit in chosen for index in plans.delete([unit]).blocks]
        sets += sorted({(check_index(index, len(units), group),) for index in single})
        labels += [None] * (len(sets) - 1)
    else:
        if blocks is not None:
            raise UsageError("give either single blocks or counts of random ones, not both")
        _check_samples(samples)
        sizes = _sizes(count, "count")
        rng = _generator(options)
        for size in sizes:
            if contiguous:
                sampled.append(drawing.contiguous_sets(len(units), size, what))
            else:
                # a size of which no set exists is drawn all the same, since drawing raises the error that says so
                existing = max(1, math.comb(len(units), size))
                draw = partial(plans.random_set, len(units), size, rng, what)
                sampled.append(drawing.different(size, draw, samples, existing, ()))
            sets += sampled[-1].plans
            labels += list(range(len(sampled[-1].plans)))
    together = [[block for unit in one for block in units[unit]] for one in sets]
    lesions = [plans.delete([]), *(make(blocks).check(view) for blocks in together[1:])]
    result, record = run_plans(verb, view, lesions, data, **options)
    record = dataclasses.replace(record, group=group, contiguous=contiguous, replace=replace)
    table_rows = [
        rows.lesion(view, [units[unit] for unit in one], one, sample, measured)
        for one, sample, measured in zip(sets, labels, rows.counted(result), strict=True)
    ]
    if count is not None:
        few = None if contiguous else drawing.note_on_few(sampled, samples, "sets", what)
        notes = (*record.notes, *filter(None, [few]))
        record = dataclasses.replace(record, counts=sizes, samples=samples, few=few, notes=notes)
        table_rows += _means(table_rows, "count", sampled, samples)
    return results.named(verb).table(table_rows, record.entries())


def _means(
    table_rows: Rows,
    name: str,
    sampled: Sequence[drawing.Samples[Any]],
    samples: int,
    also: Sequence[str] = (),
) -> list[MutableRow]:
    """A row for each size of which there are lesions, where several were asked for."""
    means = []
    for item in sampled:
        own = [row for row in table_rows if row[name] == item.size and row["sample"] is not None]
        if own and samples > 1:
            means.append(rows.mean_of(own, not item.exhausted, also))
    return means


def _generator(options: SweepOptions) -> np.random.Generator:
    seed = options.get("seed", 0)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"a seed must be a whole number of 0 or more; found {seed}")
    return np.random.default_rng(seed)


def _sizes(value: int | Iterable[int], what: str) -> tuple[int, ...]:
    sizes = (int(value),) if isinstance(value, int | np.integer) else tuple(value)
    if sizes and max(sizes) > _MOST:
        raise UsageError(f"{what} {max(sizes)}: give {_MOST:,} at most")
    if not sizes or min(sizes) < 1:
        raise UsageError(f"{what} must be 1 or more; found {', '.join(map(str, sizes)) or 'none'}")
    return tuple(dict.fromkeys(sizes))


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise UsageError(f"samples must be 1 or more; found {samples}")
    if samples > _MOST:
        raise UsageError(f"samples {samples}: give {_MOST:,} at most")
