"""Frozen, checked descriptions of what to do to a network: delete blocks, delete skips, reorder blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Self

import numpy as np

from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.residual.restricted import Choice
from pathlens.residual.routes import Part, Route, intact, path_blocks

#: what may stand in the place of a deleted branch
_REPLACEMENTS = {"zero": Part.SHORTCUT, "mean": Part.MEAN, "resample": Part.RESAMPLED}


class Plan(ABC):
    """What can be done to a network.

    Attributes:
        changes_forward: whether the network computes something else under this plan.
    """

    changes_forward: ClassVar[bool] = True

    @abstractmethod
    def check(self, view: ResidualView) -> Self:
        """The plan as it applies to a network, with negative indices resolved.

        Args:
            view: the network's blocks.

        Raises:
            UsageError: an index outside the network, a deleted skip of a block that has none, or an order that names a
                block twice or moves one between stages or past a change of shape.
        """

    @abstractmethod
    def apply(self, route: Route) -> Route:
        """What runs at each position of the chain under this plan, after others.

        Args:
            route: what runs without it.

        Raises:
            UsageError: a block would lose both its branch and its shortcut.
        """

    @abstractmethod
    def lift(self, places: Sequence[int], count: int, name: str) -> Self:
        """The plan, which is for a part of a network, as a plan for the network.

        Args:
            places: which blocks of the network the part's blocks are.
            count: number of blocks of the network.
            name: of the part.

        Raises:
            UsageError: the part does not have such a block, or paths of given lengths through the part are no paths of
                given lengths through the network, which has more blocks.
        """


@dataclass(frozen=True)
class _PartDeletion(Plan):
    """Delete the branches or the shortcuts of some blocks, wherever these run."""

    blocks: tuple[int, ...] = ()

    @property
    @abstractmethod
    def remaining(self) -> Part:
        """What of the blocks is left."""

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`."""
        blocks = resolved(self.blocks, len(view))
        if len(blocks) != len(self.blocks):
            raise UsageError(f"a block is named twice in {_shortened(self.blocks)}")
        return replace(self, blocks=blocks)

    def apply(self, route: Route) -> Route:
        """See :meth:`Plan.apply`."""
        parts = {block: part for part, block in route}
        blocks = resolved(self.blocks, len(route))
        for block in blocks:
            if parts[block] not in (Part.BLOCK, self.remaining):
                raise UsageError(
                    f"block {block} would lose both its branch and its shortcut, and nothing would be left"
                )
            parts[block] = self.remaining
        return tuple((parts[block], block) for _, block in route)

    def lift(self, places: Sequence[int], count: int, name: str) -> Self:
        """See :meth:`Plan.lift`."""
        return replace(self, blocks=lifted(self.blocks, places, name))


@dataclass(frozen=True)
class Deletion(_PartDeletion):
    """Delete the branches of some blocks: block i becomes s_i(S_i(x)) (Veit et al. 2016, section 4.1).

    Attributes:
        blocks: sorted indices, from 0.
        replacement: what the sum has in the place of the branch: ``zero``, its ``mean`` over the data in the intact
            network, or ``resample``, the branch of another image of the batch. The last two need data, so that
            :func:`pathlens.delete_blocks` alone carries them out.
    """

    replacement: str = "zero"

    def __post_init__(self) -> None:
        if self.replacement not in _REPLACEMENTS:
            raise UsageError(
                f"a branch cannot be replaced by {self.replacement!r}; give one of {', '.join(_REPLACEMENTS)}"
            )

    @property
    def remaining(self) -> Part:
        """What of the blocks is left."""
        return _REPLACEMENTS[self.replacement]

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`; plain layers have nothing to which a mean or another image could be added."""
        if self.replacement != "zero" and view.is_plain:
            raise UsageError(
                f"replace {self.replacement!r}: the layers of a plain network have no shortcut beside them, so "
                "nothing of the image would be left; give zero, which takes the layer's input for its output"
            )
        return super().check(view)


@dataclass(frozen=True)
class SkipDeletion(_PartDeletion):
    """Delete the shortcuts of some blocks: block i becomes s_i(F_i(x)), the control experiment.

    Attributes:
        blocks: sorted indices, from 0.
    """

    @property
    def remaining(self) -> Part:
        """What of the blocks is left."""
        return Part.BRANCH

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`."""
        plan = super().check(view)
        for block in plan.blocks:
            if view[block].is_layer:
                raise UsageError(f"block {block} ({view[block].name}) is a plain layer and has no shortcut to delete")
            if view[block].is_concatenation:
                raise UsageError(
                    f"block {block} ({view[block].name}) is a concatenation, beside whose new channels there are those "
                    "of all blocks before and no shortcut of its own; delete its new channels (delete-blocks)"
                )
        return plan


@dataclass(frozen=True)
class Reordering(Plan):
    """Run the blocks in another order (Veit et al. 2016, section 4.3).

    Of two reorderings the second permutes the positions of the first.

    Attributes:
        order: ``order[p]`` is the block that runs at position p.
    """

    order: tuple[int, ...]

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`."""
        require_chain(view, "to reorder them")
        if len(self.order) != len(view):
            raise UsageError(f"an order of {len(self.order)} blocks does not fit this network of {len(view)} blocks")
        _check_order(self.order)
        movable = [set(group) for group in interchangeable(view)]
        for position, block in enumerate(self.order):
            if position != block and not any(position in group and block in group for group in movable):
                raise UsageError(
                    f"block {block} ({view[block].name}, stage {view[block].stage}) cannot run in the place of block "
                    f"{position} ({view[position].name}, stage {view[position].stage}): only blocks of equal shapes "
                    "inside a stage can be exchanged"
                )
        return self

    def apply(self, route: Route) -> Route:
        """See :meth:`Plan.apply`."""
        return tuple(route[position] for position in self.order)

    def lift(self, places: Sequence[int], count: int, name: str) -> Self:
        """See :meth:`Plan.lift`."""
        if len(self.order) != len(places):
            raise UsageError(f"an order of {len(self.order)} blocks does not fit {name} of {len(places)} blocks")
        _check_order(self.order)
        order = list(range(count))
        for position, block in enumerate(self.order):
            order[places[position]] = places[block]
        return type(self)(tuple(order))


