"""A network and data opened for gradients: device, dtype, mode, and the linearisation at each batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathlens import plans
from pathlens.analyses.agreement import check_traced
from pathlens.analyses.evaluation import check_additions
from pathlens.analyses.provenance import GradientProvenance
from pathlens.analyses.runner import Progress, Runner, running
from pathlens.analyses.sources import Data
from pathlens.errors import DataError, UsageError
from pathlens.intervene import active_plans
from pathlens.metrics.classification import holds_indices
from pathlens.metrics.units import IGNORED
from pathlens.plans import Deletion, Plan
from pathlens.residual import ResidualView, view_of
from pathlens.residual.flow import concatenation_edges
from pathlens.residual.gradients import Linearisation, mixes_examples
from pathlens.residual.losses import Loss
from pathlens.residual.modes import copied, in_mode
from pathlens.residual.polynomials import GraphLinearisation
from pathlens.residual.routes import Part, Route, intact
from pathlens.runtime import processes
from pathlens.tables import Json, Provenance

#: default number of examples at a time
BATCH_SIZE = 32


@dataclass(frozen=True)
class Opened:
    """A network and data, ready for an analysis of gradients.

    Attributes:
        view: the network.
        route: what runs at each position.
        runner: of the batches.
        images: number of examples.
        mode: train or eval.
        stacked: whether many gradients are carried at once.
        concat: whether paths choose at concatenations too.
        dtype: what is computed with, by name.
        record: what a table says of where it comes from, given what the verb itself says.
    """

    view: ResidualView
    route: Route
    runner: Runner
    images: int
    mode: str
    stacked: bool
    concat: bool
    dtype: str
    record: Callable[..., GradientProvenance]

    @cached_property
    def is_chain(self) -> bool:
        """Whether all choices of a path are at blocks one after the other."""
        chain = self.view.chain()
        return chain.in_series and not (self.concat and concatenation_edges(chain))

    @cached_property
    def mixes(self) -> bool:
        """Whether an example's gradient holds what it does to the losses of the others of its batch."""
        return mixes_examples(self.view.chain().trace)

    def linearise(self, images: Tensor, labels: Tensor, at: str, loss: Loss) -> Linearisation | GraphLinearisation:
        """The network linearised at a batch."""
        images = self.moved(images)
        labels = labels.to(self.runner.device)
        options: dict[str, Any] = {"loss": loss, "at": at, "stacked": self.stacked, "route": self.route}
        if self.is_chain:
            return Linearisation(self.view, images, labels, **options)
        from pathlens.graph.choices import ways  # networkx takes its time, and a chain does not need it

        return GraphLinearisation(self.view, images, labels, **options, concat=self.concat, ways=ways)

    def moved(self, images: Tensor) -> Tensor:
        """Inputs on the device, in the type that is computed with; integers stay what they are."""
        return _moved(images, self.runner.device, self.runner.dtype)

    def require_intact(self, why: str) -> None:
        """Raise where a plan is active on the network, which this analysis would not carry out.

        Args:
            why: the purpose, for the message.

        Raises:
            UsageError: naming it.
        """
        if self.route != intact(len(self.view)):
            raise UsageError(
                f"an intervention is active on {type(self.view.model).__name__}, and {why} the network has to run as "
                "it is; call this outside of its with block"
            )

    @property
    def has_gradient_at_input(self) -> bool:
        """Whether the input is of numbers that a gradient can be taken at, and not of integers."""
        return self.view.input_dtype.is_floating_point

    def identify(self, verb: str, request: object) -> None:
        """Name the journals by everything that the results depend on."""
        self.runner.identify(
            verb,
            self.view,
            route=self.route,
            mode=self.mode,
            dtype=self.dtype,
            stacked=self.stacked,
            request=repr(request),
        )


