"""The public verbs: a network and data in, a table out. They are loaded on first use, since torch comes with them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlens.analyses.lesions import delete_blocks, delete_skips, reorder_blocks
    from pathlens.analyses.profiles import lattice, path_gradients
    from pathlens.residual import view_of

_HOMES = {
    "delete_blocks": "pathlens.analyses.lesions",
    "delete_skips": "pathlens.analyses.lesions",
    "lattice": "pathlens.analyses.profiles",
    "path_gradients": "pathlens.analyses.profiles",
    "reorder_blocks": "pathlens.analyses.lesions",
    "view_of": "pathlens.residual",
}

__all__ = ["delete_blocks", "delete_skips", "lattice", "path_gradients", "reorder_blocks", "view_of"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
