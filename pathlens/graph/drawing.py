"""A drawing of a graph as plain numbers, which figures and pages draw alike."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]
Piece = list[Point]
Edge = tuple[Hashable, Hashable]

TEXT = 6.0
"""Size of texts, in points."""

_LONGEST = 26  # characters of a name
# of an em, those of DejaVu Sans; letters that are not named take 0.64
_WIDTHS = {
    0.30: "'IJijl", 0.36: " ,./:;\\f|·", 0.46: '!"()-[]rt', 0.56: "*?L_`csz", 0.72: "ABCKRVXZ",
    0.85: "#&+<=>DGHNOQU^w~×", 1.01: "%@MWm…",
}  # fmt: skip
_WIDTH_OF = {letter: width for width, letters in _WIDTHS.items() for letter in letters}


@dataclass(frozen=True)
class Box:
    """A node.

    Attributes:
        x: of its centre, in inches from the left.
        y: of its centre, in inches from above.
        width: in inches.
        height: in inches.
        lines: of text. One that is only ``+`` is an addition, which is drawn as a circle.
        tint: number of its colour, if it has one.
        filled: with its colour, or grey where it has none.
        scale: of its text, relative to :data:`TEXT`.
    """

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]
    tint: int | None = None
    filled: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Line:
    """An edge: the points of each piece from its start to its end, and how it skips, if it does (add or concat)."""

    pieces: list[Piece]
    skip: str | None = None


@dataclass
class Drawing:
    """A drawing in inches from the upper left corner.

    Attributes:
        direction: which way paths lead: ``right`` or ``down``.
        width: of all together.
        height: of all together.
        nodes: the box of each.
        edges: the line of each.
        curved: whether the pieces of lines are cubic Bezier splines, else straight from point to point.
        notes: left end, base line and text of what is written beside.
        dots: where lines part.
        stubs: lines of no edge.
        scale: of lines, relative to drawings in which there is room for all.
    """

    direction: str
    width: float = 0.0
    height: float = 0.0
    nodes: dict[Hashable, Box] = field(default_factory=dict)
    edges: dict[Edge, Line] = field(default_factory=dict)
    curved: bool = False
    notes: list[tuple[float, float, str]] = field(default_factory=list)
    dots: list[Point] = field(default_factory=list)
    stubs: list[Piece] = field(default_factory=list)
    scale: float = 1.0


def text_width(text: str, points: float = TEXT) -> float:
    """Inches that a line of text takes at most, in sans-serif letters as wide as those of DejaVu Sans."""
    return sum(_WIDTH_OF.get(letter, 0.64 if letter.isascii() else 1.01) for letter in text) * points / 72


def shape_of(data: dict[str, Any]) -> str:
    """``64×8×8``, or nothing."""
    return str(data.get("out_shape", "")).replace("x", "×")


def shortened(text: object, most: int = _LONGEST) -> str:
    """A label that fits a box."""
    text = str(text)
    if len(text) <= most:
        return text
    if ", " in text[: most - 1]:  # of a list its beginning says most, of a module its end
        return f"{text[: most - 1].rpartition(',')[0]}, …"
    return "…" + re.sub(r"^\w{,8}?[._]", "", text[1 - most :])
