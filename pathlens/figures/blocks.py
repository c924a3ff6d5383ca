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
    to_rows,
)
from pathlens.results.charts import stage_runs
from pathlens.results.result import Row, Rows
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
    blocks = to_rows(rows, NEEDED, "structure")
    if any(row["block"] is None for row in blocks):
        raise UsageError("the structure figure got a row without a block; give the table of blocks")
    blocks = sorted(blocks, key=lambda row: row["block"])
    width = width or (SINGLE if len(blocks) <= _NARROW else DOUBLE)
    places = [int(row["block"]) for row in blocks]
    costs = {
        name: [_cost(row, name) for row in blocks]
        for name in ("parameters", "multiply_adds")
        if any(row[name] is not None for row in blocks)
    }
    names = _short_names(blocks) if len(blocks) <= _NAMED else []
    with style():
        height = 1.6 + 0.72 * len(costs) + 0.05 * max(map(len, names), default=0)
        figure = new_figure(width, height)
        panels = figure.subplots(1 + len(costs), 1, sharex=True, height_ratios=[1.2] + [1] * len(costs), squeeze=False)
        colours = _stage_colours(blocks)
        _chain(panels[0, 0], blocks, colours, width)
        for axes, (name, values) in zip(panels[1:, 0], costs.items(), strict=True):
            axes.bar(places, values, width=_body(len(blocks)), color=colours, lw=0)
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.set_title(name.replace("_", "-"), loc="left", size=7, pad=3)
        bottom = panels[-1, 0]
        room = max(0.6, 0.01 * len(blocks), (4 - len(blocks)) / 2)  # a single block does not fill the page
        bottom.set_xlim(places[0] - room, places[-1] + room)
        bottom.set_xlabel(_word(blocks))
        bottom.tick_params(bottom=True, labelbottom=True)
        if names:
            labels = [f"{name}  {at}" for name, at in zip(names, places, strict=True)]
            bottom.set_xticks(places, labels, rotation=90, size=6)
        else:
            bottom.xaxis.set_major_locator(block_ticks())
        lines = [
            part
            for text in (title, _totals(blocks, costs))
            for part in wrap(text, int(17 * width), break_on_hyphens=False)
        ]
        figure.suptitle("\n".join(lines), size=8, x=0.01, ha="left")
    return figure


def _cost(row: Row, name: str) -> float:
    return float(row[name] or 0) + float(row.get(f"shortcut_{name}") or 0)


def _body(blocks: int) -> float:
    """Width of a block's body in units of the distance between blocks."""
    return 0.66 if blocks <= _GAPS else 1.0


def _word(blocks: Rows) -> str:
    """What the rows are: a plain network has layers, and no shortcuts."""
    return "layer" if all(str(row["kind"]).startswith("layer") for row in blocks) else "block"


def _stage_colours(blocks: Rows) -> list[str]:
    """One colour per block; the stages take turns through the palette."""
    stages = [row["stage"] for row in blocks]
    order = list(dict.fromkeys(stage for stage in stages if stage is not None))
    return [MUTED if stage is None else COLOURS[order.index(stage) % len(COLOURS)] for stage in stages]


def _chain(axes: Axes, blocks: Rows, colours: list[str], width: float) -> None:
    places = [int(row["block"]) for row in blocks]
    body, arcs = _body(len(blocks)), len(blocks) <= _ARCS and _word(blocks) == "block"
    bodies = PatchCollection([Rectangle((at - body / 2, 0), body, 1) for at in places], facecolor=colours, lw=0)
    axes.add_collection(bodies)
    if len(blocks) <= _ARCS:
        axes.plot([places[0] - 0.6, places[-1] + 0.6], [0.5, 0.5], color=INK, lw=0.6, zorder=0)
    if arcs:
        for at in places:
            axes.add_patch(Arc((at, 0.5), 0.94, 2.3, theta1=0, theta2=180, color=INK, lw=0.5, zorder=3))
    marks = [kind_mark(row["kind"]) for row in blocks]
    size = min(4.5, max(2.4, 30 * width / len(blocks)))
    for mark in sorted(set(marks), key=lambda mark: (mark.changes_shape, mark.words)):
        plain = mark.words in ("identity shortcut", "layer")
        if not plain:
            marked = [place for place, own in zip(places, marks, strict=True) if own == mark]
            height = [1.65 if arcs else 1.3] * len(marked)
            axes.plot(marked, height, mark.marker, color=INK, ms=size, mew=0, zorder=4)
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
    stages = [row["stage"] for row in blocks]
    shapes = {row["stage"]: str(row["out_shape"]).replace("x", "×") for row in blocks}
    label_stages(axes, stage_runs(stages, places), 72 * (width - 0.7) / len(blocks), shapes)
    axes.set_yticks([])
    axes.tick_params(bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _short_names(blocks: Rows, most: int = 32) -> list[str]:
    """The names without the modules that all of them share, cut at the front where they are still too long."""
    parts = [str(row["name"] or "").split(".") for row in blocks]
    parents = zip(*(part[:-1] for part in parts), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, parents))) if len(parts) > 1 else 0
    texts = [".".join(part[shared:]) for part in parts]
    return [text if len(text) <= most else "…" + text[-most + 1 :] for text in texts]


def _totals(blocks: Rows, costs: Mapping[str, Sequence[float]]) -> str:
    count = EngFormatter(places=1, sep="")
    totals = [f"{len(blocks)} {_word(blocks)}{'s' if len(blocks) != 1 else ''}"]
    totals += [f"{count(sum(values))} {name.replace('_', '-')}" for name, values in costs.items()]
    if "post_activation" in blocks[0]:
        kinds = {str(row["post_activation"] or "") for row in blocks}
        totals += [f"post-activation {kinds.pop() or 'none'}"] if len(kinds) == 1 else ["post-activations differ"]
    return ", ".join(totals)
