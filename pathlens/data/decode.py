"""Encoded images to uint8 pixels: one image, or many in threads."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pathlens.errors import DataError, one_line

Item = bytes | Path | np.ndarray
"""An image that is not decoded yet: the bytes of a file, the path of one, or pixels (H, W, C) or (H, W)."""

GREY_MODES = frozenset({"1", "L"})
# Pillow would clip images of these modes to 8 bits without a warning.
_DEEP_MODES = ("I", "F")
# The formats of torchvision's image folders, and GIF. Others are not tried: Pillow hands EPS to Ghostscript.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Errors that Pillow's plug-ins for these formats raise on damaged files, found by fuzzing.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_WORKERS = min(16, os.cpu_count() or 1)


def open_image(item: Item, where: str) -> Image.Image:
    """Read the header of an image; its pixels are decoded on first use.

    Raises:
        DataError: the item is no image, or has more pixels than Pillow's limit for images from strangers.
    """
    with damage_named(where):
        if isinstance(item, Path) and not stat.S_ISREG(os.stat(item).st_mode):  # a pipe would never end
            raise DataError(f"{where}: not a regular file; remove it")
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item, formats=_FORMATS)


def resized(image: Image.Image, image_size: int, where: str, interpolation: Any = None) -> Image.Image:
    """Shorter side to ``image_size * 256 // 224`` (bilinear, or as is said), then the central square of ``image_size``.

    For 224 this is the evaluation preprocessing of He et al. 2016 and of torchvision's ``ImageClassification`` preset
    with ``resize_size=256``.

    Raises:
        DataError: the resized image would be absurdly large, because the size is or because the image is so narrow.
    """
    # imported here, because torchvision takes seconds to import and only resizing needs it
    from torchvision.transforms import functional

    short = max(1, image_size * 256 // 224)
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and short * short > limit:
        raise DataError(f"image_size {image_size}: an image would have more than {limit:,} pixels; give a smaller size")
    if limit is not None and short * short * max(width, height) > limit * min(width, height):
        raise DataError(f"{where}: an image of {height}x{width} is too narrow to resize; remove it or crop it")
    how = functional.InterpolationMode.BILINEAR if interpolation is None else interpolation
    return functional.center_crop(functional.resize(image, [short], how), [image_size])


def to_pixels(item: Item, where: str, channels: int, image_size: int | None) -> np.ndarray:
    """Decode one image.

    Args:
        item: the encoded image.
        where: its name in messages.
        channels: 1 (grey) or 3 (RGB; grey, palette and CMYK images are converted, an alpha channel is dropped).
        image_size: side of the result, see :func:`resized`; None keeps the size.

    Returns:
        uint8 of shape (channels, height, width).

    Raises:
        DataError: the image cannot be decoded, or has more than 8 bits a channel.
    """
    with open_image(item, where) as image:
        if image.mode.startswith(_DEEP_MODES):
            raise DataError(f"{where}: the image has mode {image.mode}, more than 8 bits a channel; write it as 8 bits")
        with damage_named(where):
            # Through RGBA, because Pillow warns about transparent entries of a palette.
            plain = image.convert("RGBA") if "transparency" in image.info else image
            plain = plain.convert("RGB" if channels == 3 else "L")
        if image_size is not None:
            plain = resized(plain, image_size, where)
        pixels = np.asarray(plain)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_many(
    items: Sequence[Item],
    where: Callable[[int], str],
    shape: tuple[int, int, int],
    image_size: int | None,
) -> torch.Tensor:
    """Decode images of one shape, in threads.

    Args:
        items: the encoded images.
        where: position in ``items`` -> name in messages.
        shape: the (channels, height, width) that each must have.
        image_size: see :func:`to_pixels`.

    Returns:
        uint8 of shape (len(items), *shape).

    Raises:
        DataError: the first image that cannot be decoded or has another shape.
    """
    out = torch.empty((len(items), *shape), dtype=torch.uint8, device="cpu")
    target = out.numpy()

    def fill(rows: range) -> None:
        for row in rows:
            pixels = to_pixels(items[row], where(row), shape[0], image_size)
            if pixels.shape != shape:
                raise DataError(
                    f"{where(row)}: the image is {pixels.shape[1]}x{pixels.shape[2]} and the first one is "
                    f"{shape[1]}x{shape[2]}; give image_size (--image-size) to bring all to one size"
                )
            target[row] = pixels

    step = max(1, min(64, -(-len(items) // _WORKERS)))
    parts = [range(start, min(start + step, len(items))) for start in range(0, len(items), step)]
    with image_warnings():
        if len(parts) < 2:
            for part in parts:
                fill(part)
        else:
            with ThreadPoolExecutor(_WORKERS) as pool:
                for _ in pool.map(fill, parts):  # in order, so the first bad row is the one reported
                    pass
    return out


class _Filters:
    """The filters of image warnings, which are the process's, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(None, None, None)


_FILTERS = _Filters()


@contextmanager
def image_warnings() -> Iterator[None]:
    """Context in which an image bomb is an error and Pillow's other remarks are silent; in any number of threads."""
    _FILTERS.enter()
    try:
        yield
    finally:
        _FILTERS.leave()


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """What goes wrong while an image is decoded, in one line.

    Args:
        where: the image is.

    Raises:
        DataError: naming it.
    """
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise DataError(f"{where}: the image claims more than {limit} pixels; remove it or shrink it") from error
    except UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise DataError(f"{where}: not an image in a known format ({known}); remove it or write it anew") from error
    except _DAMAGE as error:
        raise DataError(
            f"{where}: the image cannot be decoded ({one_line(error)}); remove it or write it anew"
        ) from error
