"""Tables as figures for a journal page. The only room that draws; nothing here touches a user's own plots."""

from __future__ import annotations

from importlib import import_module

from matplotlib.figure import Figure

from pathlens.errors import UsageError
from pathlens.figures.blocks import structure
from pathlens.figures.decomposition import decomposition
from pathlens.figures.lesions import deletion, deletions, skips
from pathlens.figures.paths import lattice, path_gradients
from pathlens.figures.reorder import reordering
from pathlens.figures.signal import signal_propagation
from pathlens.figures.style import DOUBLE, SINGLE, files, save
from pathlens.figures.surface import loss_surface, surfaces
from pathlens.figures.training import training
from pathlens.figures.unraveled import unraveled
from pathlens.results import named
from pathlens.tables import Table

__all__ = [
    "DOUBLE",
    "SINGLE",
    "Figure",
    "decomposition",
    "deletion",
    "deletions",
    "draw",
    "files",
    "lattice",
    "loss_surface",
    "path_gradients",
    "reordering",
    "save",
    "signal_propagation",
    "skips",
    "structure",
    "surfaces",
    "training",
    "unraveled",
]


def draw(name: str, table: Table) -> Figure:
    """The figure of a result, by the function that its declaration names.

    Args:
        name: of the result, such as ``delete-blocks``.
        table: of it, with the provenance that the verb gave it.

    Raises:
        UsageError: no result has this name, it has no figure, or the table has nothing to draw.
    """
    result = named(name)
    if not result.figure:
        raise UsageError(f"{name} has no figure")
    module, function = result.figure.split(".")
    figure: Figure = getattr(import_module(f"pathlens.figures.{module}"), function)(
        table, **result.figure_options(table.provenance)
    )
    return figure
