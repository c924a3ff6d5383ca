"""A training run's network and data, made ready, and what it writes into its run folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathlens.data import ArrayData, DataSet, ImageData, TextData, check_labels, check_tokens
from pathlens.errors import ModelError, RunError, UsageError, described
from pathlens.intervene import active_plans, skips_deleted
from pathlens.metrics import Task, task_named
from pathlens.metrics.mask_losses import BATCH_IOU
from pathlens.metrics.regression import RegressionCounts
from pathlens.metrics.tasks import Counts
from pathlens.models import save_weights, state_sha256
from pathlens.residual import ResidualView, view_of
from pathlens.residual.modes import copied, in_mode
from pathlens.results.result import Rows
from pathlens.results.training import HISTORY
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.runtime.precision import precision
from pathlens.runtime.randomness import python_kept
from pathlens.storage import lock_run, make_folder, write_together
from pathlens.tables import Provenance, Table, plain_json
from pathlens.training import state
from pathlens.training.batches import Augmentation, Batches, TrainingBatches
from pathlens.training.configuration import Configuration
from pathlens.training.fold import fold, last_layers
from pathlens.training.history import result_table
from pathlens.training.network import memory_format
from pathlens.training.rules import Rule

WEIGHTS = "weights.safetensors"
_EVALUATED = 500  # images at a time, at most
#: what is kept of each call that makes a training, as the provenance of the tables has it
_OF_A_CALL = ("date", "commit", "versions", "hardware", "device", "processes")


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes:
        model: the network that was given, trained, in eval mode; what the rule multiplies branches by on average is
            folded in where it applies at test time.
        history: one row for each epoch.
        result: error on the validation and test images, one row each.
        weights: the file, where there is a run folder.
    """

    model: nn.Module
    history: Table
    result: Table
    weights: Path | None


