"""Trained networks that a study takes as they are, each with its images, normalisation and view."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens import ResidualView
from pathlens.data import ImageData
from pathlens.errors import DataError
from pathlens.models import LoadedModel
from pathlens.residual import view_of
from pathlens.runtime.processes import pick_device
from studies.common import StudySetting


@dataclass(frozen=True)
class Published:
    """Weights that others trained on the original CIFAR-10 and published.

    Attributes:
        file: in the folder that PATHLENS_MODELS names.
        by: whose they are.
        mean: what the network expects of pixels in [0, 1].
        std: likewise.
    """

    file: str
    by: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_AKAMASTER = ("github.com/akamaster/pytorch_resnet_cifar10", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LANDSCAPE = (
    "github.com/tomgoldstein/loss-landscape",
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)
#: by the reference name of their network
PUBLISHED = {
    "resnet20": Published("pytorch_resnet_cifar10/resnet20-12fca82f.th", *_AKAMASTER),
    "resnet56": Published("pytorch_resnet_cifar10/resnet56-4bfd9763.th", *_AKAMASTER),
    "resnet56b": Published("loss_landscape/resnet56.t7", *_LANDSCAPE),
    "plain56": Published("loss_landscape/resnet56_noshort.t7", *_LANDSCAPE),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and its images.

    Attributes:
        name: for tables and file names.
        words: which network, on which data.
        loaded: the network, on the device that the study computes on.
        spec: of the data.
        data_name: for tables.
        mean: for normalisation, or None for the data's own.
        std: likewise.
    """

    name: str
    words: str
    loaded: LoadedModel
    spec: str
    data_name: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.loaded.model.parameters()).device

    @cached_property
    def view(self) -> ResidualView:
        """The blocks of the network, found once."""
        batch = self.images(2).batch(0, 2, mean=self.mean, std=self.std, device=self.device)
        return view_of(self.loaded.model, batch.images)

    def images(self, limit: int, split: str = "test") -> ImageData:
        """The first images of a split."""
        return pathlens.open_data(self.spec, split=split, limit=limit)

    @property
    def options(self) -> dict[str, Any]:
        """What every analysis of this network is told."""
        stated = {"model": self.name, "weights": self.loaded.sha256, "trained": self.loaded.trained}
        return {"mean": self.mean, "std": self.std, "provenance": stated}


def subject(
    study: StudySetting, name: str, words: str, loaded: LoadedModel, spec: str = "digits", **more: Any
) -> Subject:
    """A network on the device that the study was asked for, with images of a data set."""
    loaded.model.to(pick_device(study.device))
    mean, std = more.pop("mean", loaded.mean), more.pop("std", loaded.std)
    return Subject(name, words, loaded, spec, more.pop("data_name", spec), mean, std, **more)


def packaged(study: StudySetting) -> Subject:
    """The network that comes with pathlens: 54 pre-activation blocks, trained on digits."""
    return subject(study, "digits54", "the network that comes with pathlens, on digits", pathlens.load_model())


def published(study: StudySetting, name: str) -> Subject:
    """A network that others trained and published, on the test images of CIFAR-10 as JPEG files.

    Raises:
        DataError: PATHLENS_MODELS or PATHLENS_DATA is not set, or the files are not where they say.
    """
    known = PUBLISHED[name]
    # both variables are asked for before any file
    weights, _ = place("PATHLENS_MODELS", known.file), place("PATHLENS_DATA", "cifar10-jpeg")
    if not weights.is_file():
        raise DataError(f"PATHLENS_MODELS has no {known.file}; fetch the published weights into it")
    return subject(
        study,
        name,
        f"{name} with the weights of {known.by}, on CIFAR-10 as JPEG files",
        pathlens.load_model(name, weights),
        cifar10(),
        data_name="cifar10-jpeg",
        mean=known.mean,
        std=known.std,
    )


def seeds_of(name: str) -> int | None:
    """Trainings behind a network that a study takes as it is; None for one that others trained.

    The packaged network was trained here (``studies/embedded_default.py``), with one seed.
    """
    return None if name in PUBLISHED else 1


def cifar10() -> str:
    """The data set of CIFAR-10 as JPEG files, for ``pathlens.open_data`` and ``--data``.

    Raises:
        DataError: PATHLENS_DATA is not set, or has none.
    """
    images = place("PATHLENS_DATA", "cifar10-jpeg").resolve()  # trainings run in another folder
    if not images.is_dir():
        raise DataError("PATHLENS_DATA has no folder cifar10-jpeg; put test.parquet of CIFAR-10 into one")
    return f"parquet:{images}"


def untrained(study: StudySetting, name: str) -> Subject:
    """A reference network with seeded random weights on digits, for tests: its numbers mean nothing."""
    loaded = pathlens.load_model(name, "random", in_channels=1, num_classes=10, seed=0)
    return subject(study, name, f"{name} with random weights, on digits", loaded)


def place(variable: str, inside: str) -> Path:
    """A path inside the folder that a variable of the environment names.

    Raises:
        DataError: it is not set.
    """
    folder = os.environ.get(variable)
    if not folder:
        raise DataError(f"{variable} is not set; set it to the folder that holds {inside}")
    return Path(folder, inside)
