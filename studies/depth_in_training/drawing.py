"""Figures of this study alone, in the style of the package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, INK, MUTED, block_ticks, legend_outside, new_figure, style

Rows = Sequence[Mapping[str, Any]]

#: as in the figures of path gradients
LOOKS: dict[str, tuple[str, Any, str]] = {
    "sampled": (COLOURS[0], "-", "number × mean norm of sampled paths"),
    "signed": (COLOURS[3], (0, (4, 1.5)), "number × root mean square norm"),
    "exact": (COLOURS[2], "-", "norm of the sum (exact)"),
}
_LINEAR = 5  # epochs that get even room; later ones are on a logarithmic axis


def trajectories(ranges: Rows, means: Rows, decay: float, escaped: int) -> Figure:
    """Mean path length and effective range against the epoch.

    Args:
        ranges: of single runs.
        means: over the seeds.
        decay: weight decay of the runs to draw on the left; the right panel compares all.
        escaped: first epoch after the escape from chance; what is before it is shaded.
    """
    frame, mean = pd.DataFrame(ranges), pd.DataFrame(means)
    with style():
        figure = new_figure(DOUBLE, 2.7)
        left, middle, right = figure.subplots(1, 3)
        own, average = (part[part["weight_decay"] == decay] for part in (frame, mean))
        for kind, (colour, dashes, label) in LOOKS.items():
            here = own[(own["contribution"] == kind) & (own["mode"] == "train")]
            for _, run in here.groupby("run"):
                left.plot(run["epoch"], run["mean_length"], color=colour, lw=0.4, alpha=0.6)
            line = _of(average, kind, "train")
            if not line.empty:
                _band(left, line, "mean_length", colour, dashes, label)
        line = _of(average, "exact", "eval")
        left.plot(line["epoch"], line["mean_length"], color=COLOURS[2], ls=":", label="exact, running statistics")
        half = own["blocks"].max() / 2
        left.axhline(half, color=INK, ls=(0, (1, 1.5)), lw=0.8, label="half the blocks")
        for kind in ("sampled", "exact"):
            line = _of(average, kind, "train")
            middle.fill_between(line["epoch"], line["first"], line["last"], color=LOOKS[kind][0], alpha=0.25, lw=0)
            middle.plot(line["epoch"], line["centre"], color=LOOKS[kind][0])
        middle.axhline(half, color=INK, ls=(0, (1, 1.5)), lw=0.8)
        decays = sorted(mean["weight_decay"].unique(), reverse=True)
        for colour, one in zip((COLOURS[2], COLOURS[4]), decays, strict=False):
            line = _of(mean[mean["weight_decay"] == one], "exact", "train")
            _band(right, line, "mean_length", colour, "-", f"weight decay {one:g}")
        right.legend(loc="upper right")
        words = ("mean path length (blocks)", "effective lengths (blocks)", "exact mean path length (blocks)")
        for axes, letter, text in zip((left, middle, right), "abc", words, strict=True):
            _epochs(axes, frame["epoch"])
            axes.axvspan(axes.get_xlim()[0], escaped, color=MUTED, alpha=0.15, lw=0, zorder=0)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(text)
            axes.set_title(letter, loc="left")
        legend_outside(left, DOUBLE)
    return figure


def _of(frame: pd.DataFrame, kind: str, mode: str) -> pd.DataFrame:
    return frame[(frame["contribution"] == kind) & (frame["mode"] == mode)].sort_values("epoch")


def _band(axes: Axes, line: pd.DataFrame, name: str, colour: str, dashes: Any, label: str | None) -> None:
    low, high = (line[f"{name}_{end}"].astype(float) for end in ("low", "high"))
    axes.fill_between(line["epoch"], low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(line["epoch"], line[name], color=colour, ls=dashes, marker="o", ms=2.4, mew=0, label=label)


def _epochs(axes: Axes, epochs: pd.Series) -> None:
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1)
    last = int(epochs.max())
    ticks = [tick for tick in (0, 2, 5, 10, 20, 60, 200) if tick <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.3, 1.05 * last)
    axes.set_xlabel("epoch")


def curves_figure(rows: Rows) -> Figure:
    """Share of the contribution at each length, a line for each epoch; means over the seeds, batch statistics."""
    frame = pd.DataFrame(rows)
    kinds = [kind for kind in ("sampled", "exact") if kind in set(frame["contribution"])]
    epochs = sorted(frame["epoch"].unique())
    palette = [to_hex(colour) for colour in sns.color_palette("viridis_r", len(epochs))]
    words = {"sampled": "a  number × mean norm of sampled paths", "exact": "b  norm of the sum (exact)"}
    with style():
        figure = new_figure(DOUBLE, 2.6)
        panels: list[Axes] = list(figure.subplots(1, len(kinds), sharex=True, squeeze=False)[0])
        for axes, kind in zip(panels, kinds, strict=True):
            for colour, epoch in zip(palette, epochs, strict=True):
                line = frame[(frame["contribution"] == kind) & (frame["epoch"] == epoch)].sort_values("length")
                axes.plot(line["length"], 100 * line["share"], color=colour, label=f"epoch {epoch}")
            axes.set_title(words[kind], loc="left")
            axes.set_xlabel("path length (blocks)")
            axes.set_ylabel("contribution of a length (%)")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(block_ticks())
        legend_outside(panels[0], DOUBLE)
    return figure


def gains_figure(means: Rows, ranges: Rows) -> Figure:
    """The scales that are to drive the depth against the epoch, and the length they predict beside the measured one."""
    frame, lengths = pd.DataFrame(means), pd.DataFrame(ranges)
    words = {
        "gamma": "batch-norm scale, mean |γ|",
        "response_ratio": "response (std),\nbranch / shortcut",
        "gradient_ratio": "gradient norm λ,\nbranch / shortcut",
    }
    decays = sorted(frame["weight_decay"].unique(), reverse=True)
    with style():
        figure = new_figure(DOUBLE, 2.4)
        panels: list[Axes] = list(figure.subplots(1, 4))
        for axes, (name, label) in zip(panels, words.items(), strict=False):
            for colour, decay in zip((COLOURS[2], COLOURS[4], COLOURS[1]), decays, strict=False):
                line = frame[frame["weight_decay"] == decay].sort_values("epoch")
                _band(axes, line, name, colour, "-", f"weight decay {decay:g}")
            _epochs(axes, frame["epoch"])
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.set_ylabel(label)
        last = panels[-1]
        top = max(float(lengths["mean_length"].max()), float(lengths["predicted_length"].max())) * 1.08
        last.plot([0, top], [0, top], color=MUTED, lw=0.6)
        for place, (kind, (colour, _, _)) in zip((0.23, 0.13, 0.03), LOOKS.items(), strict=True):
            here = lengths[(lengths["contribution"] == kind) & (lengths["weight_decay"] == decays[0])]
            last.plot(here["predicted_length"], here["mean_length"], "o", ms=2.4, mew=0, color=colour, alpha=0.6)
            if not here.empty:
                last.annotate(kind, (0.97, place), xycoords="axes fraction", ha="right", size=7, color=colour)
        last.set_xlim(0, top)
        last.set_ylim(0, top)
        last.set_xlabel("Σ λᵢ/(1 + λᵢ) (blocks)")
        last.set_ylabel("mean path length (blocks)")
        for axes, letter in zip(panels, "abcd", strict=True):
            axes.set_title(letter, loc="left")
        legend_outside(panels[0], DOUBLE)
    return figure