@dataclass(frozen=True, eq=False)
class Session:
    """What one training run works with.

    Attributes:
        model: trained in place.
        view: its blocks; None where it has none and nothing asks for them.
        config: what to do.
        batches: training examples by step.
        validation: examples to watch, or None.
        test: those that are read once, after the last epoch, or None.
        device: where to compute.
        dtype: of weights and images.
        group: the processes.
        variance: of the training targets of a regression, which its errors are relative to; None for other tasks.
        task: what is measured of the outputs, such as ``classification``.
        ends: parameters to fold the rule's expectation into, or None.
        folder: where the run is kept, or None.
        checkpoint: from which the run is resumed, or None.
        arguments: what must be the same when the run is resumed.
        about: provenance of the tables.
        metadata: of the weights files.
    """

    model: nn.Module
    view: ResidualView | None
    config: Configuration
    batches: Batches
    validation: DataSet | None
    test: DataSet | None
    device: torch.device
    dtype: torch.dtype
    group: processes.Processes
    variance: float | None
    task: Task
    ends: list[tuple[str, ...]] | None
    folder: Path | None
    checkpoint: Path | None
    arguments: Provenance
    about: Provenance
    metadata: dict[str, str]

    def final(self, share: float) -> nn.Module:
        """The network as it is tested: with the rule's expectation folded in where ``rescale`` is ``test``.

        Args:
            share: of the training that is done.
        """
        if self.ends is None:
            return self.model
        network = copied(self.model)
        self._fold(network, share)
        return network

    def _fold(self, network: nn.Module, share: float) -> None:
        assert self.view is not None
        assert self.ends is not None
        fold(network, self.ends, self.config.rule.at(share).expectation(len(self.view)))

    def lower_precision(self) -> torch.autocast:
        """Autocast to the lower precision of the configuration, if it has one."""
        lower = self.config.autocast
        return torch.autocast(self.device.type, lower or torch.bfloat16, enabled=lower is not None)

    def evaluate(self, network: nn.Module, data: DataSet) -> Counts:
        """Errors in eval mode, each process on a part of the batches."""
        values = []
        # no more than a step has, which is known to fit in memory
        size = min(_EVALUATED, max(1, self.config.recipe.batch_size // self.group.world))
        with in_mode(network), torch.no_grad(), self.lower_precision():
            for index in range(self.group.rank, data.num_batches(size), self.group.world):
                batch = data.batch(
                    index,
                    size,
                    mean=self.config.mean,
                    std=self.config.std,
                    device=self.device,
                    dtype=self.dtype,
                )
                examples = batch.images
                if examples.dim() == 4:
                    examples = examples.contiguous(memory_format=torch.channels_last)
                values.append(self._counted(network(examples), batch.labels).cpu())
        total = torch.stack(values).sum(0).tolist() if values else None
        parts = [part for part in self.group.gather(total) if part is not None]
        return self.task.measured(torch.tensor(parts, dtype=torch.float64).sum(0).tolist())[0]

    def _counted(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The task's numbers of a batch, compared with itself."""
        values, answers = self.task.answers(outputs, targets)
        return torch.cat([values, self.task.compare(answers[None])[0]])

    def keep(self, epoch: int, network: nn.Module) -> None:
        """Write the weights of an epoch; only the main process does."""
        with self.group.agreed():
            if self.folder is None or not self.group.is_main:
                return
            path = self.folder / "epochs" / f"epoch-{epoch:03}.safetensors"
            make_folder(path.parent)
            save_weights(path, network, {**self.metadata, "epochs_done": str(epoch)})

    def finish(self, history: Rows) -> Trained:
        """Test the trained network, and write weights and tables.

        Args:
            history: the rows of all epochs.
        """
        if self.ends is not None:
            self._fold(self.model, 1.0)
        parts = [part for part in (self.validation, self.test) if part is not None]
        counts = {part.split: self.evaluate(self.model, part) for part in parts}
        epochs, result = HISTORY.table(history, self.about), result_table(counts, self.about)
        weights = None if self.folder is None else self.folder / WEIGHTS
        with self.group.agreed():
            if weights is not None and self.group.is_main:
                errors = {f"{split}_error": f"{count.error:.6f}" for split, count in counts.items()}
                save_weights(weights, self.model, {**self.metadata, **errors})
                files = {**epochs.files("history"), **result.files("result")}
                write_together({weights.with_name(name): content for name, content in files.items()})
        return Trained(self.model.eval(), epochs, result, weights)


@contextlib.contextmanager
def opened(
    model: nn.Module,
    data: DataSet,
    config: Configuration,
    *,
    validation: DataSet | None,
    test: DataSet | None,
    out: str | Path | None,
    resume: bool,
    device: str | torch.device | None,
    provenance: Provenance | None,
) -> Iterator[Session]:
    """Make everything ready, and hold the run folder; the arguments and errors are those of :func:`pathlens.train`."""
    group = processes.current()
    folder = None if out is None else Path(out)
    with contextlib.ExitStack() as stack:
        with group.agreed():
            if folder is not None and group.is_main:
                stack.enter_context(lock_run(folder))
            if resume and folder is None:
                raise UsageError("--resume needs the folder of the run; give --out")
            if folder is not None:
                state.check_kept(model)
            where = processes.device_of(model, device)
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(python_kept())
        stack.enter_context(oom_as_error(max(1, config.recipe.batch_size // group.world)))
        dtype = stack.enter_context(precision(config.precision))
        model.to(device=where, dtype=dtype)
        arguments = config.arguments(data, validation, state_sha256(model))
        order = memory_format(model)
        if any(parameter.dim() == 4 for parameter in model.parameters()):
            model.to(memory_format=order)
        with group.agreed():
            first = data.batch(0, min(2, data.n), mean=config.mean, std=config.std, device=where, dtype=dtype)
            task = _task(model, first.images, (data, validation, test), config.loss)
            variance = variance_of(data, task)
            for part in (validation, test):
                if part is not None:
                    variance_of(part, task)  # which refuses targets that are all equal
            if config.loss == BATCH_IOU and group.world > 1:
                raise UsageError(f"--loss {BATCH_IOU}: processes do not share the pixels of a batch; give one process")
            view = _view(model, first.images, config.rule, config.compiled)
            _check_paths(model, view, config.rule, group.world > 1 and config.synced)
            if config.without_skips:
                stack.enter_context(_without_skips(model, view, group.world))
            ends = _ends(view, config)
            batches = _batches(data, config, where, dtype, group, order)
            if batches.drops_last:
                arguments = {**arguments, "steps_per_epoch": batches.per_epoch}
            checkpoint, position = _resumed(folder, arguments, resume)
        about = {
            **arguments,
            "blocks": None if view is None else len(view),
            "processes": group.world,
            **(provenance or {}),
            "device": processes.device_name(where),
            "batch_norm": "synced" if config.synced else "per process",
            **({} if task.name == "classification" else {"task": task.name}),
        }
        about["calls"] = _calls(position, about, config.recipe.epochs * batches.per_epoch)
        yield Session(
            model=model,
            view=view,
            config=config,
            batches=batches,
            validation=validation,
            test=test,
            device=where,
            dtype=dtype,
            group=group,
            variance=variance,
            task=task,
            ends=ends,
            folder=folder,
            checkpoint=checkpoint,
            arguments=arguments,
            about=about,
            metadata=_metadata(first.images, config.mean, config.std, about),
        )


def _task(model: nn.Module, example: torch.Tensor, parts: tuple[DataSet | None, ...], loss: str) -> Task:
    """What is learned: a class for each image, pixel or token, as the data and the outputs have it.

    Its loss is the one that single examples are evaluated with.
    """
    texts = [part for part in parts if isinstance(part, TextData)]
    with in_mode(model), torch.no_grad():
        # any network knows the token 0, and how many it knows is seen by its outputs
        logits = model(torch.zeros_like(example) if texts else example)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else ()
    if texts and not shape:
        raise UsageError(
            f"only language models that return logits alone can be trained; found {described(logits)}; wrap the "
            "network so that it returns them"
        )
    if texts:
        task = task_named("next-token").with_loss(loss)
        task.check_outputs(shape)
        for text in texts:
            check_tokens(text, shape[task.axis])
        return task
    if any(isinstance(part, ArrayData) for part in parts):
        return task_named("regression").with_loss(loss)
    given = [part for part in parts if isinstance(part, ImageData)]
    masks = given[0].labels.dim() > 1
    size = tuple(given[0].labels.shape[1:])
    if len(shape) != (4 if masks else 2):
        raise UsageError(
            "only classifiers of images and of pixels can be trained: the network must return logits of shape (N, "
            f"classes), or for images with masks (N, classes, height, width); found {shape or type(logits).__name__} "
            f"for {given[0].name}"
        )
    if masks and shape[2:] != size:
        raise UsageError(
            f"the network gives logits of {shape[2]}x{shape[3]} pixels, and the masks of {given[0].name} have "
            f"{size[0]}x{size[1]}; give a network that returns the size of its images"
        )
    for part in given:
        check_labels(part, shape[1])
    task = task_named("segmentation" if masks else "classification")
    task = task.with_loss("soft-iou" if loss == BATCH_IOU and masks else loss)
    task.check_outputs(shape)
    return task


def variance_of(data: DataSet, task: Task) -> float | None:
    """That of the targets of a regression around the mean of their component; None for other data.

    Args:
        data: of which the targets are.
        task: of the data.

    Raises:
        NumericsError: all of them are equal.
    """
    if not isinstance(data, ArrayData):
        return None
    values, errors = task.answers(data.targets, data.targets)
    counts = task.measured([*values.tolist(), *task.compare(errors[None])[0].tolist()])[0]
    assert isinstance(counts, RegressionCounts)
    return counts.variance


def _batches(
    data: DataSet,
    config: Configuration,
    device: torch.device,
    dtype: torch.dtype,
    group: processes.Processes,
    order: torch.memory_format,
) -> Batches:
    recipe = config.recipe
    if not isinstance(data, ImageData):
        return Batches(data, recipe.batch_size, device, dtype, config.seed, group.rank, group.world)
    return TrainingBatches(
        data,
        recipe.batch_size,
        Augmentation(recipe.crop, recipe.flip, recipe.augment),
        config.mean,
        config.std,
        device,
        dtype,
        config.seed,
        group.rank,
        group.world,
        order,
    )


def _view(model: nn.Module, example: torch.Tensor, rule: Rule, compiled: bool) -> ResidualView | None:
    by_blocks = compiled or rule.is_random or rule.lengths is not None
    try:
        # a restricted backward pass needs no chain, which everything else does
        view = view_of(model, example, additions="trunk" if rule.lengths is None else None)
    except ModelError:
        if by_blocks:
            raise
        return None  # ordinary training needs no blocks
    rule.check_view(view)
    if by_blocks and active_plans(model, view):
        what = "a compiled network" if compiled else str(rule)
        raise UsageError(
            f"{what} runs the blocks of {type(model).__name__} as they are, and an intervention is active on it; call "
            "train outside of the with block, or train it in full"
        )
    return view


def _check_paths(model: nn.Module, view: ResidualView | None, rule: Rule, synced: bool) -> None:
    if view is None or rule.lengths is None:
        return
    if view.is_plain:
        raise UsageError(f"{rule}: a plain network has one path alone; give a residual network, or train it in full")
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if synced and norms:
        # the restricted backward pass differentiates block by block, in an order that processes need not share
        raise UsageError(
            f"{rule}: several processes cannot share the statistics of batch norms ({norms[0]}) in a restricted "
            "backward pass; give --no-sync-batch-norm, or one process"
        )


def _without_skips(
    model: nn.Module, view: ResidualView | None, processes: int
) -> contextlib.AbstractContextManager[nn.Module]:
    """The plan that deletes all shortcuts.

    Raises:
        UsageError: there are none, or several processes.
    """
    if view is None or view.is_plain:
        raise UsageError(f"--without-skips: {type(model).__name__} has no shortcuts that were found; train it as it is")
    if processes > 1:
        raise UsageError("--without-skips: several processes do not share such a training; give one process")
    return skips_deleted(view, range(len(view)))


def _ends(view: ResidualView | None, config: Configuration) -> list[tuple[str, ...]] | None:
    if view is None or config.rescale != "test" or set(config.rule.at(1.0).expectation(len(view))) == {1}:
        return None
    with in_mode(view.model):
        return last_layers(view)


def _resumed(
    folder: Path | None, arguments: Mapping[str, Any], resume: bool
) -> tuple[Path | None, state.TrainState | None]:
    checkpoint = None if folder is None else state.find(folder)
    if checkpoint is None or folder is None:
        return None, None
    position = state.peek(checkpoint)
    if not resume:
        steps = f"{len(position.history)} epochs"
        raise RunError(f"{folder} holds a run of {steps}; give --resume to go on with it, or another folder")
    state.check_arguments(position.arguments, arguments, folder)
    return checkpoint, position


def _calls(position: state.TrainState | None, about: Mapping[str, Any], total: int) -> list[dict[str, Any]]:
    """The calls that make the training, of which this is one where it has steps to do.

    Args:
        position: to go on from, or None.
        about: what is known of this call.
        total: steps of the whole training.
    """
    step, calls = 0, list[dict[str, Any]]()
    if position is not None:
        step, calls = position.step, position.calls
    if step and not calls:  # they were not written down, nor how many they were
        calls = [{"from_step": 0, **dict.fromkeys(_OF_A_CALL)}]
    if step < total:
        calls = [*calls, {"from_step": step, **{name: about.get(name) for name in _OF_A_CALL}}]
    found: list[dict[str, Any]] = plain_json(calls, "the provenance")
    return found


def _metadata(
    example: torch.Tensor, mean: Sequence[float], std: Sequence[float], about: Mapping[str, Any]
) -> dict[str, str]:
    """Metadata of a weights file; ``load_model`` reads the first three. What is not normalised has no numbers there."""
    plain = {name: value for name, value in about.items() if name not in ("mean", "std", "keep_epochs")}
    return {
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "input_shape": json.dumps(list(example.shape[1:])),
        "training": json.dumps(plain, sort_keys=True, default=str),
        "torch": torch.__version__,
    }
