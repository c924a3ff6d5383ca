"""Gradients by path length: stacks of rows, each a number times a power of two, and what is done to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.residual.vjp import VJP, Identity, SequentialVJP

#: cotangents are carried through a branch in chunks of about this many numbers, to stay in the processor's cache
_CHUNK = 2**23

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
        largest = torch.linalg.vector_norm(self.rows.flatten(1), math.inf, dim=1).tolist()
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
