"""The public entry: a network, images and a rule in; trained weights, a history and final errors out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from pathlens.data import DataSet, ImageData
from pathlens.errors import UsageError, one_line
from pathlens.results.result import Row
from pathlens.tables import Provenance
from pathlens.training.configuration import Configuration, Options
from pathlens.training.loop import Loop
from pathlens.training.session import Trained, opened


def kinds(data: DataSet) -> int:
    """How many kinds of examples there are to divide: classes, or one where each has many targets.

    Args:
        data: the training split.
    """
    return 1 if not isinstance(data, ImageData) or data.labels.dim() > 1 else len(set(data.labels.tolist()))


def hold_out(data: DataSet, images: int) -> tuple[DataSet, DataSet]:
    """Divide training examples into those to train on and those to watch, always in the same way.

    The classes are in both parts in the same shares; images with masks, and arrays, are divided at random; of a text,
    the end is watched.

    Args:
        data: the training split.
        images: how many images, sequences of a text, or examples to hold out.

    Raises:
        UsageError: one of the two parts would have fewer images than there are classes.
        DataError: one of the two parts of a text or of arrays would be empty.
    """
    if not isinstance(data, ImageData):
        return data.hold_out(images)
    from sklearn.model_selection import train_test_split

    classes = kinds(data)
    if not classes <= images <= data.n - classes:
        some = (
            f"{classes} to {data.n - classes}, or 0 for none" if 2 * classes <= data.n else "0, since these are too few"
        )
        raise UsageError(
            f"--validation {images}: {data.name} has {data.n} training images in {classes} classes; give {some}"
        )
    try:
        rest, held_out = train_test_split(
            range(data.n), test_size=images, random_state=0, stratify=None if data.labels.dim() > 1 else data.labels
        )
    except ValueError as error:  # a class of one image cannot be in both parts
        raise UsageError(
            f"--validation {images}: {data.name} cannot be divided by class ({one_line(error, 120)}); "
            "give more images or --validation 0"
        ) from error
    return data.subset(torch.tensor(sorted(rest)), "train"), data.subset(torch.tensor(sorted(held_out)), "validation")


def train(
    model: nn.Module,
    data: DataSet,
    *,
    validation: DataSet | None = None,
    test: DataSet | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    provenance: Provenance | None = None,
    **options: Unpack[Options],
) -> Trained:
    """Train a network, all of it or through some of its paths.

    Under torchrun every process calls this with the same arguments. Each takes its part of every batch, all draw the
    same sub-networks, and batch norms see the whole batch, so that the number of processes changes rounding
    alone, but for the network's own dropout, and for a last batch of an epoch that is too small for all, which is left
    out.

    Args:
        model: any classifier of images, pixels or tokens, or a network for a regression, trained in place.
        data: training images, a text, or arrays.
        validation: examples to watch after every epoch; nothing is chosen by them.
        test: examples that are read once, after the last epoch.
        out: run folder: checkpoint, weights, history. None keeps nothing.
        resume: go on from the checkpoint in ``out``, if there is one. On a CPU with the same number of threads the
            weights at the end are those of a run without interruption, to the last bit.
        device: where to compute; where the model is, if None.
        progress: called with (steps done, steps in all).
        on_epoch: called with each row of the history.
        provenance: what that of tables and weights should also say. Its ``date``, ``commit``, ``versions`` and
            ``hardware`` are kept for every call of a run that is resumed, and stated under ``calls``.
        **options: ``recipe``, ``rule``, ``rescale``, ``seed``, ``keep_epochs``, ``checkpoint_seconds``, ``dtype``,
            ``mean``, ``std``, ``compiled``, ``synced``, ``without_skips`` and ``loss``; see
            :class:`pathlens.training.Configuration`.

    Returns:
        The trained network and its tables.

    Raises:
        UsageError: arguments that cannot be carried out; more blocks than there are, lengths outside the network; a
            network that returns several tensors in train mode.
        DataError: labels outside the network's classes.
        ModelError: a network that cannot be traced, where the rule needs its blocks, or that raises an error in a step.
        NumericsError: the loss is NaN or infinite, or all targets of some examples of a regression are equal.
        CheckpointError: a damaged checkpoint.
        RunError: a folder in use, or with a run that was started with other arguments.
        ResourceError: memory or disk ran out.

    Source: Veit, Wilber, Belongie 2016, section 5; Huang et al. 2016.
    """
    config = Configuration.of(data, options)
    with opened(
        model,
        data,
        config,
        validation=validation,
        test=test,
        out=out,
        resume=resume,
        device=device,
        provenance=provenance,
    ) as session:
        loop = Loop(session, on_epoch, progress)
        loop.run()
        return session.finish(loop.history)
