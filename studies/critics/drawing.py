"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from pathlens.figures import DOUBLE, SINGLE, Figure
from pathlens.figures.style import (
    COLOURS,
    INK,
    MUTED,
    SHADE,
    block_ticks,
    kind_mark,
    label_stages,
    legend_outside,
    new_figure,
    style,
)
from pathlens.results.charts import cut_off, stage_runs
from pathlens.results.text import power_of_ten

BRANCH, SKIP, EXACT = COLOURS[0], COLOURS[1], COLOURS[2]
_CORNER = {"xycoords": "axes fraction", "ha": "right", "color": MUTED, "size": 7}
_DECADES = 12  # below the largest contribution of a length, beyond which none matters
_WIDE = 30  # blocks beyond which one column is too narrow


def pairs_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Error without the branch and without the shortcut of each block, joined; chance is not drawn."""
    frame = pd.DataFrame(rows)
    width = DOUBLE if len(frame) > _WIDE else SINGLE
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        runs = stage_runs(frame["stage"], frame["block"])
        for run in runs[1::2]:
            axes.axvspan(run.first - 0.5, run.last + 0.5, color=SHADE, lw=0, zorder=0)
        if len(runs) > 1:
            label_stages(axes, runs, 72 * (width - 0.6) / len(frame))
        size = min(4.0, max(1.8, 0.55 * 72 * (width - 0.6) / len(frame)))
        joined = {"color": MUTED, "lw": 0.6, "zorder": 2}
        axes.vlines(frame["block"], 100 * frame["error_branch"], 100 * frame["error_skip"], **joined)
        for what, colour, marker, shift in (("branch", BRANCH, "o", -0.12), ("skip", SKIP, "D", 0.12)):
            error = frame[f"error_{what}"]
            ends = [(error - frame[f"error_{what}_low"]).clip(0), (frame[f"error_{what}_high"] - error).clip(0)]
            words = "shortcut" if what == "skip" else what
            axes.errorbar(
                frame["block"] + shift, 100 * error, [100 * end for end in ends], fmt=marker, color=colour, ms=size,
                mew=0, elinewidth=0.7, label=f"{words} deleted", zorder=3,
            )  # fmt: skip
        intact = 100 * float(frame["error_intact"].iloc[0])
        axes.axhline(intact, color=INK, ls=(0, (4, 2)), lw=0.8, label="intact network")
        axes.set_xlim(frame["block"].min() - 0.7, frame["block"].max() + 0.7)
        axes.set_ylim(0, 104)
        axes.set_xlabel("block")
        axes.set_ylabel("test error (%)")
        axes.xaxis.set_major_locator(block_ticks())
        legend_outside(axes, width)
    return figure


def counts_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Error against the number of blocks that lost their branch or their shortcut, a panel for each network."""
    frame = pd.DataFrame(rows)
    networks = list(dict.fromkeys(frame["network"]))
    width = SINGLE if len(networks) == 1 else DOUBLE
    with style():
        figure = new_figure(width, 2.3)
        panels: list[Axes] = list(figure.subplots(1, len(networks), squeeze=False)[0])
        for axes, network in zip(panels, networks, strict=True):
            for deleted, colour, marker in (("branches", BRANCH, "o"), ("shortcuts", SKIP, "D")):
                line = frame[(frame["network"] == network) & (frame["deleted"] == deleted)].sort_values("count")
                low = (line["error"] - line["error_low"].astype(float).fillna(line["error"])).clip(0)
                high = (line["error_high"].astype(float).fillna(line["error"]) - line["error"]).clip(0)
                axes.errorbar(
                    line["count"], 100 * line["error"], [100 * low, 100 * high], fmt=f"{marker}-", color=colour, ms=3,
                    elinewidth=0.8, capsize=1.5, label=f"{deleted} deleted, mean over sets, 95 % interval",
                )  # fmt: skip
            axes.set_ylim(0, 104)
            axes.set_title(network, loc="left")
            axes.set_xlabel("random blocks")
            axes.set_ylabel("test error (%)")
            axes.xaxis.set_major_locator(block_ticks())
        legend_outside(panels[0], width)
    return figure


def responses_figure(rows: Sequence[Mapping[str, Any]], intact: float) -> Figure:
    """Loss without a block against the size of its response, absolute and relative to the shortcut.

    Args:
        rows: of the blocks.
        intact: loss of the intact network.
    """
    frame = pd.DataFrame(rows)
    labels = {
        "branch_std": "standard deviation of the branch",
        "relative_std": "the same, relative to the shortcut",
    }
    with style():
        figure = new_figure(DOUBLE, 2.5)
        panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            for kind in dict.fromkeys(frame["kind"]):
                mark, own = kind_mark(kind), frame[frame["kind"] == kind]
                look = {"color": mark.colour, "ms": 3.5, "mew": 0, "label": mark.words, "zorder": 3}
                axes.plot(own[name].astype(float), own["loss"].astype(float), mark.marker, **look)
            axes.axhline(intact, color=INK, ls=(0, (4, 2)), lw=0.8, zorder=1, label="intact network")
            axes.set_xscale("log")
            axes.set_yscale("log")
            log_ticks(axes, "x")
            axes.set_xlabel(label)
        log_ticks(panels[0], "y")
        panels[0].set_ylabel("test loss without the branch (nats)")
        legend_outside(panels[0], DOUBLE)
    return figure


