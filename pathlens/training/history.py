"""The tables of a training run: a row for each epoch, and a row for each split at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.measure import ClassificationCounts
from pathlens.tables import Column, Table

HISTORY_COLUMNS = (
    Column("epoch", "", "epochs done"),
    Column("step", "", "steps done"),
    Column("lr", "", "learning rate of the epoch's last step"),
    Column("blocks", "blocks", "residual blocks in a step's sub-network, mean over the epoch"),
    Column("train_loss", "nats", "mean loss as trained: augmented images, the step's sub-network"),
    Column("train_error", "fraction", "share classified wrongly, as trained"),
    Column(
        "validation_loss", "nats", "mean cross-entropy of the whole network in eval mode; missing without such images"
    ),
    Column("validation_error", "fraction", "share of validation images classified wrongly"),
    Column("validation_error_low", "fraction", "lower end of the 95 % interval (Wilson)"),
    Column("validation_error_high", "fraction", "upper end of it"),
    Column("seconds", "s", "wall time of the epoch's steps, without evaluation and checkpoints"),
    Column("images_per_second", "images/s", "training images over these seconds"),
)

RESULT_COLUMNS = (
    Column("split", "", "validation, or test, which is read once, after the last epoch"),
    Column("n", "images", "images"),
    Column("error", "fraction", "share classified wrongly by the final network in eval mode"),
    Column("error_low", "fraction", "lower end of the 95 % interval (Wilson)"),
    Column("error_high", "fraction", "upper end of it"),
    Column("loss", "nats", "mean cross-entropy"),
)


def epoch_row(
    epoch: int, step: int, lr: float, sums: Sequence[float], steps: int, validation: ClassificationCounts | None
) -> dict[str, Any]:
    """A row of the history.

    Args:
        epoch: epochs done.
        step: steps done.
        lr: of the last step.
        sums: images, loss, correct, blocks and seconds, over the epoch's steps.
        steps: of the epoch.
        validation: counts on the validation images.
    """
    images, loss, correct, blocks, seconds = sums
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": step,
        "lr": lr,
        "blocks": blocks / steps,
        "train_loss": loss / images,
        "train_error": 1 - correct / images,
        "validation_loss": None,
        "validation_error": None,
        "validation_error_low": None,
        "validation_error_high": None,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
    }
    if validation is not None:
        low, high = validation.error_interval
        row |= {
            "validation_loss": validation.loss,
            "validation_error": validation.error,
            "validation_error_low": low,
            "validation_error_high": high,
        }
    return row


def history_table(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Table:
    """The history as a table."""
    return Table(HISTORY_COLUMNS, tuple(dict(row) for row in rows), dict(facts))


def result_table(counts: Mapping[str, ClassificationCounts], facts: Mapping[str, Any]) -> Table:
    """Errors of the final network as a table, one row for each split."""
    rows: list[dict[str, Any]] = []
    for split, found in counts.items():
        low, high = found.error_interval
        rows.append(
            {
                "split": split,
                "n": found.n,
                "error": found.error,
                "error_low": low,
                "error_high": high,
                "loss": None if found.nonfinite else found.loss,
            }
        )
    return Table(RESULT_COLUMNS, tuple(rows), dict(facts))
