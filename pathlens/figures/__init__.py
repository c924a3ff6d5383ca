"""Tables as figures for a journal page. The only room that draws; nothing here touches a user's own plots."""

from __future__ import annotations

from matplotlib.figure import Figure

from pathlens.figures.blocks import structure
from pathlens.figures.lesions import deletion, skips
from pathlens.figures.paths import lattice, path_gradients
from pathlens.figures.placing import Placed, placed
from pathlens.figures.reorder import reordering
from pathlens.figures.style import DOUBLE, SINGLE, files, save
from pathlens.figures.training import training
from pathlens.figures.unraveled import unraveled

__all__ = [
    "DOUBLE",
    "SINGLE",
    "Figure",
    "Placed",
    "deletion",
    "files",
    "lattice",
    "path_gradients",
    "placed",
    "reordering",
    "save",
    "skips",
    "structure",
    "training",
    "unraveled",
]
