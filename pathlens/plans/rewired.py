"""Runs of blocks or layers that are carried out side by side, again, or with one in the place of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pathlens.errors import UsageError
from pathlens.plans.plan import Plan, integers, interchangeable, lifted, require_chain, resolved, route
from pathlens.residual import ResidualView
from pathlens.residual.routes import Route, Schedule

PARALLEL, MIDDLE, REPEAT = "parallel", "middle", "repeat"
WAYS = (PARALLEL, MIDDLE, REPEAT)
"""How a run of layers can be carried out."""


@dataclass(frozen=True)
class Rewiring(Plan):
    """Carry a run of neighbouring layers out in another way (Sun et al. 2024, "Transformer Layers as Painters").

    ``parallel``: all of them start from what enters the run, and the mean of what they give leaves it; with ``times``
    that is done so often, each time from what the time before gave (the paper's looped parallel). ``middle``: the one
    in the middle of the run in the place of each. ``repeat``: the run as it is, ``times`` times.

    Attributes:
        layers: the blocks of each layer, in their order; one block is a layer of its own.
        how: one of ``WAYS``.
        times: how often.
    """

    layers: tuple[tuple[int, ...], ...]
    how: str = PARALLEL
    times: int = 1

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`."""
        require_chain(view, f"to run them in another way ({self.how})")
        count = len(view)
        named = [block for layer in self.layers for block in layer]
        resolved(named, count)
        layers = tuple(tuple(block % count for block in layer) for layer in self.layers)
        run = [block for layer in layers for block in layer]
        if run != list(range(run[0], run[0] + len(run))):
            raise UsageError(f"the blocks {run} are no run of neighbours; give such, in their order")
        if not any(set(run) <= set(group) for group in interchangeable(view, alone=True)):
            raise UsageError(
                f"blocks {run[0]} ({view[run[0]].name}) to {run[-1]} ({view[run[-1]].name}) cannot run in each other's "
                "place: only blocks of equal shapes inside a stage can"
            )
        return type(self)(layers, self.how, self.times)

    def apply(self, route: Route) -> Route:
        """See :meth:`Plan.apply`.

        Raises:
            UsageError: always, since such a network has no one step for each block.
        """
        raise UsageError(
            "blocks that run side by side or several times make no paths of one length each; end the with block that "
            "rewires them"
        )

    def rewire(self, route: Route) -> Schedule:
        """What runs, where that is ``route`` without this plan.

        Args:
            route: what runs at each position.
        """
        first, last = self.layers[0][0], self.layers[-1][-1]
        sides = tuple(tuple(route[position] for position in layer) for layer in self.layers)
        if self.how == MIDDLE:
            run: tuple[tuple[Route, ...], ...] = ((sides[len(sides) // 2],),) * len(sides)
        else:
            run = (sides if self.how == PARALLEL else (route[first : last + 1],),) * self.times
        return Schedule(((route[:first],), *run, (route[last + 1 :],)))

    def lift(self, places: Sequence[int], count: int, name: str) -> Self:
        """See :meth:`Plan.lift`."""
        lifted([block for layer in self.layers for block in layer], places, name)
        layers = tuple(tuple(places[block] for block in layer) for layer in self.layers)
        return type(self)(layers, self.how, self.times)


def rewire(layers: Iterable[int | Iterable[int]], how: str = PARALLEL, times: int | None = None) -> Rewiring:
    """Plan to carry a run of neighbouring layers out in another way; see :class:`Rewiring`.

    Args:
        layers: indices of blocks from 0, each a layer of its own, or the blocks of each layer.
        how: ``parallel``, ``middle`` or ``repeat``.
        times: how often, of ``parallel`` (default: 1) and ``repeat`` (default: 2).

    Raises:
        UsageError: no layer, or something that is no integer; another way, or another number of times.

    Source: Sun et al. 2024, arXiv 2407.09298: parallel, looped parallel, middle repeat.
    """
    if how not in WAYS:
        raise UsageError(f"a run of layers is not carried out by {how!r}; give one of {', '.join(WAYS)}")
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise UsageError(f"layers must be block indices, or those of each layer; found {layers!r}")
    units = tuple(
        integers([layer] if isinstance(layer, int | np.integer) else layer, "block indices") for layer in layers
    )
    if not units or not all(units):
        raise UsageError("a run needs a layer, and each layer a block; found none")
    usual = 2 if how == REPEAT else 1
    if isinstance(times, bool) or not (times is None or isinstance(times, int)) or (times is not None and times < 1):
        raise UsageError(f"times {times!r}: give a whole number of 1 or more")
    if how == MIDDLE and times not in (None, 1):
        raise UsageError(f"times {times}: the middle layer runs as often as the run has layers; leave times out")
    return Rewiring(units, how, usual if times is None else times)


def schedule(active: Iterable[Plan], blocks: int) -> Route | Schedule:
    """What runs under several plans at once.

    Args:
        active: plans, in the order in which they were entered. A :class:`Rewiring` is of what the others leave.
        blocks: number of blocks.

    Raises:
        UsageError: a block would lose both its branch and its shortcut, or two plans rewire.
    """
    active = tuple(active)
    rewirings = [plan for plan in active if isinstance(plan, Rewiring)]
    if len(rewirings) > 1:
        raise UsageError("two plans run blocks side by side or several times; end one of them first")
    steps = route([plan for plan in active if not isinstance(plan, Rewiring)], blocks)
    return rewirings[0].rewire(steps) if rewirings else steps
