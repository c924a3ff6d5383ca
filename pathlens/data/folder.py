"""A folder of image files, one subfolder a class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pathlens.data.images import ImageData, Normalisation
from pathlens.data.sources import EncodedSource
from pathlens.data.splits import folder_name, place_of, places_of
from pathlens.errors import DataError

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet constants")
IMAGE_SIZE = 224


def open_folder(folder: Path, split: str, limit: int | None, image_size: int | None) -> ImageData:
    """Image files in class folders, torchvision's ``ImageFolder`` convention: classes are numbered in sorted order.

    Where ``folder`` holds folders for splits (``train``, ``val`` and the like, each with class folders), the split's
    is taken; for ``test`` the validation folder stands in where there is no test folder, and ``split`` says so.
    Images become RGB; the shorter side is resized to ``image_size * 256 // 224`` and the central square of
    ``image_size`` (default 224) is kept. The files, sorted by path, are put in the order of
    ``numpy.random.RandomState(0).permutation``, so that a prefix is roughly class-balanced.

    A class folder and a file may be symbolic links; links to folders inside a class folder are not followed. Of an
    animation the first frame is taken, and an orientation in EXIF data is left alone, as torchvision does.

    Raises:
        MissingSplitError: the folder has folders for splits, and none for this one.
        DataError: the folder is missing, or has no class folders, or a class folder has no images or leads back to it.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"imagefolder:{folder} {what}; give a folder with one subfolder for each class")
    place, split = place_of(folder, split, _holds_folders)
    classes = _files_by_class(place)
    # one number a class in all splits, also where one has no image of it
    names = sorted({*classes, *_classes_beside(folder, place, classes)})
    files = [(path, label) for label, name in enumerate(names) for path in classes.get(name, ())]
    # RandomState, not default_rng: its stream is frozen over versions of numpy.
    order = np.random.RandomState(0).permutation(len(files))
    paths = [files[row][0] for row in order]
    labels = torch.tensor([files[row][1] for row in order], dtype=torch.int64, device="cpu")
    n = len(labels) if limit is None else min(limit, len(labels))

    def identity(start: int, stop: int) -> Iterator[bytes]:
        for path in paths[start:stop]:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path} is gone ({error.strerror}); leave the folder alone during a run") from error
            yield os.fsencode(f"{path.relative_to(place).as_posix()}\n{size}")

    return ImageData(
        name=folder_name(place),
        split=split,
        n=n,
        total=len(labels),
        num_classes=len(names),
        class_names=tuple(os.fsencode(name).decode(errors="backslashreplace") for name in names),
        labels=labels[:n],
        _source=EncodedSource(
            fetch=lambda start, stop: paths[start:stop],
            where=lambda row: str(paths[row]),
            channels=3,
            image_size=image_size or IMAGE_SIZE,
            identity=identity,
        ),
        _normalisation=IMAGENET,
    )


def _holds_folders(place: Path) -> bool:
    # A class may be called "train" (the vehicle): its folder holds images and no folders.
    return place.is_dir() and any(path.is_dir() for path in place.iterdir())


def _classes_beside(folder: Path, place: Path, classes: Iterable[str]) -> set[str]:
    """Classes of the other splits that have images; of those splits alone that have a class of this one."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    def has_images(own: Path) -> bool:
        return any(file.lower().endswith(IMG_EXTENSIONS) for _, _, files in os.walk(own) for file in files)

    found: set[str] = set()
    for other in places_of(folder, _holds_folders).values() if place != folder else ():
        names = {name for name in _class_names(other) if has_images(other / name)}
        found |= names if names & set(classes) else set()
    return found


def _class_names(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _files_by_class(place: Path) -> dict[str, list[Path]]:
    """Class names in sorted order, each with its image files sorted by folder and name."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    def unreadable(error: OSError) -> None:
        raise error

    classes: dict[str, list[Path]] = {}
    for name in _class_names(place):
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(place / name)):
            raise DataError(f"{place / name} is a link to a folder that it lies in; remove it")
        classes[name] = [
            Path(folder, file)
            # Links are not followed: one to a folder above would yield the same images endlessly.
            for folder, _, files in sorted(os.walk(place / name, onerror=unreadable, followlinks=False))
            for file in sorted(files)
            if file.lower().endswith(IMG_EXTENSIONS)
        ]
    if not classes:
        raise DataError(f"{place} has no class folders; put the images of each class into a subfolder")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{place} has no images in {len(empty)} of its {len(classes)} class folders ('{empty[0]}'); fill or remove "
            f"them (file types {', '.join(IMG_EXTENSIONS)}; links to folders inside a class are not followed)"
        )
    return classes
