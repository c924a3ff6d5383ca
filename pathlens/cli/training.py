"""``pathlens train``: train a network, all of it or through some of its paths."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pathlens.cli import options as o
from pathlens.cli.initialised import check_init, initialised
from pathlens.cli.options import Init, Standardise, parse_numbers, parse_range
from pathlens.cli.progress import progress_bar, say, waiting
from pathlens.cli.setting import (
    DEFAULT_MODEL,
    check_fits,
    data_spec,
    foreign_output,
    normalisation,
    opened,
    parse_normalisation,
    run_folder,
    spoken,
)
from pathlens.errors import MissingSplitError, UsageError

if TYPE_CHECKING:
    from pathlens.data import DataSet
    from pathlens.results.result import Row
    from pathlens.training import Recipe, Rule

Rescale = StrEnum("Rescale", "test train none")
Per = StrEnum("Per", "batch sample")
Optimizer = StrEnum("Optimizer", "sgd adamw")
Schedule = StrEnum("Schedule", "step cosine constant")
Augment = StrEnum("Augment", "none randaugment")


@dataclass(frozen=True)
class TrainingOptions:
    """All options of a training."""

    paths: Annotated[str, o.option("'full', or give one of the five options below.", metavar="full")] = "full"
    rule: Annotated[
        str | None,
        o.option("A rule by name, such as shakedrop or randomdrop:last=0.8; see docs/training.md.", metavar="RULE"),
    ] = None
    blocks_per_batch: Annotated[int | None, o.option("Exactly so many random blocks in each batch.", metavar="M")] = (
        None
    )
    stochastic_depth: Annotated[
        str | None,
        o.option("Keep each block at random: linear:P or uniform:P, P for the last block.", metavar="RULE"),
    ] = None
    path_lengths: Annotated[str | None, o.option("Gradient through paths of these lengths alone.", metavar="A:B")] = (
        None
    )
    effective_depth: Annotated[
        int | None, o.option("Gradient through paths of at most so many blocks.", metavar="L")
    ] = None
    per: Annotated[Per, o.option("Whether stochastic depth draws for a batch or for each image.")] = Per.batch
    rescale: Annotated[
        Rescale,
        o.option("Survival probabilities of random blocks: folded into the weights, divided by, or neither."),
    ] = Rescale.test
    epochs: Annotated[
        int | None,
        o.option("Passes over the data. Default: 60 for digits, 10 for texts, 50 for arrays, else 200.", min=1),
    ] = None
    batch_size: Annotated[
        int | None,
        o.option(
            "Examples in a step, over all processes. Default: 64 for digits and arrays, 32 for texts, else 128.", min=1
        ),
    ] = None
    optimizer: Annotated[Optimizer | None, o.option("Default: adamw for texts and arrays, else sgd.")] = None
    lr: Annotated[float | None, o.option("Learning rate. Default: 2e-3 for texts, 1e-3 for arrays, else 0.1.")] = None
    momentum: Annotated[float | None, o.option("Default: 0.9.")] = None
    nesterov: Annotated[bool | None, o.option("Nesterov's momentum. Default: yes.", "--nesterov/--no-nesterov")] = None
    weight_decay: Annotated[
        float | None, o.option("Weight decay. Default: 1e-3 for digits, 0.1 for texts, 1e-2 for arrays, else 1e-4.")
    ] = None
    schedule: Annotated[
        Schedule | None, o.option("Learning rate schedule. Default: cosine for digits, texts and arrays, else step.")
    ] = None
    milestones: Annotated[str | None, o.option("Shares of the training. Default: 0.5,0.75.", metavar="A,B")] = None
    gamma: Annotated[float | None, o.option("Factor at a milestone. Default: 0.1.")] = None
    warmup: Annotated[float | None, o.option("Epochs of linear warm-up. Default: 5 for digits, else 1.")] = None
    crop: Annotated[
        int | None, o.option("Zeros around an image before a random crop. Default: 1 for digits, else 4.", min=0)
    ] = None
    flip: Annotated[bool | None, o.option("Mirror images at random. Default: not for digits.", "--flip/--no-flip")] = (
        None
    )
    augment: Annotated[Augment | None, o.option("After that, torchvision's RandAugment. Default: none.")] = None
    label_smoothing: Annotated[float | None, o.option("Label smoothing. Default: 0.")] = None
    loss: o.Loss = None
    model: o.Model = None
    weights: Annotated[
        str, o.option("Where to start: 'random', or a weights file.", "--weights", "-w", metavar="FILE")
    ] = "random"
    init: Init = None
    standardise: Standardise = False
    data: o.Data = None
    limit: o.Limit = None
    image_size: o.ImageSize = None
    tokenizer: o.Tokenizer = None
    sequence_length: o.SequenceLength = None
    stride: o.Stride = None
    mean: o.Mean = None
    std: o.Std = None
    download: o.Download = False
    validation: Annotated[
        int | None,
        o.option(
            "Training examples to hold out and watch. Default: the data's own validation split, else a tenth.",
            metavar="N",
            min=0,
        ),
    ] = None
    test: Annotated[bool, o.option("Read the test split once, at the end.", "--test/--no-test")] = True
    device: o.DeviceOption = o.Device.auto
    dtype: o.DtypeOption = o.Dtype.float32
    seed: o.Seed = 0
    out: Annotated[
        Path | None,
        o.option(
            "Run folder: weights, checkpoint, history. Default: runs/MODEL-seedN.", parser=o.folder, metavar="DIR"
        ),
    ] = None
    resume: Annotated[bool, o.option("Go on with the run in --out, if there is one.", "--resume")] = False
    keep_epochs: Annotated[
        str | None, o.option("Keep the weights after these epochs, such as 0:200:20.", metavar="RANGE")
    ] = None
    checkpoint_seconds: Annotated[float, o.option("Between checkpoints inside an epoch.", min=0)] = 300.0
    compile: Annotated[bool, o.option("Compile the blocks with torch.compile.", "--compile")] = False
    sync_batch_norm: Annotated[
        bool, o.option("Batch norms see the images of all processes.", "--sync-batch-norm/--no-sync-batch-norm")
    ] = True
    without_skips: Annotated[
        bool, o.option("Train the plain network: all shortcuts deleted, by a plan.", "--without-skips")
    ] = False
    tensorboard: Annotated[bool, o.option("Also write TensorBoard events into the run folder.", "--tensorboard")] = (
        False
    )
    json: o.Json = False
    quiet: o.Quiet = False


@o.takes_objects
def train(options: TrainingOptions) -> None:
    """Train a network: all of it, random blocks of it, or through paths of some lengths (Veit et al. 2016, section 5).

    Without arguments, the embedded digits network from nothing. A run that was killed goes on with --resume.
    """
    rule = _rule(options)
    if not math.isfinite(options.checkpoint_seconds):
        raise UsageError(f"--checkpoint-seconds {options.checkpoint_seconds}: give a finite number of seconds")
    mean, std = parse_normalisation(options.mean, options.std)
    check_init(options, options.weights)
    keep = parse_range(options.keep_epochs, "keep-epochs") or ()
    import torch

    from pathlens.cli.show import show
    from pathlens.models import load_model
    from pathlens.report import provenance, write_run
    from pathlens.runtime import processes
    from pathlens.training import recipe_for, recipe_name
    from pathlens.training import train as run_training

    seed, quiet = options.seed, options.quiet
    network = re.sub(r"[^A-Za-z0-9]+", "-", options.model or DEFAULT_MODEL).strip("-")
    folder = options.out or Path("runs") / f"{network}-seed{seed}"
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes.joined())
        with group.agreed(), waiting("opening the data", group.is_main and not quiet):
            where = processes.pick_device(options.device.value)
            if where.type == "cuda":
                torch.cuda.set_device(where)
            parts = _open(options)
            recipe = recipe_for(recipe_name(parts[0]), **_changes(options))
            _check_effect(options, recipe)
            loaded = load_model(
                options.model,
                options.weights,
                num_classes=parts[0].num_classes,
                in_channels=parts[0].channels,
                seed=seed,
            )
            if options.weights != "random":
                mean, std, _ = normalisation(mean, std, loaded, parts[0])
            check_fits(loaded, parts[0])
            with foreign_output():
                loaded, initialisation = initialised(loaded, options, parts[0].batch(0, 2).images, seed)
            if group.is_main:
                stack.enter_context(run_folder(folder, "train"))
        stated = {
            "model": loaded.spec,
            "weights_at_start": loaded.weights,
            "data": parts[0].name,
            "test_sha256": parts[2].fingerprint if parts[2] is not None else None,
        }
        shown = group.is_main and not quiet
        notes = (f"{rule}; {_words(recipe)}; into {folder}", *loaded.notes)
        with (
            progress_bar("train", shown, notes) as progress,
            foreign_output(),
            _board(options.tensorboard and group.is_main, folder) as board,
        ):

            def on_epoch(row: Row) -> None:
                if board is not None:
                    board(row)
                if shown:
                    say(_line(row, recipe, parts[0].rows_are))

            trained = run_training(
                loaded.model,
                parts[0],
                validation=parts[1],
                test=parts[2],
                recipe=recipe,
                rule=rule,
                rescale=options.rescale.value,
                seed=seed,
                out=folder,
                resume=options.resume,
                keep_epochs=keep,
                checkpoint_seconds=options.checkpoint_seconds,
                device=where,
                dtype=options.dtype.value,
                mean=mean or None,
                std=std or None,
                compiled=options.compile,
                synced=options.sync_batch_norm,
                without_skips=options.without_skips,
                loss=None if options.loss is None else options.loss.value,
                progress=progress,
                on_epoch=on_epoch,
                provenance=provenance(**stated),
            )
        if group.is_main:
            manifest = {
                **trained.result.provenance,
                "verb": "train",
                "arguments": spoken(options),
                "wall_time_seconds": round(time.monotonic() - began, 3),
            }
            from pathlens import figures

            tables = {"history": trained.history, "result": trained.result}
            if initialisation is not None:
                tables["initialisation"] = initialisation
            write_run(folder, tables, {"history": figures.training(trained.history)}, manifest)
            show(trained.result, "result", options.json)
            if not (options.json or quiet):
                say(f"wrote {trained.weights} and the run's tables beside it")


def _rule(options: TrainingOptions) -> Rule:
    from pathlens.training.rules import (
        BlocksPerBatch,
        Full,
        PathLengths,
        parse_lengths,
        parse_rule,
        parse_stochastic_depth,
    )

    restrictions = {
        "--rule": options.rule,
        "--blocks-per-batch": options.blocks_per_batch,
        "--stochastic-depth": options.stochastic_depth,
        "--path-lengths": options.path_lengths,
        "--effective-depth": options.effective_depth,
    }
    named = [name for name, value in restrictions.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} exclude each other; give one")
    if options.paths != "full":
        raise UsageError(f"--paths {options.paths!r} is unknown; give full, or one of {', '.join(restrictions)}")
    if options.per is Per.sample and options.stochastic_depth is None:
        raise UsageError("--per sample belongs to --stochastic-depth; give both or neither")
    if options.rule is not None:
        return parse_rule(options.rule)
    if options.blocks_per_batch is not None:
        return BlocksPerBatch(options.blocks_per_batch)
    if options.stochastic_depth is not None:
        return parse_stochastic_depth(options.stochastic_depth, options.per.value)
    if options.path_lengths is not None:
        return parse_lengths(options.path_lengths)
    return Full() if options.effective_depth is None else PathLengths(0, options.effective_depth)


def _check_effect(options: TrainingOptions, recipe: Recipe) -> None:
    """Refuse what the recipe takes no notice of."""
    if options.nesterov is not None and recipe.optimizer != "sgd":
        raise UsageError(f"{recipe.optimizer} has no Nesterov form; leave --nesterov and --no-nesterov out")
    for name in ("milestones", "gamma"):
        if getattr(options, name) is not None and recipe.schedule != "step":
            raise UsageError(f"--{name} is of --schedule step, and the schedule is {recipe.schedule}; leave it out")


def _changes(options: TrainingOptions) -> dict[str, Any]:
    """Fields of the recipe that the command line sets; None leaves the default."""
    from pathlens.training import Recipe

    given = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    given["milestones"] = parse_numbers(
        options.milestones, "milestones", "ascending shares of the training, such as 0.5,0.75"
    )
    return {name: value.value if isinstance(value, StrEnum) else value for name, value in given.items()}


def _open(options: TrainingOptions) -> tuple[DataSet, DataSet | None, DataSet | None]:
    """Training, validation and test examples; the three never share one."""
    import torch

    from pathlens.data import ArrayData, ImageData
    from pathlens.training import hold_out, kinds

    def split_of(split: str, limit: int | None = None) -> DataSet:
        return opened(options, split, limit, options.image_size)

    data, held_out = split_of("train", options.limit), options.validation
    if not isinstance(data, ImageData):  # one file has no splits
        least = 2 if isinstance(data, ArrayData) else 1  # one example has no variance, which errors are relative to
        watched_part = max(least, data.n // 10) if held_out is None else held_out
        return (*hold_out(data, watched_part), None) if watched_part else (data, None, None)
    labels = data.labels

    def other(split: str) -> ImageData:
        """A split that is really there: a file or folder without splits would give the training images again."""
        part = split_of(split)
        assert isinstance(part, ImageData)
        same = part.total == data.total and torch.equal(part.labels[: data.n], labels)
        if part.split != split or (same and split_of(split, options.limit).fingerprint == data.fingerprint):
            spec = data_spec(options.data, options.model)
            raise MissingSplitError(f"{spec} has no images of the split '{split}' beside those to train on")
        return part

    watched: DataSet | None = None
    if held_out is None:
        try:
            watched = other("validation")
        except MissingSplitError:
            held_out = max(data.n // 10, kinds(data))
    tested: DataSet | None = None
    if options.test:
        try:
            tested = other("test")
        except MissingSplitError as error:
            raise MissingSplitError(f"{error}; give --no-test to train without test images") from error
    if held_out:
        data, watched = hold_out(data, held_out)
    return data, watched, tested


@contextlib.contextmanager
def _board(enabled: bool, folder: Path) -> Iterator[Callable[[Row], None] | None]:
    """A function that writes a row of the history as TensorBoard events; None where it is not enabled."""
    if not enabled:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboard; install it with pip install tensorboard"
        ) from error
    with SummaryWriter(os.fspath(folder / "tensorboard")) as writer:

        def write(row: Row) -> None:
            for name, value in row.items():
                if isinstance(value, int | float) and name not in ("epoch", "step"):
                    writer.add_scalar(name, value, row["epoch"])

        yield write


def _words(recipe: Recipe) -> str:
    return f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.optimizer}, learning rate {recipe.lr:g}"


def _line(row: Row, recipe: Recipe, rows: str) -> str:
    loss = "not finite" if row["train_loss"] is None else f"{row['train_loss']:.4f}"
    watched = "" if row["validation_error"] is None else f", validation error {100 * row['validation_error']:.2f} %"
    watched += f", IoU {100 * row['validation_iou']:.2f} %" if row.get("validation_iou") is not None else ""
    return (
        f"epoch {row['epoch']} of {recipe.epochs}: loss {loss}, error as trained {100 * row['train_error']:.2f} %"
        f"{watched}, {row['images_per_second']:.0f} {rows}/s"
    )
