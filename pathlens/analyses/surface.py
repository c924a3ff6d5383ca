"""The loss on a line or grid around the weights, and its curvature."""

from __future__ import annotations

import base64
import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from pathlens import plans
from pathlens.analyses.agreement import check_agreement, check_images
from pathlens.analyses.evaluation import Evaluation, evaluating, finite, view_for
from pathlens.analyses.linear import checked_lesion, spoken_lesion
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.provenance import SurfaceProvenance
from pathlens.analyses.sources import Data
from pathlens.analyses.sweep import PHASE, evaluate
from pathlens.errors import NumericsError, UsageError
from pathlens.intervene import applied
from pathlens.metrics import Task
from pathlens.models import load_into, load_state_dict_file, state_sha256
from pathlens.plans import Plan
from pathlens.residual import ResidualView
from pathlens.residual.inference import Inference
from pathlens.residual.modes import copied, in_mode
from pathlens.residual.routes import Route, intact
from pathlens.results.surface import LOSS_SURFACE, SurfaceRow, draws_of, has_basin
from pathlens.runtime import processes
from pathlens.surface import DIMENSIONAL, Hessian, Spectrum, Statistics, Weights, between, moving, random
from pathlens.tables import Json, Table
from pathlens.tables.declared import MutableRow

DIRECTIONS = ("random", "hessian")
BATCH_NORM = ("kept", "re-estimated")
CURVATURE = ("none", "centre", "grid")
#: points that nobody waits for, and coordinates that weights in float16 or float32 do not survive
_MOST, _WIDEST = 1_000_000, 1e30

