"""Counts of disjoint sets of examples, which add up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import add
from typing import Any, Self

from pathlens.errors import NumericsError


@dataclass(frozen=True)
class Sums:
    """A dataclass of numbers, or tuples of them, that add up, field by field, with ``+``."""

    def __add__(self, other: Self) -> Self:
        """Counts of both sets of examples together."""
        if not isinstance(other, type(self)):
            return NotImplemented
        pairs = {one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        return replace(self, **{name: _sum(*pair) for name, pair in pairs.items()})


class OfExamples(Sums):
    """Sums over examples, some of which may have outputs that are not finite."""

    n: int
    nonfinite: int

    def require_finite(self, what: str) -> None:
        """Raise if the network gave an output that is NaN or infinite.

        Args:
            what: which network this was, for the message.

        Raises:
            NumericsError: naming ``what`` and the number of examples.
        """
        if self.nonfinite:
            raise NumericsError(
                f"{what} gives NaN or infinity for {self.nonfinite} of {self.n} examples; "
                "check the weights and the data, or use --dtype float32"
            )


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, tuple):
        return tuple(map(add, one, other)) if one and other else one or other
    return one + other
