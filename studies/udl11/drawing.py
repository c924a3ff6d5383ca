"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, INK, MUTED, block_ticks, legend_outside, new_figure, powers_of_ten, style
from studies.udl11 import growth, shattered

Rows = Sequence[Mapping[str, Any]]

_DASHED = (0, (4, 2))
#: network -> words above its gradient, words in the legend, colour
_SHOWN = {
    shattered.PLAIN[0].name: ("1 layer", "plain, 1 layer", INK),
    shattered.PLAIN[1].name: ("24 layers", "plain, 24 layers", COLOURS[0]),
    shattered.NORMED[0].name: ("24 layers, batch norm", "plain, 24 layers, batch norm", COLOURS[3]),
    shattered.RESIDUAL[0].name: ("50 residual blocks", "50 residual blocks, batch norm", COLOURS[1]),
    shattered.RESIDUAL[1].name: ("the same, scale 0.1", "the same, scale 0.1", COLOURS[2]),
}


def gradients_figure(curves: Rows, correlations: Rows) -> Figure:
    """Gradients of one network of each kind along the inputs, and the autocorrelation of all of them."""
    series, means = pd.DataFrame(curves), pd.DataFrame(correlations)
    with style():
        figure = new_figure(DOUBLE, 4.0)
        grid = figure.add_gridspec(2, len(_SHOWN), height_ratios=(1, 1.5))
        for column, (name, (words, _, colour)) in enumerate(_SHOWN.items()):
            axes = figure.add_subplot(grid[0, column])
            own = series[series["network"] == name]
            axes.plot(own["x"], own["gradient"], color=colour, lw=0.7)
            axes.set_ylim(-3.6, 3.6)
            axes.set_title(words)
            axes.set_xlabel("input")
            if column:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("gradient over its rms")
        axes = figure.add_subplot(grid[1, :])
        axes.axhline(0, color=MUTED, lw=0.6)
        for name, (_, words, colour) in _SHOWN.items():
            own = means[means["network"] == name].astype({"autocorrelation_low": float, "autocorrelation_high": float})
            axes.plot(own["distance"], own["autocorrelation"], color=colour, label=words)
            axes.fill_between(
                own["distance"], own["autocorrelation_low"], own["autocorrelation_high"], color=colour, alpha=0.2, lw=0
            )
        axes.set_xlim(0, 1)
        axes.set_xlabel("distance of two inputs")
        axes.set_ylabel("autocorrelation")
        legend_outside(axes, DOUBLE)
    return figure


def notebook_figure(layers: Rows) -> Figure:
    """What enters the ReLUs of the notebook's network, and how many of them switch."""
    frame = pd.DataFrame(layers)
    own = frame[frame["variant"] == shattered.NOTEBOOK.name]
    looks = (INK, COLOURS[0], COLOURS[1], COLOURS[2])
    with style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        left.semilogy(own["layer"], own["signal"], color=COLOURS[0], label="signal: variance over inputs")
        left.semilogy(own["layer"], own["rest"], color=COLOURS[1], label="rest: squared mean over inputs")
        first = own.iloc[0]
        expected = first["signal"] * 0.5 ** (own["layer"] - first["layer"])
        left.semilogy(own["layer"], expected, color=INK, ls=_DASHED, lw=0.8, label="halved every layer")
        powers_of_ten(left)
        left.set_ylabel("what enters the ReLUs, notebook")
        for (name, line), colour, dashes in zip(
            frame.groupby("variant", sort=False), looks, ("-", "-", "-", _DASHED), strict=True
        ):
            right.plot(line["layer"], 100 * line["switching"], color=colour, ls=dashes, label=str(name))
        right.set_ylabel("units that switch (%)")
        right.set_ylim(0, None)
        for axes in (left, right):
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(block_ticks())
            axes.legend(fontsize=6)
    return figure


