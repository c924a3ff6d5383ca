"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, StrMethodFormatter

from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, INK, MUTED, block_ticks, legend_outside, new_figure, style
from pathlens.metrics import sample_interval
from studies.strict_resnets import shares
from studies.strict_resnets.trained import DEPTH, LEFT, PLATEAU

Rows = Sequence[Mapping[str, Any]]
_DASHED = (0, (4, 2))
_LOOKS = {
    init: {"color": COLOURS[index // 2], "ls": "-" if index % 2 == 0 else _DASHED}
    for index, init in enumerate(shares.SCHEMES)
}
_PLACES = {
    "each": "norms between levels",
    "end": "norm at the end alone",
    "block": "norm after every block",
}


def shares_figure(rows: Rows) -> Figure:
    """Variance of each summand over that of the last sum: a row of blocks, and U-Nets by where their norms are."""
    frame = pd.DataFrame(rows)
    panels = [(network, norms) for network, places in shares.NORMS.items() for norms in places]
    with style():
        figure = new_figure(DOUBLE, 4.2)
        grid = figure.add_gridspec(2, 6)
        places = [grid[0, 0:3], grid[0, 3:6], grid[1, 0:2], grid[1, 2:4], grid[1, 4:6]]
        for (network, norms), place in zip(panels, places, strict=True):
            axes = figure.add_subplot(place)
            own = frame[(frame["network"] == network) & (frame["norms"] == norms)]
            for init, line in own.groupby("init", sort=False):
                _line(axes, line, str(init))
            axes.set_title(f"{network}, {_PLACES[norms]}")
            axes.xaxis.set_major_locator(block_ticks())
            axes.set_xlabel("block")
            if place.colspan.start == 0:
                axes.set_ylabel("log variance ratio")
        legend_outside(figure.axes[0], DOUBLE)
    return figure


def _line(axes: Axes, line: pd.DataFrame, init: str) -> None:
    name = "log_variance_ratio"
    axes.plot(line["block"], line[name], label=init, **_LOOKS[init])
    low, high = (line[f"{name}_{end}"].astype(float) for end in ("low", "high"))
    axes.fill_between(line["block"], low, high, color=_LOOKS[init]["color"], alpha=0.15, lw=0)


def trainings_figure(epochs: Rows, runs: Rows, costs: Rows) -> Figure:
    """Training loss by step and place of the norms, and test loss by depth and width."""
    frame = pd.DataFrame(epochs)
    constant = runs[0]["constant_loss"]
    plateau = frame[frame["part"] == PLATEAU]
    with style():
        figure = new_figure(DOUBLE, 2.7)
        bottom, row, right = figure.subplots(1, 3)
        for axes, start, words in ((bottom, "bottom", "three levels"), (row, "row", "one level")):
            own = plateau[plateau["network"].str.startswith(start)]
            for network, line in own.groupby("network", sort=False):
                norms = str(network).rpartition("_")[2]
                colour = COLOURS[list(_PLACES).index(norms)]
                axes.plot(line["step"], line["train_loss"], color=colour, label=_PLACES[norms])
                low, high = (line[f"train_loss_{end}"].astype(float) for end in ("low", "high"))
                axes.fill_between(line["step"], low, high, color=colour, alpha=0.15, lw=0)
            axes.axhline(constant, color=MUTED, lw=0.8, label="best constant answer")
            axes.axhline(LEFT * constant, color=INK, lw=0.8, ls=_DASHED, label="end of the plateau")
            axes.set_yscale("log")
            ends = plateau[["train_loss", "train_loss_low", "train_loss_high"]].astype(float)
            axes.set_ylim(0.95 * ends.clip(lower=0.2 * constant).min(axis=None), 1.05 * ends.max(axis=None))
            axes.yaxis.set_major_locator(FixedLocator([0.3, 0.5, 1, 2, 4]))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.minorticks_off()
            axes.set_xlabel("step")
            axes.set_title(words)
        bottom.set_ylabel("training loss (nats)")
        names = [row["network"] for row in sorted(costs, key=lambda row: (row["ratio"] is not None, row["blocks"]))]
        for place, name in enumerate(names):
            values = [row["test_loss"] for row in runs if (row["part"], row["network"]) == (DEPTH, name)]
            _points(right, place, values, COLOURS[1] if name == names[-1] else COLOURS[0], "o")
        by_name = {row["network"]: row for row in costs}
        right.set_xticks(
            range(len(names)), [f"{by_name[name]['blocks']} x {by_name[name]['channels']}" for name in names]
        )
        right.set_xlabel("blocks x channels")
        right.set_ylabel("test loss (nats)")
        legend_outside(bottom, DOUBLE)
    return figure


def checkerboards_figure(rows: Rows) -> Figure:
    """Excess of power at the frequency of the stride, for each way of up- and downsampling."""
    frame = pd.DataFrame(rows)
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, 2, sharey=True, width_ratios=(6, 4))
        for axes, measured, words in zip(
            panels, ("up", "down"), ("outputs of upsampling", "gradients through downsampling"), strict=True
        ):
            own = frame[frame["measured"] == measured]
            ways = list(own["way"].unique())
            for place, way in enumerate(ways):
                for shift, colour, mark, weights in (
                    (-0.12, COLOURS[0], "o", "initial"),
                    (0.12, COLOURS[1], "D", "trained"),
                ):
                    values = own[(own["way"] == way) & (own["weights"] == weights)]["excess"].tolist()
                    _points(axes, place + shift, values, colour, mark, weights if place == 0 else None)
            axes.axhline(0, color=MUTED, lw=0.5, zorder=0)
            axes.set_xticks(range(len(ways)), ways, rotation=20)
            axes.set_title(words)
        panels[0].set_ylabel("excess at the stride's frequency (dB)")
        legend_outside(panels[0], DOUBLE)
    return figure


def _points(
    axes: Axes, place: float, values: Sequence[float], colour: str, mark: str, label: str | None = None
) -> None:
    """Seeds as small points, and their mean with Student's 95 % interval."""
    axes.plot([place + 0.08] * len(values), values, "o", ms=2, mew=0, color=colour, alpha=0.5)
    low, high = sample_interval(values)
    if low is not None:
        axes.plot([place, place], [low, high], color=colour, lw=1)
    axes.plot(place, sum(values) / len(values), mark, ms=4, mew=0, color=colour, label=label)
