"""Base class of estimators of path gradients, and the problem that they are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pathlens.paths import Paths
from pathlens.tables import Json
from pathlens.tables.declared import MutableRow, Row, Shown

if TYPE_CHECKING:
    import torch

NORM = "loss per unit of input"
"""Unit of a gradient norm."""
_LARGEST_POWER = 960  # of two; sums of contributions up to there do not overflow


@dataclass(frozen=True)
class Request:
    """Options of :func:`pathlens.path_gradients`, which describes them; ``num_samples`` is its ``draws``."""

    at: str
    max_length: int | None = None
    tolerance: float = 0.0
    rel_error: float = 0.1
    max_samples: int = 1
    num_samples: int = 1
    share: float = 0.95
    seed: int = 0
    concat: bool = False


@dataclass(frozen=True)
class Problem:
    """A gradient that is to be resolved by path length.

    Attributes:
        request: the options.
        paths: single ones, as the linearised network takes them.
        shortest: length of the shortest path.
        numbers: of paths of this length, and of each longer one.
        signs: how many random signs a path may have as factors: one of each block, or where blocks are no chain of each
            way at which paths part.
        batches: number of batches.
        device: where to compute.
        dtype: what to compute with.
        dtype_name: its name, which tells TF32 from float32.
        mixes: whether an example's gradient holds what it does to the others of its batch (batch norms with
            the statistics of the batch).
        linearise: (images, labels) -> the network linearised at a batch; where blocks are no chain, a
            :class:`pathlens.residual.polynomials.GraphLinearisation`.
        measure: (name of a journal, function, numbers of the results or None for those of the batches) -> what the
            function of (number, images, labels) finds on each batch, by number; it gives what JSON can hold.
    """

    request: Request
    paths: Paths
    shortest: int
    numbers: Sequence[int]
    signs: int
    batches: int
    device: torch.device
    dtype: torch.dtype
    dtype_name: str
    mixes: bool
    linearise: Callable[[torch.Tensor, torch.Tensor], Any]
    measure: Callable[..., dict[int, Any]]

    @property
    def lengths(self) -> range:
        """Those of the table."""
        longest = self.request.max_length
        return range(self.shortest, self.shortest + len(self.numbers) if longest is None else longest + 1)

    @property
    def is_whole(self) -> bool:
        """Whether the table has all lengths that paths have, so that shares of what all contribute are known."""
        return len(self.lengths) == len(self.numbers)


class Estimator(ABC):
    """A way to resolve a gradient by path length.

    Args:
        name: what users call it; also that of its journal.

    Attributes:
        resampled: after :meth:`estimate`, the column :attr:`norm` in each bootstrap sample of examples
            (:func:`pathlens.estimators.resampling.example_weights`) and of what else was drawn, shape (samples,
            lengths), NaN where a length has none; None from an estimator that does not resample, and where there is
            nothing to draw.
        columns: dataclass of the columns that it fills, each a :func:`pathlens.tables.declared.column`.
        last_columns: of those at the end of the table.
        shown: how columns are printed.
        norm: the column that says what a length contributes.
        interval: columns of the ends of its 95 % interval, None where it has none.
        of_one: whether that is the norm of one path, to be multiplied by their number.
        rank: a figure shades the effective lengths of the estimator of lowest rank.
        on_terminal: what it is called there.
        in_headline: likewise.
        in_chart: likewise.
        look: of its line in a chart.
    """

    columns: ClassVar[type]
    last_columns: ClassVar[type] = object
    shown: ClassVar[Mapping[str, Shown]] = {}
    norm: ClassVar[str]
    interval: ClassVar[tuple[str, str] | None] = None
    of_one: ClassVar[bool]
    rank: ClassVar[int]
    on_terminal: ClassVar[str]
    in_headline: ClassVar[str]
    in_chart: ClassVar[str]
    look: ClassVar[Mapping[str, Any]]

    def __init__(self, name: str) -> None:
        self.name = name
        self.resampled: np.ndarray | None = None

    @abstractmethod
    def estimate(self, problem: Problem, rows: Sequence[MutableRow]) -> Mapping[str, Json]:
        """Measure all batches and fill the table.

        Args:
            problem: what is resolved.
            rows: of the table, by length.

        Returns:
            What the provenance says of it.
        """

    def contributions(self, rows: Sequence[Row]) -> list[float | None]:
        """What each length contributes: the norm of its sum, or the number of its paths times the norm of one.

        Args:
            rows: of the table.

        Returns:
            In the unit of the norm; divided by a power of two where a float has no room for the largest.
        """
        norms = [row.get(self.norm) for row in rows]
        known = np.array([[norm or 0.0 for norm in norms]])
        (contributed,) = self.contributed(known, [row["n_paths"] for row in rows]).tolist()
        return [None if norm is None else value for norm, value in zip(norms, contributed, strict=True)]

    def contributed(self, norms: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """As :meth:`contributions`, of many norms.

        Args:
            norms: shape (samples, lengths).
            counts: of the paths of each length, of any size.

        Returns:
            Of the same shape, each sample divided by a power of two of its own.
        """
        factors, more = zip(*(_parts(int(count) if self.of_one else 1) for count in counts), strict=True)
        mantissas, exponents = np.frexp(np.maximum(norms, 0.0))
        mantissas, exponents = mantissas * factors, np.where(mantissas > 0, exponents + np.array(more), 0)
        shift = np.maximum(0, exponents.max(1, keepdims=True) - _LARGEST_POWER)
        return np.asarray(np.ldexp(mantissas, exponents - shift))


def _parts(value: int) -> tuple[float, int]:
    """As :func:`math.frexp`, of an integer of any size."""
    bits = value.bit_length()
    return value / 2**bits, bits
