"""A folder of images, each with a mask that says for every pixel which class it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pathlens.data.decode import damage_named, image_warnings, open_image, resized
from pathlens.data.images import NOT_COUNTED, ImageData
from pathlens.data.sources import EncodedSource
from pathlens.data.splits import folder_name, place_of
from pathlens.errors import DataError

LARGEST = 2**30
"""Bytes that the masks in use may take in memory."""

_IMAGES, _MASKS = "images", "masks"
_VOID = 255
"""Value of a pixel that is not counted, in masks of several classes (Pascal VOC)."""
_LOSSY = ("JPEG", "WEBP")
_INDEXED = ("1", "L", "P", "I", "I;16", "I;16B")


def open_masks(folder: Path, split: str, limit: int | None, image_size: int | None) -> ImageData:
    """Images in ``images/`` and their masks in ``masks/``, under the same names up to the ending.

    Where ``folder`` holds folders for splits (``train``, ``val`` and the like) that have the two, the split's is taken;
    that of TGS Salt is ``train``. Images become RGB. A mask has one channel of class indices; 255 is not counted. Where
    all masks together hold nothing but 0 and 255, or 0 and 65535, they are binary, and the large value is class 1. With
    ``image_size`` images are resized and cropped as those of ``imagefolder``, and masks alike without interpolation.
    The pairs, sorted by name, are put in the order of ``numpy.random.RandomState(0).permutation``.

    Args:
        folder: the folder.
        split: which part.
        limit: use the first pairs only.
        image_size: side of the images; None keeps theirs, which must be one.

    Returns:
        The images; ``labels`` are the masks, int64 of shape (n, height, width), with -100 where nothing is counted.

    Raises:
        MissingSplitError: the folder has folders for splits, and none for this one.
        DataError: no such folders, an image without a mask or the reverse, a mask of another size than its image or of
            several channels, or masks that take more than ``LARGEST`` bytes.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"masks:{folder} {what}; give a folder with images/ and masks/ in it")
    place, split = place_of(folder, split, lambda place: (place / _IMAGES).is_dir())
    pairs = _pairs(place)
    # RandomState, not default_rng: its stream is frozen over versions of numpy.
    pairs = [pairs[row] for row in np.random.RandomState(0).permutation(len(pairs))]
    n = len(pairs) if limit is None else min(limit, len(pairs))

    def identity(start: int, stop: int) -> Iterator[bytes]:
        for path, _ in pairs[start:stop]:
            yield os.fsencode(f"{path.relative_to(place).as_posix()}\n{path.stat().st_size}")

    source = EncodedSource(
        fetch=lambda start, stop: [path for path, _ in pairs[start:stop]],
        where=lambda row: str(pairs[row][0]),
        channels=3,
        image_size=image_size,
        identity=identity,
    )
    masks, num_classes = _read_masks(pairs, n, source.shape[1:], image_size)
    return ImageData(
        name=folder_name(place),
        split=split,
        n=n,
        total=len(pairs),
        num_classes=num_classes,
        class_names=None,
        labels=masks,
        _source=source,
        _normalisation=None,
    )


def _pairs(place: Path) -> list[tuple[Path, Path]]:
    """Images and their masks, in the order of their names."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    by_stem: list[dict[str, Path]] = []
    for kind in (_IMAGES, _MASKS):
        if not (place / kind).is_dir():
            raise DataError(f"{place} has no folder {kind}/; give a folder with images/ and masks/ in it")
        files = sorted(path for path in (place / kind).iterdir() if path.name.lower().endswith(IMG_EXTENSIONS))
        stems = [path.stem for path in files]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None) if len(set(stems)) < len(stems) else None
        if twice is not None:
            raise DataError(f"{place / kind} has two files of the name '{twice}'; remove one")
        by_stem.append(dict(zip(stems, files, strict=True)))
    images, masks = by_stem
    for own, others, missing in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(set(own) - set(others))
        if alone:
            raise DataError(
                f"{len(alone)} of {len(own)} files in {own[alone[0]].parent} have no {missing} of the same name (the "
                f"first: {own[alone[0]].name}); add or remove them"
            )
    if not images:
        raise DataError(f"{place / _IMAGES} has no images (file types {', '.join(IMG_EXTENSIONS)}); fill it")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _read_masks(
    pairs: list[tuple[Path, Path]], n: int, size: tuple[int, ...], image_size: int | None
) -> tuple[torch.Tensor, int]:
    """The masks in use as class indices, and the number of classes of all masks of the split."""
    if 8 * n * size[0] * size[1] > LARGEST:
        raise DataError(
            f"{n} masks of {size[0]}x{size[1]} take more than {LARGEST:,} bytes; give a smaller --limit or --image-size"
        )
    kept = np.empty((n, *size), dtype=np.int64)
    values: set[int] = set()
    with image_warnings():
        for row, (image, mask) in enumerate(pairs):
            indices = _indices(image, mask, image_size)
            if indices.shape != size:
                raise DataError(
                    f"{mask}: the mask is {indices.shape[0]}x{indices.shape[1]} and the first image is "
                    f"{size[0]}x{size[1]}; give image_size (--image-size) to bring all to one size"
                )
            values.update(np.unique(indices).tolist())
            if row < n:
                kept[row] = indices
    top = max(values)
    if values <= {0, 255} or values <= {0, 65535}:
        return torch.from_numpy((kept > 0).astype(np.int64)), 2
    if top > _VOID:
        raise DataError(
            f"the masks in {pairs[0][1].parent} have the class {top}; give class indices below 255, which stands for "
            "pixels that are not counted"
        )
    kept[kept == _VOID] = NOT_COUNTED
    return torch.from_numpy(kept), max(values - {_VOID}) + 1


def _indices(image: Path, mask: Path, image_size: int | None) -> np.ndarray:
    """The class indices of one mask, of the size of its image, resized and cropped as that."""
    with open_image(mask, str(mask)) as opened, open_image(image, str(image)) as other:
        if opened.format in _LOSSY:
            raise DataError(f"{mask}: a {opened.format} file, in which class indices are blurred; write masks as PNG")
        if opened.mode not in _INDEXED:
            raise DataError(f"{mask}: the mask has mode {opened.mode}; write class indices in one channel")
        if opened.size != other.size:
            width, height = opened.size
            raise DataError(
                f"{mask}: the mask is {height}x{width} and its image {other.size[1]}x{other.size[0]}; give masks of "
                "the size of their images"
            )
        with damage_named(str(mask)):
            values = np.asarray(opened).astype(np.int32)
        values = values * 255 if opened.mode == "1" else values
    if image_size is not None:
        from torchvision.transforms.functional import InterpolationMode

        plain = Image.fromarray(values, mode="I")
        values = np.asarray(resized(plain, image_size, str(mask), InterpolationMode.NEAREST))
    return values
