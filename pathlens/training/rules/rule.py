"""What every rule of training says of itself, and how a rule is written as text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import numpy as np

from pathlens.errors import UsageError

if TYPE_CHECKING:
    from pathlens.residual import ResidualView
    from pathlens.training.rules.scaling import Scaling

RESCALES = ("test", "train", "none")


@dataclass(frozen=True)
class Rule:
    """Which paths a training goes through, and with what weight.

    A rule is a frozen dataclass: its fields are its settings, which users give by name. It draws from the generator of
    a step alone, so that a run which is resumed or divided among processes draws the same.

    Attributes:
        name: what users call it.
        is_random: whether each batch draws sub-networks or factors of its own.
        mixes: whether it scales the two parallel branches of a block apart from each other.
    """

    name: ClassVar[str]
    is_random: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings().items())])

    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Shortest and longest path that the gradient comes back through; None for all."""
        return None

    def check(self, blocks: int) -> None:
        """Refuse what a network of so many blocks cannot do.

        Raises:
            UsageError: naming what it has.
        """

    def check_view(self, view: ResidualView) -> None:
        """Refuse a network that the rule cannot be carried out on, by what its blocks are.

        Raises:
            UsageError: naming what it has.
        """
        self.check(len(view))

    def at(self, share: float) -> Rule:
        """The rule after a share of the training, 0 at the start and 1 at the end."""
        return self

    def expectation(self, blocks: int) -> tuple[float, ...]:
        """What each block's branch is multiplied by on average; where blocks are left out, their probability to run."""
        return (1.0,) * blocks

    def draw(self, blocks: int, images: int, rng: np.random.Generator) -> np.ndarray:
        """Which blocks are in a batch's sub-network, shape (blocks,), or (blocks, images) where images differ."""
        return np.ones(blocks, dtype=bool)

    def scale(self, blocks: int, rng: np.random.Generator) -> tuple[Scaling | None, ...]:
        """How each block's branch is scaled in a step, after :meth:`draw` with the same generator; None: it is not."""
        return (None,) * blocks

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rule with settings from text.

        Args:
            text: ``VALUE`` in the order of the settings or ``NAME=VALUE``, with commas between them.

        Raises:
            UsageError: a setting that the rule does not have, or that is missing, or its value.
        """
        hints = get_type_hints(cls)
        kinds = {field.name: hints[field.name] for field in fields(cls)}
        given: dict[str, Any] = {}
        for position, part in enumerate(text.split(",") if text else ()):
            key, equals, value = part.partition("=")
            if not equals:
                key, value = (list(kinds)[position] if position < len(kinds) else "", part)
            if key not in kinds or key in given:
                raise cls._unusable(part, kinds)
            try:
                given[key] = getattr(kinds[key], "parse", kinds[key])(value)
            except ValueError as error:
                raise cls._unusable(part, kinds) from error
        try:
            return cls(**given)
        except TypeError as error:
            raise cls._unusable(None, kinds) from error

    @classmethod
    def _unusable(cls, part: str | None, kinds: dict[str, Any]) -> UsageError:
        has = ", ".join(f"{name}={_WORDS.get(kind, 'A:B')}" for name, kind in kinds.items()) or "no settings"
        what = "lacks a setting" if part is None else f"cannot use {part!r}"
        return UsageError(f"--rule {cls.name}: {what}; it has {has}")


_WORDS = {int: "INTEGER", float: "NUMBER", str: "WORD"}
