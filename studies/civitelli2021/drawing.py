"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from pathlens import figures
from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, INK, MUTED, SINGLE, block_ticks, legend_outside, new_figure, style
from studies.civitelli2021.kinds import KINDS, LEARNSCALAR

Rows = Sequence[Mapping[str, Any]]
# LearnScalar, which the signals are drawn without, comes last, so that all figures have the same colours
_COLOURS = {
    kind.name: MUTED if kind is LEARNSCALAR else COLOURS[index % len(COLOURS)]
    for index, kind in enumerate(sorted(KINDS, key=lambda kind: kind is LEARNSCALAR))
}
_MARKS = dict(zip(_COLOURS, "osvD^<>", strict=True))
# of curves that may coincide: later ones are thinner
_WIDTHS = dict(zip((kind.name for kind in KINDS), (1.2, 4.0, 3.0, 1.0, 2.8, 1.8, 0.7), strict=True))


def signals_figure(rows: Rows) -> Figure:
    """Signals of all kinds but LearnScalar, which starts as IdShort."""
    # the kind says what its weights are
    kinds = [{**row, "network": "", "weights": row["network"]} for row in rows if row["network"] != LEARNSCALAR.name]
    return figures.signal_propagation(kinds, width=6.4)


def epochs_figure(rows: Rows) -> Figure:
    """Training loss above and validation error below by epoch, a column for each network."""
    frame = pd.DataFrame(rows)
    networks = list(frame["network"].unique())
    with style():
        figure = new_figure(DOUBLE, 4.2)
        panels = figure.subplots(2, len(networks), sharex=True, sharey="row", squeeze=False)
        for column, network in enumerate(networks):
            for line, (name, factor) in enumerate((("train_loss", 1), ("validation_error", 100))):
                axes: Axes = panels[line][column]
                for kind, own in frame[frame["network"] == network].groupby("kind", sort=False):
                    _band(axes, own, name, factor, str(kind))
            panels[0][column].set_title(network)
            panels[1][column].set_xlabel("epoch")
            panels[1][column].xaxis.set_major_locator(block_ticks())
        panels[0][0].set_ylabel("training loss (nats)")
        panels[1][0].set_ylabel("validation error (%)")
        legend_outside(panels[0][0], DOUBLE)
    return figure


def _band(axes: Axes, own: pd.DataFrame, name: str, factor: float, kind: str) -> None:
    axes.plot(own["epoch"], factor * own[name], color=_COLOURS[kind], marker=_MARKS[kind], ms=3, mew=0, label=kind)
    if own[f"{name}_low"].notna().all():
        low, high = (factor * own[f"{name}_{end}"].astype(float) for end in ("low", "high"))
        axes.fill_between(own["epoch"], low, high, color=_COLOURS[kind], alpha=0.1, lw=0)


def profiles_figure(rows: Rows) -> Figure:
    """Share of each path length at initialisation, a panel for each network."""
    frame = pd.DataFrame(rows)
    networks = list(frame["network"].unique())
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, len(networks), sharey=False, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            for kind, own in frame[frame["network"] == network].groupby("kind", sort=False):
                look = {"color": _COLOURS[str(kind)], "lw": _WIDTHS[str(kind)]}
                axes.plot(own["length"], 100 * own["total_share"], label=kind, **look)
            axes.set_title(network)
            axes.set_xlabel("path length (blocks)")
            axes.xaxis.set_major_locator(block_ticks())
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("share of the norms (%)")
        legend_outside(panels[0], DOUBLE)
    return figure


def expected_figure(rows: Rows) -> Figure:
    """Measured against expected mean length of paths at initialisation, both over the number of blocks."""
    frame = pd.DataFrame(rows)
    with style():
        figure = new_figure(SINGLE, 3.4)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, lw=0.6, ls=(0, (4, 2)), zorder=0)
        for kind, own in frame.groupby("kind", sort=False):
            axes.plot(
                own["expected_length"] / own["blocks"],
                own["mean_length"] / own["blocks"],
                ls="",
                marker=_MARKS[str(kind)],
                ms=4,
                mew=0.6,
                mfc="none",
                color=_COLOURS[str(kind)],
                label=kind,
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("expected from growth (part of the blocks)")
        axes.set_ylabel("mean path length (part of the blocks)")
        legend_outside(axes, SINGLE)
    return figure


def moving_figure(rows: Rows) -> Figure:
    """Mean length of paths over the number of blocks by epoch, a panel for each network; thin lines are the seeds."""
    frame = pd.DataFrame(rows)
    frame["part"] = frame["mean_length"] / frame["blocks"]
    networks = list(frame["network"].unique())
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            for kind, own in frame[frame["network"] == network].groupby("kind", sort=False):
                colour = _COLOURS[str(kind)]
                for _, line in own.groupby("seed"):
                    axes.plot(line["epoch"], line["part"], color=colour, lw=0.5, alpha=0.5)
                mean = own.groupby("epoch")["part"].mean()
                axes.plot(mean.index, mean, color=colour, marker=_MARKS[str(kind)], ms=3, mew=0, label=kind)
            axes.set_title(network)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(block_ticks())
        panels[0].set_ylabel("mean path length\n(part of the blocks)")
        legend_outside(panels[0], DOUBLE)
    return figure
