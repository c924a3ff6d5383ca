"""Figure 7 of the paper: the paths that are left where blocks are deleted, and what they carried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pathlens.figures import DOUBLE, Figure
from pathlens.figures.style import COLOURS, MUTED, block_ticks, new_figure, style
from pathlens.paths import effective_paths, length_range
from pathlens.results.path_profile import contributions
from pathlens.results.text import power_of_ten
from pathlens.tables import Table

#: numbers of deleted blocks of the curves
CURVES = (0, 1, 10, 20)

LEFT = (
    ("run", "", "name of the training run"),
    ("blocks", "blocks", "residual blocks"),
    ("deleted", "blocks", "how many of them are deleted"),
    ("paths", "fraction", "share of all paths that goes through none of them, 2 to the power of minus their number"),
    ("first", "blocks", "shortest length of the middle 95 % of the paths that are left"),
    ("last", "blocks", "longest length of them"),
    ("contribution", "fraction", "share of the intact network's contributions (sampled) that belonged to them"),
    ("effective_first", "blocks", "shortest effective length among the paths that are left"),
    ("effective_last", "blocks", "longest effective length among them"),
)


def left_rows(run: str, table: Table, most: int = max(CURVES)) -> list[dict[str, Any]]:
    """What is left by the number of deleted blocks, from the table of path-gradients of the intact network.

    Of C(n, l) paths of length l, C(n-k, l) go through none of k deleted blocks, whichever blocks these are. That each
    carries what paths of its length carried on average is the mean over all sets of k blocks; that it carries what it
    did in the intact network is an assumption, because a deletion changes the activations of all later blocks.
    """
    blocks = len(table.rows) - 1
    carried = [value or 0.0 for value in contributions(table.rows, "sampled")]
    whole, rows = math.fsum(carried), []
    for deleted in range(min(most, blocks - 1) + 1):
        kept = [
            value * math.comb(blocks - deleted, length) / math.comb(blocks, length)
            for length, value in enumerate(carried)
        ]
        first, last = length_range(blocks - deleted)
        effective = effective_paths(kept, table.provenance["share"])
        rows.append(
            {
                "run": run,
                "blocks": blocks,
                "deleted": deleted,
                "paths": 2.0**-deleted,
                "first": first,
                "last": last,
                "contribution": math.fsum(kept) / whole,
                "effective_first": effective.first,
                "effective_last": effective.last,
            }
        )
    return rows


def left_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Number of paths by length after some deletions, and what is left of paths and contributions.

    Args:
        rows: of the table of one run.
    """
    blocks = rows[0]["blocks"]
    with style():
        figure = new_figure(DOUBLE, 2.4)
        panels: list[Axes] = list(figure.subplots(1, 2))
        drawn = [deleted for deleted in CURVES if deleted <= rows[-1]["deleted"]]
        for deleted, colour in zip(drawn, COLOURS, strict=False):
            lengths = range(blocks - deleted + 1)
            counts = [math.comb(blocks - deleted, length) for length in lengths]
            panels[0].plot(lengths, counts, color=colour, label=f"{deleted} deleted")
        panels[0].set_yscale("log")
        panels[0].set_xlabel("path length (blocks)")
        panels[0].set_ylabel("number of paths")
        at = [row["deleted"] for row in rows]
        panels[1].plot(at, [row["paths"] for row in rows], color=MUTED, label="of the paths")
        panels[1].plot(at, [row["contribution"] for row in rows], color=COLOURS[0], label="of the contributions")
        panels[1].set_yscale("log")
        panels[1].set_xlabel("deleted blocks")
        panels[1].set_ylabel("share left")
        for axes in panels:
            axes.xaxis.set_major_locator(block_ticks())
            axes.yaxis.set_major_locator(LogLocator(numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(math.log10(value))))
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(drawn), columnspacing=0.9, handlelength=1.2)
    return figure