Other = nn.Module | str | os.PathLike[str]
"""A second network of the same kind, or the file of its weights."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a surface is measured of; see :func:`loss_surface`."""

    dimensions: int
    points: int
    span: float
    directions: str
    one_dimensional: str
    batch_norm: str
    draws: int
    curvature: str
    curvature_images: int
    probes: int

    def __post_init__(self) -> None:
        choices = {
            "directions": DIRECTIONS, "one_dimensional": DIMENSIONAL, "batch_norm": BATCH_NORM, "curvature": CURVATURE
        }  # fmt: skip
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name} {value!r} is unknown; give one of {', '.join(known)}")
        if self.dimensions not in (1, 2):
            raise UsageError(f"dimensions {self.dimensions}: give 1 for a line or 2 for a grid")
        if self.points < 3 or self.points % 2 == 0:
            raise UsageError(
                f"points {self.points}: give an odd number from 3 on, so that the network is the one in the middle"
            )
        if self.draws * self.points**self.dimensions > _MOST:
            raise UsageError(
                f"points {self.points}, draws {self.draws}: the surface has more than {_MOST:,} points, each a pass "
                "over the data; give fewer"
            )
        if not 0 < self.span <= _WIDEST:
            raise UsageError(
                f"span {self.span:g}: give a number above 0, up to which coordinates go on either side, of at most "
                f"{_WIDEST:g}"
            )
        for name, least in (("draws", 1), ("curvature_images", 1), ("probes", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name.replace('_', '-')} {getattr(self, name)}: give {least} or more")

    @property
    def coordinates(self) -> list[float]:
        """Of the points along an axis; the one in the middle is exactly 0."""
        half = self.points // 2
        return [self.span * step / half for step in range(-half, half + 1)]

    @property
    def places(self) -> list[tuple[float, ...]]:
        """Coordinates of all points, the first axis fastest."""
        return [place[::-1] for place in itertools.product(self.coordinates, repeat=self.dimensions)]


def loss_surface(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    dimensions: int = 2,
    points: int = 51,
    span: float = 1.0,
    directions: str = "random",
    towards: Other | Sequence[Other] = (),
    one_dimensional: str | None = None,
    batch_norm: str | None = None,
    draws: int = 1,
    curvature: str = "centre",
    curvature_images: int = 256,
    probes: int = 16,
    lesion: Plan | Iterable[Plan] = (),
    **options: Unpack[SweepOptions],
) -> Table:
    """Loss and error on a line or a grid around the weights, and the curvature of the loss.

    Args:
        model: the network or its view. It is afterwards as it was, to the bit.
        data: an opened data set, or batches of (images, labels). Its images are decoded once and held in memory.
        dimensions: 1 for a line, 2 for a grid.
        points: along each axis, odd.
        span: coordinates go from ``-span`` to ``span``. 1 is, in a random direction, as far away as the weights are
            from zero; in one of the Hessian, a distance of 1; towards another network, that network.
        directions: of the axes that lead to no other network: ``random``, with the norms of the network's own filters,
            or ``hessian``, the eigenvectors of the largest eigenvalues.
        towards: networks of the same kind, or files of their weights, to which the first axes lead.
        one_dimensional: what biases and the parameters of norms do: ``still`` (the default, as published), ``moved``
            (the default on the way to another network), or ``copied``; see
            :data:`pathlens.surface.directions.DIMENSIONAL`.
        batch_norm: ``kept`` (the default, as published): running statistics are those of the network itself; or
            ``re-estimated`` (the default on the way to another network that has some): at each point from the images.
        draws: lines in so many random directions. Draw d of seed s is the first one of seed s + d, so that runs of
            several seeds have directions of their own where the seeds are ``draws`` or more apart.
        curvature: ``none``, of the network itself (``centre``), or also of every point (``grid``), which costs some 100
            passes forward and back at each.
        curvature_images: the first so many images are those whose mean loss is differentiated.
        probes: random vectors for the trace.
        lesion: plans of :mod:`pathlens.plans` that change the forward pass; the surface is of the lesioned network.
        **options: see :func:`.evaluating`; ``seed`` is that of the directions.

    Returns:
        A row for each point; cross-entropies in nats, errors as fractions. The provenance says what was moved and kept,
        and holds the curvature: with batch norm statistics kept, with respect to the weights that move. Its warnings
        say where there is no basin.

    Raises:
        UsageError: a number or name that cannot be, a lesion that does not fit, or another network that is the same.
        CheckpointError: weights of another kind of network.
        ModelError: statistics to re-estimate where there are none, or parameters of several types.
        NumericsError: weights, or the loss at every point, that are not finite; curvature that does not settle.
        NoResidualBlocksError, DataError, ResourceError, RunError: see :func:`.delete_blocks`.

    Source: Li et al. 2018, sections 4 to 6; Goodfellow, Vinyals, Saxe 2015 for the way between two networks.
    """
    others = [towards] if isinstance(towards, nn.Module | str | os.PathLike) else list(towards)
    view = view_for(model, data, options)
    asked = Asked(
        dimensions=dimensions,
        points=points,
        span=float(span),
        directions=directions,
        one_dimensional=one_dimensional or ("moved" if others else "still"),
        batch_norm=batch_norm or ("re-estimated" if others and len(Statistics(view.model)) else "kept"),
        draws=draws,
        curvature=curvature,
        curvature_images=curvature_images,
        probes=probes,
    )
    _check(asked, others)
    lesions = checked_lesion(lesion, view)
    ends = [_twin(view.model, other) for other in others]
    identity: dict[str, Json] = {
        **vars(asked),
        "lesion": [repr(plan) for plan in lesions],
        "towards": [state_sha256(end) for end in ends],
        "seed": options.get("seed", 0),
    }
    networks = draws * len(asked.places)
    with evaluating(LOSS_SURFACE.name, view, data, identity, networks, **options) as evaluation, ExitStack() as stack:
        with evaluation.runner.group.agreed():
            with torch.inference_mode():
                difference = check_agreement(evaluation.network, evaluation.runner.source.first())
            weights = stack.enter_context(moving(view.model))
            stack.enter_context(in_mode(view.model))
            surface = _Surface(evaluation, weights, asked, lesions)
        return surface.measure(ends, difference)


def _check(asked: Asked, others: Sequence[Other]) -> None:
    """Raise where what was asked for does not go together."""
    has_random_axis = asked.directions == "random" and len(others) < asked.dimensions
    if len(others) > asked.dimensions:
        raise UsageError(f"towards: {len(others)} networks are more than the {asked.dimensions} axes; give fewer")
    if asked.draws > 1 and (asked.dimensions > 1 or not has_random_axis):
        raise UsageError(f"draws {asked.draws}: several draws are for lines (dimensions 1) in random directions")
    if asked.one_dimensional == "copied" and (others or not has_random_axis):
        raise UsageError("one_dimensional 'copied' is for random directions alone; give moved or still")


def _twin(model: nn.Module, other: Other) -> nn.Module:
    """A copy of the network with other weights."""
    twin = copied(model)
    if isinstance(other, nn.Module):
        load_into(twin, other.state_dict(), "the network to go towards")
    else:
        load_into(twin, load_state_dict_file(other)[0], os.fspath(other))
    own, theirs = (torch.cat([p.detach().reshape(-1) for p in network.parameters()]) for network in (model, twin))
    if torch.equal(own, theirs):
        where = type(other).__name__ if isinstance(other, nn.Module) else os.fspath(other)
        raise UsageError(f"{where} has the very weights of the network, so no direction leads there; give another")
    return twin


class _Surface:
    """One analysis, with the weights in their buffer."""

    def __init__(self, evaluation: Evaluation, weights: Weights, asked: Asked, lesions: Sequence[Plan]) -> None:
        self.evaluation, self.weights, self.asked, self.lesions = evaluation, weights, asked, lesions
        self.view, self.runner, self.task = evaluation.view, evaluation.runner, evaluation.task
        self.route: Route = plans.route(lesions, len(self.view)) if lesions else intact(len(self.view))
        self.statistics = Statistics(self.view.model)
        if asked.batch_norm == "re-estimated":
            self.statistics.check(self.view.model)
        # a view of its own, because what it traces holds another momentum
        self._estimating = copy.copy(self.view)
        self.batches = list(self._held())
        # parameters of one dimension that stay are constants of the curvature too
        self.positions = weights.at_least(2 if asked.one_dimensional == "still" else 0)
        where = next(iter(weights.parameters))
        self.hessian = Hessian(self._loss, weights, self.positions, list(self._first(asked.curvature_images, where)))

    def measure(self, ends: Sequence[nn.Module], difference: float) -> Table:
        """The whole table."""
        needs_vectors = self.asked.directions == "hessian" and len(ends) < self.asked.dimensions
        spectrum, curvature = self._curvature(self.asked.dimensions - len(ends) if needs_vectors else 1)
        seed = self.evaluation.seed
        places = self.asked.places
        rows: list[MutableRow] = []
        axes = [self._axes(ends, spectrum, seed + draw) for draw in range(self.asked.draws)]
        numbers = range(len(axes) * len(places))
        counts = self.runner.each(PHASE, numbers, lambda number: self._point(axes, places, number))
        spectra: dict[int, list[float]] = {}
        if self.asked.curvature == "grid":
            spectra = self.runner.each("spectra", numbers, lambda number: self._spectrum(axes, places, number))
        for number, (_, values) in counts.items():
            place = places[number % len(places)]
            count, _ = self.task.measured(values)
            largest, smallest = spectra.get(number, (None, None))
            row = SurfaceRow(
                draw=number // len(places),
                x=place[0],
                y=place[1] if len(place) > 1 else None,
                nonfinite=count.nonfinite,
                largest_eigenvalue=largest,
                smallest_eigenvalue=smallest,
            )
            rows.append({**vars(row), **count.columns()})
        if all(row["loss"] is None for row in rows):
            raise NumericsError(
                "the loss is NaN or infinite at every point of the surface; give a smaller --span, or other weights"
            )
        return LOSS_SURFACE.table(rows, self._record(ends, curvature, difference, rows).entries())

    def _held(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and labels, decoded once, on the device."""
        device, network = self.runner.device, self.evaluation.network
        for number, images, labels in self.runner.source.batches():
            check_images(network, images, number)
            self.task.check_targets(labels, len(images))
            if self.asked.batch_norm == "re-estimated" and len(images) < 2:
                raise UsageError(
                    f"batch {number} has one image, of which batch norm has no statistics; give another number of "
                    "images (--limit) or batch size"
                )
            yield images.to(device), labels.to(device)

    def _first(self, images: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The first images and their labels, in batches, as the model itself takes them."""
        left = images
        for batch, labels in self.batches:
            if left > 0:
                yield _as_taken(batch[:left], like), labels[:left].to(like.device)
            left -= len(batch)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of the lesioned network, differentiable in its parameters."""
        chain = self.view.chain(images)
        x = chain.stem(images)[0]
        for part, block in self.route:
            x = chain.step(part, block)(x)[0]
        return self.task.losses(chain.head(x)[0], labels).sum()

    def _axes(self, ends: Sequence[nn.Module], spectrum: Spectrum | None, seed: int) -> list[Tensor]:
        """The directions of the axes."""
        generator = torch.Generator().manual_seed(seed)
        leading = iter(spectrum.vectors if spectrum is not None else ())
        axes = [between(self.weights, end, self.asked.one_dimensional) for end in ends]
        while len(axes) < self.asked.dimensions:
            if self.asked.directions == "hessian":
                axes.append(next(leading))
            else:
                axes.append(random(self.weights, generator, self.asked.one_dimensional))
        return axes

    def _moved(self, axes: Sequence[list[Tensor]], places: Sequence[tuple[float, ...]], number: int) -> None:
        self.weights.move(axes[number // len(places)], places[number % len(places)])

    def _point(self, axes: Sequence[list[Tensor]], places: Sequence[tuple[float, ...]], number: int) -> Json:
        """The name of the engine and the counts of a point."""
        self._moved(axes, places, number)
        if self.asked.batch_norm == "re-estimated":
            like = self.weights.parameters[0]
            self.statistics.estimate(self._run, (_as_taken(images, like) for images, _ in self.batches))
        engine = self.evaluation.network.engine
        # prepared anew, because norms are folded into the weights; that takes a small part of a pass
        with torch.inference_mode(), Inference(self.view, self.runner.device, self.runner.dtype, engine) as network:
            totals: list[Tensor] = []
            for images, labels in self.batches:
                totals += network.each(_counter(network, self.task, self.route), network.parts(images, labels))
            values = torch.stack(totals).sum(0).tolist()
            self.task.measured(values)  # which refuses targets outside the classes
            return [engine.name, values]

    def _run(self, images: Tensor) -> None:
        """A forward pass of the lesioned network that writes batch norm statistics."""
        with ExitStack() as stack:
            for plan in self.lesions:
                stack.enter_context(applied(self._estimating, plan))
            self.view.model(images)

    def _spectrum(self, axes: Sequence[list[Tensor]], places: Sequence[tuple[float, ...]], number: int) -> Json:
        """The largest and the smallest eigenvalue at a point."""
        self._moved(axes, places, number)
        self.statistics.restore()
        spectrum = self.hessian.spectrum(_seed(self.evaluation.seed))
        return [spectrum.largest[0], spectrum.smallest]

    def _curvature(self, leading: int) -> tuple[Spectrum | None, dict[str, Json] | None]:
        """Ends of the spectrum and trace at the network itself."""
        wanted = self.asked.curvature != "none"
        if not wanted and self.asked.directions != "hessian":
            return None, None
        seed = _seed(self.evaluation.seed)

        def compute(number: int) -> Json:
            self.weights.move((), ())
            if number:
                return self.hessian.probe((seed, number))
            spectrum = self.hessian.spectrum(seed, leading)
            vectors = [_packed(vector) for vector in spectrum.vectors] if self.asked.directions == "hessian" else []
            return [spectrum.largest, vectors, spectrum.smallest, spectrum.products]

        results = self.runner.each("curvature", range(1 + (self.asked.probes if wanted else 0)), compute)
        largest, vectors, smallest, products = results[0]
        rows = [_unpacked(vector, self.weights.flat) for vector in vectors]
        spectrum = Spectrum(largest, torch.stack(rows) if rows else torch.empty(0), smallest, products)
        if not wanted:
            return spectrum, None
        traces = [value for number, value in results.items() if number]
        return spectrum, {
            "largest": largest[0],
            "smallest": smallest,
            "trace": float(np.mean(traces)),
            "trace_standard_error": float(np.std(traces, ddof=1) / math.sqrt(len(traces))),
            "probes": len(traces),
            "lanczos_products": products,
            "weights": len(self.positions),
            "images": self.hessian.images,
        }

    def _record(
        self,
        ends: Sequence[nn.Module],
        curvature: dict[str, Json] | None,
        difference: float,
        rows: Sequence[MutableRow],
    ) -> SurfaceProvenance:
        evaluation, asked = self.evaluation, self.asked
        own = {"random": "random, filter-normalised", "hessian": "leading eigenvector of the Hessian"}
        spoken = [f"towards weights {state_sha256(end)[:12]}" for end in ends]
        spoken += [own[asked.directions]] * (asked.dimensions - len(ends))
        no_basin = (
            f"no basin{f' in draw {draw}' if asked.draws > 1 else ''}: the smallest loss lies on the edge of what was "
            "measured; give a larger --span, or see whether the network is trained"
            for draw, part in draws_of(rows).items()
            if not has_basin(part)
        )
        curvature_of = (
            f"mean loss of the first {self.hessian.images} images, batch norm statistics kept, by the weights that move"
        )
        stated = evaluation.stated
        return SurfaceProvenance(
            verb=evaluation.verb,
            network=type(self.view.model).__name__,
            blocks=len(self.view),
            output=self.view.output,
            data=self.runner.source.provenance,
            stated=stated,
            task=self.task.name,
            loss=self.task.loss,
            lesion=spoken_lesion(self.route) if self.lesions else None,
            directions=tuple(spoken),
            one_dimensional=asked.one_dimensional,
            batch_norm=asked.batch_norm if len(self.statistics) else "none",
            points=asked.points,
            span=asked.span,
            draws=asked.draws,
            seed=evaluation.seed,
            dtype=evaluation.dtype,
            device=processes.device_name(self.runner.device),
            engine=evaluation.choice,
            processes=self.runner.group.world,
            largest_relative_logit_difference=finite(difference),
            curvature_of=curvature_of if curvature else None,
            curvature=curvature,
            warnings=tuple(no_basin),
            resumed_units=self.runner.resumed,
            seconds=self.runner.seconds,
            notes=(*self.view.notes, *stated.get("notes", ())),
        )


def _as_taken(images: Tensor, like: Tensor) -> Tensor:
    """Inputs where and as the model takes them; integers stay what they are."""
    images = images.to(like.device)
    return images.to(like.dtype) if images.is_floating_point() else images


def _counter(network: Inference, task: Task, route: Route) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """(images, labels) -> the task's numbers of a network that is compared with itself."""

    def count(part: tuple[Tensor, ...]) -> Tensor:
        ((_, outputs),) = evaluate(network, [route], part[0])
        values, answers = task.answers(outputs, part[1])
        return torch.cat([values, task.compare(answers[None])[0]])

    return count


def _seed(seed: int) -> int:
    """A seed that numpy takes, which knows no negative ones."""
    return seed % 2**64


def _packed(vector: Tensor) -> str:
    """A vector as text for the journal, to the bit."""
    # as bytes, because numpy has no bfloat16
    return base64.b64encode(vector.cpu().contiguous().view(torch.uint8).numpy().tobytes()).decode()


def _unpacked(text: str, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=like.dtype).to(like.device)
