"""The lesion studies: delete blocks, delete skips, reorder blocks; error and loss of every lesioned network."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pathlens import measure, plans
from pathlens.analyses import journal as journals
from pathlens.analyses import rows, tuning
from pathlens.analyses.sources import Source, make_source
from pathlens.analyses.sweep import Progress, SweepResult, sweep
from pathlens.data import ImageData
from pathlens.errors import UsageError
from pathlens.machine import processes
from pathlens.machine.memory import memory_named
from pathlens.machine.precision import precision
from pathlens.plans import Plan
from pathlens.residual import ResidualView, engines, view_of
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode
from pathlens.tables import Table

Data = ImageData | Iterable[Any]

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
    **options: Any,
) -> Table:
    """Error and loss of the intact network, then with blocks deleted (Veit et al. 2016, sections 4.1 and 4.2).

    Args:
        model: the network or its view; in a plain network layers are deleted instead.
        data: an opened data set, or batches of (images, labels).
        blocks: which single blocks to delete (default: each in turn).
        count: instead of single blocks, the sizes of random sets to delete.
        samples: sets of each size.
        **options: ``batch_size``, ``device``, ``dtype``, ``seed``, ``mean``, ``std``, ``engine``, ``fast``,
            ``journal``, ``progress``, ``facts``; see :func:`run_plans`.

    Returns:
        One row for each lesioned network, with a 95 % Wilson interval; where sets were sampled also a row for each
        size with the mean over samples and its t interval. Errors are fractions, losses in nats.

    Raises:
        UsageError: a block or a size that the network does not have.
        NoResidualBlocksError: the network has neither residual blocks nor a plain chain of layers.
        DataError, NumericsError, ResourceError: see :func:`run_plans`.
    """
    return _lesions("delete-blocks", model, data, blocks, count, samples, options)


def delete_skips(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    blocks: int | Iterable[int] | None = None,
    count: int | Iterable[int] | None = None,
    samples: int = 10,
    **options: Any,
) -> Table:
    """The control experiment: the shortcut is removed and the branch kept. Arguments as :func:`delete_blocks`.

    Raises:
        UsageError: as :func:`delete_blocks`, and for plain networks, which have no shortcuts.
    """
    return _lesions("delete-skips", model, data, blocks, count, samples, options)


def reorder_blocks(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    swaps: int | Iterable[int] = range(1, 21),
    samples: int = 10,
    **options: Any,
) -> Table:
    """Error against how far the blocks are from their trained order (Veit et al. 2016, section 4.3).

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        swaps: how many random pairs of interchangeable blocks to exchange.
        samples: orders for each number of swaps.
        **options: see :func:`run_plans`.

    Returns:
        A row for each order with Kendall's tau against the trained one, and a row for each number of swaps with the
        means over samples.

    Raises:
        UsageError: no two blocks can be exchanged, or numbers below 1.
    """
    view, options = _view_of(model, data, options)
    sizes = _sizes(swaps, "swaps")
    _check_samples(samples)
    rng = _generator(options)
    labels = [(0, 0)] + [(size, sample) for size in sizes for sample in range(samples)]
    tried = [plans.random_swaps(view, size, rng) for size, _ in labels]
    result, facts = run_plans("reorder-blocks", view, tried, data, **options)
    made = []
    for (size, sample), plan, counts in zip(labels, tried, result.counts, strict=True):
        tau = measure.kendall_tau(plan.order)
        made.append(rows.reordering(view, plan, size, sample if size else None, tau, counts))
    made += [
        rows.mean_of([row for row in made if row["swaps"] == size], ("kendall_tau",)) for size in sizes if samples > 1
    ]
    facts |= {"swaps": list(sizes), "samples": samples}
    return Table(rows.REORDERING_COLUMNS, tuple(made), facts)


def _lesions(
    verb: str,
    model: nn.Module | ResidualView,
    data: Data,
    blocks: int | Iterable[int] | None,
    count: int | Iterable[int] | None,
    samples: int,
    options: dict[str, Any],
) -> Table:
    view, options = _view_of(model, data, options)
    if verb == "delete-skips" and view.is_plain:
        raise UsageError(
            f"{type(view.model).__name__} is a plain network without shortcuts; use delete-blocks, which deletes layers"
        )
    make = plans.delete if verb == "delete-blocks" else plans.delete_skips
    draw = plans.random_deletion if verb == "delete-blocks" else plans.random_skip_deletion
    labels: list[int | None] = [None]
    tried: list[Any] = [plans.delete([])]
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
    result, facts = run_plans(verb, view, tried, data, **options)
    made = [
        rows.lesion(view, plan.blocks, sample, counts)
        for plan, sample, counts in zip(tried, labels, result.counts, strict=True)
    ]
    if count is not None:
        facts |= {"counts": list(sizes), "samples": samples}
        if samples > 1:
            made += [
                rows.mean_of([row for row in made if row["count"] == size and row["sample"] is not None])
                for size in sizes
            ]
    return Table(rows.LESION_COLUMNS, tuple(made), facts)


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
    facts: dict[str, Any] | None = None,
) -> tuple[SweepResult, dict[str, Any]]:
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
        engine: how to run the network, such as ``packed-32x2`` (:mod:`pathlens.residual.engines`). ``auto`` measures
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
    began = time.monotonic()
    group = processes.current()
    kept = None
    asked = engine if fast else "plain"
    with precision(dtype) as kind, contextlib.ExitStack() as stack:
        with group.agreed(), memory_named(batch_size):
            where = processes.device_of(view.model, device)
            given = None if asked == AUTO else engines.named(asked, where, kind)
            source = make_source(data, batch_size, mean, std, where)
            if journal is not None and source.fingerprint:
                key = _key(verb, view, where, tried, source, dtype, asked, facts)
                kept = stack.enter_context(contextlib.closing(journals.Journal(Path(journal), key, group.rank)))
        network, choice = _prepared(given, view, where, kind, tried, source, group, kept)
        stack.enter_context(network)
        result = sweep(network, tried, source, group, kept, progress)
    if kept and group.leads:
        kept.clear()
    found = {
        "verb": verb,
        "network": type(view.model).__name__,
        "blocks": len(view),
        "output": view.output,
        **source.facts,
        **(facts or {}),
        "seed": seed,
        "dtype": dtype,
        "device": processes.device_name(where),
        **choice,
        "processes": group.world,
        "networks_evaluated": len(tried),
        "largest_relative_logit_difference": _finite(result.largest_logit_difference),
        "resumed_batches": result.resumed_batches,
        "seconds": round(time.monotonic() - began, 3),
        "notes": [*view.notes, *(facts or {}).get("notes", ()), *_engine_notes(network.engine, where, kind)],
    }
    return result, found


def _prepared(
    given: Engine | None,
    view: ResidualView,
    device: torch.device,
    dtype: torch.dtype,
    tried: Sequence[Plan],
    source: Source,
    group: processes.Processes,
    kept: journals.Journal | None,
) -> tuple[Inference, dict[str, Any]]:
    """The network in the form given, that of the journal, or the fastest, and what provenance says of the choice."""
    network: Inference | None = None
    choice: dict[str, Any] | None = None
    before = [name for part in group.gather(list(kept.done.values()) if kept else []) for name, _ in part]
    if given is not None:
        choice = {"engine": given.name, "engine_chosen": "given"}
    elif before:
        choice = {"engine": before[0], "engine_chosen": "resumed"}
    else:
        with group.agreed(), torch.inference_mode(), memory_named(source.batch_size):
            if group.leads:  # one process measures for all
                network, choice = tuning.choose(view, device, dtype, source, len(tried))
        (choice, *_) = group.gather(choice)
    assert choice is not None
    return network or Inference(view, device, dtype, engines.named(choice["engine"], device, dtype)), choice


def _engine_notes(engine: Engine, device: torch.device, dtype: torch.dtype) -> list[str]:
    if engine.form == "plain" or not engines.widens(device, dtype):
        return []
    return [f"{engines.missing(device, dtype)}: products are computed in float32 and rounded"]


def _view_of(
    model: nn.Module | ResidualView, data: Data, options: dict[str, Any]
) -> tuple[ResidualView, dict[str, Any]]:
    if isinstance(model, ResidualView):
        return model, options
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(model).__name__}")
    where = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    source = make_source(data, 2, options.get("mean"), options.get("std"), where)
    return view_of(model, source.first()), options


def _key(
    verb: str,
    view: ResidualView,
    device: torch.device,
    tried: Sequence[Plan],
    source: Source,
    dtype: str,
    engine: str,
    facts: dict[str, Any] | None,
) -> str:
    from pathlens.models import state_sha256

    # the traced operations and every tensor in them, because a user's own code may change while its weights do not
    with in_mode(view.model):
        trace = view.chain().trace
    names = tuple(trace.tensors)
    return journals.key_of(
        {
            "verb": verb,
            "code": journals.code_version(),
            "torch": torch.__version__,
            "operations": str(trace.graph),
            "tensors": state_sha256(dict(zip(names, trace.fetch(names), strict=True))),
            "blocks": [repr(block) for block in view],
            "output": view.output,
            "data": source.fingerprint,
            "plans": [repr(plan) for plan in tried],
            "dtype": dtype,
            "device": processes.device_name(device),
            "engine": engine,
            "spec": (facts or {}).get("model"),
        }
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _generator(options: dict[str, Any]) -> np.random.Generator:
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
