"""Counts of disjoint sets of examples, which add up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self


@dataclass(frozen=True)
class Sums:
    """A dataclass of numbers that add up, field by field, with ``+``."""

    def __add__(self, other: Self) -> Self:
        """Counts of both sets of examples together."""
        if not isinstance(other, type(self)):
            return NotImplemented
        return replace(self, **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})
