"""The gradient of some path lengths alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pathlens.errors import UsageError
from pathlens.training.rules.rule import Rule


@dataclass(frozen=True)
class PathLengths(Rule):
    """The forward pass is whole; the gradient comes back through paths of some lengths alone.

    Attributes:
        first: shortest length.
        last: longest length.

    Source: the restriction is exact (docs/path-gradients.md); for lengths 0 to L the idea is that of Wu, Shen, van den
    Hengel 2019, "Wider or Deeper", section 3 (effective depth).
    """

    first: int
    last: int
    name: ClassVar[str] = "path-lengths"

    def __str__(self) -> str:
        return f"path-lengths {self.first}:{self.last}"

    @property
    def lengths(self) -> tuple[int, int]:
        """Shortest and longest path that the gradient comes back through."""
        return self.first, self.last

    def check(self, blocks: int) -> None:
        """Refuse lengths that no path has.

        Raises:
            UsageError: lengths out of order, or outside 0 to ``blocks``.
        """
        if not 0 <= self.first <= self.last <= blocks:
            raise UsageError(
                f"path lengths {self.first}:{self.last}: this network has paths of 0 to {blocks} blocks; "
                "give FIRST:LAST within these"
            )


def parse_lengths(text: str) -> PathLengths:
    """``FIRST:LAST`` or one length.

    Raises:
        UsageError: something else.
    """
    parts = text.split(":")
    try:
        ends = [int(part) for part in parts]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise UsageError(f"--path-lengths {text!r}: give FIRST:LAST, such as 5:17")
    return PathLengths(ends[0], ends[-1])