class Observed:
    """The batches of a run, without examples none of whose targets counts (-100), of which no gradient is observed.

    Such an example has no loss, and so a gradient of zero. Where examples mix, its gradient is what it does to the
    losses of others, and it is left out only where no target of its batch counts.

    Args:
        run: the network and its batches.
        loss: as it was asked for; which targets count for a function nobody knows, so that no example is left out.

    Attributes:
        examples: number of examples in the last call.
    """

    def __init__(self, run: Opened, loss: Loss | str | None) -> None:
        self._run, self._loss = run, loss
        self.examples = 0

    def __call__(
        self, phase: str, compute: Callable[[int, Tensor, Tensor], Any], numbers: Sequence[int] | None = None
    ) -> dict[int, Any]:
        """What is found on each batch with a target that counts; arguments and errors as of :meth:`.Runner.run`.

        Raises:
            DataError: no target counts.
        """

        def observe(number: int, images: Tensor, labels: Tensor) -> list[Any]:
            counted = self.counted(images, labels)
            if not counted.any():
                return [0, None]
            if not (counted.all() or self._run.mixes):
                images, labels = images[counted.to(images.device)], labels[counted]
            return [len(images), compute(number, images, labels)]

        results = self._run.runner.run(phase, observe, numbers)
        self.examples = sum(examples for examples, _ in results.values())
        if not self.examples:
            raise DataError(
                f"{self._run.runner.source.provenance.data}: no target counts (all are {IGNORED}), so that there is no "
                "gradient to measure; give examples with targets that count"
            )
        return {number: found for number, (examples, found) in results.items() if examples}

    @property
    def left_out(self) -> dict[str, Json]:
        """Number of the examples that are left out, as provenance has it; nothing where there are none."""
        left = self._run.images - self.examples
        return {"images_left_out": left} if left else {}

    def counted(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which examples have a target that counts."""
        # labels that are no sets of indices, one for each example, are left to the loss, which refuses them or not
        if callable(self._loss) or labels.dim() < 2 or len(labels) != len(images) or not holds_indices(labels):
            return torch.ones(len(images), dtype=torch.bool)
        return (labels.long() != IGNORED).flatten(1).any(1)


@contextlib.contextmanager
def opened(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    batch_size: int = BATCH_SIZE,
    lesion: Plan | Iterable[Plan] = (),
    device: str | torch.device | None = None,
    dtype: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mode: str = "eval",
    stacked: bool = True,
    journal: str | Path | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
    additions: str | None = None,
    concat: bool = False,
) -> Iterator[Opened]:
    """Open a network and data for gradients; the model is afterwards as it was.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        batch_size: examples at a time.
        lesion: deletions and reorderings of :mod:`pathlens.plans`, beside those of the ``with`` blocks around.
        device: where to compute (default: where the model is); elsewhere a copy of the model is used.
        dtype: what to compute with (default: the model's type); in another type a copy of the model is used.
        mean: per-channel mean for normalisation.
        std: per-channel standard deviation.
        mode: ``eval``, or ``train`` for batch norms with the statistics of the batch, differentiated through them.
        stacked: carry many gradients through convolutional blocks at once.
        journal: folder for finished units; not with a loss that is a function, which no journal tells from another.
        provenance: what that of the table should also say.
        progress: called with (batches done, batches in all), summed over what is measured.
        additions: which residual additions are blocks, as for :func:`pathlens.find_blocks`; a view must have those.
        concat: paths choose at concatenations too, of a tensor and something learned from it. A network without any
            residual addition will do then.

    Raises:
        UsageError: an unknown mode or type, a lesion that does not fit the network, or a view of other blocks.
        DataError: no images.
        NumericsError: the traced network is not what the model's own forward computes.
    """
    if mode not in ("eval", "train"):
        raise UsageError(f"mode {mode!r} is unknown; give eval or train")
    given = module = _module_of(model)
    if isinstance(model, ResidualView):
        if model.concat:
            raise UsageError(
                "the view has concatenations among its blocks, and here paths choose at them by an option; give a view "
                "without them, and concat=True"
            )
        with in_mode(module, mode == "train"):
            check_additions(model, additions)
    own, name = _first_of(module), type_of(model, dtype)
    with running(module, data, batch_size, name, device, mean, std, journal, progress) as runner:
        source, where, kind = runner.source, runner.device, runner.dtype
        view = model if isinstance(model, ResidualView) else None
        if own.dtype != kind or own.device != where:
            module = copied(module).to(device=where, dtype=kind)
            view = None
        if view is None:
            like = model if isinstance(model, ResidualView) else None
            output, additions = (like.output, like.additions) if like else (None, additions)
            view = view_of(module, source.first(), output, additions, concat)
        images = source.provenance.images
        if images is None:
            sizes = [len(batch) for _, batch, _ in source.batches()]
            images = sum(sizes)
            if source.count is None:
                runner.source = source = replace(source, count=len(sizes))
        with in_mode(module, training=mode == "train"), _frozen(module):
            active = (*active_plans(given, view), *checked_lesion(lesion, view))
            route = plans.route(active, len(view))
            check_traced(view, _moved(source.first(), where, kind))
            stated = provenance or {}
            record = partial(
                GradientProvenance,
                network=type(module).__name__,
                blocks=len(view),
                additions=view.additions,
                concatenations_are_choices=concat,
                block_names=tuple(block.name for block in view),
                output=view.output,
                data=source.provenance,
                stated=stated,
                lesion=spoken_lesion(route) if route != intact(len(view)) else None,
                mode=mode,
                dtype=name,
                device=processes.device_name(where),
                batch_size=source.batch_size or len(source.first()),
                notes=(*view.notes, *stated.get("notes", ())),
            )
            yield Opened(view, route, runner, images, mode, stacked, concat, name, record)


def type_of(model: nn.Module | ResidualView, dtype: str | None) -> str:
    """The name of the type that is computed with: the one asked for, else that of the model.

    Args:
        model: the network or its view.
        dtype: asked for, or None.

    Raises:
        UsageError: the model is no module.
    """
    return dtype or str(_first_of(_module_of(model)).dtype).removeprefix("torch.")


def _module_of(model: nn.Module | ResidualView) -> nn.Module:
    module = model.model if isinstance(model, ResidualView) else model
    if not isinstance(module, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(module).__name__}")
    return module


def _first_of(module: nn.Module) -> Tensor:
    """The first parameter of fractional numbers, which tells the type and device of a module."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))


def _moved(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return images.to(device, dtype) if images.is_floating_point() else images.to(device)


def checked_lesion(lesion: Plan | Iterable[Plan], view: ResidualView) -> tuple[Plan, ...]:
    """The plans of a lesion, as they apply to a network.

    Raises:
        UsageError: one that changes no forward pass, puts something in the place of a branch, or does not fit.
    """
    given = (lesion,) if isinstance(lesion, Plan) else tuple(lesion)
    for plan in given:
        if not (isinstance(plan, Plan) and plan.changes_forward):
            raise UsageError(
                "a lesion must be made of plans to delete blocks, to delete shortcuts or to reorder blocks "
                f"(pathlens.plans); found {type(plan).__name__}"
            )
        if isinstance(plan, Deletion) and plan.replacement != "zero":
            raise UsageError(
                f"a branch is replaced by {plan.replacement!r} in pathlens.delete_blocks alone; delete it here "
                "(replace='zero')"
            )
    return tuple(plan.check(view) for plan in given)


def spoken_lesion(route: Route) -> dict[str, Json]:
    """A lesion as provenance states it."""
    order = [block for _, block in route]
    return {
        "deleted_blocks": sorted(block for part, block in route if part is Part.SHORTCUT),
        "deleted_shortcuts": sorted(block for part, block in route if part is Part.BRANCH),
        "order": order if order != sorted(order) else None,
    }


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Freeze the parameters, because only gradients with respect to activations are needed."""
    before = [parameter.requires_grad for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(required)
