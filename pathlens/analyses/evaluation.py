"""Evaluation of plans: error and loss of every lesioned network, with the provenance of the whole."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from pathlens.analyses import tuning
from pathlens.analyses.agreement import depends_on_batch
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.provenance import EngineProvenance, LesionProvenance
from pathlens.analyses.runner import Progress, Runner, running
from pathlens.analyses.sources import Data, batch_source
from pathlens.analyses.sweep import PHASE, SweepResult, sweep
from pathlens.errors import UsageError
from pathlens.metrics import Task, task_for, task_named
from pathlens.plans import Deletion, Plan, require_chain
from pathlens.residual import ResidualView, engines, view_of
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.losses import Loss
from pathlens.residual.modes import in_mode
from pathlens.results.measured import LEVEL
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.tables import Json, Provenance

#: batch size where none is given: large enough for full speed on a CPU, and small CIFAR-sized activations
BATCH_SIZE = 128

AUTO = "auto"

_WHOLE = (
    "what the network answers to an image depends on the others of its batch: batches are run whole, and the results "
    "are those of this batch size"
)


def run_plans(
    verb: str, view: ResidualView, lesions: Sequence[Plan], data: Data, **options: Unpack[SweepOptions]
) -> tuple[SweepResult, LesionProvenance]:
    """Evaluate plans on data; what all lesion verbs share.

    Args:
        verb: for provenance.
        view: the network.
        lesions: what to evaluate; the first one should be the intact network.
        data: an opened data set, or batches of (images, labels).
        **options: see :func:`.evaluating`.

    Returns:
        Counts of each plan, and the provenance.

    Raises:
        NumericsError, ResourceError, DataError, RunError: see :func:`.evaluating`.
    """
    # images are drawn where branches are resampled, and nothing else of the counts depends on the seed
    resamples = any(isinstance(plan, Deletion) and plan.replacement == "resample" for plan in lesions)
    identity = [*map(repr, lesions), *([f"seed {options.get('seed', 0)}"] if resamples else [])]
    with evaluating(verb, view, data, identity, len(lesions), **options) as evaluation:
        result = evaluation.sweep(lesions)
        return result, evaluation.record([result])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network and data made ready to evaluate plans.

    Attributes:
        verb: for provenance.
        view: the network.
        runner: of the batches.
        network: the prepared network.
        task: what is measured of the outputs.
        choice: of its engine.
        dtype: as asked for.
        seed: of the random draws that made the plans.
        stated: what the provenance should also say.
    """

    verb: str
    view: ResidualView
    runner: Runner
    network: Inference
    task: Task
    choice: EngineProvenance
    dtype: str
    seed: int
    stated: Provenance

    def sweep(self, lesions: Sequence[Plan], phase: str = PHASE) -> SweepResult:
        """Evaluate plans, of which the first one should be the intact network.

        Args:
            lesions: what to evaluate.
            phase: names the journal, where several sweeps are one analysis.
        """
        return sweep(self.network, self.task, lesions, self.runner, phase, self.seed)

    def record(self, results: Sequence[SweepResult]) -> LesionProvenance:
        """The provenance of what was swept."""
        with in_mode(self.view.model):  # in train mode the network may be another, or none that can be traced
            found = self.view.notes
        return LesionProvenance(
            verb=self.verb,
            network=type(self.view.model).__name__,
            blocks=len(self.view),
            additions=self.view.additions,
            concatenations_are_blocks=self.view.concat,
            output=self.view.output,
            data=self.runner.source.provenance,
            stated=self.stated,
            task=self.task.name,
            loss=self.task.loss,
            seed=self.seed,
            dtype=self.dtype,
            device=processes.device_name(self.runner.device),
            engine=self.choice,
            processes=self.runner.group.world,
            networks_evaluated=sum(len(result.routes) for result in results),
            largest_relative_logit_difference=finite(max(result.largest_logit_difference for result in results)),
            resumed_batches=self.runner.resumed,
            seconds=self.runner.seconds,
            comparison=comparison(self.task, [test for result in results for test in result.tests.values()]),
            notes=(
                *found,
                *self.stated.get("notes", ()),
                *_engine_notes(self.network.engine, self.runner.device, self.runner.dtype),
            ),
        )


