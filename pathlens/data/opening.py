"""Opening a data set by the text that users give as ``--data``."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pathlens.data.cifar import open_cifar
from pathlens.data.embedded import open_digits
from pathlens.data.folder import open_folder
from pathlens.data.images import ImageData
from pathlens.data.masks import open_masks
from pathlens.data.parquet import open_parquet
from pathlens.data.scenes import open_scenes
from pathlens.data.splits import split_name
from pathlens.errors import DataError

SPECS = ("digits", "digit-scenes", "cifar10", "cifar100", "parquet:PATH", "imagefolder:DIR", "masks:DIR")
_THERE_ARE = f"{', '.join(SPECS)} for images, text:FILE for a language model, arrays:FILE for a regression"

_IN_FILES = {"parquet": open_parquet, "imagefolder": open_folder, "masks": open_masks}


def open_data(
    spec: str,
    *,
    split: str = "test",
    limit: int | None = None,
    image_size: int | None = None,
    download: bool = False,
    root: str | Path | None = None,
) -> ImageData:
    """Open a labelled image set in its fixed order.

    Args:
        spec: ``digits``, ``cifar10``, ``cifar100``, ``parquet:PATH`` (a file or folder in the layout of Hugging Face
            image data sets), ``imagefolder:DIR`` (one subfolder for each class), or for segmentation ``masks:DIR``
            (``images/`` and ``masks/``) or ``digit-scenes`` (made of scans and photographs that come with
            scikit-learn).
        split: ``train``, ``validation`` or ``test``. A single parquet file, or an image folder that is itself called
            like a split, says by its name which split it is.
        limit: use the first ``limit`` rows only; more than there are means all.
        image_size: resize the shorter side to ``image_size * 256 // 224`` pixels and keep the central square of
            ``image_size``. Default: 224 for ``imagefolder``, no resizing otherwise.
        download: allow ``cifar10`` and ``cifar100`` to be fetched where they are missing.
        root: folder of ``cifar10`` and ``cifar100``. Default: the environment's ``PATHLENS_DATA``, else
            ``~/.cache/pathlens/data``.

    Returns:
        The image set.

    Raises:
        MissingSplitError: the data set has no such split.
        DataError: the data set is unknown or missing, or has rows that cannot be used; the message says which.
    """
    if not isinstance(spec, str):
        raise DataError(f"data must be text, such as digits or parquet:PATH; found a {type(spec).__name__}")
    split = split_name(split)
    for what, value in (("limit", limit), ("image_size", image_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise DataError(f"{what} {value}: give a whole number of 1 or more, or leave it out")
    kind, colon, path = spec.partition(":")
    if kind in _IN_FILES:
        if not path:
            raise DataError(f"data '{spec}' names no path; write {kind}:PATH")
        try:
            place = Path(os.path.expanduser(path))  # unlike Path.expanduser, does not raise where there is no home
            return _IN_FILES[kind](place, split, limit, image_size)
        except OSError as error:
            at = error.filename or path
            raise DataError(f"{at} cannot be read ({error.strerror}); check its name and permissions") from error
    if kind == "text":
        raise DataError(f"data '{spec}' is a text, and images are wanted here; in Python pathlens.open_text opens it")
    if kind == "arrays":
        raise DataError(f"data '{spec}' is of numbers, and images are wanted here; pathlens.open_arrays opens it")
    if kind in ("digits", "digit-scenes", "cifar10", "cifar100") and colon:
        raise DataError(f"data '{spec}': {kind} takes no path; write {kind}")
    if kind == "digits":
        if image_size is not None:
            raise DataError("digits are 8x8 pixels of 17 levels and are not resized; leave image_size out")
        return open_digits(split, limit)
    if kind == "digit-scenes":
        if image_size is not None:
            raise DataError("digit-scenes are 48x48 pixels and are not resized; leave image_size out")
        return open_scenes(split, limit)
    if kind in ("cifar10", "cifar100"):
        return open_cifar(kind, split, limit, image_size, download=download, root=None if root is None else Path(root))
    raise DataError(_unknown(spec, kind))


def _unknown(spec: str, kind: str) -> str:
    close = difflib.get_close_matches(kind, [name.partition(":")[0] for name in SPECS], n=2)
    if close:
        return f"data '{spec}' is unknown; did you mean {' or '.join(close)}? There are {_THERE_ARE}"
    place = Path(os.path.expanduser(spec))
    if spec and os.path.exists(place):
        # two levels only, because the path may be that of a whole disk
        parquet = place.is_file() or any(next(place.glob(f"{level}*.parquet"), None) for level in ("", "*/"))
        likely = "parquet" if parquet else "masks" if (place / "masks").is_dir() else "imagefolder"
        return f"data '{spec}' is a path; write {likely}:{spec}"
    return f"data '{spec}' is unknown; there are {_THERE_ARE}"
