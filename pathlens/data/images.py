"""A labelled image set in a fixed order, read in normalised batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pathlens.data.batched import Batch, Batched
from pathlens.data.sources import ArraySource, PickedSource, PixelSource
from pathlens.errors import DataError

NOT_COUNTED = -100
"""Label of a pixel, or target of a token, that is not counted, as torch's cross-entropy has it."""

KEEP_BYTES = 2**30
"""Decoded sets up to this size are kept in memory; larger ones are decoded batch by batch."""

STATISTICS_ROWS = 2000
"""Rows from which the normalisation of an unknown set is computed."""

_CHUNK_BYTES = 2**23  # decoded at a time where many rows are read


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels in [0, 1], and where they come from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


@dataclass(frozen=True, eq=False)
class ImageData(Batched):
    """Images and labels in a fixed order; row ``i`` is the same image in every run.

    Attributes:
        name: name of the data set, for tables.
        split: ``train``, ``validation`` or ``test``.
        n: rows in use, after the limit.
        total: rows of the split.
        num_classes: number of classes that the data set states, else its largest label plus one.
        class_names: their names in order, where the data set states them.
        labels: int64 of shape (n,), or for segmentation (n, height, width), where -100 is not counted; on the CPU.
    """

    name: str
    split: str
    n: int
    total: int
    num_classes: int
    class_names: tuple[str, ...] | None = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    _source: PixelSource = field(repr=False)
    _normalisation: Normalisation | None = field(repr=False)
    _kept: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Decode a small set at once, so that every bad image is reported here."""
        if self.n * math.prod(self._source.shape) <= KEEP_BYTES:
            self._kept[torch.device("cpu")] = (_read_all(self._source, self.n), self.labels)

    @property
    def channels(self) -> int:
        """Channels of an image, 1 or 3."""
        return self._source.shape[0]

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return self._source.shape[1]

    @property
    def width(self) -> int:
        """Width of an image in pixels."""
        return self._source.shape[2]

    @property
    def in_memory(self) -> bool:
        """Whether the decoded set is small enough to be kept (``KEEP_BYTES``)."""
        return torch.device("cpu") in self._kept

    @property
    def mean(self) -> tuple[float, ...]:
        """The data set's own mean of each channel, of pixels in [0, 1]."""
        return self._own_normalisation.mean

    @property
    def std(self) -> tuple[float, ...]:
        """The data set's own standard deviation of each channel, of pixels in [0, 1]."""
        return self._own_normalisation.std

    @property
    def normalisation_source(self) -> str:
        """Where ``mean`` and ``std`` come from, in words."""
        return self._own_normalisation.source

    @cached_property
    def _own_normalisation(self) -> Normalisation:
        return self._normalisation or computed_normalisation(self._source, min(self.total, STATISTICS_ROWS))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the labels and the images of the ``n`` rows.

        Over the decoded pixels where the set is kept in memory. Of larger sets over the encoded bytes (parquet), or
        over the files' relative paths and sizes (image folder).
        """
        digest = hashlib.sha256()
        form = "pixels" if self.in_memory else "encoded"
        digest.update(f"{form} {self.n} {self._source.shape} {self._source.scale}\n".encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        if self.in_memory:
            pixels = self._kept[torch.device("cpu")][0]
            for start, stop in _chunks(self._source, self.n):
                digest.update(pixels[start:stop].contiguous().numpy().tobytes())
        else:
            for start, stop in _chunks(self._source, self.n):
                for part in self._source.identity(start, stop):
                    digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts run together
                    digest.update(part)
        return digest.hexdigest()

    def batch(
        self,
        index: int,
        batch_size: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Rows ``index * batch_size`` up to ``(index + 1) * batch_size`` or the end.

        Args:
            index: number of the batch, from 0.
            batch_size: rows in a batch.
            mean: subtracted from pixels in [0, 1], a number for each channel; the data set's own where None.
            std: divides the difference; the data set's own where None.
            device: where the batch is put. A set that is kept in memory stays there from the first use on.
            dtype: floating type of the images; they are normalised in float32 (float64 for float64) and then rounded.

        Returns:
            The batch: images (N, C, H, W), labels (N,) or (N, H, W).

        Raises:
            DataError: no such batch, a mean or std that does not fit the channels, or an image that cannot be decoded.
        """
        start, stop = self._places(index, batch_size)
        if not dtype.is_floating_point:
            raise DataError(f"images of type {dtype} cannot be normalised; give a floating type")
        mean = self._checked("mean", self.mean if mean is None else mean)
        std = self._checked("std", self.std if std is None else std)
        device = _indexed(torch.device(device))
        if self.in_memory:
            pixels, labels = (tensor[start:stop] for tensor in self._kept_on(device))
        else:
            pixels, labels = self._source.pixels(start, stop).to(device), self.labels[start:stop].to(device)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        # The operations of torchvision's ToTensor and Normalize in their order, so that results agree to the last bit.
        images = pixels.to(working).div_(self._source.scale)
        images.sub_(torch.tensor(mean, dtype=working, device=device).view(-1, 1, 1))
        images.div_(torch.tensor(std, dtype=working, device=device).view(-1, 1, 1))
        return Batch(index, images.to(dtype), labels)

    def batches(
        self,
        batch_size: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        start: int = 0,
    ) -> Iterator[Batch]:
        """All batches in order; errors as of :meth:`batch`.

        Args:
            batch_size: rows in a batch.
            mean: subtracted from pixels in [0, 1], a number for each channel; the data set's own where None.
            std: divides the difference; the data set's own where None.
            device: where the batches are put.
            dtype: floating type of the images.
            start: number of the first batch.
        """
        for index in range(start, self.num_batches(batch_size)):
            yield self.batch(index, batch_size, mean=mean, std=std, device=device, dtype=dtype)

    def rows(self, indices: torch.Tensor, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows in the order asked for, as they were decoded.

        Args:
            indices: row numbers, int64 of shape (N,), on the CPU.
            device: where the rows are put. A set that is kept in memory stays there from the first use on.

        Returns:
            Pixels, uint8 of shape (N, C, H, W), of which :attr:`scale` stands for 1.0; labels, shape (N,).

        Raises:
            DataError: an image cannot be decoded.
        """
        device = _indexed(torch.device(device))
        if self.in_memory:
            pixels, labels = self._kept_on(device)
            here = indices.to(device)
            return pixels[here], labels[here]
        with ThreadPoolExecutor() as threads:
            rows = list(threads.map(lambda row: self._source.pixels(row, row + 1), indices.tolist()))
        return torch.cat(rows).to(device), self.labels[indices].to(device)

    @property
    def scale(self) -> int:
        """The pixel value that stands for 1.0."""
        return self._source.scale

    def subset(self, indices: torch.Tensor, split: str) -> ImageData:
        """Some rows as a set of their own, with the same normalisation.

        Args:
            indices: row numbers, int64 of shape (N,), in the order wanted.
            split: what to call the rows.
        """
        return ImageData(
            name=self.name,
            split=split,
            n=len(indices),
            total=len(indices),
            num_classes=self.num_classes,
            class_names=self.class_names,
            labels=self.labels[indices],
            _source=ArraySource(self._kept_on(torch.device("cpu"))[0][indices], self.scale)
            if self.in_memory
            else PickedSource(self._source, indices),
            _normalisation=self._own_normalisation,
        )

    def _kept_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._kept:
            pixels, labels = self._kept[torch.device("cpu")]
            self._kept[device] = (pixels.to(device), labels.to(device))
        return self._kept[device]

    def _checked(self, what: str, values: Sequence[float]) -> tuple[float, ...]:
        numbers = tuple(float(value) for value in values)
        if len(numbers) != self.channels:
            raise DataError(
                f"{what} has {len(numbers)} numbers and the images of {self.name} have {self.channels} channels; "
                "give one number for each channel"
            )
        held = torch.tensor(numbers, dtype=torch.float64, device="cpu").float()  # in which pixels are normalised
        if not held.isfinite().all() or (what == "std" and held.min() <= 0):
            kind = "positive finite" if what == "std" else "finite"
            raise DataError(f"{what} {numbers}: give {kind} numbers")
        return numbers


def computed_normalisation(source: PixelSource, rows: int) -> Normalisation:
    """Mean and population standard deviation of each channel over the first ``rows`` rows, of pixels in [0, 1].

    The limit on the rows in use does not enter: a prefix of a set is normalised as the set is.
    """
    count = 0
    total = torch.zeros(source.shape[0], dtype=torch.float64, device="cpu")
    squares = torch.zeros_like(total)
    for start, stop in _chunks(source, rows):
        pixels = source.pixels(start, stop).to(torch.float64)
        count += pixels.numel() // source.shape[0]
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))  # whole numbers below 2**53: exact
    mean = total / count
    variance = squares / count - mean.square()
    std = variance.clamp_min(0).sqrt() / source.scale
    std = torch.where(std > 0, std, torch.ones_like(std))  # a constant channel is centred and not scaled
    means, stds = (mean / source.scale).tolist(), std.tolist()
    return Normalisation(tuple(means), tuple(stds), f"computed from the first {rows} images of this split")


def check_labels(data: ImageData, num_classes: int) -> None:
    """Check that a model with ``num_classes`` outputs can be scored on ``data``.

    Args:
        data: the images and labels.
        num_classes: outputs of the model.

    Raises:
        DataError: a label is outside the model's classes; the message names the first such row.
    """
    if data.labels.dim() > 1:
        num_classes = max(2, num_classes)  # a single logit a pixel is that of the second of two classes
    outside = (data.labels >= num_classes).nonzero()
    if len(outside):
        row, label = int(outside[0][0]), int(data.labels[tuple(outside[0])])
        raise DataError(
            f"{data.name}: row {row} has label {label} and the model has {num_classes} classes "
            f"(0 to {num_classes - 1}); give data of these classes or a model with {data.num_classes}"
        )


def _chunks(source: PixelSource, rows: int) -> Iterator[tuple[int, int]]:
    step = max(1, min(1024, _CHUNK_BYTES // math.prod(source.shape)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _read_all(source: PixelSource, rows: int) -> torch.Tensor:
    if isinstance(source, ArraySource):
        return source.pixels(0, rows)
    out = torch.empty((rows, *source.shape), dtype=torch.uint8, device="cpu")
    for start, stop in _chunks(source, rows):
        out[start:stop] = source.pixels(start, stop)
    return out


def _indexed(device: torch.device) -> torch.device:
    """``cuda`` and ``cuda:0`` are one place in the cache."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
