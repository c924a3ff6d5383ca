"""Rules of training, each in a file of its own: which paths a step goes through, and with what weight."""

from __future__ import annotations

from pathlens.errors import UsageError
from pathlens.training.rules.blocks_per_batch import BlocksPerBatch
from pathlens.training.rules.full import Full
from pathlens.training.rules.path_lengths import PathLengths, parse_lengths
from pathlens.training.rules.random_drop import RandomDrop
from pathlens.training.rules.rule import RESCALES, Rule
from pathlens.training.rules.scaling import Range
from pathlens.training.rules.shake_drop import ShakeDrop
from pathlens.training.rules.shake_shake import ShakeShake
from pathlens.training.rules.stochastic_depth import StochasticDepth, parse_stochastic_depth

_CLASSES: tuple[type[Rule], ...] = (
    Full,
    BlocksPerBatch,
    StochasticDepth,
    RandomDrop,
    ShakeDrop,
    ShakeShake,
    PathLengths,
)
RULES = {rule.name: rule for rule in _CLASSES}
"""The rules by the names that users give."""

ALIASES = {"resdrop": "stochastic-depth"}
"""Other names of rules."""

__all__ = [
    "ALIASES",
    "RESCALES",
    "RULES",
    "BlocksPerBatch",
    "Full",
    "PathLengths",
    "RandomDrop",
    "Range",
    "Rule",
    "ShakeDrop",
    "ShakeShake",
    "StochasticDepth",
    "parse_lengths",
    "parse_rule",
    "parse_stochastic_depth",
]


def parse_rule(text: str) -> Rule:
    """A rule from text.

    Args:
        text: ``NAME`` or ``NAME:SETTINGS``, such as ``shakedrop:last=0.8,level=sample``.

    Raises:
        UsageError: an unknown rule, or settings that it does not have.
    """
    name, _, settings = text.partition(":")
    rule = RULES.get(ALIASES.get(name, name))
    if rule is None:
        raise UsageError(f"--rule {name!r} is unknown; give one of {', '.join([*RULES, *ALIASES])}")
    return rule.parse(settings)
