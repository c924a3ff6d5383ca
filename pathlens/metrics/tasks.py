"""What a study measures of a network's outputs: each task is an object, chosen by name or by the outputs themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pathlens.errors import DataError, ModelError, UsageError
from pathlens.metrics import classification, units
from pathlens.metrics.classification import ClassificationCounts, PairedCounts
from pathlens.metrics.units import UnitCounts, UnitPairs

if TYPE_CHECKING:
    import torch

Counts = ClassificationCounts | UnitCounts
Pairs = PairedCounts | UnitPairs


class Task(ABC):
    """Outputs and targets in, mistakes and losses out: ``classification``, ``next-token`` or ``segmentation``.

    Attributes:
        name: on the command line and in provenance.
        example: what is one example, in the singular.
        unit: what is right or wrong, in the singular.
        shape: of the outputs, in words.
        dimensions: of the outputs.
        axis: of the classes in the outputs.
        test: how a network is compared with the intact one.
        interval: of the difference to the intact one.
    """

    name: str
    example: str
    unit: str
    shape: str
    dimensions: int
    axis: int
    test: ClassVar[str]
    interval: ClassVar[str]

    def check_outputs(self, shape: Sequence[int]) -> None:
        """Raise unless outputs have as many dimensions as the task wants.

        Args:
            shape: of the outputs for a batch.

        Raises:
            ModelError: what was found, and what is wanted.
        """
        if len(shape) != self.dimensions:
            raise ModelError(
                f"the network gives shape {tuple(shape)}, and the task {self.name} wants logits {self.shape}; give the "
                "task that fits (--task), or another output (--output)"
            )

    @abstractmethod
    def check_targets(self, targets: torch.Tensor, examples: int) -> None:
        """Raise unless targets are of the right type and number, as far as that is known without the network.

        Args:
            targets: of one batch.
            examples: in the batch.

        Raises:
            DataError: targets of another type or shape.
        """

    @abstractmethod
    def answers(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of one network on a batch, which add up, and its answers, which are compared. Waits for no device.

        Args:
            outputs: of the network.
            targets: of the batch, on any device.

        Raises:
            DataError: targets that do not fit the outputs.
            ModelError: outputs of another shape than the task wants.
        """

    @abstractmethod
    def compare(self, answers: torch.Tensor) -> torch.Tensor:
        """Numbers of each network against the first, which add up: float64, ``[networks, k]``.

        Args:
            answers: of every network, stacked.
        """

    @abstractmethod
    def measured(self, values: Sequence[float]) -> tuple[Counts, Pairs]:
        """What the numbers of one network say.

        Args:
            values: those of :meth:`answers`, then those of :meth:`compare`.

        Raises:
            DataError: targets outside the classes were counted.
        """

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each example in nats, shape ``[batch]``; differentiable.

        Args:
            outputs: of the network.
            targets: of the batch, on the same device.

        Raises:
            DataError, ModelError: as :meth:`answers`.
        """


class Classification(Task):
    """One class an example: an image, most often."""

    name = "classification"
    example = unit = "image"
    shape = "[batch, classes]"
    dimensions = 2
    axis = 1
    test = "McNemar's exact test, two-sided"
    interval = "Tango's score interval of the difference, 95 %"

    def check_targets(self, targets: torch.Tensor, examples: int) -> None:
        """See :meth:`Task.check_targets`."""
        classification.require_labels(targets, examples)

    def answers(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`.count_answers`."""
        return classification.count_answers(outputs, targets)

    def compare(self, answers: torch.Tensor) -> torch.Tensor:
        """See :func:`.count_pairs`."""
        return classification.count_pairs(answers)

    def measured(self, values: Sequence[float]) -> tuple[ClassificationCounts, PairedCounts]:
        """See :meth:`Task.measured`."""
        *counts, lost, gained = values
        return ClassificationCounts.from_values(counts), PairedCounts(int(values[0]), int(lost), int(gained))

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, also of probabilities of the classes; see :func:`.cross_entropy`."""
        return classification.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class ManyAnswers(Task):
    """Many units an example, each with a class of its own."""

    name: str
    example: str
    unit: str
    shape: str
    dimensions: int
    axis: int
    test: ClassVar[str] = "paired t test over examples, two-sided"
    interval: ClassVar[str] = "Student's t interval of the difference over examples, 95 %"

    def check_targets(self, targets: torch.Tensor, examples: int) -> None:
        """See :meth:`Task.check_targets`.

        Raises:
            ModelError: there is one class for each example, so that the network is no classifier but should be one.
        """
        if targets.dim() == 1:
            raise ModelError(
                f"there is one label for each {self.example}, and the network gives {self.shape}, not logits [batch, "
                "classes]; give a network that classifies"
            )
        if len(targets) != examples:
            raise DataError(
                f"{examples} {self.example}s have targets of shape {tuple(targets.shape)}; give a set for each"
            )
        units.require_targets(targets, tuple(targets.shape), f"the targets of the {self.example}s")

    def answers(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`.count_unit_answers`."""
        return units.count_unit_answers(self._last(outputs, targets), targets)

    def compare(self, answers: torch.Tensor) -> torch.Tensor:
        """See :func:`.count_unit_pairs`."""
        return units.count_unit_pairs(answers)

    def measured(self, values: Sequence[float]) -> tuple[UnitCounts, UnitPairs]:
        """See :meth:`Task.measured`."""
        n, total, correct, loss_sum, nonfinite, *squares, outside, lost, gained, changes, products = values
        if outside:
            raise DataError(
                f"{int(outside)} of {int(total)} {self.unit}s have a target outside the classes of the network; take "
                "the data, or the tokenizer, that the network was trained with"
            )
        counts = UnitCounts(int(n), int(total), int(correct), loss_sum, int(nonfinite), *map(int, squares))
        pairs = UnitPairs(counts.n, counts.units, int(lost), int(gained), int(changes), int(products), int(squares[-1]))
        return counts, pairs

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See :func:`.unit_losses`."""
        return units.unit_losses(self._last(outputs, targets), targets)

    def _last(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Outputs with the classes last.

        Raises:
            ModelError, DataError: outputs that do not fit the task, or targets that do not fit them.
        """
        self.check_outputs(outputs.shape)
        outputs = outputs.movedim(self.axis, -1)
        units.require_targets(targets, outputs.shape[:-1], f"the targets of the {self.example}s")
        return outputs


CLASSIFICATION = Classification()
NEXT_TOKEN = ManyAnswers("next-token", "sequence", "token", "[batch, tokens, vocabulary]", 3, -1)
SEGMENTATION = ManyAnswers("segmentation", "image", "pixel", "[batch, classes, height, width]", 4, 1)

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, NEXT_TOKEN, SEGMENTATION)}
"""By name."""


def task_named(name: str) -> Task:
    """A task by its name.

    Args:
        name: such as ``next-token``.

    Raises:
        UsageError: there is none of it.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} is unknown; there are {', '.join(TASKS)}")
    return TASKS[name]


def task_for(shape: Sequence[int]) -> Task:
    """The task of a network by its outputs.

    Args:
        shape: of the outputs for a batch.

    Raises:
        ModelError: no task has outputs of that shape.
    """
    fitting = [task for task in TASKS.values() if task.dimensions == len(shape)]
    if not fitting:
        raise ModelError(
            f"the network gives shape {tuple(shape)}, not logits [batch, classes]; give a network that classifies, or "
            "predicts tokens or pixels"
        )
    return fitting[0]
