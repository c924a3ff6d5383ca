"""Training and retraining: the whole network, random blocks of it, or the gradient of some path lengths."""

from pathlens.training.configuration import Configuration
from pathlens.training.recipe import Recipe, recipe_for
from pathlens.training.rules import BlocksPerBatch, Full, PathLengths, Rule, StochasticDepth
from pathlens.training.session import Trained
from pathlens.training.training import hold_out, train

__all__ = [
    "BlocksPerBatch",
    "Configuration",
    "Full",
    "PathLengths",
    "Recipe",
    "Rule",
    "StochasticDepth",
    "Trained",
    "hold_out",
    "recipe_for",
    "train",
]