@dataclass(frozen=True)
class Restriction(Plan):
    """Let the gradient go back through some paths alone; the forward pass stays whole.

    Attributes:
        lengths: allowed path lengths, sorted; empty when ``path`` is given.
        path: blocks whose branch the one allowed path takes, or None.
    """

    lengths: tuple[int, ...] = ()
    path: tuple[int, ...] | None = None
    changes_forward: ClassVar[bool] = False

    @property
    def choice(self) -> Choice:
        """The allowed paths, for a backward pass."""
        if self.path is not None:
            return Choice(path=frozenset(self.path))
        return Choice(lengths=frozenset(self.lengths))

    def check(self, view: ResidualView) -> Self:
        """See :meth:`Plan.check`."""
        if view.is_plain:
            raise UsageError("this is a plain network: it has a single path, so nothing to restrict")
        if self.path is not None:
            require_chain(view, "to name a path by the branches that it takes")
        if self.lengths and self.lengths[-1] > len(view):
            raise UsageError(
                f"path length {self.lengths[-1]} is outside 0..{len(view)}: the network has {len(view)} blocks"
            )
        return type(self)(self.lengths, None if self.path is None else resolved(self.path, len(view)))

    def check_paths(self, route: Route) -> None:
        """Refuse a restriction that leaves a lesioned chain no path.

        Args:
            route: what runs at each position of the lesioned network.

        Raises:
            UsageError: no path has such a length, or the one path takes a branch that is deleted or leaves out a block
                that has nothing but its branch.
        """
        free, forced = path_blocks(route)
        if self.path is not None:
            lost = sorted(set(self.path) - {*free, *forced})
            if lost:
                raise UsageError(f"the path takes the branch of block {lost[0]}, which is deleted; leave the block out")
            missing = sorted(set(forced) - set(self.path))
            if missing:
                raise UsageError(
                    f"the path leaves out block {missing[0]}, whose shortcut is deleted; every path takes its branch"
                )
            return
        least, most = len(forced), len(forced) + len(free)
        if not any(least <= length <= most for length in self.lengths):
            raise UsageError(
                f"no path of the lesioned network has a length of {_shortened(self.lengths)}; its paths have lengths "
                f"from {least} to {most}"
            )

    def apply(self, route: Route) -> Route:
        """See :meth:`Plan.apply`."""
        return route

    def lift(self, places: Sequence[int], count: int, name: str) -> Self:
        """See :meth:`Plan.lift`."""
        if len(places) != count:
            raise UsageError(
                f"restrict_backward is active on {name}, which has {len(places)} of the {count} blocks of the network "
                "that another intervention is on; restrict the backward pass of the whole network"
            )
        return type(self)(self.lengths, None if self.path is None else lifted(self.path, places, name))


def delete(blocks: int | Iterable[int], replace: str = "zero") -> Deletion:
    """Plan to delete the branch of one or several blocks.

    Args:
        blocks: indices from 0; negative ones count from the end.
        replace: what stands in its place; see :class:`Deletion`.

    Raises:
        UsageError: a block is named twice or is not an integer, or an unknown replacement.
    """
    return Deletion(_indices(blocks), replace)


def delete_skips(blocks: int | Iterable[int]) -> SkipDeletion:
    """Plan to delete the shortcut of one or several blocks.

    Args:
        blocks: indices from 0; negative ones count from the end.

    Raises:
        UsageError: a block is named twice or is not an integer.
    """
    return SkipDeletion(_indices(blocks))


def reorder(order: Sequence[int]) -> Reordering:
    """Plan to run the blocks in another order.

    Args:
        order: ``order[p]`` is the block that runs at position p.

    Raises:
        UsageError: ``order`` is not a permutation of 0..n-1.
    """
    order = integers(order, "an order")
    _check_order(order)
    return Reordering(order)


