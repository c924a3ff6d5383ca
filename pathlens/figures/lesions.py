"""Error after blocks or shortcuts are deleted: block by block, or against how many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathlens.errors import UsageError
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SHADE,
    SINGLE,
    block_ticks,
    kind_mark,
    label_stages,
    legend_outside,
    new_figure,
    stage_runs,
    style,
    to_frame,
)
from pathlens.tables import Table

NEEDED = ("block", "stage", "kind", "count", "sample", "error", "error_low", "error_high")
_MANY = 30  # blocks beyond which one column of a page is too narrow
_DENSE = 150  # blocks beyond which intervals touch each other


def deletion(table: Table | pd.DataFrame, width: float | None = None) -> Figure:
    """Error of the network after blocks were deleted, from the table of ``delete-blocks``.

    Where each block was deleted by itself: error against the deleted block, with 95 % intervals, the intact network as
    a dashed line with its interval as a band, stages shaded and named, blocks that change shapes marked (Veit, Wilber,
    Belongie 2016, figure 3). With random sets of blocks: error against the number of deleted blocks; points are the
    samples, the line is the rows without ``sample``, the mean over samples (figure 5a).

    Args:
        table: with the columns ``block, stage, kind, count, sample, error, error_low, error_high``; errors are
            fractions and drawn in percent.
        width: in inches; by default one column of a page, or the whole page for more than 30 blocks.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    return _lesions(table, width, "block")


def skips(table: Table | pd.DataFrame, width: float | None = None) -> Figure:
    """Error of the network after shortcuts were deleted and branches kept; otherwise as :func:`deletion`.

    Args:
        table: as of :func:`deletion`, from ``delete-skips``.
        width: in inches; as of :func:`deletion`.
    """
    return _lesions(table, width, "shortcut")


def _lesions(table: Table | pd.DataFrame, width: float | None, what: str) -> Figure:
    frame = to_frame(table, NEEDED, f"{what} deletion")
    intact, damaged = frame[frame["count"] == 0], frame[frame["count"] >= 1]
    if damaged.empty:
        raise UsageError(f"the table has no deleted {what}; give one from delete-blocks or delete-skips")
    kinds = pd.concat([damaged[name].dropna().astype(str) for name in ("kind", "kinds") if name in damaged])
    if what == "block" and len(kinds) and kinds.str.startswith("layer").all():
        what = "layer"  # of a plain network
    single = damaged[damaged["block"].notna() & damaged["sample"].isna()]
    if damaged["count"].max() == 1 and len(single):
        return _one_by_one(single, intact, width, what)
    return _by_count(damaged, intact, width or SINGLE, what)


def _one_by_one(single: pd.DataFrame, intact: pd.DataFrame, width: float | None, what: str) -> Figure:
    single = single.sort_values("block")
    block = single["block"].astype(int)
    first, last = int(block.min()), int(block.max())
    span = last - first + 1
    width = width or (DOUBLE if span > _MANY else SINGLE)
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        runs = stage_runs(single["stage"], block)
        for run in runs[1::2]:
            axes.axvspan(run.first - 0.5, run.last + 0.5, color=SHADE, lw=0, zorder=0)
        if len(runs) > 1:
            label_stages(axes, runs, 72 * (width - 0.6) / span)
        axes.plot(block, 100 * single["error"], color=MUTED, lw=0.5, alpha=0.7, zorder=2)
        size = min(4.0, max(1.6, 0.65 * 72 * (width - 0.6) / span))
        marks = single["kind"].map(kind_mark)
        for mark in sorted(set(marks), key=lambda mark: (mark.changes_shape, mark.words)):
            rows = single[[found == mark for found in marks]]
            axes.errorbar(
                rows["block"].astype(int),
                100 * rows["error"],
                whiskers(rows),
                fmt=mark.marker,
                color=mark.colour,
                ecolor=(mark.colour, 0.4 if span > _DENSE else 1.0),
                ms=size * (1.25 if mark.changes_shape else 1.0),
                mew=0,
                elinewidth=0.7,
                label=mark.words,
                zorder=4 if mark.changes_shape else 3,
            )
        axes.set_xlim(first - 0.7, last + 0.7)
        axes.xaxis.set_major_locator(block_ticks())
        label = "block whose shortcut is deleted" if what == "shortcut" else f"deleted {what}"
        _finish(axes, [intact, single], label, width, enlarge=4 / size)
    return figure


def _by_count(damaged: pd.DataFrame, intact: pd.DataFrame, width: float, what: str) -> Figure:
    mean = damaged["sample"].isna() & damaged["block"].isna()
    points, line = damaged[~mean], damaged[mean].sort_values("count")
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        axes.plot(
            points["count"], 100 * points["error"], "o", color=COLOURS[0], ms=2.6, mew=0, alpha=0.3, label="one set"
        )
        if not line.empty:
            axes.errorbar(
                line["count"],
                100 * line["error"],
                whiskers(line),
                fmt="o-",
                color=COLOURS[0],
                ms=3,
                elinewidth=0.8,
                capsize=1.5,
                label="mean over sets, 95 % interval",
            )
        axes.xaxis.set_major_locator(block_ticks())
        _finish(axes, [intact, points, line], f"number of deleted {what}s", width)
    return figure


def whiskers(rows: pd.DataFrame) -> list[Any]:
    """Distances from the error to the ends of its interval, in percent; nothing where there is no interval."""
    low, high = rows["error"] - rows["error_low"], rows["error_high"] - rows["error"]
    return [100 * side.astype(float).fillna(0).clip(lower=0) for side in (low, high)]


def intact_line(axes: Axes, intact: pd.DataFrame) -> None:
    """The intact network: a dashed line, and a band for its interval where it has one."""
    left, right = axes.get_xlim()
    level = 2 if right - left <= _DENSE else 5  # behind the marks, unless so many would hide it
    for _, row in intact.head(1).iterrows():
        if pd.notna(row["error_low"]) and pd.notna(row["error_high"]):
            axes.axhspan(100 * row["error_low"], 100 * row["error_high"], color=INK, alpha=0.12, lw=0, zorder=1)
        axes.axhline(100 * row["error"], color=INK, ls=(0, (4, 2)), lw=0.8, zorder=level, label="intact network")


def percent_axis(axes: Axes, frames: Iterable[pd.DataFrame]) -> None:
    """From zero to a little above the highest error or interval."""
    top = max((float(frame[["error", "error_high"]].max().max()) for frame in frames if not frame.empty), default=1.0)
    axes.set_ylim(0, min(104.0, max(1.0, 107 * top)))
    axes.set_ylabel("test error (%)")


def _finish(axes: Axes, frames: list[pd.DataFrame], label: str, width: float, enlarge: float = 1.0) -> None:
    intact_line(axes, frames[0])
    percent_axis(axes, frames)
    axes.set_xlabel(label)
    legend_outside(axes, width, enlarge=enlarge)
