"""What the columns of a table hold where an example has many answers, tokens or pixels, or the loss is another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from pathlens.metrics.mask_losses import BATCH_IOU
from pathlens.metrics.tasks import CROSS_ENTROPY, REGRESSION, TASKS
from pathlens.results.charts import PERCENT, Axis
from pathlens.tables import Column, Provenance
from pathlens.tables.declared import Shown, formatted

#: task -> what an example is, and what of it is right or wrong, in the plural; of tasks with many answers an example
WORDS = {name: (f"{task.example}s", f"{task.unit}s") for name, task in TASKS.items() if task.unit != task.example}

_CHANGED = {
    "error": ("fraction", "share of {units} predicted wrongly; of a summary row the mean over samples"),
    "error_low": (
        "fraction",
        "lower end of the 95 % interval: Student's over {examples}, of a summary row over samples",
    ),
    "difference_low": (
        "fraction",
        "lower end of its 95 % interval: Student's over {examples}, paired; of a summary row over samples",
    ),
    "lost": ("{units}", "those that the intact network alone predicts correctly"),
    "gained": ("{units}", "those that this network alone predicts correctly, not the intact one"),
    "p": (
        "",
        "paired t test of no difference over {examples}, two-sided; missing for the intact network and in summary rows",
    ),
    "loss": ("nats", "mean cross-entropy of the {units}; missing where the lesioned network gives NaN or infinity"),
    "nonfinite": ("{examples}", "those with NaN or infinity in what the lesioned network gives (counted as errors)"),
    "n": ("{examples}", "{examples} evaluated"),
}
_NO_MISTAKES = "missing: numbers are not right or wrong"
_OF_NUMBERS = {
    **_CHANGED,
    "error": (
        "fraction",
        "relative squared error: of squared errors over the variance of the targets, 1 for always giving their mean; "
        "of a summary row the mean over samples",
    ),
    "lost": ("", _NO_MISTAKES),
    "gained": ("", _NO_MISTAKES),
    "loss": ("targets^2", "mean squared error; missing where the lesioned network gives NaN or infinity"),
    "nonfinite": ("{examples}", "those with NaN or infinity in what the lesioned network gives (counted as if all 0)"),
}


_BESIDE = {
    "rmse": ("targets", "root of the mean squared error; missing where the lesioned network gives NaN or infinity"),
    "iou": ("fraction", "mean over images of the mean IoU of the classes in an image's mask or prediction"),
    "iou_low": (
        "fraction",
        "lower end of its 95 % interval: Student's over images, of a summary row over samples",
    ),
    "iou_high": ("fraction", "upper end of that interval"),
    "iou_over_classes": (
        "fraction",
        "mean over the classes in any mask or prediction of the IoU of all pixels of the data",
    ),
}
_IOU_CLASS = "iou_class_"
VALIDATION = "validation_"
"""Before the name of what was measured on the validation examples after an epoch."""

TRAINED = "train_"
"""Before the name of what was measured in the steps of an epoch."""

_PARTS = {
    VALIDATION: "of the validation {examples}, if there are any: ",
    TRAINED: "as trained by the step's sub-network, mean over {examples}: ",
}
_OF_LESIONS = re.compile("[;,] of a summary row|; missing where the lesioned network")

SHOWN = {
    "rmse": Shown("RMSE", formatted(".4g"), gives_way=1),
    "iou": Shown("IoU %", lambda row, name: "" if row[name] is None else f"{100 * row[name]:.2f}", gives_way=1),
}
"""How a terminal prints columns that a task has beside those that are declared."""


def worded(columns: Iterable[Column], provenance: Provenance) -> tuple[Column, ...]:
    """The columns in the words of the task and the loss that the provenance names.

    Args:
        columns: as they are for a class an image.
        provenance: of the table.
    """
    task, loss = str(provenance.get("task")), loss_of(provenance)
    examples, units = WORDS.get(task, ("images", ""))
    changed = _OF_NUMBERS if task == REGRESSION.name else _CHANGED

    def of_task(column: Column) -> Column:
        part = next((part for part in _PARTS if column.name.startswith(part)), "")
        name = column.name.removeprefix(part)
        if name in changed and task in WORDS:
            unit, meaning = changed[name]
            if part:
                meaning = _PARTS[part] + _OF_LESIONS.split(meaning)[0]
            unit, meaning = (text.format(examples=examples, units=units) for text in (unit, meaning))
            column = replace(column, unit=unit, description=meaning)
        if loss == CROSS_ENTROPY or "nats" not in column.unit:
            return column
        # no single image has the loss of a batch
        stated = "soft-iou" if loss == BATCH_IOU and part != TRAINED else loss
        meaning = column.description.replace(f"cross-entropy of the {units}", f"{stated} loss of the {examples}")
        meaning = meaning.replace(CROSS_ENTROPY, f"{stated} loss")
        return replace(column, unit=loss_unit(provenance, column.unit), description=meaning)

    return tuple(map(of_task, columns))


def further(names: Iterable[str]) -> tuple[Column, ...]:
    """Columns that a task has beside those that are declared.

    Args:
        names: of the columns; others are left out.
    """
    columns = []
    for name in names:
        number, watched = name.removeprefix(_IOU_CLASS), name.removeprefix(VALIDATION)
        if watched in _BESIDE:
            unit, meaning = _BESIDE[watched]
            columns.append(Column(name, unit, meaning if watched == name else f"of the validation examples: {meaning}"))
        elif name != number and number.isdecimal():
            meaning = f"IoU of class {number} over all pixels of the data; missing where no mask or prediction has it"
            columns.append(Column(name, "fraction", meaning))
    return tuple(columns)


def loss_of(provenance: Provenance) -> str:
    """The name of the loss that a table states."""
    return str(provenance.get("loss", CROSS_ENTROPY))


def loss_unit(provenance: Provenance, usual: str = "nats") -> str:
    """The unit of the loss, or one with the loss in it.

    Args:
        provenance: of the table.
        usual: of a cross-entropy; other losses are mere numbers.
    """
    if loss_of(provenance) == CROSS_ENTROPY:
        return usual
    if loss_of(provenance) == REGRESSION.loss:
        return usual.replace("nats", "targets^2")
    return "" if usual == "nats" else usual.replace("nats", "1")


def error_label(provenance: Provenance, example: str = "") -> str:
    """What an axis of errors is called: those of tokens or pixels, or relative squared errors.

    Args:
        provenance: of the table.
        example: what has a class, where examples have one each.
    """
    if not are_shares(provenance):
        return "relative squared error (%)"
    task = str(provenance.get("task"))
    units = WORDS[task][1].removesuffix("s") if task in WORDS else example
    return f"{units} error (%)".lstrip()


def error_axis(provenance: Provenance) -> Axis:
    """The axis of errors in percent of a chart."""
    return {**PERCENT, "label": error_label(provenance)}


def are_shares(provenance: Provenance) -> bool:
    """Whether errors are shares, of at most 1; relative squared errors may be more."""
    return str(provenance.get("task")) != REGRESSION.name


def loss_label(provenance: Provenance, usual: str) -> str:
    """What an axis of losses is called.

    Args:
        provenance: of the table.
        usual: of cross-entropies.
    """
    loss = loss_of(provenance)
    if loss == CROSS_ENTROPY:
        return usual
    if loss == REGRESSION.loss:
        return usual.replace("cross-entropy", "loss").replace("loss", "squared error").replace("nats", "targets²")
    return usual.removesuffix(" (nats)").replace(CROSS_ENTROPY, "loss").replace("loss", f"{loss} loss", 1)