def restrict(lengths: int | Iterable[int] | None = None, path: Iterable[int] | None = None) -> Restriction:
    """Plan to restrict the backward pass to path lengths, or to one path.

    Args:
        lengths: allowed path lengths.
        path: instead, one path, as the blocks whose branch it takes.

    Raises:
        UsageError: both or neither given, no length, or a length below 0.
    """
    if (lengths is None) == (path is None):
        raise UsageError("give either path lengths or one path to restrict the backward pass to")
    if path is not None:
        return Restriction(path=_indices(path))
    assert lengths is not None
    items = _indices({lengths} if isinstance(lengths, (int, np.integer)) else set(lengths))
    if not items or items[0] < 0:
        raise UsageError(
            f"path lengths must be 0 or more and at least one; found {_shortened(items) if items else 'none'}"
        )
    return Restriction(lengths=items)


def _check_order(order: Sequence[int]) -> None:
    if sorted(order) != list(range(len(order))):
        raise UsageError(f"an order must name each block from 0 to {len(order) - 1} once; found {_shortened(order)}")


def _indices(blocks: int | Iterable[int]) -> tuple[int, ...]:
    numbers = integers([blocks] if isinstance(blocks, (int, np.integer)) else blocks, "block indices")
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"a block is named twice in {_shortened(numbers)}")
    return tuple(sorted(numbers))


def integers(items: object, what: str) -> tuple[int, ...]:
    """Whole numbers, of numpy's as well.

    Args:
        items: that a user gave.
        what: they are called.

    Raises:
        UsageError: something else.
    """
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise UsageError(f"{what} must be integers; found {items!r}")
    numbers = tuple(items)
    for item in numbers:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise UsageError(f"{what} must be integers; found {item!r}")
    return tuple(int(number) for number in numbers)


def _shortened(items: Sequence[int], most: int = 12) -> str:
    text = ", ".join(map(str, items[:most]))
    return f"({text}, ...)" if len(items) > most else f"({text})"


def resolved(blocks: Iterable[int], count: int) -> tuple[int, ...]:
    """Sorted indices from 0 of blocks of a network.

    Args:
        blocks: indices, negative ones from the end.
        count: blocks of the network.

    Raises:
        UsageError: the network has no such block.
    """
    for block in blocks:
        if not -count <= block < count:
            raise UsageError(f"block {block} does not exist: the network has {count} blocks, numbered 0 to {count - 1}")
    return tuple(sorted({block % count for block in blocks}))


def lifted(blocks: Iterable[int], places: Sequence[int], name: str) -> tuple[int, ...]:
    """Sorted indices in the network of blocks of a part.

    Args:
        blocks: indices in the part, negative ones from the end.
        places: which blocks of the network the part's blocks are.
        name: of the part.

    Raises:
        UsageError: the part has no such block.
    """
    for block in blocks:
        if not -len(places) <= block < len(places):
            raise UsageError(
                f"block {block} does not exist: {name} has {len(places)} blocks, numbered 0 to {len(places) - 1}"
            )
    return tuple(sorted(places[block] for block in blocks))


def route(active: Iterable[Plan], blocks: int) -> Route:
    """What runs at each position of the chain under several plans at once.

    Args:
        active: plans, in the order in which they were entered.
        blocks: number of blocks.

    Raises:
        UsageError: a block would lose both its branch and its shortcut.
    """
    return reduce(lambda steps, plan: plan.apply(steps), active, intact(blocks))


def require_chain(view: ResidualView, purpose: str) -> None:
    """Refuse what needs blocks one after the other.

    Args:
        view: the network's blocks.
        purpose: what cannot be done without, as ``to reorder them``.

    Raises:
        UsageError: the blocks are residual additions and concatenations wherever they lie.
    """
    if not view.in_series:
        which = f"additions: {view.additions}" + ", with concatenations" * view.concat
        instead = "find them without concatenations" if view.concat else "give those of its trunk (additions='trunk')"
        raise UsageError(
            f"the {len(view)} blocks of {type(view.model).__name__} lie anywhere ({which}) and are no chain, which is "
            f"needed {purpose}; {instead}"
        )


def interchangeable(
    view: ResidualView, units: Sequence[tuple[int, ...]] | None = None, alone: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Groups of blocks that can run in each other's place: one stage, output shaped like input, no layers between.

    Args:
        view: the network's blocks.
        units: neighbouring blocks that move together, such as those of a layer (default: each block by itself). Groups
            are then of units, of as many blocks each.
        alone: whether what can run in no other place is a group too.
    """
    require_chain(view, "to reorder them")
    movable = {
        i: stage
        for stage, blocks in enumerate(view.stages)
        for i in blocks
        if not view[i].changes_shape and view[i].kind != "layer-resized" and _direct(view, i)
    }
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, unit in enumerate([(i,) for i in range(len(view))] if units is None else units):
        stages = {movable.get(block, -1) for block in unit}
        if len(stages) == 1 and -1 not in stages:
            groups.setdefault((*stages, len(unit)), []).append(number)
    return tuple(tuple(group) for group in groups.values() if alone or len(group) > 1)


def _direct(view: ResidualView, index: int) -> bool:
    """Whether the block starts where the one before it ends: in shape, and with no layer between."""
    before = view[index - 1].out_shape if index else view[index].in_shape
    return before == view[index].in_shape and not view.has_layers_before(index)
