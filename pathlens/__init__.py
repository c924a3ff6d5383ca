"""Ensemble and path analysis of trained residual networks.

The names below are loaded on first use, so that importing the package (and ``pathlens --help``) stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pathlens.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlens.analyses import delete_blocks, delete_skips, lattice, path_gradients, reorder_blocks
    from pathlens.data import open_data
    from pathlens.graph import equation, unravel
    from pathlens.initialisation import initialise
    from pathlens.intervene import applied, deleted, reordered, restrict_backward, skips_deleted
    from pathlens.models import load_model
    from pathlens.pages import report_page
    from pathlens.residual import Block, ResidualView, find_blocks, find_layers
    from pathlens.training import train

_HOMES = {
    "delete_blocks": "pathlens.analyses",
    "delete_skips": "pathlens.analyses",
    "lattice": "pathlens.analyses",
    "path_gradients": "pathlens.analyses",
    "reorder_blocks": "pathlens.analyses",
    "open_data": "pathlens.data",
    "equation": "pathlens.graph",
    "unravel": "pathlens.graph",
    "initialise": "pathlens.initialisation",
    "applied": "pathlens.intervene",
    "deleted": "pathlens.intervene",
    "reordered": "pathlens.intervene",
    "train": "pathlens.training",
    "restrict_backward": "pathlens.intervene",
    "skips_deleted": "pathlens.intervene",
    "load_model": "pathlens.models",
    "report_page": "pathlens.pages",
    "Block": "pathlens.residual",
    "ResidualView": "pathlens.residual",
    "find_blocks": "pathlens.residual",
    "find_layers": "pathlens.residual",
}

__all__ = [
    "Block",
    "ResidualView",
    "applied",
    "delete_blocks",
    "delete_skips",
    "deleted",
    "equation",
    "find_blocks",
    "find_layers",
    "initialise",
    "lattice",
    "load_model",
    "open_data",
    "path_gradients",
    "reorder_blocks",
    "reordered",
    "report_page",
    "restrict_backward",
    "skips_deleted",
    "train",
    "unravel",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pathlens' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
