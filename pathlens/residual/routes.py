"""What runs at each position of a chain: a block as it is, without its branch or shortcut, or another block.

A branch that is not there may be replaced by what it is on average, or for another image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Part(StrEnum):
    """What of a block runs."""

    BLOCK = "run"
    """All of it."""
    SHORTCUT = "bypass"
    """The shortcut alone: the branch is deleted."""
    BRANCH = "no_skip"
    """The branch alone: the shortcut is deleted."""
    MEAN = "mean"
    """The shortcut and the mean of the branch over the data."""
    RESAMPLED = "resample"
    """The shortcut and the branch of another image."""


Step = tuple[Part, int]
"""What runs, and of which block."""

Route = tuple[Step, ...]
"""A step for each position."""


@dataclass(frozen=True)
class Schedule:
    """Routes one after the other, some of them side by side, through blocks that may run several times.

    Attributes:
        stages: each some routes that start from the same tensor; what leaves is the mean of what they give.
    """

    stages: tuple[tuple[Route, ...], ...]

    def run(self, step: Callable[[Part, int], Callable[[Any], Any]], x: Any) -> Any:
        """x_n from x_0.

        Args:
            step: what runs, and of which block, to a function of a tensor.
            x: x_0.
        """
        for stage in self.stages:
            total: Any = None
            for route in stage:
                side = x
                for part, block in route:
                    side = step(part, block)(side)
                total = side if total is None else total + side
            x = total if len(stage) == 1 else total / len(stage)
        return x


def intact(blocks: int) -> Route:
    """The route of the network as it was trained."""
    return tuple((Part.BLOCK, block) for block in range(blocks))


def path_blocks(route: Route, first: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks at which a path may choose, and those whose branch every path takes.

    With f of the first and m of the second there are C(f, k - m) paths of length k.

    Args:
        route: of the network.
        first: position from which on blocks count.
    """
    free = tuple(block for part, block in route[first:] if part is Part.BLOCK)
    return free, tuple(block for part, block in route[first:] if part is Part.BRANCH)
