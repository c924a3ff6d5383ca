"""What a study measures of a network's outputs: each task is an object, chosen by name or by the outputs themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pathlens.errors import DataError, ModelError, UsageError
from pathlens.metrics import classification, regression, units
from pathlens.metrics.classification import ClassificationCounts, PairedCounts
from pathlens.metrics.mask_losses import BATCH_IOU, OF_IMAGES
from pathlens.metrics.masks import MaskCounts, count_mask_answers
from pathlens.metrics.regression import RegressionCounts, RegressionPairs
from pathlens.metrics.units import UnitCounts, UnitPairs

if TYPE_CHECKING:
    import torch

CROSS_ENTROPY = "cross-entropy"
SQUARED_ERROR = "squared-error"

Counts = ClassificationCounts | UnitCounts | RegressionCounts
Pairs = PairedCounts | UnitPairs | RegressionPairs


class Task(ABC):
    """Outputs and targets in, mistakes and losses out.

    There are ``classification``, ``next-token``, ``segmentation``, and ``regression``, which has relative squared
    errors in the place of mistakes.

    Attributes:
        name: on the command line and in provenance.
        example: what is one example, in the singular.
        unit: what is right or wrong, in the singular.
        shape: of the outputs, in words.
        dimensions: of the outputs; 0 where any will do.
        axis: of the classes, or components, in the outputs.
        test: how a network is compared with the intact one.
        interval: of the difference to the intact one.
        loss: name of the loss.
        known_losses: names of those that an example has, the usual one first.
    """

    name: str
    example: str
    unit: str
    shape: str
    dimensions: int
    axis: int
    test: ClassVar[str]
    interval: ClassVar[str]
    loss: str = CROSS_ENTROPY
    known_losses: ClassVar[Sequence[str]] = (CROSS_ENTROPY,)

    def with_loss(self, name: str | None) -> Task:
        """The task with another loss.

        Args:
            name: of it; None for the usual one.

        Raises:
            UsageError: the task has no such loss, or it is one that examples do not have each for itself.
        """
        if name is None or name == self.loss:
            return self
        if name == BATCH_IOU and len(self.known_losses) > 1:
            raise UsageError(
                f"loss {name!r} is of all pixels of a batch, and is for training; here each {self.example} has one of "
                "its own: give soft-iou"
            )
        raise UsageError(f"the task {self.name} has no loss {name!r}; give {' or '.join(self.known_losses)}")

    def check_outputs(self, shape: Sequence[int]) -> None:
        """Raise unless outputs have as many dimensions as the task wants.

        Args:
            shape: of the outputs for a batch.

        Raises:
            ModelError: what was found, and what is wanted.
        """
        if self.dimensions and len(shape) != self.dimensions:
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
    def share_right(self, answers: torch.Tensor, variance: float | None = None) -> torch.Tensor:
        """What share of each example is right, in [0, 1]: float64, shape ``[batch]``.

        Args:
            answers: of one network, as :meth:`answers` gives them.
            variance: of the targets of a regression.
        """

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each example, shape ``[batch]``; differentiable. A cross-entropy is in nats.

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
        if targets.is_floating_point():
            raise DataError(
                f"labels are {targets.dtype} of shape {tuple(targets.shape)} for {examples} images; give one class "
                "index per image, or for numbers as targets the task regression"
            )
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

    def share_right(self, answers: torch.Tensor, variance: float | None = None) -> torch.Tensor:
        """1 where the class is right, else 0."""
        return answers.double()

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
        n, total, correct, loss_sum, nonfinite, *squares, judged, outside, lost, gained, changes, products = values
        if outside:
            raise DataError(
                f"{int(outside)} of {int(total)} {self.unit}s have a target outside the classes of the network; take "
                "the data, or the tokenizer, that the network was trained with"
            )
        counts = UnitCounts(int(n), int(total), int(correct), loss_sum, int(nonfinite), *map(int, (*squares, judged)))
        changed = map(int, (lost, gained, changes, products, squares[-1]))
        pairs = UnitPairs(counts.judged, counts.units, *changed)
        return counts, pairs

    def share_right(self, answers: torch.Tensor, variance: float | None = None) -> torch.Tensor:
        """Share of the units that count; 1 where none does, of which nothing can be wrong."""
        units = (answers >= 0).sum(1).clamp_min(1)
        return 1 - (answers == 0).sum(1).double() / units

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


@dataclass(frozen=True)
class Segmentation(ManyAnswers):
    """A class for each pixel. A single logit is that of the second of two classes, against 0.

    Attributes:
        loss: name of the loss: the cross-entropy of each pixel, or one of :mod:`.mask_losses`.
    """

    loss: str = CROSS_ENTROPY
    known_losses: ClassVar[Sequence[str]] = (CROSS_ENTROPY, *OF_IMAGES)

    def check_outputs(self, shape: Sequence[int]) -> None:
        """See :meth:`Task.check_outputs`.

        Raises:
            ModelError: also a number of classes that the loss is not made for.
        """
        super().check_outputs(shape)
        if self.loss == "lovasz-hinge" and shape[1] > 2:
            raise ModelError(
                f"the loss lovasz-hinge is of two classes, and the network has {shape[1]}; give soft-iou or dice"
            )

    def answers(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`.count_mask_answers`."""
        return count_mask_answers(*self._flat(outputs, targets), OF_IMAGES.get(self.loss))

    def measured(self, values: Sequence[float]) -> tuple[MaskCounts, UnitPairs]:
        """See :meth:`Task.measured`."""
        # of pixels first, in the end the comparison, between them the numbers of MaskCounts
        pixels, masks, compared = values[:10], values[10:-4], values[-4:]
        counts, pairs = super().measured([*pixels, *compared])
        losses, iou, squares, *overlaps = masks
        classes = len(overlaps) // 2
        of_classes = [tuple(map(int, part)) for part in (overlaps[:classes], overlaps[classes:])]
        return MaskCounts(
            **vars(counts),
            losses=int(losses),
            iou_sum=iou,
            iou_squares=squares,
            intersections=of_classes[0],
            unions=of_classes[1],
        ), pairs

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See :func:`.unit_losses`, or the losses of :mod:`.mask_losses`."""
        if self.loss == CROSS_ENTROPY:
            return super().losses(outputs, targets)
        logits, targets = self._flat(outputs, targets)
        units.require_inside(targets, logits.shape[-1])
        return OF_IMAGES[self.loss](logits, targets.long())

    def with_loss(self, name: str | None) -> Task:
        """See :meth:`Task.with_loss`."""
        if name is None or name not in self.known_losses:
            return super().with_loss(name)
        return replace(self, loss=name)

    def _flat(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[images, pixels, classes]`` and targets ``[images, pixels]``; errors as of ``_last``."""
        logits = self._last(outputs, targets)
        return logits.flatten(1, -2), targets.flatten(1)

    def _last(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See :meth:`ManyAnswers._last`."""
        return super()._last(of_two_classes(outputs), targets)


class Regression(Task):
    """Numbers as targets, of the shape of the outputs."""

    name = "regression"
    example = "example"
    unit = "output"
    shape = "[batch, ...]"
    dimensions = 0
    axis = 1
    test = "paired t test of squared errors over examples, two-sided"
    interval = "Student's t interval of the difference over examples, 95 %"
    loss = SQUARED_ERROR
    known_losses = (SQUARED_ERROR,)

    def check_targets(self, targets: torch.Tensor, examples: int) -> None:
        """See :meth:`Task.check_targets`."""
        regression.require_numbers(targets)
        if not targets.dim() or len(targets) != examples:
            raise DataError(f"{examples} examples have targets of shape {tuple(targets.shape)}; give some for each")

    def answers(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`.count_errors`."""
        return regression.count_errors(outputs, targets)

    def compare(self, answers: torch.Tensor) -> torch.Tensor:
        """See :func:`.count_changes`."""
        return regression.count_changes(answers)

    def measured(self, values: Sequence[float]) -> tuple[RegressionCounts, RegressionPairs]:
        """See :meth:`Task.measured`."""
        n, loss, squares, nonfinite, elements, target_squares, *sums, change, changes = values
        counts = RegressionCounts(int(n), loss, squares, int(nonfinite), int(elements), target_squares, tuple(sums))
        return counts, RegressionPairs(counts, change, changes)

    def share_right(self, answers: torch.Tensor, variance: float | None = None) -> torch.Tensor:
        """1 minus the squared error over the variance of the targets, and 0 where that is negative."""
        assert variance is not None
        return (1 - answers / variance).clamp_min(0)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean squared error of each example, in the square of the targets' unit."""
        return regression.squared_errors(outputs, targets)


def of_two_classes(outputs: torch.Tensor) -> torch.Tensor:
    """Logits of two classes where there is one a pixel, that of the second against 0; others as they are.

    Args:
        outputs: of a network, shape ``[images, classes, height, width]``.
    """
    import torch

    single = outputs.dim() == 4 and outputs.shape[1] == 1
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1) if single else outputs


CLASSIFICATION = Classification()
NEXT_TOKEN = ManyAnswers("next-token", "sequence", "token", "[batch, tokens, vocabulary]", 3, -1)
SEGMENTATION = Segmentation("segmentation", "image", "pixel", "[batch, classes, height, width]", 4, 1)

REGRESSION = Regression()

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, NEXT_TOKEN, SEGMENTATION, REGRESSION)}
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


def task_for(shape: Sequence[int], loss: str | None = None) -> Task:
    """The task of a network by its outputs, or the regression, which any outputs fit, by its loss.

    Args:
        shape: of the outputs for a batch.
        loss: name of one that is asked for.

    Raises:
        ModelError: no task has outputs of that shape.
    """
    if loss == SQUARED_ERROR:
        return REGRESSION
    fitting = [task for task in TASKS.values() if task.dimensions == len(shape)]
    if not fitting:
        raise ModelError(
            f"the network gives shape {tuple(shape)}, not logits [batch, classes]; give a network that classifies, or "
            "predicts tokens or pixels"
        )
    return fitting[0]
