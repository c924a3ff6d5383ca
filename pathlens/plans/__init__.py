"""Frozen, checked descriptions of what to do to a network: delete blocks, delete skips, reorder or rewire blocks."""

from pathlens.plans.drawn import random_deletion, random_set, random_skip_deletion, random_swaps
from pathlens.plans.plan import (
    Deletion,
    Plan,
    Reordering,
    Restriction,
    SkipDeletion,
    delete,
    delete_skips,
    interchangeable,
    reorder,
    restrict,
    route,
)
from pathlens.plans.plan import require_chain as require_chain
from pathlens.plans.rewired import Rewiring, rewire, schedule

__all__ = [
    "Deletion",
    "Plan",
    "Reordering",
    "Restriction",
    "Rewiring",
    "SkipDeletion",
    "delete",
    "delete_skips",
    "interchangeable",
    "random_deletion",
    "random_set",
    "random_skip_deletion",
    "random_swaps",
    "reorder",
    "restrict",
    "rewire",
    "route",
    "schedule",
]
