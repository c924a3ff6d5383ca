"""The lesion studies: delete blocks, delete skips, reorder blocks; error and loss of every lesioned network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from pathlens import metrics, plans, results
from pathlens.analyses import drawing, rows, tuning
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.provenance import EngineProvenance, LesionProvenance
from pathlens.analyses.runner import Progress, Runner, running
from pathlens.analyses.sources import Data, batch_source
from pathlens.analyses.sweep import PHASE, SweepResult, sweep
from pathlens.errors import UsageError
from pathlens.plans import Deletion, Plan, SkipDeletion
from pathlens.residual import ResidualView, engines, view_of
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode
from pathlens.results.measured import LEVEL
from pathlens.results.reordering import REORDER_BLOCKS
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.tables import Json, Provenance, Table
from pathlens.tables.declared import MutableRow, Rows

#: batch size where none is given: large enough for full speed on a CPU, and small CIFAR-sized activations
BATCH_SIZE = 128

AUTO = "auto"


def delete_blocks(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    blocks: int | Iterable[int] | None = None,
    count: int | Iterable[int] | None = None,
    samples: int = 10,
    **options: Unpack[SweepOptions],
) -> Table:
    """Error and loss of the intact network, then with blocks deleted (Veit et al. 2016, sections 4.1 and 4.2).

    Args:
        model: the network or its view; in a plain network layers are deleted instead.
        data: an opened data set, or batches of (images, labels).
        blocks: which single blocks to delete (default: each in turn).
        count: instead of single blocks, the sizes of random sets to delete.
        samples: sets of each size, all different; where no more exist, each one once.
        **options: see :func:`.run_plans`.

    Returns:
        One row for each lesioned network, with a 95 % Wilson interval and a paired comparison with the intact network
        (:class:`pathlens.results.lesions.LesionRow`); where sets were sampled also a row for each size with the mean
        over samples and its t interval. Errors are fractions, losses in nats.

    Raises:
        UsageError: a block or a size that the network does not have.
        NoResidualBlocksError: the network has neither residual blocks nor a plain chain of layers.
        DataError, NumericsError, ResourceError: see :func:`.run_plans`.
    """
    view = view_for(model, data, options)
    return _lesions("delete-blocks", view, data, blocks, count, samples, plans.delete, plans.random_deletion, options)


def delete_skips(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    blocks: int | Iterable[int] | None = None,
    count: int | Iterable[int] | None = None,
    samples: int = 10,
    **options: Unpack[SweepOptions],
) -> Table:
    """The control experiment: the shortcut is removed and the branch kept. Arguments as :func:`delete_blocks`.

    Raises:
        UsageError: as :func:`delete_blocks`, and for plain networks, which have no shortcuts.
    """
    view = view_for(model, data, options)
    if view.is_plain:
        raise UsageError(
            f"{type(view.model).__name__} is a plain network without shortcuts; use delete-blocks, which deletes layers"
        )
    return _lesions(
        "delete-skips", view, data, blocks, count, samples, plans.delete_skips, plans.random_skip_deletion, options
    )


def reorder_blocks(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    swaps: int | Iterable[int] = range(1, 21),
    samples: int = 10,
    **options: Unpack[SweepOptions],
) -> Table:
    """Error against how far the blocks are from their trained order (Veit et al. 2016, section 4.3).

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        swaps: how many random pairs of interchangeable blocks to exchange.
        samples: orders for each number of swaps, all different and none the trained one; where no more exist, each
            one once.
        **options: see :func:`.run_plans`.

    Returns:
        A row for each order with Kendall's tau against the trained one, and a row for each number of swaps with the
        means over samples.

    Raises:
        UsageError: no two blocks can be exchanged, or numbers below 1.
    """
    view = view_for(model, data, options)
    sizes = _sizes(swaps, "swaps")
    _check_samples(samples)
    rng = _generator(options)
    intact = plans.random_swaps(view, 0, rng)
    sampled = []
    for size in sizes:
        existing = drawing.existing_orders(view, size)
        sampled.append(drawing.different(size, partial(plans.random_swaps, view, size, rng), samples, existing, intact))
    labels = [(0, None), *((item.size, sample) for item in sampled for sample in range(len(item.plans)))]
    lesions = [intact, *(plan for item in sampled for plan in item.plans)]
    result, record = run_plans("reorder-blocks", view, lesions, data, **options)
    table_rows = []
    for (size, sample), plan, measured in zip(labels, lesions, rows.counted(result), strict=True):
        table_rows.append(rows.reordering(view, plan, size, sample, metrics.kendall_tau(plan.order), measured))
    table_rows += _means(table_rows, "swaps", sampled, samples, ("kendall_tau",))
    few = drawing.note_on_few(sampled, samples, "orders", "swaps")
    notes = (*record.notes, *filter(None, [few]))
    record = replace(record, swaps=sizes, samples=samples, few=few, notes=notes)
    return REORDER_BLOCKS.table(table_rows, record.entries())


def _lesions(
    verb: str,
    view: ResidualView,
    data: Data,
    blocks: int | Iterable[int] | None,
    count: int | Iterable[int] | None,
    samples: int,
    make: Callable[[Sequence[int]], Deletion | SkipDeletion],
    draw: Callable[[ResidualView, int, np.random.Generator], Deletion | SkipDeletion],
    options: SweepOptions,
) -> Table:
    intact = plans.delete([])
    labels: list[int | None] = [None]
    lesions: list[Deletion | SkipDeletion] = [intact]
    sizes: tuple[int, ...] = ()
    sampled: list[drawing.Samples[Deletion | SkipDeletion]] = []
    if count is None:
        chosen = range(len(view)) if blocks is None else [blocks] if isinstance(blocks, int) else blocks
        lesions += sorted({make([block]).check(view) for block in chosen}, key=lambda plan: plan.blocks)
        labels += [None] * (len(lesions) - 1)
    else:
        if blocks is not None:
            raise UsageError("give either single blocks or counts of random ones, not both")
        _check_samples(samples)
        sizes = _sizes(count, "count")
        rng = _generator(options)
        for size in sizes:
            # a size of which no set exists is drawn all the same, since drawing raises the error that says so
            existing = max(1, math.comb(len(view), size))
            sampled.append(drawing.different(size, partial(draw, view, size, rng), samples, existing, intact))
            lesions += [plan.check(view) for plan in sampled[-1].plans]
            labels += list(range(len(sampled[-1].plans)))
    result, record = run_plans(verb, view, lesions, data, **options)
    table_rows = [
        rows.lesion(view, plan.blocks, sample, measured)
        for plan, sample, measured in zip(lesions, labels, rows.counted(result), strict=True)
    ]
    if count is not None:
        few = drawing.note_on_few(sampled, samples, "sets", "blocks")
        notes = (*record.notes, *filter(None, [few]))
        record = replace(record, counts=sizes, samples=samples, few=few, notes=notes)
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


def run_plans(
    verb: str,
    view: ResidualView,
    lesions: Sequence[Plan],
    data: Data,
    *,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    engine: str = "auto",
    fast: bool = True,
    journal: str | Path | None = None,
    progress: Progress | None = None,
    provenance: Provenance | None = None,
) -> tuple[SweepResult, LesionProvenance]:
    """Evaluate plans on data; what all lesion verbs share.

    Args:
        verb: for provenance.
        view: the network.
        lesions: what to evaluate; the first one should be the intact network.
        data: an opened data set, or batches of (images, labels).
        batch_size: images in memory at a time, however large the data set is; the engine runs as many or fewer.
        device: where to compute (default: where the model is).
        dtype: ``float32``, ``tf32``, ``bfloat16``, ``float16`` or ``float64``.
        seed: of the random draws that made the plans, for provenance.
        mean: per-channel mean for normalisation (default: the data set's).
        std: per-channel standard deviation (default: the data set's).
        engine: how to run the network, such as ``packed-32x2`` (see ``pathlens.residual.engines``). ``auto`` measures
            which is fastest where that pays; the provenance says which it was, and a sweep that is taken up again
            goes on with it. Another engine rounds otherwise.
        fast: False is short for the engine ``plain``, the model's own operations.
        journal: folder for finished batches, from which a killed sweep goes on (default: nothing is kept).
        progress: called with (batches done, batches in all).
        provenance: what that of the table should also say, such as where the weights are from.

    Returns:
        Counts of each plan, and the provenance.

    Raises:
        NumericsError: the intact network gives NaN, or the prepared network differs from the model's own forward.
        ResourceError: a batch does not fit in memory, or the disk is full.
        DataError: labels outside the classes, images that do not fit the network.
        RunError: the same sweep is running already.
    """
    asked = engine if fast else "plain"
    stated = provenance or {}
    with running(view.model, data, batch_size, dtype, device, mean, std, journal, progress) as runner:
        with runner.group.agreed(), in_mode(view.model):
            given = None if asked == AUTO else engines.named(asked, runner.device, runner.dtype)
            runner.identify(
                verb, view, plans=[repr(plan) for plan in lesions], dtype=dtype, engine=asked, spec=stated.get("model")
            )
        network, choice = _prepared(given, view, runner, len(lesions))
        with network:
            result = sweep(network, lesions, runner)
        record = LesionProvenance(
            verb=verb,
            network=type(view.model).__name__,
            blocks=len(view),
            output=view.output,
            data=runner.source.provenance,
            stated=stated,
            seed=seed,
            dtype=dtype,
            device=processes.device_name(runner.device),
            engine=choice,
            processes=runner.group.world,
            networks_evaluated=len(lesions),
            largest_relative_logit_difference=_finite(result.largest_logit_difference),
            resumed_batches=runner.resumed,
            seconds=runner.seconds,
            comparison=_comparison(result),
            notes=(
                *view.notes,
                *stated.get("notes", ()),
                *_engine_notes(network.engine, runner.device, runner.dtype),
            ),
        )
    return result, record


def _prepared(
    given: Engine | None, view: ResidualView, runner: Runner, networks: int
) -> tuple[Inference, EngineProvenance]:
    """The network in the form given, that of the journal, or the fastest, and what provenance says of the choice."""
    network: Inference | None = None
    choice: EngineProvenance | None = None
    before = [name for name, _ in runner.recorded(PHASE).values()]
    if given is not None:
        choice = EngineProvenance(engine=given.name, engine_chosen="given")
    elif before:
        choice = EngineProvenance(engine=before[0], engine_chosen="resumed")
    else:
        group = runner.group
        with group.agreed(), torch.inference_mode(), oom_as_error(runner.source.batch_size):
            if group.is_main:  # one process measures for all
                network, choice = tuning.choose(view, runner, networks)
        (choice, *_) = group.gather(choice)
    assert choice is not None
    if network is None:
        network = Inference(
            view, runner.device, runner.dtype, engines.named(choice.engine, runner.device, runner.dtype)
        )
    return network, choice


def _comparison(result: SweepResult) -> dict[str, Json] | None:
    """How the networks were compared with the intact one, and how many differ; None where there is no other."""
    tests = list(result.tests.values())
    if not tests:
        return None
    return {
        "with": "the intact network, on the same images",
        "interval": "Tango's score interval of the difference, 95 %",
        "test": "McNemar's exact test, two-sided",
        "correction": f"Holm's, over the {len(tests)} different lesioned networks of the table",
        "level": LEVEL,
        "networks": len(tests),
        "differ": sum(p <= LEVEL for p, _ in tests),
        "differ_corrected": sum(corrected <= LEVEL for _, corrected in tests),
    }


def _engine_notes(engine: Engine, device: torch.device, dtype: torch.dtype) -> list[str]:
    if engine.form == "plain" or not engines.widens(device, dtype):
        return []
    return [f"{engines.missing(device, dtype)}: products are computed in float32 and rounded"]


def view_for(model: nn.Module | ResidualView, data: Data, options: SweepOptions) -> ResidualView:
    """The blocks of a network, found with the first images where it is no view yet.

    Raises:
        UsageError: it is no module.
        NoResidualBlocksError: it has neither residual blocks nor a plain chain of layers.
    """
    if isinstance(model, ResidualView):
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(model).__name__}")
    where = processes.device_of(model, None)
    source = batch_source(data, 2, options.get("mean"), options.get("std"), where)
    return view_of(model, source.first())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _generator(options: SweepOptions) -> np.random.Generator:
    seed = options.get("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise UsageError(f"a seed must be a whole number of 0 or more; found {seed}")
    return np.random.default_rng(seed)


def _sizes(value: int | Iterable[int], what: str) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if not sizes or min(sizes) < 1:
        raise UsageError(f"{what} must be 1 or more; found {', '.join(map(str, sizes)) or 'none'}")
    return tuple(dict.fromkeys(sizes))


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise UsageError(f"samples must be 1 or more; found {samples}")
