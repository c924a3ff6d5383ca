"""Estimators that resolve a gradient by path length, each in a file of its own.

The files are imported on first use, and torch only when they measure, so that pages and help need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pathlens.errors import UsageError

if TYPE_CHECKING:
    from pathlens.estimators.estimator import Estimator

_CLASSES = {
    "exact": "exact.Exact",
    "sampled": "sampled.Sampled",
    "signed": "rademacher.Rademacher",
}
ALL = "all"
METHODS = (*_CLASSES, ALL)
"""What users may ask for."""

ALIASES = {"rademacher": "signed"}
"""Other names of methods."""


def estimators(method: str = ALL) -> tuple[Estimator, ...]:
    """The estimators of a method.

    Args:
        method: one of :data:`METHODS` or :data:`ALIASES`.

    Raises:
        UsageError: an unknown method.
    """
    method = ALIASES.get(method, method)
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; give one of {', '.join(METHODS)}")
    chosen = []
    for name in _CLASSES if method == ALL else (method,):
        module, _, kind = _CLASSES[name].partition(".")
        chosen.append(getattr(importlib.import_module(f"{__name__}.{module}"), kind)(name))
    return tuple(chosen)
