"""The tables of ``train``: a row for each epoch, and a row for each split at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results import measured
from pathlens.results.charts import Axis, Chart, Series, chart, scaled
from pathlens.results.result import Headline, Provenance, Result, Rows, Shown, column
from pathlens.results.tasks import error_axis, loss_label
from pathlens.results.text import said

_MANY = 20  # epochs beyond which intervals become a band


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of a training run."""

    epoch: int = column("", "epochs done")
    step: int = column("", "steps done")
    lr: float = column("", "learning rate of the epoch's last step")
    blocks: float = column("blocks", "residual blocks in a step's sub-network, mean over the epoch")
    train_loss: float | None = column("nats", "mean loss as trained: augmented images, the step's sub-network")
    train_error: float = column("fraction", "share classified wrongly, as trained")
    validation_loss: float | None = column(
        "nats",
        "mean cross-entropy of the whole network in eval mode; missing without such images",
    )
    validation_error: float | None = column("fraction", "share of validation images classified wrongly")
    validation_error_low: float | None = column("fraction", "lower end of the 95 % interval (Wilson)")
    validation_error_high: float | None = column("fraction", "upper end of it")
    seconds: float = column("s", "wall time of the epoch's steps, without evaluation and checkpoints")
    images_per_second: float = column("images/s", "training images over these seconds")


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """What the final network got right on one split."""

    split: str = column("", "validation, or test, which is read once, after the last epoch")
    n: int = column("images", "images")
    error: float = column("fraction", "share classified wrongly by the final network in eval mode")
    error_low: float = column("fraction", "lower end of the 95 % interval (Wilson)")
    error_high: float = column("fraction", "upper end of it")
    loss: float | None = column("nats", "mean cross-entropy")


def curves(rows: Rows, what: str, factor: float) -> Iterator[Series]:
    """Loss or error by epoch, as trained and on validation images, as far as there are any.

    Args:
        rows: of the history, by epoch.
        what: ``loss`` or ``error``.
        factor: of the values.
    """
    for key, name, colour in (("validation", "validation", 1), ("train", "as trained", 0)):
        values = scaled((row[f"{key}_{what}"] for row in rows), factor)
        if any(value is not None for value in values):
            epochs = [row["epoch"] for row in rows]
            series: Series = {"key": key, "name": name, "colour": colour, "x": epochs, "y": values}
            ends = {side: f"{key}_{what}_{side}" for side in ("low", "high")}
            if all(end in rows[0] for end in ends.values()):
                series |= {side: scaled((row[end] for row in rows), factor) for side, end in ends.items()}
                series["band"] = len(rows) > _MANY
            yield series


class History(Result):
    """How a training run went."""

    name = "history"
    row = EpochRow
    needed = ("epoch", "train_loss", "train_error", "validation_loss", "validation_error")
    figure = "training.training"

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """By what rule the network was trained."""
        return f"training, {said(provenance.get('rule', ''))}"

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error and loss by epoch."""
        rows = sorted(rows, key=lambda row: row["epoch"])
        charts = []
        axes: tuple[tuple[str, float, Axis], ...] = (
            ("error", 100, error_axis(provenance)),
            ("loss", 1, {"label": loss_label(provenance, "cross-entropy (nats)")}),
        )
        for what, factor, y in axes:
            series = list(curves(rows, what, factor))
            if series:
                charts.append(chart(f"training {what}", f"{what.capitalize()} by epoch", "epoch", y, series))
        return charts


class Evaluation(Result):
    """What the trained network got right."""

    name = "result"
    row = EvaluationRow
    needed = ("split", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {"split": Shown(left=True), "n": Shown("examples"), **measured.ALONE}

    def notes(self, provenance: Provenance) -> list[str]:
        """None: the recipe and the rule were printed when the training began."""
        return []

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The error on each split, and the epochs."""
        headlines = [
            measured.with_interval(f"Error, {said(row['split'])}", row) for row in rows if row["error"] is not None
        ]
        recipe = provenance.get("recipe")
        if isinstance(recipe, dict) and "epochs" in recipe:
            headlines.append(Headline("Epochs", said(recipe["epochs"]), f"rule: {said(provenance.get('rule'))}"))
        return headlines


HISTORY = History()
EVALUATION = Evaluation()
