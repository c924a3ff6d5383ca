"""The lesion studies: delete blocks, delete skips, reorder blocks; error and loss of every lesioned network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import nn

from pathlens import metrics, plans, results
from pathlens.analyses import rows, tuning
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.provenance import EngineFacts, LesionProvenance, Stated
from pathlens.analyses.runner import Progress, Runner, running
from pathlens.analyses.sources import Data, batch_source
from pathlens.analyses.sweep import PHASE, SweepResult, sweep
from pathlens.errors import UsageError
from pathlens.plans import Deletion, Plan, SkipDeletion
from pathlens.residual import ResidualView, engines, view_of
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode
from pathlens.results.reordering import REORDER_BLOCKS
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.tables import Table

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
        samples: sets of each size.
        **options: see :func:`.run_plans`.

    Returns:
        One row for each lesioned network, with a 95 % Wilson interval; where sets were sampled also a row for each
        size with the mean over samples and its t interval. Errors are fractions, losses in nats.

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
        samples: orders for each number of swaps.
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
    labels = [(0, 0)] + [(size, sample) for size in sizes for sample in range(samples)]
    tried = [plans.random_swaps(view, size, rng) for size, _ in labels]
    result, provenance = run_plans("reorder-blocks", view, tried, data, **options)
    made = []
    for (size, sample), plan, counts in zip(labels, tried, result.counts, strict=True):
        tau = metrics.kendall_tau(plan.order)
        made.append(rows.reordering(view, plan, size, sample if size else None, tau, counts))
    made += [
        rows.mean_of([row for row in made if row["swaps"] == size], ("kendall_tau",)) for size in sizes if samples > 1
    ]
    provenance = replace(provenance, swaps=sizes, samples=samples)
    return REORDER_BLOCKS.table(made, provenance.facts())


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
    labels: list[int | None] = [None]
    tried: list[Deletion | SkipDeletion] = [plans.delete([])]
    sizes: tuple[int, ...] = ()
    if count is None:
        chosen = range(len(view)) if blocks is None else [blocks] if isinstance(blocks, int) else blocks
        tried += sorted({make([block]).check(view) for block in chosen}, key=lambda plan: plan.blocks)
        labels += [None] * (len(tried) - 1)
    else:
        if blocks is not None:
            raise UsageError("give either single blocks or counts of random ones, not both")
        _check_samples(samples)
        sizes = _sizes(count, "count")
        rng = _generator(options)
        for size in sizes:
            tried += [draw(view, size, rng).check(view) for _ in range(samples)]
            labels += list(range(samples))
    result, provenance = run_plans(verb, view, tried, data, **options)
    made = [
        rows.lesion(view, plan.blocks, sample, counts)
        for plan, sample, counts in zip(tried, labels, result.counts, strict=True)
    ]
    if count is not None:
        provenance = replace(provenance, counts=sizes, samples=samples)
        if samples > 1:
            made += [
                rows.mean_of([row for row in made if row["count"] == size and row["sample"] is not None])
                for size in sizes
            ]
    return results.named(verb).table(made, provenance.facts())


def run_plans(
    verb: str,
    view: ResidualView,
    tried: Sequence[Plan],
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
    facts: Stated | None = None,
) -> tuple[SweepResult, LesionProvenance]:
    """Evaluate plans on data; what all lesion verbs share.

    Args:
        verb: for provenance.
        view: the network.
        tried: plans; the first one should be the intact network.
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
        facts: what provenance should also say, such as where the weights are from.

    Returns:
        Counts of each plan, and the provenance.

    Raises:
        NumericsError: the intact network gives NaN, or the prepared network differs from the model's own forward.
        ResourceError: a batch does not fit in memory, or the disk is full.
        DataError: labels outside the classes, images that do not fit the network.
        RunError: the same sweep is running already.
    """
    asked = engine if fast else "plain"
    stated = facts or {}
    with running(view.model, data, batch_size, dtype, device, mean, std, journal, progress) as runner:
        with runner.group.agreed(), in_mode(view.model):
            given = None if asked == AUTO else engines.named(asked, runner.device, runner.dtype)
            runner.identify(
                verb, view, plans=[repr(plan) for plan in tried], dtype=dtype, engine=asked, spec=stated.get("model")
            )
        network, choice = _prepared(given, view, runner, len(tried))
        with network:
            result = sweep(network, tried, runner)
        provenance = LesionProvenance(
            verb=verb,
            network=type(view.model).__name__,
            blocks=len(view),
            output=view.output,
            data=runner.source.facts,
            stated=stated,
            seed=seed,
            dtype=dtype,
            device=processes.device_name(runner.device),
            engine=choice,
            processes=runner.group.world,
            networks_evaluated=len(tried),
            largest_relative_logit_difference=_finite(result.largest_logit_difference),
            resumed_batches=runner.resumed,
            seconds=runner.seconds,
            notes=(
                *view.notes,
                *stated.get("notes", ()),
                *_engine_notes(network.engine, runner.device, runner.dtype),
            ),
        )
    return result, provenance


def _prepared(given: Engine | None, view: ResidualView, runner: Runner, networks: int) -> tuple[Inference, EngineFacts]:
    """The network in the form given, that of the journal, or the fastest, and what provenance says of the choice."""
    network: Inference | None = None
    choice: EngineFacts | None = None
    before = [name for name, _ in runner.kept(PHASE).values()]
    if given is not None:
        choice = EngineFacts(engine=given.name, engine_chosen="given")
    elif before:
        choice = EngineFacts(engine=before[0], engine_chosen="resumed")
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
