"""What the columns of a table of lesions hold where an example has many answers: tokens, or pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pathlens.metrics.tasks import TASKS
from pathlens.tables import Column, Provenance

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


def worded(columns: Iterable[Column], provenance: Provenance) -> tuple[Column, ...]:
    """The columns in the words of the task that the provenance names.

    Args:
        columns: as they are for a class an image.
        provenance: of the table.
    """
    task = str(provenance.get("task"))
    if task not in WORDS:
        return tuple(columns)
    examples, units = WORDS[task]

    def of_task(column: Column) -> Column:
        if column.name not in _CHANGED:
            return column
        unit, meaning = (text.format(examples=examples, units=units) for text in _CHANGED[column.name])
        return replace(column, unit=unit, description=meaning)

    return tuple(map(of_task, columns))
