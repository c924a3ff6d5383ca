"""The tables of a training run: a row for each epoch, and a row for each split at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.metrics import ClassificationCounts
from pathlens.results.result import Row
from pathlens.results.training import EVALUATION, EpochRow, EvaluationRow
from pathlens.tables import Table


def epoch_row(
    epoch: int, step: int, lr: float, sums: Sequence[float], steps: int, validation: ClassificationCounts | None
) -> Row:
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
    watched: dict[str, float] = {}
    if validation is not None:
        low, high = validation.error_interval
        watched = {
            "validation_loss": validation.loss,
            "validation_error": validation.error,
            "validation_error_low": low,
            "validation_error_high": high,
        }
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
    )
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def result_table(counts: Mapping[str, ClassificationCounts], facts: Mapping[str, Any]) -> Table:
    """Errors of the final network as a table, one row for each split."""
    rows = []
    for split, count in counts.items():
        low, high = count.error_interval
        loss = None if count.nonfinite else count.loss
        rows.append(
            vars(EvaluationRow(split=split, n=count.n, error=count.error, error_low=low, error_high=high, loss=loss))
        )
    return EVALUATION.table(rows, facts)