def log_ticks(axes: Axes, which: str) -> None:
    """Logarithmic ticks: powers of ten, on a short axis their multiples as plain numbers, so that some are in view."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    if len(powers) > 4:
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(np.log10(value))))
    else:
        for steps in ((1, 2, 5), (1, 2, 3, 4, 6, 8)):
            ticks = [tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high]
            if len(ticks) > 3:
                break
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def cancellation_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What each length contributes by the paper's product, by independent directions, and exactly.

    Contributions 12 powers of ten below the largest are left out, which the panel then says.
    """
    frame = pd.DataFrame(rows).drop(columns="n_paths").astype(float)
    names = ("contribution", "incoherent", "total_norm")
    ends = {"low": list(frame["contribution_low"]), "high": list(frame["contribution_high"])}
    curves, note = cut_off([{"y": list(frame[name]), **(ends if name == names[0] else {})} for name in names], _DECADES)
    shown = [{key: positive(pd.Series(values, dtype=float)) for key, values in curve.items()} for curve in curves]
    with style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        lengths = frame["length"]
        left.fill_between(lengths, shown[0]["low"], shown[0]["high"], color=BRANCH, alpha=0.2, lw=0)
        looks = (
            (BRANCH, "-", "number of paths × mean norm of sampled paths, 95 % interval"),
            (COLOURS[3], (0, (4, 1.5)), "√(number of paths) × root mean square norm"),
            (EXACT, "-", "norm of the sum (exact)"),
        )
        for curve, (colour, dashes, label) in zip(shown, looks, strict=True):
            left.plot(lengths, curve["y"], color=colour, ls=dashes, label=label)
        left.annotate(note, (0.98, 0.94), **_CORNER)
        left.set_ylabel("contribution of a length\n(loss per unit of input)")
        right.plot(lengths, positive(frame["survives"]), color=BRANCH, label="… number of paths × mean norm")
        look = {"color": COLOURS[3], "ls": (0, (4, 1.5))}
        right.plot(lengths, positive(frame["coherence"]), label="… √(number of paths) × root mean square", **look)
        right.axhline(1, color=INK, lw=0.6, zorder=1)
        right.set_ylabel("exact sum relative to the\ncurve of the same colour (ratio)")
        for axes in (left, right):
            axes.set_yscale("log")
            log_ticks(axes, "y")
            axes.set_xlabel("path length (blocks)")
            axes.xaxis.set_major_locator(block_ticks())
        left.set_xlim(right.get_xlim())
        legend_outside(left, DOUBLE)
    return figure


def positive(values: pd.Series) -> pd.Series:
    """Only what a logarithmic axis can show."""
    return values.where(values > 0)


def tails_figure(
    norms: Mapping[int, np.ndarray], few: Sequence[tuple[int, int, np.ndarray]], rms: Mapping[int, float]
) -> Figure:
    """Share of paths above a norm, and the means of few paths, by length.

    Args:
        norms: length -> norms of single paths over the mean of their example.
        few: (length, number of paths, means of so many over the mean of all sampled ones).
        rms: length -> root mean square over all paths, over the same mean.
    """
    with style():
        figure = new_figure(DOUBLE, 2.5)
        left, right = figure.subplots(1, 2)
        for colour, (length, values) in zip(COLOURS, norms.items(), strict=False):
            scaled = np.sort(values[values > 0])
            above = 100 * (len(scaled) - np.arange(len(scaled))) / len(values)
            left.plot(scaled, above, color=colour, drawstyle="steps-pre", label=f"paths of {length} blocks")
            own = {paths: np.quantile(means, (0.05, 0.5, 0.95)) for at, paths, means in few if at == length}
            low, middle, high = np.array(list(own.values())).T
            right.fill_between(list(own), low, high, color=colour, alpha=0.15, lw=0)
            right.plot(list(own), middle, "o-", ms=3, mew=0, color=colour)
            right.axhline(rms[length], color=colour, ls=(0, (4, 2)), lw=0.8)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
        left.set_xlabel("norm of one path (means of its example)")
        left.set_ylabel("sampled paths above it (%)")
        right.axhline(1, color=INK, lw=0.6, zorder=1)
        for axes, which in ((left, "x"), (left, "y"), (right, "y")):
            log_ticks(axes, which)
        right.xaxis.set_major_locator(FixedLocator(sorted({paths for _, paths, _ in few})))
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.xaxis.set_minor_locator(NullLocator())
        right.set_xlabel("paths in a mean (median, 5 to 95 %)")
        right.set_ylabel("mean of few paths\n(means of all sampled)")
        right.annotate("dashed: root mean square over all paths", (0.98, 0.03), **_CORNER)
        legend_outside(left, DOUBLE)
    return figure


def lengths_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Exact contribution of each path length relative to the largest, against length in percent of the blocks."""
    frame = pd.DataFrame(rows)
    with style():
        figure = new_figure(SINGLE, 2.5)
        axes = figure.add_subplot()
        for colour, (network, own) in zip(COLOURS, frame.groupby("network", sort=False), strict=False):
            for number, (_, line) in enumerate(own.groupby("seed", dropna=False)):
                norms = line["total_norm"].astype(float)
                label = f"{network}, {line['blocks'].iloc[0]} blocks" if number == 0 else None
                axes.plot(100 * line["length"] / line["blocks"], norms / norms.max(), color=colour, label=label, lw=0.9)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("path length (% of the blocks)")
        axes.set_ylabel("exact contribution of a length\n(largest = 1)")
        legend_outside(axes, SINGLE)
    return figure
