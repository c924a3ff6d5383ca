"""How a training run went: loss and errors by epoch."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from pathlens.figures.lesions import of
from pathlens.figures.style import COLOURS, DOUBLE, new_figure, style, to_rows
from pathlens.results.tasks import error_label, loss_label
from pathlens.results.training import curves
from pathlens.tables import Table

NEEDED = ("epoch", "lr", "train_loss", "train_error", "validation_loss", "validation_error")
_MARKED = 20  # epochs below which each is marked


def training(table: Table | pd.DataFrame, width: float = DOUBLE) -> Figure:
    """Loss and error after each epoch, from the history of ``train``.

    Training curves are of augmented images and of each step's sub-network; validation curves of the whole network.

    Args:
        table: with the columns ``epoch, lr, train_loss, train_error, validation_loss, validation_error``; errors are
            fractions and drawn in percent, losses in nats.
        width: in inches.

    Raises:
        UsageError: columns are missing, or there are no rows.
    """
    rows = to_rows(table, NEEDED, "training")
    marker = "." if len(rows) < _MARKED else None
    with style():
        figure = new_figure(width, 2.3)
        loss, error = figure.subplots(1, 2)
        for axes, what, factor in ((loss, "loss", 1), (error, "error", 100)):
            for series in sorted(curves(rows, what, factor), key=lambda series: series["colour"]):
                colour = COLOURS[series["colour"]]
                axes.plot(series["x"], series["y"], color=colour, label=series["name"], marker=marker)
            axes.set_xlabel("epoch")
            axes.set_ylim(bottom=0)
        loss.set_ylabel(loss_label(of(table), "cross-entropy (nats)"))
        error.set_ylabel(error_label(of(table)))
        error.legend(loc="upper right")
        rate = loss.twinx()
        rate.spines["right"].set_visible(True)
        rate.plot([row["epoch"] for row in rows], [row["lr"] for row in rows], color="#6e6e6e", ls=":", lw=0.8)
        rate.set_ylabel("learning rate (dotted)", color="#6e6e6e")
        rate.set_ylim(bottom=0)
    return figure
