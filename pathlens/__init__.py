"""Ensemble and path analysis of trained residual networks.

The names below are loaded on first use, so that importing the package (and ``pathlens --help``) stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pathlens.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlens.analyses import (
        decompose,
        delete_blocks,
        delete_blocks_exhaustive,
        delete_blocks_greedy,
        delete_blocks_influence,
        delete_skips,
        lattice,
        loss_surface,
        path_gradients,
        reorder_blocks,
        reorder_blocks_runs,
        signal_propagation,
    )
    from pathlens.data import open_arrays, open_data, open_text
    from pathlens.graph import equation, unravel
    from pathlens.initialisation import initialise
    from pathlens.intervene import applied, deleted, reordered, restrict_backward, rewired, skips_deleted
    from pathlens.models import load_model
    from pathlens.pages import report_page
    from pathlens.policies import blockdrop
    from pathlens.residual import Block, ResidualView, find_blocks, find_layers
    from pathlens.training import train

_HOMES = {
    "analyses": (
        "decompose",
        "delete_blocks",
        "delete_blocks_exhaustive",
        "delete_blocks_greedy",
        "delete_blocks_influence",
        "delete_skips",
        "lattice",
        "loss_surface",
        "path_gradients",
        "reorder_blocks",
        "reorder_blocks_runs",
        "signal_propagation",
    ),
    "data": ("open_arrays", "open_data", "open_text"),
    "graph": ("equation", "unravel"),
    "initialisation": ("initialise",),
    "intervene": ("applied", "deleted", "reordered", "restrict_backward", "rewired", "skips_deleted"),
    "models": ("load_model",),
    "pages": ("report_page",),
    "policies": ("blockdrop",),
    "residual": ("Block", "ResidualView", "find_blocks", "find_layers"),
    "training": ("train",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Block",
    "ResidualView",
    "applied",
    "blockdrop",
    "decompose",
    "delete_blocks",
    "delete_blocks_exhaustive",
    "delete_blocks_greedy",
    "delete_blocks_influence",
    "delete_skips",
    "deleted",
    "equation",
    "find_blocks",
    "find_layers",
    "initialise",
    "lattice",
    "load_model",
    "loss_surface",
    "open_arrays",
    "open_data",
    "open_text",
    "path_gradients",
    "reorder_blocks",
    "reorder_blocks_runs",
    "reordered",
    "report_page",
    "restrict_backward",
    "rewired",
    "signal_propagation",
    "skips_deleted",
    "train",
    "unravel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
