"""Batches for an analysis: from an opened data set, or from whatever a researcher's own script iterates over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from pathlens.analyses.provenance import DataProvenance
from pathlens.data import ArrayData, DataSet, TextData
from pathlens.errors import DataError, UsageError, described
from pathlens.runtime import processes

Data = DataSet | Iterable[Any]
"""An opened data set, or batches of (images, labels)."""

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class BatchSource:
    """Numbered batches of (images, labels), the same at every pass.

    Attributes:
        batch_size: images in a batch, or None where the batches were made by the caller.
        count: number of batches, or None where an iterable does not tell.
        provenance: what tables say of the data.
        fingerprint: hash that a resumed sweep compares; empty where the data cannot be hashed, so that nothing is
            resumed.
    """

    data: Data
    batch_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    device: torch.device
    count: int | None
    provenance: DataProvenance = field(repr=False)
    fingerprint: str

    @property
    def task(self) -> str | None:
        """The task that the data is for, where that does not depend on the network."""
        return "regression" if isinstance(self.data, ArrayData) else None

    def batches(self, numbers: Iterable[int] | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, images (N, ...) and labels (N,) of some batches (default: all), in order.

        Args:
            numbers: of the batches.

        Raises:
            DataError: an image that cannot be decoded, or something that is no pair of images and labels.
        """
        if isinstance(self.data, DataSet):
            assert self.batch_size is not None
            for index in range(self.count or 0) if numbers is None else sorted(numbers):
                batch = self.data.batch(index, self.batch_size, mean=self.mean, std=self.std, device=self.device)
                yield index, batch.images, batch.labels
            return
        chosen = None if numbers is None else set(numbers)
        for index, item in enumerate(self.data):
            if chosen is None or index in chosen:
                if not (isinstance(item, (tuple, list)) and len(item) >= 2 and isinstance(item[0], Tensor)):
                    raise DataError(
                        f"batch {index} is no pair (images, labels) of tensors; found {described(item)}; "
                        "give batches as a DataLoader makes them"
                    )
                yield index, _images(item[0], index), _labels(item[1], index)

    def first(self) -> Tensor:
        """The first batch of images.

        Raises:
            DataError: there are no images.
        """
        for _, images, _ in self.batches([0]):
            return images
        raise DataError("the data has no images; give at least one batch")


def batch_source(
    data: Data,
    batch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    device: torch.device,
) -> BatchSource:
    """Wrap a data set, a list of batches or a ``DataLoader`` (without shuffling).

    Raises:
        UsageError: something that can be read only once or that is another part of the data in each process, or a
            normalisation for batches that are made already.
        DataError: a batch size below 1, or a mean or deviation that does not fit the channels.
    """
    if isinstance(data, DataSet):
        own_mean = tuple(data.mean if mean is None else mean)
        own_std = tuple(data.std if std is None else std)
        source = "given" if mean is not None or std is not None else data.normalisation_source
        provenance = DataProvenance(
            data=data.name,
            split=data.split,
            images=data.n,
            images_in_split=data.total,
            data_sha256=data.fingerprint,
            mean=own_mean or None,
            std=own_std or None,
            normalisation=source,
            batch_size=batch_size,
        )
        if isinstance(data, TextData):
            provenance = replace(
                provenance,
                examples="sequences",
                sequence_length=data.length,
                stride=data.stride,
                tokenizer=data.tokenizer.name,
            )
        if isinstance(data, ArrayData):
            provenance = replace(provenance, examples=data.rows_are)
        count = data.num_batches(batch_size)
        digest = hashlib.sha256(f"{data.fingerprint} {own_mean} {own_std} {batch_size}".encode()).hexdigest()
        return BatchSource(data, batch_size, own_mean, own_std, device, count, provenance, digest)
    if mean is not None or std is not None:
        raise UsageError("mean and std apply to data sets opened by pathlens; normalise your own batches yourself")
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        raise UsageError(
            "data must be an opened data set, a list of (images, labels) batches or a DataLoader; found "
            f"{type(data).__name__}"
        )
    batches = getattr(data, "batch_sampler", None)
    for sampler in (getattr(data, "sampler", None), batches, getattr(batches, "sampler", None)):
        if isinstance(sampler, _SHUFFLING):
            raise UsageError(
                f"a DataLoader that shuffles ({type(sampler).__name__}) gives other batches every time it is read; "
                "give shuffle=False, or torch.utils.data.Subset"
            )
        if isinstance(sampler, DistributedSampler) and processes.current().world > 1:
            raise UsageError(
                "a DataLoader with a DistributedSampler gives each process a part of the data, and the processes share "
                "the batches here; give the same loader to all, with shuffle=False and without that sampler"
            )
    try:
        length = len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over an IterableDataset, which may have no length
        length = None
    provenance = DataProvenance(data=f"batches from {type(data).__name__}", normalisation="as given by the batches")
    return BatchSource(data, None, None, None, device, length, provenance, "")


def _images(given: Tensor, batch: int) -> Tensor:
    if given.layout != torch.strided or given.is_meta:
        kind = "without values" if given.is_meta else f"of layout {given.layout}"
        raise DataError(f"the images of batch {batch} are a tensor {kind}; give dense ones")
    if not given.dim() or not len(given):
        raise DataError(f"batch {batch} has no images (shape {tuple(given.shape)}); leave empty batches out")
    return given


def _labels(given: object, batch: int) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"the labels of batch {batch} are {described(given)}, which is no tensor of class indices; "
            "give one integer per image"
        ) from error
