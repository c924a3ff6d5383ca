"""Training and retraining: the whole network, random blocks of it, or the gradient of some path lengths."""

from pathlens.training.configuration import Configuration, recipe_name
from pathlens.training.recipe import Recipe, recipe_for
from pathlens.training.rules import (
    BlocksPerBatch,
    Full,
    PathLengths,
    RandomDrop,
    Range,
    Rule,
    ShakeDrop,
    ShakeShake,
    StochasticDepth,
    parse_rule,
)
from pathlens.training.session import Trained
from pathlens.training.training import hold_out, kinds, train

__all__ = [
    "BlocksPerBatch",
    "Configuration",
    "Full",
    "PathLengths",
    "RandomDrop",
    "Range",
    "Recipe",
    "Rule",
    "ShakeDrop",
    "ShakeShake",
    "StochasticDepth",
    "Trained",
    "hold_out",
    "kinds",
    "parse_rule",
    "recipe_for",
    "recipe_name",
    "train",
]
