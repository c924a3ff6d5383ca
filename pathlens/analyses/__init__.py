"""The public verbs: a network and data in, a table out."""

from pathlens.analyses.decomposition import decompose
from pathlens.analyses.influence import delete_blocks_influence
from pathlens.analyses.lesions import delete_blocks, delete_skips, reorder_blocks
from pathlens.analyses.profiles import lattice, path_gradients
from pathlens.analyses.runs import reorder_blocks_runs
from pathlens.analyses.searches import delete_blocks_exhaustive, delete_blocks_greedy
from pathlens.analyses.signal import signal_propagation
from pathlens.analyses.surface import loss_surface
from pathlens.residual import view_of

__all__ = [
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
    "view_of",
]
