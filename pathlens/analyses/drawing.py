"""Random lesions, none of which is drawn twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pathlens.errors import UsageError
from pathlens.plans import interchangeable
from pathlens.residual import ResidualView

P = TypeVar("P")


@dataclass(frozen=True)
class Samples(Generic[P]):
    """Different random lesions of one size.

    Attributes:
        size: blocks of a set, or swaps of an order.
        plans: or sets of blocks, in the order in which they were drawn.
        exhausted: whether no others exist.
    """

    size: int
    plans: tuple[P, ...]
    exhausted: bool


def different(size: int, draw: Callable[[], P], samples: int, existing: int, intact: P) -> Samples[P]:
    """Draw until there are enough different lesions, or all that exist.

    What was drawn before, and what changes nothing, is drawn again, so that the first occurrences are those of plain
    sampling from the same generator.

    Args:
        size: of the lesions.
        draw: one lesion.
        samples: how many to draw.
        existing: how many different ones ``draw`` can give, without the intact network.
        intact: what changes nothing.
    """
    plans: dict[P, None] = {}
    while len(plans) < min(samples, existing):
        plan = draw()
        if plan != intact:
            plans[plan] = None
    return Samples(size, tuple(plans), existing <= samples)


def contiguous_sets(existing: int, size: int, what: str) -> Samples[tuple[int, ...]]:
    """All runs of neighbours of a size, which is what papers on pruning delete.

    Raises:
        UsageError: a size that the network does not have.
    """
    if not 1 <= size <= existing:
        raise UsageError(f"{size} {what} in a row cannot be deleted: the network has {existing}")
    return Samples(size, tuple(tuple(range(at, at + size)) for at in range(existing - size + 1)), True)


def existing_orders(view: ResidualView, swaps: int, units: Sequence[tuple[int, ...]] | None = None) -> int:
    """How many orders other than the trained one can be reached by exchanging ``swaps`` pairs of blocks, or of units.

    An order that takes d exchanges at least can also be reached by d + 2, d + 4 and so on. As many orders of g blocks
    take d exchanges as the coefficient of z^d in (1 + z)(1 + 2z)...(1 + (g - 1)z), the unsigned Stirling numbers of the
    first kind (Stanley, Enumerative Combinatorics 1, proposition 1.3.7), and groups multiply.

    Args:
        view: the network's blocks.
        swaps: 0 or more.
        units: neighbouring blocks that move together (default: each block by itself).
    """
    orders = [1]
    for group in interchangeable(view, units):
        for before in range(1, len(group)):
            orders = [same + before * one for same, one in zip([*orders, 0], [0, *orders], strict=True)]
    return sum(count for fewest, count in enumerate(orders) if 0 < fewest <= swaps and (swaps - fewest) % 2 == 0)


def note_on_few(sampled: Sequence[Samples[P]], samples: int, what: str, unit: str) -> str | None:
    """A sentence on the sizes of which no more lesions exist than were asked for, if there are any.

    Args:
        sampled: by size.
        samples: how many were asked for.
        what: the lesions are, in the plural.
        unit: of their size, in the plural.
    """
    few = [f"{item.size} ({len(item.plans)})" for item in sampled if item.exhausted]
    if not few:
        return None
    return (
        f"no more than {samples} different {what} exist for these numbers of {unit}: {', '.join(few)}; each was "
        "measured once, and a mean over all there are has no interval"
    )
