"""Sources of pixels: an array in memory, or encoded images that are decoded on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from pathlens.data.decode import Item, decode_many, image_warnings, to_pixels


class PixelSource(Protocol):
    """Rows of pixels in a fixed order."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""

    @property
    def scale(self) -> int:
        """The pixel value that stands for 1.0."""

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` (exclusive) as uint8 of shape (stop - start, channels, height, width)."""

    def identity(self, start: int, stop: int) -> Iterable[bytes]:
        """Bytes that identify these rows without decoding them."""


class ArraySource:
    """Pixels in memory, uint8 of shape (n, channels, height, width)."""

    def __init__(self, pixels: torch.Tensor, scale: int):
        self._pixels = pixels
        self.shape: tuple[int, int, int] = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        self.scale = scale

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """See :meth:`PixelSource.pixels`."""
        return self._pixels[start:stop]

    def identity(self, start: int, stop: int) -> Iterable[bytes]:
        """See :meth:`PixelSource.identity`."""
        yield self._pixels[start:stop].contiguous().numpy().tobytes()


class PickedSource:
    """Some rows of another source, in an order of their own."""

    def __init__(self, source: PixelSource, rows: torch.Tensor):
        self._source = source
        self._rows = rows.tolist()
        self.shape = source.shape
        self.scale = source.scale

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """See :meth:`PixelSource.pixels`."""
        return torch.cat([self._source.pixels(row, row + 1) for row in self._rows[start:stop]])

    def identity(self, start: int, stop: int) -> Iterable[bytes]:
        """See :meth:`PixelSource.identity`."""
        for row in self._rows[start:stop]:
            yield from self._source.identity(row, row + 1)


class EncodedSource:
    """Encoded images; the first one fixes the shape of all.

    Args:
        fetch: (start, stop) -> the encoded images of these rows.
        where: row -> its name in messages.
        channels: 1 or 3.
        image_size: side of the decoded images, None to keep theirs.
        identity: (start, stop) -> what tells these rows from others.

    Raises:
        DataError: the first image cannot be decoded.
    """

    scale = 255

    def __init__(
        self,
        fetch: Callable[[int, int], Sequence[Item]],
        where: Callable[[int], str],
        channels: int,
        image_size: int | None,
        identity: Callable[[int, int], Iterable[bytes]],
    ):
        self._fetch = fetch
        self._where = where
        self._image_size = image_size
        self._identity = identity
        with image_warnings():
            first = to_pixels(fetch(0, 1)[0], where(0), channels, image_size)
        self.shape: tuple[int, int, int] = (first.shape[0], first.shape[1], first.shape[2])

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """See :meth:`PixelSource.pixels`.

        Raises:
            DataError: an image cannot be decoded or has another size than the first.
        """
        items = self._fetch(start, stop)
        return decode_many(items, lambda row: self._where(start + row), self.shape, self._image_size)

    def identity(self, start: int, stop: int) -> Iterable[bytes]:
        """See :meth:`PixelSource.identity`."""
        yield f"image_size {self._image_size}".encode()
        yield from self._identity(start, stop)
