"""A picture of a network's blocks: the chain with its shortcuts, and what each block costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from textwrap import wrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from pathlens.errors import UsageError
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SINGLE,
    block_ticks,
    kind_mark,
    label_stages,
    legend_outside,
    new_figure,
    style,
    to_frame,
)
from pathlens.results.charts import stage_runs
from pathlens.tables import Table

NEEDED = ("block", "name", "stage", "kind", "out_shape", "parameters", "multiply_adds")
_NARROW = 12  # blocks that one column of a page has room for
_NAMED = 30  # blocks up to which each is named
_ARCS = 150  # blocks up to which shortcuts are drawn as arcs
_GAPS = 250  # blocks up to which there are gaps between them


def structure(
    rows: Table | pd.DataFrame | Sequence[Mapping[str, Any]], title: str = "", width: float | None = None
) -> Figure:
    """The blocks of a network from left to right, coloured by stage, with parameters and multiply-adds of each.

    Arcs are the shortcuts; kinds other than identity are marked on them. Up to 30 blocks are named.

    Args:
        rows: the block table, with at least ``block, name, stage, kind, out_shape, parameters, multiply_adds``; where
            there are ``shortcut_parameters`` and ``shortcut_multiply_adds``, they are added to those of the branch.
            Numbers may be missing.
        title: written above, usually the network's name.
        width: in inches; by default one column of a page, or the whole page for more than 12 blocks.

    Raises:
        UsageError: columns are missing or there are no blocks.
    """
    table = rows if isinstance(rows, Table | pd.DataFrame) else pd.DataFrame([dict(row) for row in rows])
    frame = to_frame(table, NEEDED if len(table.columns) else (), "structure").sort_values("block")
    if frame["block"].isna().any():
        raise UsageError("the structure figure got a row without a block; give the table of blocks")
    width = width or (SINGLE if len(frame) <= _NARROW else DOUBLE)
    block = frame["block"].astype(int)
    costs = {name: _cost(frame, name) for name in ("parameters", "multiply_adds") if frame[name].notna().any()}
    names = _short_names(frame["name"]) if len(frame) <= _NAMED else []
    with style():
        height = 1.6 + 0.72 * len(costs) + 0.05 * max(map(len, names), default=0)
        figure = new_figure(width, height)
        panels = figure.subplots(1 + len(costs), 1, sharex=True, height_ratios=[1.2] + [1] * len(costs), squeeze=False)
        colours = _stage_colours(frame)
        _chain(panels[0, 0], frame, colours, width)
        for axes, (name, values) in zip(panels[1:, 0], costs.items(), strict=True):
            axes.bar(block, values.fillna(0), width=_body(len(frame)), color=colours, lw=0)
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.set_title(name.replace("_", "-"), loc="left", size=7, pad=3)
        bottom = panels[-1, 0]
        room = max(0.6, 0.01 * len(frame), (4 - len(frame)) / 2)  # a single block does not fill the page
        bottom.set_xlim(block.min() - room, block.max() + room)
        bottom.set_xlabel(_word(frame))
        bottom.tick_params(bottom=True, labelbottom=True)
        if names:
            labels = [f"{name}  {at}" for name, at in zip(names, block, strict=True)]
            bottom.set_xticks(block, labels, rotation=90, size=6)
        else:
            bottom.xaxis.set_major_locator(block_ticks())
        lines = [
            part
            for text in (title, _facts(frame, costs))
            for part in wrap(text, int(17 * width), break_on_hyphens=False)
        ]
        figure.suptitle("\n".join(lines), size=8, x=0.01, ha="left")
    return figure


def _cost(frame: pd.DataFrame, name: str) -> pd.Series:
    parts = [column for column in (name, f"shortcut_{name}") if column in frame]
    return sum(pd.to_numeric(frame[column], errors="coerce").astype(float).fillna(0) for column in parts)


def _body(blocks: int) -> float:
    """Width of a block's body in units of the distance between blocks."""
    return 0.66 if blocks <= _GAPS else 1.0


