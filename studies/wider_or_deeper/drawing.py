"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, INK, block_ticks, legend_outside, new_figure, style

Rows = Sequence[Mapping[str, Any]]


def depths_figure(summary: Rows, runs: Rows) -> Figure:
    """Test error and loss for each effective depth of the deep network, and beside them those of the wide ones."""
    frame, single = pd.DataFrame(summary), pd.DataFrame(runs)
    labels = _labels(frame)
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels: list[Axes] = list(figure.subplots(1, 2))
        for axes, (name, factor, words) in zip(
            panels, (("test_error", 100, "test error (%)"), ("test_loss", 1, "test loss (nats)")), strict=True
        ):
            for place, (_, row) in enumerate(frame.iterrows()):
                deep = row["network"] == frame["network"].iloc[0]
                colour = COLOURS[0] if deep else COLOURS[1]
                own = single[
                    (single["network"] == row["network"]) & (single["effective_depth"] == row["effective_depth"])
                ]
                axes.plot([place + 0.2] * len(own), factor * own[name], "o", ms=2.2, mew=0, color=colour, alpha=0.5)
                ends = [row[f"{name}_low"], row[f"{name}_high"]]
                if not pd.isna(ends[0]):
                    axes.plot([place, place], [factor * end for end in ends], color=colour, lw=1)
                axes.plot(place, factor * row[name], "o" if deep else "D", ms=4, mew=0, color=colour)
            whole = frame[frame["effective_depth"] == "all"].iloc[0]
            axes.axhline(factor * whole[name], color=INK, ls=(0, (4, 2)), lw=0.8, zorder=1)
            axes.set_xticks(range(len(labels)), labels)
            highest = max(frame[[name, f"{name}_high"]].astype(float).max().max(), single[name].max())
            axes.set_ylim(0, 1.08 * factor * highest)
            axes.set_ylabel(words)
        look: dict[str, Any] = {"ls": "", "mew": 0, "ms": 4}
        panels[0].plot([], [], marker="o", color=COLOURS[0], label="deep network by effective depth L", **look)
        panels[0].plot([], [], marker="D", color=COLOURS[1], label="wide networks, same multiply-adds", **look)
        panels[0].plot([], [], color=INK, ls=(0, (4, 2)), lw=0.8, label="deep network, whole gradient")
        legend_outside(panels[0], DOUBLE)
    return figure


def _labels(frame: pd.DataFrame) -> list[str]:
    deep = frame["network"].iloc[0]
    return [
        (f"L = {row['effective_depth']}" if row["effective_depth"] != "all" else "all")
        if row["network"] == deep
        else short(row["network"])
        for _, row in frame.iterrows()
    ]


def short(network: str) -> str:
    """A network's name without the images it is for."""
    return network.partition("_")[0]


def epochs_figure(rows: Rows) -> Figure:
    """Training loss and validation error by epoch, means over the seeds."""
    frame = pd.DataFrame(rows)
    deep = frame["network"].iloc[0]
    groups = list(frame.groupby(["network", "effective_depth"], sort=False))
    cut = [key for key, _ in groups if key[0] == deep and key[1] != "all"]
    shades = [to_hex(colour) for colour in sns.color_palette("viridis_r", len(cut) + 1)[:-1]]
    colours = dict(zip(cut, shades, strict=True))
    rest = iter((INK, COLOURS[1], COLOURS[3], COLOURS[4]))
    with style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        for key, line in groups:
            network, depth = key
            name = short(network)
            look: dict[str, Any] = {
                "color": colours[key] if key in colours else next(rest),
                "ls": "-" if network == deep else (0, (4, 1.5)),
                "marker": "." if len(line) < 5 else None,
            }
            label = f"{name}, " + ("whole gradient" if depth == "all" else f"L = {depth}")
            left.plot(line["epoch"], line["train_loss"], label=label, **look)
            right.plot(line["epoch"], 100 * line["validation_error"], **look)
        for axes, words in ((left, "training loss (nats)"), (right, "validation error (%)")):
            axes.set_xlabel("epoch")
            axes.set_ylabel(words)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.set_xlim(0, frame["epoch"].max() + 0.5)
            axes.xaxis.set_major_locator(block_ticks())
        legend_outside(left, DOUBLE)
    return figure
