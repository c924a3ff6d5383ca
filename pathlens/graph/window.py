"""Which blocks of a network are to be unraveled, and whether they are few enough."""

from __future__ import annotations

from collections.abc import Sequence

from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.residual import ResidualView

MOST_PATHS = 1024
"""Of a tree or an equation."""


def checked_window(view: ResidualView, blocks: Sequence[int] | None) -> tuple[int, int]:
    """First and last block, both included.

    Raises:
        NoResidualBlocksError: the network has none.
        UsageError: the window is no pair, or outside of the network.
    """
    name = type(view.model).__name__
    if not len(view) or view.is_plain or not view.in_series:
        raise NoResidualBlocksError(f"{name} is no chain of residual blocks, so only its dag can be made: kind dag")
    if blocks is None:
        return 0, len(view) - 1
    ends = tuple(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else ()
    if len(ends) != 2 or not all(isinstance(end, int) for end in ends):
        raise UsageError(f"the window of blocks {blocks!r} is no pair; give the first and last block, such as (0, 4)")
    first, last = ends
    if not 0 <= first <= last < len(view):
        raise UsageError(
            f"the window of blocks {first} to {last} is outside of the network: {name} has {len(view)} blocks, "
            f"0 to {len(view) - 1}; the first must not be after the last"
        )
    return first, last


def check_size(first: int, last: int, what: str) -> None:
    """Refuse what nobody could look at.

    Raises:
        UsageError: more than 1024 paths.
    """
    count = last - first + 1
    most = MOST_PATHS.bit_length() - 1
    if count > most:
        raise UsageError(
            f"the {what} of {count} blocks has 2^{count} paths, more than {MOST_PATHS}; give a window of at most "
            f"{most} blocks, such as {first}:{first + most - 1}, or take the lattice, which has room for all"
        )
