"""Columns as fields of a dataclass, and how a terminal prints them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
MutableRow = dict[str, Any]


def column(unit: str, meaning: str) -> Any:
    """A field of a row.

    Args:
        unit: of its numbers; empty for none.
        meaning: one sentence on what it holds.
    """
    return field(default=None, metadata={"unit": unit, "meaning": meaning})


def formatted(spec: str) -> Callable[[Row, str], str]:
    """A cell in a format, such as ``.2f``; nothing for a missing value."""
    return lambda row, name: "" if row[name] is None else format(row[name], spec)


@dataclass(frozen=True)
class Shown:
    """How a column is printed.

    Attributes:
        title: its heading; by default its name.
        text: a row and the column's name -> the cell; by default the value as it is.
        left: aligned to the left, as text is; numbers are aligned to the right.
        folds: goes on in a second line where the terminal is narrow.
        gives_way: left out where the terminal is narrow; columns of higher numbers first.
    """

    title: str = ""
    text: Callable[[Row, str], str] | None = None
    left: bool = False
    folds: bool = False
    gives_way: int = 0
