"""Initial weights by published schemes, for any network, through the blocks that are found in it."""

from pathlens.initialisation.initialise import initialise
from pathlens.initialisation.schemes import SCHEMES

__all__ = ["SCHEMES", "initialise"]
