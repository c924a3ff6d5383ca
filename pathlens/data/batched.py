"""Examples in numbered batches."""

from __future__ import annotations

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
