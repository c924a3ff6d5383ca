"""Gradients by path length: stacks of rows, each a number times a power of two, and what is done to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pathlens.residual.vjp import VJP, Identity, SequentialVJP

_T = TypeVar("_T")

#: cotangents are carried through a branch in chunks of about this many numbers, to stay in the processor's cache
_CHUNK = 2**23

#: numbers in the cotangents of those paths that are carried through the whole network together
_DEEP = 2**21

#: rows whose largest number is below this are scaled up
_SMALL = 2.0**-30


@dataclass(frozen=True)
class Scaled:
    """Gradients as rows times powers of two, because those of long paths are smaller than any float32.

    Attributes:
        rows: shape (K, N, ...); row k stands for ``rows[k] / 2**exponents[k]``.
        exponents: of each row.
    """

    rows: Tensor
    exponents: tuple[int, ...]

    def norms(self) -> Tensor:
        """L2 norm for each row and example, float64, shape (K, N)."""
        norms = torch.linalg.vector_norm(self.rows.flatten(2), dim=2, dtype=torch.float64)
        return torch.ldexp(norms, -torch.tensor(self.exponents, device=norms.device).reshape(-1, 1))

    def values(self) -> Tensor:
        """The gradients themselves; those too small for the type are zero."""
        if not any(self.exponents):
            return self.rows
        values = self.rows.clone()
        _shift(values, [-exponent for exponent in self.exponents])
        return values

    def raised(self) -> Scaled:
        """The same gradients, with rows that have become small brought back to about 1, in place.

        Raises:
            FloatingPointError: a row is not finite.
        """
        largest = _largest(self.rows).tolist()
        if not all(math.isfinite(value) for value in largest):
            raise FloatingPointError
        shifts = [-math.frexp(value)[1] if 0 < value < _SMALL else 0 for value in largest]
        if not any(shifts):
            return self
        raised = [exponent + shift for exponent, shift in zip(self.exponents, shifts, strict=True)]
        # a row of zeros takes the largest exponent, so that it does not limit those of the rows it is added to
        most = max(raised)
        raised = [exponent if value else most for exponent, value in zip(raised, largest, strict=True)]
        _shift(self.rows, shifts)
        return Scaled(self.rows, tuple(raised))


@dataclass(frozen=True)
class Profile:
    """Gradients of the examples' own losses, summed over all paths of each length, at one place of the network.

    Attributes:
        boundary: i, for the gradient at x_i; -1 for the input.
        scaled: G_k for the kept lengths.
        first: length of the first row; lengths are consecutive.
    """

    boundary: int
    scaled: Scaled
    first: int = 0

    @property
    def gradients(self) -> Tensor:
        """G_k for the kept lengths, shape (K, N, ...); those too small for the type are zero, their norms are not."""
        return self.scaled.values()

    @property
    def lengths(self) -> range:
        """The kept lengths."""
        return range(self.first, self.first + self.scaled.rows.shape[0])

    def norms(self) -> Tensor:
        """L2 norm for each length and example, float64, shape (K, N)."""
        return self.scaled.norms()

    def total(self) -> Tensor:
        """The sum over lengths, shape (N, ...): the ordinary gradient."""
        return self.gradients.sum(0)


def in_parts(through: Callable[[Sequence[_T]], Scaled], paths: Sequence[_T], size: int) -> Scaled:
    """Gradients through paths, so many at a time; the rows are in the order of the paths."""
    parts = [through(paths[start : start + size]) for start in range(0, max(1, len(paths)), size)]
    if len(parts) == 1:
        return parts[0]
    return Scaled(torch.cat([part.rows for part in parts]), tuple(one for part in parts for one in part.exponents))


def paths_at_once(largest: int, device: torch.device) -> int:
    """How many single paths are carried through a whole network at a time.

    On a CPU so few that their cotangents stay in the cache from block to block; a GPU takes all.

    Args:
        largest: numbers in the largest cotangent of a path, of all examples.
        device: where they are.
    """
    return max(1, _DEEP // max(1, largest)) if device.type == "cpu" else 2**31


def _largest(rows: Tensor) -> Tensor:
    """Largest absolute value of each row; NaN where there is one.

    Read in the order of memory, without a copy, and by kernels that use vector units, as that of the norm does not.
    """
    if rows.dim() == 5 and not rows.is_contiguous():
        rows = rows.movedim(2, -1)
    flat = rows.flatten(1)
    return torch.maximum(flat.amax(1), -flat.amin(1))


def chunk_of(stack: Tensor) -> int:
    """How many cotangents of a stack are carried through a piece at a time."""
    return max(1, _CHUNK // max(1, stack[0].numel()))


def chunked(adjoint: VJP, stack: Tensor) -> Tensor:
    """Carry a stack through a piece in chunks, so that what is alive meanwhile is bounded."""
    size = chunk_of(stack)
    if stack.shape[0] <= size or isinstance(adjoint, (SequentialVJP, Identity)):
        return adjoint(stack)
    return torch.cat([adjoint(stack[start : start + size]) for start in range(0, stack.shape[0], size)])


def _shift(rows: Tensor, exponents: Sequence[int]) -> None:
    """Multiply rows by powers of two in place.

    In two steps, since a single factor may be out of range where the product is not; only what changes is touched.
    """
    start = 0
    for exponent, group in itertools.groupby(exponents):
        stop = start + len(list(group))
        if exponent:
            half = exponent // 2
            rows[start:stop].mul_(2.0**half).mul_(2.0 ** (exponent - half))
        start = stop


def shifted(rows: Tensor, exponents: Sequence[int]) -> Tensor:
    """Rows times powers of two; the rows themselves where there is nothing to do."""
    if not any(exponents):
        return rows
    rows = rows.clone()
    _shift(rows, exponents)
    return rows


def trimmed(stack: Scaled, first: int, tolerance: float) -> tuple[Scaled, int]:
    """A stack without its first and last rows that are at most a fraction of the largest, and the length of its first.

    Args:
        stack: of consecutive lengths.
        first: length of the first row.
        tolerance: the fraction.
    """
    norms = torch.linalg.vector_norm(stack.norms(), dim=1)
    above = (norms > tolerance * norms.max()).nonzero().flatten().tolist()
    if not above:  # a gradient that is zero everywhere
        return stack, first
    rows = slice(above[0], above[-1] + 1)
    return Scaled(stack.rows[rows], stack.exponents[rows]), first + above[0]
