"""The public entry: a network, images and a rule in; trained weights, a history and final errors out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathlens.data import ImageData, check_labels
from pathlens.errors import ModelError, RunError, UsageError
from pathlens.machine import processes
from pathlens.machine.memory import memory_named
from pathlens.machine.precision import precision
from pathlens.models import save_weights, state_sha256
from pathlens.residual import ResidualView, view_of
from pathlens.residual.modes import in_mode
from pathlens.storage import lock_run, make_folder, write_together
from pathlens.tables import Table
from pathlens.training import state
from pathlens.training.batches import Augmentation, TrainingBatches
from pathlens.training.fold import fold, last_layers
from pathlens.training.history import history_table, result_table
from pathlens.training.loop import Run
from pathlens.training.recipe import Recipe, recipe_for
from pathlens.training.rules import RESCALES, Full, Rule

WEIGHTS = "weights.safetensors"
_LOWER = {"bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """What a training run gave.

    Attributes:
        model: the network that was given, trained, in eval mode; survival probabilities are folded in where the rule
            has them and they apply at test time.
        history: one row for each epoch.
        result: error on the validation and test images, one row each.
        weights: the file, where there is a run folder.
    """

    model: nn.Module
    history: Table
    result: Table
    weights: Path | None


def hold_out(data: ImageData, images: int) -> tuple[ImageData, ImageData]:
    """Divide training images into those to train on and those to watch, by class, always in the same way.

    Args:
        data: the training split.
        images: how many to hold out.

    Raises:
        UsageError: no image would be left on one of the sides, or too few for every class.
    """
    from sklearn.model_selection import train_test_split

    classes = len(set(data.labels.tolist()))
    if not classes <= images <= data.n - classes:
        raise UsageError(
            f"--validation {images}: {data.name} has {data.n} training images in {classes} classes; "
            f"give {classes} to {data.n - classes}, or 0 for none"
        )
    try:
        kept, held = train_test_split(range(data.n), test_size=images, random_state=0, stratify=data.labels.tolist())
    except ValueError as error:  # a class of one image cannot be on both sides
        raise UsageError(
            f"--validation {images}: {data.name} cannot be divided by class ({' '.join(str(error).split())[:120]}); "
            "give more images or --validation 0"
        ) from error
    return data.subset(torch.tensor(sorted(kept)), "train"), data.subset(torch.tensor(sorted(held)), "validation")


def train(
    model: nn.Module,
    data: ImageData,
    *,
    validation: ImageData | None = None,
    test: ImageData | None = None,
    recipe: Recipe | None = None,
    rule: Rule | None = None,
    rescale: str = "test",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    keep_epochs: Collection[int] = (),
    checkpoint_seconds: float = 300.0,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    compiled: bool = False,
    synced: bool = True,
    progress: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a network, all of it or through some of its paths.

    Under torchrun every process calls this with the same arguments. Each takes its part of every batch, all draw the
    same sub-networks, and batch norms see the whole batch, so that the number of processes changes rounding alone.

    Args:
        model: any classifier, trained in place.
        data: training images.
        validation: images to watch after every epoch; nothing is chosen by them.
        test: images that are read once, after the last epoch.
        recipe: optimizer, schedule and augmentation; default: :func:`pathlens.training.recipe_for` the data.
        rule: which paths are trained: ``Full``, ``BlocksPerBatch``, ``StochasticDepth`` or ``PathLengths``.
        rescale: what random sub-networks mean for the whole network. ``test``: each branch is multiplied by the
            probability that it was kept, which is folded into the weights of its last layer (Huang et al. 2016,
            equation 5). ``train``: branches are divided by it while training. ``none``: neither.
        seed: of order, augmentation, sub-networks and what the network itself draws.
        out: run folder: checkpoint, weights, history. None keeps nothing.
        resume: go on from the checkpoint in ``out``, if there is one. On a CPU with the same number of threads the
            weights at the end are those of a run without interruption, to the last bit.
        keep_epochs: epochs after which the weights are kept, as ``epochs/epoch-N.safetensors``; 0 for those before.
        checkpoint_seconds: between two checkpoints inside an epoch; there is one at the end of each.
        device: where to compute; where the model is, if None.
        dtype: ``float32``, ``tf32``, ``float64``, or ``bfloat16`` (autocast: products in bfloat16, weights in float32).
        mean: per channel of pixels in [0, 1]; the data's own if None.
        std: likewise.
        compiled: run blocks through ``torch.compile``; blocks of equal structure share one compilation.
        synced: batch-norm statistics over all processes.
        progress: called with (steps done, steps in all).
        on_epoch: called with each row of the history.
        facts: what tables and weights should say besides.

    Returns:
        The trained network and its tables.

    Raises:
        UsageError: arguments that cannot be carried out; more blocks than there are, lengths outside the network.
        DataError: labels outside the network's classes.
        ModelError: a network that cannot be traced, where the rule needs its blocks.
        NumericsError: the loss is NaN or infinite.
        CheckpointError: a damaged checkpoint.
        RunError: a folder in use, or with a run that was started with other arguments.
        ResourceError: memory or disk ran out.

    Source: Veit, Wilber, Belongie 2016, section 5.3; Huang et al. 2016.
    """
    recipe = recipe_for(data.name) if recipe is None else recipe
    rule = Full() if rule is None else rule
    group = processes.current()
    folder = None if out is None else Path(out)
    threads = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
    with contextlib.ExitStack() as stack:
        with group.agreed():
            if folder is not None and group.leads:
                stack.enter_context(lock_run(folder))
            _check(rescale, dtype, keep_epochs, recipe, resume, folder)
            where = processes.device_of(model, device)
        stack.enter_context(threads)
        stack.enter_context(memory_named(max(1, recipe.batch_size // group.world)))
        working = stack.enter_context(precision("float32" if dtype in _LOWER else dtype))
        own_mean, own_std = tuple(data.mean if mean is None else mean), tuple(data.std if std is None else std)
        arguments = {
            "recipe": recipe.spoken(),
            "rule": str(rule),
            "rescale": rescale,
            "seed": seed,
            "dtype": dtype,
            "mean": list(own_mean),
            "std": list(own_std),
            "train_sha256": data.fingerprint,
            "train_images": data.n,
            "validation_sha256": validation.fingerprint if validation else None,
            "validation_images": validation.n if validation else 0,
            "compiled": compiled,
            "keep_epochs": sorted(keep_epochs),
            "start_sha256": "",
        }
        if not synced:
            arguments["synced"] = False
        model.to(device=where, dtype=working)
        arguments["start_sha256"] = state_sha256(model)
        if any(parameter.dim() == 4 for parameter in model.parameters()):
            model.to(memory_format=torch.channels_last)
        with group.agreed():
            example = data.batch(0, min(2, data.n), mean=own_mean, std=own_std, device=where, dtype=working).images
            _check_classes(model, example, (data, validation, test))
            view = _view(model, example, rule, compiled)
            _check_paths(model, view, rule, group.world > 1 and synced)
            found = _resumed(folder, arguments, resume)
            ends = _ends(view, model, rule, rescale)
            batches = TrainingBatches(
                data,
                recipe.batch_size,
                Augmentation(recipe.crop, recipe.flip),
                own_mean,
                own_std,
                where,
                working,
                seed,
                group.rank,
                group.world,
            )
        about = {**arguments, "blocks": None if view is None else len(view), "processes": group.world, **(facts or {})}
        about["device"], about["batch_norm"] = processes.device_name(where), "synced" if synced else "per process"
        metadata = _metadata(model, example, own_mean, own_std, about)

        def kept(epoch: int, network: nn.Module) -> None:
            if folder is not None:
                path = folder / "epochs" / f"epoch-{epoch:03}.safetensors"
                make_folder(path.parent)
                save_weights(path, network, {**metadata, "epochs_done": str(epoch)})

        run = Run(
            model=model,
            view=view,
            recipe=recipe,
            rule=rule,
            batches=batches,
            validation=validation,
            seed=seed,
            mean=own_mean,
            std=own_std,
            device=where,
            dtype=working,
            autocast=_LOWER.get(dtype),
            group=group,
            rescale=rescale,
            ends=ends,
            compiled=compiled,
            synced=synced,
            folder=folder,
            checkpoint_seconds=checkpoint_seconds,
            keep_epochs=frozenset(keep_epochs),
            arguments=arguments,
            on_keep=kept,
            on_epoch=on_epoch,
            progress=progress,
        )
        if 0 in keep_epochs and found is None:
            run.keep(0, run.final())
        run.run(found)
        if ends is not None:
            assert view is not None
            fold(model, ends, rule.survival(len(view)))
        counts = {part.split: run.evaluate(model, part) for part in (validation, test) if part is not None}
        history, result = history_table(run.history, about), result_table(counts, about)
        weights = None
        if folder is not None:
            weights = folder / WEIGHTS
            with group.agreed():
                if group.leads:
                    errors = {f"{split}_error": f"{found.error:.6f}" for split, found in counts.items()}
                    save_weights(weights, model, {**metadata, **errors})
                    files = {**history.files("history"), **result.files("result")}
                    write_together({folder / name: content for name, content in files.items()})
        return Trained(model.eval(), history, result, weights)


def _check(rescale: str, dtype: str, keep: Collection[int], recipe: Recipe, resume: bool, folder: Path | None) -> None:
    if rescale not in RESCALES:
        raise UsageError(f"rescale {rescale!r} is unknown; give one of {', '.join(RESCALES)}")
    if dtype == "float16":
        raise UsageError("training in float16 would need loss scaling; give bfloat16, tf32 or float32")
    outside = [epoch for epoch in keep if not 0 <= epoch <= recipe.epochs]
    if outside:
        raise UsageError(f"--keep-epochs {outside[0]}: this run has epochs 0 to {recipe.epochs}")
    if resume and folder is None:
        raise UsageError("--resume needs the folder of the run; give --out")


def _check_classes(model: nn.Module, example: torch.Tensor, parts: tuple[ImageData | None, ...]) -> None:
    with in_mode(model), torch.no_grad():
        logits = model(example)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UsageError("only classifiers can be trained: the network must return logits of shape (N, classes)")
    for part in parts:
        if part is not None:
            check_labels(part, logits.shape[1])


def _view(model: nn.Module, example: torch.Tensor, rule: Rule, compiled: bool) -> ResidualView | None:
    try:
        view = view_of(model, example)
    except ModelError:
        if compiled or rule.draws or rule.lengths is not None:
            raise
        return None  # ordinary training needs no blocks
    rule.check(len(view))
    return view


def _check_paths(model: nn.Module, view: ResidualView | None, rule: Rule, synced: bool) -> None:
    if view is None or rule.lengths is None:
        return
    if view.is_plain:
        raise UsageError(f"{rule}: a plain network has one path alone; give a residual network, or train it in full")
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if synced and norms:
        # the restricted backward pass takes each block's derivative by itself, in an order of its own
        raise UsageError(
            f"{rule}: several processes cannot share the statistics of batch norms ({norms[0]}) in a restricted "
            "backward pass; give --no-sync-batch-norm, or one process"
        )


def _ends(view: ResidualView | None, model: nn.Module, rule: Rule, rescale: str) -> list[tuple[str, ...]] | None:
    if view is None or rescale != "test" or min(rule.survival(len(view))) == 1:
        return None
    with in_mode(model):
        return last_layers(view)


def _resumed(folder: Path | None, arguments: Mapping[str, Any], resume: bool) -> Path | None:
    found = None if folder is None else state.find(folder)
    if found is None or folder is None:
        return None
    position = state.peek(found)
    if not resume:
        steps = f"{len(position.history)} epochs"
        raise RunError(f"{folder} holds a run of {steps}; give --resume to go on with it, or another folder")
    state.check_arguments(position.arguments, arguments, folder)
    return found


def _metadata(
    model: nn.Module, example: torch.Tensor, mean: Sequence[float], std: Sequence[float], about: Mapping[str, Any]
) -> dict[str, str]:
    """What a weights file says of itself; the first four are understood when it is loaded."""
    plain = {name: value for name, value in about.items() if name not in ("mean", "std", "keep_epochs")}
    return {
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "input_shape": json.dumps(list(example.shape[1:])),
        "training": json.dumps(plain, sort_keys=True, default=str),
        "torch": torch.__version__,
    }