def _word(frame: pd.DataFrame) -> str:
    """What the rows are: a plain network has layers, and no shortcuts."""
    return "layer" if frame["kind"].astype(str).str.startswith("layer").all() else "block"


def _stage_colours(frame: pd.DataFrame) -> list[str]:
    """One colour per block; the stages take turns through the palette."""
    order = list(dict.fromkeys(frame["stage"].dropna()))
    return [MUTED if pd.isna(stage) else COLOURS[order.index(stage) % len(COLOURS)] for stage in frame["stage"]]


def _chain(axes: Axes, frame: pd.DataFrame, colours: list[str], width: float) -> None:
    block = frame["block"].astype(int)
    body, arcs = _body(len(frame)), len(frame) <= _ARCS and _word(frame) == "block"
    bodies = PatchCollection([Rectangle((at - body / 2, 0), body, 1) for at in block], facecolor=colours, lw=0)
    axes.add_collection(bodies)
    if len(frame) <= _ARCS:
        axes.plot([block.min() - 0.6, block.max() + 0.6], [0.5, 0.5], color=INK, lw=0.6, zorder=0)
    if arcs:
        for at in block:
            axes.add_patch(Arc((at, 0.5), 0.94, 2.3, theta1=0, theta2=180, color=INK, lw=0.5, zorder=3))
    marks = [kind_mark(kind) for kind in frame["kind"]]
    size = min(4.5, max(2.4, 30 * width / len(frame)))
    for mark in sorted(set(marks), key=lambda mark: (mark.changes_shape, mark.words)):
        plain = mark.words in ("identity shortcut", "layer")
        at = [where for where, found in zip(block, marks, strict=True) if found == mark and not plain]
        if not plain:
            axes.plot(at, [1.65 if arcs else 1.3] * len(at), mark.marker, color=INK, ms=size, mew=0, zorder=4)
        if arcs or not plain:
            look: dict[str, Any] = {
                "color": INK,
                "lw": 0.6 if arcs else 0,
                "marker": "" if plain else mark.marker,
                "ms": 4,
                "mew": 0,
            }
            axes.plot([], [], label=mark.words, **look)
    legend_outside(axes, width, below=True)
    axes.set_ylim(-0.1, 1.9)
    stages = frame["stage"].astype(object).where(frame["stage"].notna(), None)
    shapes = {stage: _times(shape) for stage, shape in zip(frame["stage"], frame["out_shape"], strict=True)}
    label_stages(axes, stage_runs(stages, block), 72 * (width - 0.7) / len(frame), shapes)
    axes.set_yticks([])
    axes.tick_params(bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _times(shape: object) -> str:
    return str(shape).replace("x", "×")


def _short_names(names: pd.Series, most: int = 32) -> list[str]:
    """The names without the modules that all of them share, cut at the front where they are still too long."""
    parts = [("" if pd.isna(name) else str(name)).split(".") for name in names]
    parents = zip(*(part[:-1] for part in parts), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, parents))) if len(parts) > 1 else 0
    texts = [".".join(part[shared:]) for part in parts]
    return [text if len(text) <= most else "…" + text[-most + 1 :] for text in texts]


def _facts(frame: pd.DataFrame, costs: Mapping[str, pd.Series]) -> str:
    count = EngFormatter(places=1, sep="")
    facts = [f"{len(frame)} {_word(frame)}{'s' if len(frame) != 1 else ''}"]
    facts += [f"{count(values.sum())} {name.replace('_', '-')}" for name, values in costs.items()]
    if "post_activation" in frame:
        kinds = frame["post_activation"].fillna("").astype(str).unique()
        facts += [f"post-activation {kinds[0] or 'none'}"] if len(kinds) == 1 else ["post-activations differ"]
    return ", ".join(facts)
