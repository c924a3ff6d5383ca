"""Examples in numbered batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from pathlens.errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, on the device asked for.

    Attributes:
        index: number of the batch, from 0.
        images: shape (N, C, H, W), normalised; of a text tokens, int64 of shape (N, T).
        labels: int64 of shape (N,); of a text the next tokens, of shape (N, T).
    """

    index: int
    images: torch.Tensor
    labels: torch.Tensor


class Batched:
    """Examples in a fixed order, of which ``n`` are in use.

    Attributes:
        name: name of the data set, for tables.
        n: examples in use.
        rows_are: what examples are called, in the plural.
    """

    name: str
    n: int
    rows_are: ClassVar[str] = "images"

    def num_batches(self, batch_size: int) -> int:
        """Number of batches; the last one may be smaller.

        Args:
            batch_size: examples in a batch.

        Raises:
            DataError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise DataError(f"batch size {batch_size}: give 1 or more")
        return -(-self.n // batch_size)

    def _places(self, index: int, batch_size: int) -> tuple[int, int]:
        """The first example of a batch, and the one after its last.

        Raises:
            DataError: no such batch.
        """
        count = self.num_batches(batch_size)
        if not 0 <= index < count:
            raise DataError(
                f"{self.name}: batch {index} does not exist; there are {count} of {batch_size} {self.rows_are}"
            )
        return index * batch_size, min((index + 1) * batch_size, self.n)


class Unnormalised(Batched, ABC):
    """Examples that are held in memory and taken as they are.

    Attributes:
        as_they_are: why a mean and a standard deviation are refused.
    """

    in_memory: ClassVar[bool] = True
    as_they_are: ClassVar[str]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of nothing, since nothing is normalised."""
        return ()

    std = mean

    @abstractmethod
    def rows(self, indices: torch.Tensor, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some examples in the order asked for, and their targets.

        Args:
            indices: numbers of examples, int64 of shape (N,), on the CPU.
            device: where they are put.
        """

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
        """Examples ``index * batch_size`` up to ``(index + 1) * batch_size`` or the end.

        Args:
            index: number of the batch, from 0.
            batch_size: examples in a batch.
            mean: for images with pixels in [0, 1]; none here.
            std: likewise.
            device: where the batch is put.
            dtype: of what is no whole number.

        Returns:
            The batch: examples in place of images, and targets in place of labels; see :meth:`rows`.

        Raises:
            DataError: no such batch, or a normalisation.
        """
        if mean or std:
            raise DataError(f"{self.name}: {self.as_they_are}; leave mean and std out")
        rows = self.rows(torch.arange(*self._places(index, batch_size), device="cpu"), device)
        return Batch(index, *(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in rows))
