"""The break-up of a sum: what stem and branches contribute to a tensor of the network, and to its output."""

from pathlens.decomposition.carry import CONSTANTS, STEM, Decomposition, Summands, decompose_at
from pathlens.decomposition.measure import OUTPUT, SUM, WHOLE, Contribution, measure_summands, target_of

__all__ = [
    "CONSTANTS",
    "OUTPUT",
    "STEM",
    "SUM",
    "WHOLE",
    "Contribution",
    "Decomposition",
    "Summands",
    "decompose_at",
    "measure_summands",
    "target_of",
]
