"""CIFAR-10 and CIFAR-100 as torchvision keeps them on disk."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

from pathlens.data.images import ImageData, Normalisation
from pathlens.data.sources import ArraySource, EncodedSource, PixelSource
from pathlens.errors import DataError, MissingSplitError, one_line

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10 training-set constants")
CIFAR100 = Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR-100 training-set constants")


def default_root() -> Path:
    """Folder of downloaded sets: the environment's ``PATHLENS_DATA``, else ``~/.cache/pathlens/data``."""
    return Path(os.environ.get("PATHLENS_DATA") or "~/.cache/pathlens/data").expanduser()


def open_cifar(
    name: str, split: str, limit: int | None, image_size: int | None, *, download: bool, root: Path | None
) -> ImageData:
    """CIFAR of Krizhevsky 2009, 32x32 colour images; splits ``train`` and ``test``.

    torchvision checks the files against their published MD5 before it reads them.

    Raises:
        MissingSplitError: there is no such split.
        DataError: the files are missing or damaged and ``download`` is not given or fails.
    """
    from torchvision import datasets

    if split not in ("train", "test"):
        raise MissingSplitError(f"{name} has no split '{split}'; give train or test")
    folder = (root or default_root()).expanduser()
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    with contextlib.redirect_stdout(sys.stderr):  # some versions of torchvision print to stdout, which carries tables
        try:
            loaded = kind(str(folder), train=split == "train")
        except (OSError, RuntimeError) as error:
            if not download:
                raise DataError(
                    f"{name} is not in {folder}, or damaged there; give --download to fetch it (about 170 MB), "
                    "or set PATHLENS_DATA to the folder that holds it"
                ) from error
            try:
                loaded = kind(str(folder), train=split == "train", download=True)
            except (OSError, RuntimeError) as failure:
                raise DataError(
                    f"{name} could not be downloaded to {folder} ({one_line(failure)}); try again"
                ) from failure
    labels = torch.tensor(loaded.targets, dtype=torch.int64, device="cpu")
    n = len(labels) if limit is None else min(limit, len(labels))
    return ImageData(
        name=name,
        split=split,
        n=n,
        total=len(labels),
        num_classes=len(loaded.classes),
        class_names=tuple(loaded.classes),
        labels=labels[:n],
        _source=_source(loaded.data[:n], name, split, image_size),
        _normalisation=CIFAR10 if name == "cifar10" else CIFAR100,
    )


def _source(images: np.ndarray, name: str, split: str, image_size: int | None) -> PixelSource:
    """``images``: uint8 (n, 32, 32, 3)."""
    if image_size is None:
        return ArraySource(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), 255)
    return EncodedSource(
        fetch=lambda start, stop: list(images[start:stop]),
        where=lambda row: f"row {row} of {name} {split}",
        channels=3,
        image_size=image_size,
        identity=lambda start, stop: [images[start:stop].tobytes()],
    )
