"""The tables of a training run: a row for each epoch, and a row for each split at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pathlens.metrics.tasks import Counts
from pathlens.results.result import Row
from pathlens.results.tasks import VALIDATION
from pathlens.results.training import EVALUATION, EpochRow
from pathlens.tables import Provenance, Table

_WATCHED = ("loss", "error", "error_low", "error_high")
#: columns that a task has beside those that are declared
_BESIDE = ("rmse", "iou", "iou_low", "iou_high")


def epoch_row(epoch: int, step: int, lr: float, sums: Sequence[float], steps: int, validation: Counts | None) -> Row:
    """A row of the history; numbers that are not finite are missing in it.

    Args:
        epoch: epochs done.
        step: steps done.
        lr: of the last step.
        sums: images, loss, correct, blocks and seconds, over the epoch's steps.
        steps: of the epoch.
        validation: counts on the validation images.
    """
    images, loss, correct, blocks, seconds = sums
    columns = {} if validation is None else validation.columns()
    watched = {f"{VALIDATION}{name}": columns[name] for name in columns if name in _WATCHED}
    row = vars(
        EpochRow(
            epoch=epoch,
            step=step,
            lr=lr,
            blocks=blocks / steps,
            train_loss=loss / images,
            train_error=1 - correct / images,
            **watched,
            seconds=round(seconds, 3),
            images_per_second=round(images / max(seconds, 1e-9), 1),
        )
    ) | {f"{VALIDATION}{name}": columns[name] for name in _BESIDE if name in columns}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def result_table(counts: Mapping[str, Counts], provenance: Provenance) -> Table:
    """Errors of the final network as a table, one row for each split."""
    return EVALUATION.table([{"split": split, **count.columns()} for split, count in counts.items()], provenance)