@contextlib.contextmanager
def evaluating(
    verb: str,
    view: ResidualView,
    data: Data,
    identity: Json,
    networks: int,
    *,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    task: str | None = None,
    loss: str | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    engine: str = AUTO,
    fast: bool = True,
    journal: str | Path | None = None,
    progress: Progress | None = None,
    provenance: Provenance | None = None,
) -> Iterator[Evaluation]:
    """Make a network and data ready to evaluate plans, as one analysis with one engine.

    Args:
        verb: for provenance.
        view: the network.
        data: an opened data set, or batches of (images, labels).
        identity: what tells this analysis from others of the same network and data.
        networks: how many are going to be evaluated, about.
        batch_size: images in memory at a time, however large the data set is; the engine runs as many or fewer, and
            as many where the network's answer to an image depends on the others (batch norms without statistics).
        device: where to compute (default: where the model is).
        dtype: ``float32``, ``tf32``, ``bfloat16``, ``float16`` or ``float64``, whatever autocast says outside.
        task: what is measured of the outputs, by name (see :class:`pathlens.metrics.Task`; default: what fits their
            shape).
        loss: that is measured, by name (see :meth:`pathlens.metrics.Task.with_loss`; default: the cross-entropy).
        seed: of the random draws that made the plans, for provenance.
        mean: per-channel mean for normalisation (default: the data set's).
        std: per-channel standard deviation (default: the data set's).
        engine: how to run the network, such as ``packed-32x2`` (see ``pathlens.residual.engines``). ``auto`` measures
            which is fastest where that pays; the provenance says which it was, and a sweep that is taken up again
            goes on with it, or begins anew where this machine does not have it. Another engine rounds otherwise.
        fast: False is short for the engine ``plain``, the model's own operations.
        journal: folder for finished batches, from which a killed sweep goes on (default: nothing is kept).
        progress: called with (batches done, batches in all).
        provenance: what that of the table should also say, such as where the weights are from.

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
            chosen = task_of(view, task or runner.source.task, loss)
            spec = stated.get("model")
            what = {"task": chosen.name, "loss": chosen.loss}
            runner.identify(verb, view, plans=identity, **what, dtype=dtype, engine=asked, spec=spec)
        network, choice, notes = _prepared(given, view, runner, networks)
        if notes:
            stated = {**stated, "notes": (*stated.get("notes", ()), *notes)}
        with network:
            yield Evaluation(verb, view, runner, network, chosen, choice, dtype, seed, stated)


def _prepared(
    given: Engine | None, view: ResidualView, runner: Runner, networks: int
) -> tuple[Inference, EngineProvenance, list[str]]:
    """The network in the form given, that of the journal, or the fastest; what provenance says of the choice; notes."""
    group = runner.group
    notes: list[str] = []
    network: Inference | None = None
    choice: EngineProvenance | None = None
    before = _engine_before(runner)
    if given is None and before and not all(group.gather(_is_here(before, runner))):
        notes.append(f"the sweep began anew: its journal is of engine {before}, which this machine does not have")
        runner.start_anew(engine=f"{AUTO}, and not {before}")
        before = _engine_before(runner)
    if given is not None:
        choice = EngineProvenance(engine=given.name, engine_chosen="given")
    elif before:
        choice = EngineProvenance(engine=before, engine_chosen="resumed")
    else:
        with group.agreed(), torch.inference_mode(), oom_as_error(runner.source.batch_size):
            if group.is_main:  # one process measures for all
                network, choice = tuning.choose(view, runner, networks)
        (choice, *_) = group.gather(choice)
    assert choice is not None
    if network is None:
        network = Inference(
            view, runner.device, runner.dtype, engines.named(choice.engine, runner.device, runner.dtype)
        )
    with group.agreed(), torch.inference_mode(), oom_as_error(runner.source.batch_size):
        depends = depends_on_batch(network, runner.source.first())
    if any(group.gather(depends)):
        network.keep_batches_whole()
        choice = replace(choice, engine=network.engine.name)
        notes.append(_WHOLE)
    return network, choice, notes


def _engine_before(runner: Runner) -> str | None:
    """The engine of the finished batches in the journals, if there are any."""
    return next((name for name, _ in runner.recorded(PHASE).values()), None)


def _is_here(name: str, runner: Runner) -> bool:
    """Whether this machine has an engine."""
    try:
        engines.named(name, runner.device, runner.dtype)
    except UsageError:
        return False
    return True


def task_of(view: ResidualView, name: str | None, loss: str | None = None) -> Task:
    """The task of a name, or the one that the outputs of a network fit, with a loss.

    Raises:
        UsageError: there is no task of that name, or it has no such loss.
        ModelError: the outputs do not fit the task, or none.
    """
    trace = view.chain().trace
    shape = trace.shape(trace.main)
    task = (task_for(shape, loss) if name is None else task_named(name)).with_loss(loss)
    task.check_outputs(shape)
    return task


def losses_of(view: ResidualView, given: Loss | str | None, runner: Runner) -> tuple[Loss, str]:
    """The loss of each example, and its name.

    Args:
        view: the network.
        given: a function, the name of a loss of what the outputs fit, or None for the usual one.
        runner: of the analysis.

    Raises:
        UsageError: there is no such loss, or a function is to have a journal, in which nothing would tell it from
            another.
        ModelError: the outputs fit no task.
    """
    if callable(given):
        if runner.keeps:
            raise UsageError(
                "a journal does not know one function for the loss from another; leave journal out, or name a loss"
            )
        return given, "given by the caller"
    chosen = task_of(view, runner.source.task, given)
    return chosen.losses, chosen.loss


def comparison(task: Task, tests: Sequence[tuple[float, float]]) -> dict[str, Json] | None:
    """How networks were compared with the intact one, and how many differ; None where there is no other.

    Args:
        task: what was measured.
        tests: p of each, and p after correction.
    """
    if not tests:
        return None
    return {
        "with": f"the intact network, on the same {task.example}s",
        "interval": task.interval,
        "test": task.test,
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


def view_for(
    model: nn.Module | ResidualView,
    data: Data,
    options: SweepOptions,
    additions: str | None = "trunk",
    concat: bool = False,
) -> ResidualView:
    """The blocks of a network, found with the first images where it is no view yet.

    Args:
        model: the network or its view.
        data: what is studied.
        options: of the analysis.
        additions: which residual additions are blocks, as for :func:`pathlens.find_blocks`.
        concat: whether concatenations have to be blocks too; those of a view may be in any case.

    Raises:
        UsageError: it is no module, or a view of other blocks.
        NoResidualBlocksError: it has neither residual blocks nor a plain chain of layers.
    """
    if isinstance(model, ResidualView):
        with in_mode(model.model):
            _check_blocks(model, additions, concat)
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(model).__name__}")
    where = processes.device_of(model, None)
    source = batch_source(data, 2, options.get("mean"), options.get("std"), where)
    return view_of(model, source.first(), None, additions, concat=concat)


def _check_blocks(view: ResidualView, additions: str | None, concat: bool) -> None:
    """Raise where a view has other blocks than those that are asked for."""
    if concat and not view.concat and view.has_concatenations:
        raise UsageError("the view has no concatenations among its blocks; give concat=True to find_blocks instead")
    if additions == "trunk" and not concat:
        require_chain(view, "here")
    else:
        check_additions(view, additions)


def check_additions(view: ResidualView, additions: str | None) -> None:
    """Raise where a view has other residual additions as its blocks than those that are asked for; None asks for none.

    Raises:
        UsageError: saying which it has.
    """
    if additions not in (None, view.additions) and (additions != "all" or view.has_others):
        raise UsageError(
            f"additions {additions!r}: the view has those of {view.additions!r}; give additions to find_blocks instead"
        )


def finite(value: float) -> float | None:
    """A number as provenance holds it: None where it is not finite."""
    return value if math.isfinite(value) else None
