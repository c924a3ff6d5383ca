"""Any module -> a read-only view of its ordered residual blocks, able to run from block i to block j."""

from pathlens.residual.describe import Block
from pathlens.residual.view import ResidualView, find_blocks, find_layers, view_of

__all__ = ["Block", "ResidualView", "find_blocks", "find_layers", "view_of"]
