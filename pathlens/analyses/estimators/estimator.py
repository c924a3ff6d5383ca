"""What an estimator of path gradients is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pathlens.analyses.linear import Opened
from pathlens.analyses.provenance import Json
from pathlens.residual.gradients import Linearisation
from pathlens.residual.losses import Loss

Blocks = tuple[int, ...]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """The options of one call, each with the meaning that it has in :func:`pathlens.path_gradients`."""

    at: str
    max_length: int | None = None
    tolerance: float = 0.0
    rel_error: float = 0.1
    max_samples: int = 1
    draws: int = 1
    share: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """What is resolved by path length.

    Attributes:
        opened: network and batches.
        request: the options.
        loss: (logits, labels) -> loss of each example.
        free: blocks at which a path chooses between branch and shortcut.
        forced: blocks whose branch every path takes.
    """

    opened: Opened
    request: Request
    loss: Loss
    free: Blocks
    forced: Blocks

    @property
    def lengths(self) -> range:
        """Those of the table."""
        shortest, longest = len(self.forced), self.request.max_length
        return range(shortest, (shortest + len(self.free) if longest is None else longest) + 1)

    def linearise(self, images: Tensor, labels: Tensor) -> Linearisation:
        """The network linearised at a batch."""
        return self.opened.linearise(images, labels, self.request.at, self.loss)

    def measured(self, name: str, measure: Callable[[Problem, int, Tensor, Tensor], Any]) -> list[Any]:
        """What a function of (problem, batch, images, labels) finds on each batch, in their order."""
        return list(self.opened.runner.run(name, partial(measure, self)).values())


class Estimator(ABC):
    """A way to resolve a gradient by path length.

    Args:
        name: what users call it; also that of its journal.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def estimate(self, problem: Problem, rows: Rows) -> dict[str, Json]:
        """Measure all batches and fill the table.

        Args:
            problem: what is resolved.
            rows: of the table, by length; the columns are those of :class:`pathlens.results.path_profile.PathRow`.

        Returns:
            What the provenance says of it.
        """