def growth_figure(rows: Rows) -> Figure:
    """Variance forward, gradient backward, batch norm's linear growth, and a plain network with batch norm."""
    frame = pd.DataFrame(rows)
    with style():
        figure = new_figure(DOUBLE, 4.4)
        (forward, backward), (linear, plain) = figure.subplots(2, 2)
        cases = (
            (growth.RESIDUAL, "He", COLOURS[0], 1.0),
            (growth.SCALED, "He, block times 1/√2", COLOURS[1], 0.0),
            (growth.NORMED, "He, batch norm", COLOURS[2], None),
        )
        for case, words, colour, rate in cases:
            own = frame[frame["network"] == case.name]
            ends = own["block"].min(), own["block"].max()
            for axes, name, start in zip((forward, backward), ("log2_variance", "log2_gradient"), ends, strict=True):
                _band(axes, own, name, colour, words)
                if rate is not None:
                    line = rate * np.abs(own["block"] - start)
                    axes.plot(own["block"], line, color=INK, ls=_DASHED, lw=0.8)
        forward.set_ylabel("log2 of the variance")
        backward.set_ylabel("log2 of the gradient, squared")
        own = frame[frame["network"] == growth.NORMED.name]
        for name, words, colour, step in (
            ("second_moment", "second moment", COLOURS[2], 1.0),
            ("unit_variance", "variance of a unit", COLOURS[4], 1 - 1 / math.pi),
            ("unit_mean_square", "its squared mean", COLOURS[5], 1 / math.pi),
        ):
            linear.plot(own["block"], own[name], color=colour, label=words)
            linear.plot(own["block"], own[name].iloc[0] + step * own["block"], color=INK, ls=_DASHED, lw=0.8)
        linear.set_ylabel("batch norm: activations")
        own = frame[(frame["network"] == growth.PLAIN.name) & (frame["block"] >= growth.PLAIN.first)]
        _band(plain, own, "log2_gradient", COLOURS[3], "plain layers with batch norm")
        steps = 2 * np.log2(growth.NORMED_LAYER) * (own["block"].max() - own["block"])
        plain.plot(own["block"], steps, color=INK, ls=_DASHED, lw=0.8, label="1.21 a layer, squared")
        plain.set_ylabel("log2 of the gradient, squared")
        for axes in (forward, backward, linear, plain):
            axes.set_xlabel("layer" if axes is plain else "block")
            axes.xaxis.set_major_locator(block_ticks())
            axes.legend(fontsize=6)
    return figure


def _band(axes: Axes, own: pd.DataFrame, name: str, colour: str, words: str) -> None:
    """A mean over networks and its interval."""
    axes.plot(own["block"], own[name], color=colour, label=words)
    low, high = own[f"{name}_low"].astype(float), own[f"{name}_high"].astype(float)
    axes.fill_between(own["block"], low, high, color=colour, alpha=0.25, lw=0)


def errors_figure(rows: Rows) -> Figure:
    """Training error and error on held-out images by epoch, mean over seeds."""
    frame = pd.DataFrame(rows)
    names = list(frame["network"].unique())
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, 2)
        for axes, name, words in zip(
            panels, ("train_error", "validation_error"), ("training error (%)", "held-out error (%)"), strict=True
        ):
            for network, own in frame.groupby("network", sort=False):
                depths = [one for one in names if one.startswith("plain") == str(network).startswith("plain")]
                colour = COLOURS[0] if network == depths[0] else COLOURS[3]
                dashes = _DASHED if str(network).startswith("plain") else "-"
                marker = "." if len(own) < 3 else None
                axes.plot(own["epoch"], 100 * own[name], color=colour, ls=dashes, marker=marker, label=str(network))
                low, high = (100 * own[f"{name}_{end}"].astype(float) for end in ("low", "high"))
                axes.fill_between(own["epoch"], low, high, color=colour, alpha=0.2, lw=0)
            axes.set_xlabel("epoch")
            axes.set_ylabel(words)
            axes.set_ylim(0, None)
            axes.xaxis.set_major_locator(block_ticks())
        legend_outside(panels[0], DOUBLE)
    return figure
