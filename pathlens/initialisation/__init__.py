"""Initial weights by published schemes, for any network, through the blocks that are found in it."""

from pathlens.initialisation.initialise import initialise
from pathlens.initialisation.schemes import SCHEMES, check_name

__all__ = ["SCHEMES", "check_name", "initialise"]
