"""Signal propagation: moments of activations and gradients at every block, over initialisations or as trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pathlens.analyses.agreement import check_traced
from pathlens.analyses.evaluation import losses_of
from pathlens.analyses.initialised import check_batches, check_schemes, checked_batch, interval, labelled, mean
from pathlens.analyses.linear import Observed, Opened, opened
from pathlens.analyses.options import Options
from pathlens.analyses.runner import Progress
from pathlens.analyses.sources import Data
from pathlens.errors import UsageError
from pathlens.initialisation import SCHEMES
from pathlens.plans import require_chain
from pathlens.propagation import QUANTITIES, Expected, Growth, expect, growth_of, measure, overflow_block
from pathlens.propagation.measure import Place, places
from pathlens.residual import ResidualView, view_of
from pathlens.residual.losses import Loss
from pathlens.residual.modes import copied
from pathlens.results.signal import SIGNAL_PROPAGATION
from pathlens.runtime.randomness import seeded
from pathlens.tables import Table
from pathlens.tables.declared import MutableRow, Rows

_MEASURED = (*QUANTITIES, *(f"gradient_{name}" for name in QUANTITIES))
_EXPECTED = tuple(f"expected_{name}" for name in Expected.__dataclass_fields__)

#: by place: what was measured, then what is expected
_Values = dict[Place, list[float | None]]


@dataclass
class _Curve:
    """One line of the figure: a name, and what was measured with each seed."""

    label: str
    trained: bool
    seeds: list[_Values] = field(default_factory=list)


def signal_propagation(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    init: str | Sequence[str] = (),
    seeds: int = 5,
    given: bool | None = None,
    mode: str = "train",
    standardise: bool = False,
    steps: int = 0,
    lr: float = 0.1,
    seed: int = 0,
    build: Callable[[int], nn.Module] | None = None,
    dtype: str | None = None,
    loss: Loss | str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Table:
    r"""What depth does to activations and gradients: signal propagation plots, forward and backward.

    At the end of every branch and shortcut, at their sum and behind the post-activation: average channel squared mean,
    average channel variance, variance over everything and second moment, of the activations and of the gradient of the
    loss. Each batch is reduced by itself, and batches are averaged. The gradient is that of the sum of the losses of a
    batch, so that it does not depend on how many examples there are (but for batch norms).

    Examples none of whose tokens or pixels counts (-100) are left out, as by :func:`.path_gradients`.

    Args:
        model: the network or its view. It is not changed.
        data: an opened data set, or batches of (images, labels).
        init: schemes of :func:`pathlens.initialise`, or ``as-built``, each a curve over ``seeds`` initialisations.
        seeds: initialisations of each scheme: ``seed``, ``seed + 1``, ...
        given: also measure the weights that the model has (default: where no scheme is given).
        mode: ``train``, with the statistics of the batch in batch norms, or ``eval``.
        standardise: as of :func:`pathlens.initialise`.
        steps: of plain gradient descent on the first batch with a target that counts before anything is measured, since
            a factor or weight of exactly zero at the end of a branch makes gradients below it exactly zero at step 0.
        lr: learning rate of these steps, on the mean loss.
        seed: of the first initialisation.
        build: seed -> the network anew, for ``as-built``.
        dtype: what to compute with (default: the model's type).
        loss: (outputs, targets) -> loss of each example, or its name; as of :func:`.path_gradients`.
        progress: called with (batches done, batches in all).
        **options: see :func:`pathlens.analyses.linear.opened`.

    Returns:
        A row for each curve, block and place, with 95 % intervals over the seeds, what theory expects at initialisation
        (by the order of its operations), and the growth per block that is fitted at the place. Its provenance
        has warnings: blocks where values are NaN or infinite, or where the type would overflow if the network went on
        as it does.

    Raises:
        UsageError: no seeds, an unknown scheme or mode, ``as-built`` without ``build``, or a plan that is active.
        ModelError: a scheme that does not fit the network.
        DataError: a batch of one example in train mode, an input that is NaN or infinite, or no target that counts.
        NumericsError: the network draws at random in this mode, as it is, once it is initialised or after the steps.

    Source: Brock, De, Smith 2021, section 3; Civitelli et al. 2021, figures 2 and 6.
    """
    schemes = [init] if isinstance(init, str) else list(init)
    check_schemes(schemes, seeds, build, given)
    if steps < 0:
        raise UsageError(f"steps {steps}: give 0 or more")
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"lr {lr:g}: give a number above 0, the learning rate of the steps")
    if mode == "train":
        check_batches(data, options.get("batch_size"))
    # a view of others is refused below
    additions = None if isinstance(model, ResidualView) else "trunk"
    with opened(model, data, mode=mode, dtype=dtype, progress=progress, additions=additions, **options) as run:
        require_chain(run.view, "to follow a signal")
        run.require_intact("to follow a signal")
        losses, named = losses_of(run.view, loss, run.runner)
        observed, first = Observed(run, loss), run.moved(run.runner.source.first())
        stated = options.get("provenance") or {}
        own = str(stated.get("weights", "as given")) if given or not schemes else None
        curves: list[_Curve] = []
        for label, is_given, networks in labelled(run, own, schemes, range(seed, seed + seeds), build, standardise):
            curve = _Curve(label, is_given and bool(stated.get("trained", True)))
            curves.append(curve)
            for number, start in networks:
                with seeded(number, run.runner.device):
                    view = _trained(start, run, observed, steps, lr, losses) if steps else start
                    if steps or not is_given:  # with other weights it may draw at random, and be refused for it
                        check_traced(view, first)
                request = (curve.label, number, standardise, steps, lr, stated.get("model"), named)
                run.identify("signal-propagation", request)
                measuring = _measuring(view, run, losses, curve.trained or steps)
                batches = observed(f"{curve.label} {number}", measuring)
                curve.seeds.append(_averaged(batches.values(), view))
        rows: list[MutableRow] = []
        warnings = [f"{scheme}: {SCHEMES[scheme].note}" for scheme in schemes if _is_frozen(scheme) and not steps]
        for curve in curves:
            curve_rows = _rows(curve, run)
            rows += curve_rows
            warnings += _warnings(curve, curve_rows, run)
        record = run.record(
            verb="signal-propagation",
            at="every block",
            loss=named,
            seed=seed,
            measured={"seeds": seeds if schemes else 1, "steps": steps, "lr": lr if steps else None,
                      "standardised": standardise, "warnings": warnings, **observed.left_out},
            resumed_units=run.runner.resumed,
            processes=run.runner.group.world,
            seconds=run.runner.seconds,
        )  # fmt: skip
    return SIGNAL_PROPAGATION.table(rows, record.entries())


def _is_frozen(scheme: str) -> bool:
    return scheme in SCHEMES and bool(SCHEMES[scheme].note)


def _trained(view: ResidualView, run: Opened, observed: Observed, steps: int, lr: float, loss: Loss) -> ResidualView:
    """A copy of the network some steps of gradient descent later, on the first examples of which a target counts."""
    for _, images, labels in run.runner.source.batches():
        counted: Any = observed.counted(images, labels)
        if counted.any():
            break
    else:
        return view  # of which nothing is observed either
    network = copied(view.model)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    counted = slice(None) if counted.all() else counted.to(run.runner.device)
    images, labels = run.moved(images), labels.to(run.runner.device)
    later = view_of(network, images[:2], view.output)
    chain = later.chain(images)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = later.head(later.run(chain.stem(images)[0]))
            loss(logits[counted], labels[counted]).mean().backward()
        optimizer.step()
    network.requires_grad_(False)
    return later


def _measuring(view: ResidualView, run: Opened, loss: Loss, trained: object) -> Callable[[int, Tensor, Tensor], Any]:
    def compute(batch: int, images: Tensor, labels: Tensor) -> Any:
        images = checked_batch(run, batch, images)
        chain = view.chain(images)
        readings = measure(chain, images, labels.to(run.runner.device), loss)
        due = {} if trained else expect(chain, readings)
        none = [None] * len(QUANTITIES)
        values = [
            [*(reading.forward or none), *(reading.backward or none), *vars(due.get(place, Expected())).values()]
            for place, reading in readings.items()
        ]
        return len(images), values

    return compute


def _averaged(batches: Iterable[tuple[int, list[list[float | None]]]], view: ResidualView) -> _Values:
    """Means over batches, each as often as it has examples; missing where any is."""
    examples, stacked = zip(*batches, strict=True)
    means = [
        [None if None in values else fmean(values, examples) for values in zip(*of_batches, strict=True)]
        for of_batches in zip(*stacked, strict=True)
    ]
    return dict(zip(places(view.chain()), means, strict=True))


def _rows(curve: _Curve, run: Opened) -> list[MutableRow]:
    """The rows of a curve."""
    view = run.view
    rows: list[MutableRow] = []
    growths = {place: _growths(curve, view, place) for place in {place for _, place in curve.seeds[0]}}
    for where in curve.seeds[0]:
        block, place = where
        values = dict(
            zip((*_MEASURED, *_EXPECTED), zip(*(seed[where] for seed in curve.seeds), strict=True), strict=True)
        )
        row: MutableRow = {
            "network": type(view.model).__name__,
            "weights": curve.label,
            "seeds": len(curve.seeds),
            "block": block,
            "name": "stem" if block < 0 else view[block].name,
            "stage": view[max(block, 0)].stage,
            "kind": None if block < 0 else view[block].kind,
            "place": place,
            **{name: mean(of_seeds) for name, of_seeds in values.items()},
        }
        for name in _MEASURED:
            row[f"{name}_low"], row[f"{name}_high"] = interval(values[name])
        for prefix, growth in zip(("growth", "gradient_growth"), growths[place], strict=True):
            row |= {prefix: growth.factor, f"{prefix}_low": growth.low, f"{prefix}_high": growth.high}
        rows.append(row)
    return rows


def _growths(curve: _Curve, view: ResidualView, place: str) -> tuple[Growth, Growth]:
    stages = [block.stage for block in view]
    growths = []
    for backward in (False, True):
        at = _MEASURED.index("gradient_second_moment" if backward else "second_moment")
        values = [
            [seed[block, place][at] if (block, place) in seed else None for block in range(len(view))]
            for seed in curve.seeds
        ]
        growths.append(growth_of(values, stages, backward))
    return growths[0], growths[1]


def _warnings(curve: _Curve, rows: Rows, run: Opened) -> Iterator[str]:
    """Where values are NaN or infinite, or would be."""
    name = str(run.runner.dtype).removeprefix("torch.")
    broken = next((row for row in rows if row["second_moment"] is None), None)
    if broken is not None:
        where = "the stem" if broken["block"] < 0 else f"block {broken['block']} ({broken['name']})"
        yield (
            f"{curve.label}: a value is NaN or infinite in {where}, at its {broken['place']}, in {name}; values go up "
            "to there, and there are no gradients"
        )
        return
    last = rows[-1]
    growth = Growth(last["growth"], last["growth_low"], last["growth_high"])
    at = overflow_block(last["block"], last["second_moment"], growth, torch.finfo(run.runner.dtype).max)
    if at is not None:
        yield (
            f"{curve.label}: the second moment grows by {growth.factor:.3g} a block (95 % {growth.low:.3g} to "
            f"{growth.high:.3g}); {name} would overflow at block {at}"
        )
    zero = [row["block"] for row in rows if row["gradient_second_moment"] == 0 and row["place"] in ("stem", "output")]
    if zero:
        yield f"{curve.label}: the gradient is exactly zero at {len(zero)} of {len(run.view) + 1} blocks and stem"
