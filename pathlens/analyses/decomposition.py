"""The break-up of a sum: what the stem and each branch contribute to it, over initialisations or as trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from statistics import fmean
from typing import Unpack

from torch import Tensor, nn

from pathlens.analyses.evaluation import task_of
from pathlens.analyses.initialised import check_batches, check_schemes, checked_batch, interval, labelled, mean
from pathlens.analyses.linear import Opened, opened, type_of
from pathlens.analyses.options import Options
from pathlens.analyses.runner import Progress
from pathlens.analyses.sources import Data
from pathlens.decomposition import (
    CONSTANTS,
    STEM,
    SUM,
    WHOLE,
    Contribution,
    Decomposition,
    measure_summands,
    target_of,
)
from pathlens.errors import DataError, UsageError
from pathlens.metrics import interval_of_sums
from pathlens.metrics.tasks import Regression, Task
from pathlens.plans import require_chain
from pathlens.residual import ResidualView
from pathlens.residual.chain import Chain
from pathlens.results import decomposition as words
from pathlens.results.decomposition import DECOMPOSE
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow

_DTYPES = ("float32", "float64")

#: by key of the summand: of one initialisation
_Values = dict[int, Contribution]
#: examples of a batch, and for each summand its key and numbers
_Batch = tuple[int, list[list[float]]]


def decompose(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    at: str | int = SUM,
    init: str | Sequence[str] = (),
    seeds: int = 5,
    given: bool | None = None,
    mode: str = "eval",
    standardise: bool = False,
    seed: int = 0,
    build: Callable[[int], nn.Module] | None = None,
    task: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Table:
    r"""Write the last sum of a network, or another, or its output, as stem plus what each block contributes.

    The output of each branch is carried through everything behind it but for later branches; see
    :mod:`pathlens.decomposition.carry` for what becomes of it at norms and activations. The summands are checked to add
    up to the whole, operation by operation, in every batch. Moments are of each batch by itself, and are averaged.

    Args:
        model: the network or its view. It is not changed.
        data: an opened data set, or batches of (images, labels).
        at: ``sum`` of the last block, the index of a block for its sum, or ``output``: then also what each summand adds
            to the logit of the label, and the error with the blocks up to it alone (a logit lens with the norms of the
            whole).
        init: schemes of :func:`pathlens.initialise`, or ``as-built``, each a curve over ``seeds`` initialisations.
        seeds: initialisations of each scheme: ``seed``, ``seed + 1``, ...
        given: also measure the weights that the model has (default: where no scheme is given).
        mode: ``eval``, or ``train`` with the statistics of the batch in batch norms.
        standardise: as of :func:`pathlens.initialise`.
        seed: of the first initialisation.
        build: seed -> the network anew, for ``as-built``.
        task: what the outputs are, by name (default: what their shape fits).
        dtype: ``float32`` or ``float64`` (default: the model's type, where it is one of these).
        progress: called with (batches done, batches in all).
        **options: see :func:`pathlens.analyses.linear.opened`.

    Returns:
        A row for each curve and summand: the constants, the stem, and each block up to the place.

    Raises:
        UsageError: no such place, no seeds, an unknown scheme, mode or type, a plain network, or blocks that are no
            chain, or a plan that is active on it.
        ModelError: an operation on the way from a block to the place is not affine, even with its norms and gates as
            they are; or a scheme that does not fit the network.
        DataError: a batch of one example in train mode, an input that is NaN or infinite, targets that do not fit the
            output, or no examples.

    Source: Youssin, "Training deep resnets" (the break-up of the last sum); nostalgebraist 2020, "interpreting GPT: the
    logit lens" (the idea of reading logits off an inner tensor).
    """
    schemes = [init] if isinstance(init, str) else list(init)
    check_schemes(schemes, seeds, build, given)
    if (name := type_of(model, dtype)) not in _DTYPES:
        raise UsageError(f"dtype {name!r} is too coarse to add up summands; give {' or '.join(_DTYPES)}")
    if mode == "train":
        check_batches(data, options.get("batch_size"))
    # a view of others is refused below
    additions = None if isinstance(model, ResidualView) else "trunk"
    with opened(model, data, mode=mode, dtype=dtype, progress=progress, additions=additions, **options) as run:
        require_chain(run.view, "to write a sum as summands")
        run.require_intact("to write a sum as summands")
        _, block = target_of(run.view.chain(), at)
        place = "output" if block is None else f"sum of block {block}"
        asked = task_of(run.view, task or run.runner.source.task) if block is None else None
        if isinstance(asked, Regression):
            raise UsageError("an output of numbers has no logits to decompose; give the sum of a block (--at)")
        stated = options.get("provenance") or {}
        own = str(stated.get("weights", "as given")) if given or not schemes else None
        rows: list[MutableRow] = []
        for label, _, networks in labelled(run, own, schemes, range(seed, seed + seeds), build, standardise):
            measured: list[_Values] = []
            for number, view in networks:
                run.identify("decompose", (at, label, number, standardise, stated.get("model"), task))
                batches = run.runner.run(f"{label} {number}", _measuring(view, run, at, asked))
                measured.append(_averaged(batches.values()))
            rows += _rows(label, measured, run.view)
        record = run.record(
            verb="decompose",
            at=place,
            seed=seed,
            measured={"seeds": seeds if schemes else 1, "standardised": standardise},
            resumed_units=run.runner.resumed,
            processes=run.runner.group.world,
            seconds=run.runner.seconds,
        )
    return DECOMPOSE.table(rows, record.entries())


def _measuring(
    view: ResidualView, run: Opened, at: str | int, task: Task | None
) -> Callable[[int, Tensor, Tensor], _Batch]:
    prepared: dict[Chain, Decomposition] = {}

    def compute(batch: int, images: Tensor, targets: Tensor) -> _Batch:
        images = checked_batch(run, batch, images)
        if task is not None:
            task.check_targets(targets, len(images))
        chain = view.chain(images)
        target, block = target_of(chain, at)
        if chain not in prepared:
            prepared[chain] = Decomposition(chain, target)
        whole, summands = prepared[chain](images)
        numbers = measure_summands(chain, whole, summands, block, task, targets.to(run.runner.device))
        return len(images), [[key, *astuple(contribution)] for key, contribution in numbers.items()]

    return compute


def _averaged(batches: Iterable[_Batch]) -> _Values:
    """The numbers of each summand: moments averaged over batches by their examples, counts added up."""
    by_key: dict[int, list[Contribution]] = {}
    examples = []
    for size, batch in batches:
        examples.append(size)
        for key, *numbers in batch:
            by_key.setdefault(int(key), []).append(Contribution(*numbers))
    if not by_key:
        raise DataError("the data has no examples; give at least one batch")
    return {key: _together(parts, examples) for key, parts in by_key.items()}


def _together(parts: Sequence[Contribution], examples: Sequence[int]) -> Contribution:
    second_moment, variance, covariance, *counts = zip(*map(astuple, parts), strict=True)
    means = (fmean(moments, examples) for moments in (second_moment, variance, covariance))
    return Contribution(*means, *map(sum, counts))


def _rows(label: str, seeds: Sequence[_Values], view: ResidualView) -> Iterator[MutableRow]:
    """The rows of a curve: constants, stem, blocks."""
    for key in seeds[0]:
        if key == WHOLE:
            continue
        block = view[key] if key >= 0 else None
        about: MutableRow = {
            "network": type(view.model).__name__,
            "weights": label,
            "seeds": len(seeds),
            "summand": {STEM: words.STEM, CONSTANTS: words.CONSTANTS}.get(key, words.BLOCK),
            "block": None if key == CONSTANTS else key,
            "name": block.name if block else "",
            "stage": block.stage if block else (view[0].stage if key == STEM else None),
            "kind": block.kind if block else None,
        }
        yield {**about, **_quantities([(seed[key], seed[WHOLE]) for seed in seeds])}


def _quantities(seeds: Sequence[tuple[Contribution, Contribution]]) -> MutableRow:
    """The columns of a summand, from it and the whole of each seed."""
    parts = [part for part, _ in seeds]
    shares = [_ratio(part.covariance, whole.variance) for part, whole in seeds]
    row: MutableRow = {
        "share": mean(shares),
        "variance_ratio": mean([_ratio(part.variance, whole.variance) for part, whole in seeds]),
        "correlation": mean(
            [_ratio(part.covariance, math.sqrt(part.variance * whole.variance)) for part, whole in seeds]
        ),
        "norm": mean([_root(_ratio(part.second_moment, 1.0)) for part in parts]),
        "norm_ratio": mean([_root(_ratio(part.second_moment, whole.second_moment)) for part, whole in seeds]),
    }
    row |= dict.fromkeys(("logit", "logit_low", "logit_high", "error_through"))
    row["share_low"], row["share_high"] = interval(shares)
    if parts[0].units:
        logits = [_ratio(part.logit, part.examples) for part in parts]
        row["logit"] = mean(logits)
        row["logit_low"], row["logit_high"] = (
            interval(logits)
            if len(parts) > 1
            else interval_of_sums(int(parts[0].examples), parts[0].logit, parts[0].logit_squares)
        )
        row["error_through"] = mean([_ratio(part.wrong, part.units) for part in parts])
    return row


def _ratio(value: float, whole: float) -> float | None:
    """None where there is nothing to compare with, or a number is not finite."""
    return value / whole if whole and math.isfinite(value) and math.isfinite(whole) else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
