"""Ordinary training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pathlens.training.rules.rule import Rule


@dataclass(frozen=True)
class Full(Rule):
    """All blocks, all paths: ordinary training."""

    name: ClassVar[str] = "full"

    def __str__(self) -> str:
        return "full"
