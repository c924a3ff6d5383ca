"""Settings of a training run, apart from the network and the images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from pathlens.data import ArrayData, DataSet, ImageData, TextData
from pathlens.data.embedded import SCALE
from pathlens.errors import UsageError
from pathlens.metrics.mask_losses import BATCH_IOU, OF_IMAGES
from pathlens.metrics.tasks import CROSS_ENTROPY, SQUARED_ERROR
from pathlens.tables import Provenance
from pathlens.training.recipe import Recipe, recipe_for
from pathlens.training.rules import RESCALES, Full, Rule

LOSSES = (CROSS_ENTROPY, *OF_IMAGES, BATCH_IOU, SQUARED_ERROR)
"""Names of the losses that a network can be trained with."""

_AUTOCAST = {"bfloat16": torch.bfloat16}


class Options(TypedDict, total=False):
    """What :func:`pathlens.train` takes as keywords; see :class:`Configuration`."""

    recipe: Recipe | None
    rule: Rule | None
    rescale: str
    seed: int
    keep_epochs: Collection[int]
    checkpoint_seconds: float
    dtype: str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    compiled: bool
    synced: bool
    without_skips: bool
    loss: str | None


def recipe_name(data: DataSet) -> str:
    """What :func:`recipe_for` calls a data set: its name, ``text:`` for texts, or ``arrays:`` for arrays.

    Images of a file or folder that is called like the embedded scans, ``digits``, are ``images:``.

    Args:
        data: to train on.
    """
    if isinstance(data, ImageData):
        return "images:" if data.name == "digits" and data.scale != SCALE else data.name
    return "text:" if isinstance(data, TextData) else "arrays:"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Settings of a training run, checked when they are made.

    Attributes:
        recipe: optimizer, schedule and augmentation.
        mean: per channel of pixels in [0, 1].
        std: likewise.
        rule: which paths are trained, and with what weight; see ``pathlens.training.rules``.
        rescale: what random sub-networks mean for the whole network. ``test``: each branch is multiplied by the
            probability that it was kept, or whatever it was multiplied by on average, which is folded into the weights
            of its last layer (Huang et al. 2016, equation 5). ``train``: branches are divided by it while training.
            ``none``: neither.
        seed: of order, augmentation, sub-networks and what the network itself draws.
        keep_epochs: epochs after which the weights are kept, as ``epochs/epoch-N.safetensors``; 0 for those before.
        checkpoint_seconds: between two checkpoints inside an epoch; there is one at the end of each.
        dtype: ``float32``, ``tf32``, ``float64``, or ``bfloat16`` (autocast: products in bfloat16, weights in float32).
        compiled: run blocks through ``torch.compile``; blocks of equal structure share one compilation.
        synced: batch-norm statistics over all processes.
        loss: the cross-entropy, or of images with masks ``soft-iou``, ``dice``, ``lovasz-hinge`` or ``batch-iou``. Each
            step has the mean over its images, or with ``batch-iou`` that of all pixels of the batch; validation and
            test images then have ``soft-iou``, which is the same loss of a single image.
        without_skips: train the network whose shortcuts are all deleted, by a plan. The weights are those of the
            network itself, and mean something without its shortcuts alone.

    Raises:
        UsageError: a setting that no training can have; the message names it.
    """

    recipe: Recipe
    mean: Sequence[float]
    std: Sequence[float]
    rule: Rule = field(default_factory=Full)
    rescale: str = "test"
    seed: int = 0
    keep_epochs: Collection[int] = ()
    checkpoint_seconds: float = 300.0
    dtype: str = "float32"
    compiled: bool = False
    synced: bool = True
    without_skips: bool = False
    loss: str = CROSS_ENTROPY

    def __post_init__(self) -> None:
        if self.rescale not in RESCALES:
            raise UsageError(f"rescale {self.rescale!r} is unknown; give one of {', '.join(RESCALES)}")
        if self.dtype == "float16":
            raise UsageError("training in float16 would need loss scaling; give bfloat16, tf32 or float32")
        if self.without_skips and (self.compiled or not isinstance(self.rule, Full)):
            raise UsageError(
                "--without-skips trains the whole plain network, not compiled; leave --compile and rules out"
            )
        if self.loss not in LOSSES:
            raise UsageError(f"loss {self.loss!r} is unknown; give one of {', '.join(LOSSES)}")
        if self.loss != CROSS_ENTROPY and self.recipe.label_smoothing:
            raise UsageError(f"--label-smoothing is of the cross-entropy; leave it or --loss {self.loss} out")
        outside = [epoch for epoch in self.keep_epochs if not 0 <= epoch <= self.recipe.epochs]
        if outside:
            raise UsageError(f"--keep-epochs {outside[0]}: this run has epochs 0 to {self.recipe.epochs}")

    @classmethod
    def of(cls, data: DataSet, options: Options) -> Configuration:
        """The options given, with the data set's defaults for the others.

        Args:
            data: the training examples.
            options: those given; None stands for the default.

        Raises:
            UsageError: see the class.
        """
        given = {name: value for name, value in options.items() if value is not None}
        defaults: dict[str, Any] = {"mean": data.mean, "std": data.std}
        if isinstance(data, ArrayData):
            defaults["loss"] = SQUARED_ERROR
        if "recipe" not in given:
            defaults["recipe"] = recipe_for(recipe_name(data))
        made = cls(**{**defaults, **given})
        moved = (made.recipe.crop, made.recipe.flip, made.recipe.augment) != (0, False, "none")
        if not isinstance(data, ImageData) and moved:
            what = "is a text" if isinstance(data, TextData) else "has arrays"
            raise UsageError(f"{data.name} {what}, and crop, flip and augment are of images; leave them out")
        return made

    @property
    def precision(self) -> str:
        """What weights and images are held in, as ``pathlens.runtime.precision`` names it."""
        return "float32" if self.dtype in _AUTOCAST else self.dtype

    @property
    def autocast(self) -> torch.dtype | None:
        """A lower precision for products, or None."""
        return _AUTOCAST.get(self.dtype)

    def arguments(self, data: DataSet, validation: DataSet | None, start_sha256: str) -> Provenance:
        """What must be the same when the run is resumed, in the order in which tables state it.

        Args:
            data: the training examples.
            validation: those to watch, or None.
            start_sha256: hash of the weights that the run starts from.
        """
        arguments = {
            "recipe": self.recipe.spoken(),
            "rule": str(self.rule),
            "rescale": self.rescale,
            "seed": self.seed,
            "dtype": self.dtype,
            "mean": list(self.mean),
            "std": list(self.std),
            "train_sha256": data.fingerprint,
            "train_images": data.n,
            "validation_sha256": validation.fingerprint if validation else None,
            "validation_images": validation.n if validation else 0,
            "compiled": self.compiled,
            "keep_epochs": sorted(self.keep_epochs),
            "start_sha256": start_sha256,
        }
        arguments |= {} if self.synced else {"synced": False}
        arguments |= {} if self.loss == CROSS_ENTROPY else {"loss": self.loss}
        return arguments | ({"without_skips": True} if self.without_skips else {})
