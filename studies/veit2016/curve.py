"""What networks lose that were trained on random blocks, by how many blocks each batch had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from pathlens.figures import DOUBLE, SINGLE, Figure
from pathlens.figures.style import COLOURS, INK, MUTED, block_ticks, legend_outside, new_figure, style
from studies.rules.margin import MARGIN


def curve_figure(rows: Sequence[Mapping[str, Any]], effective: Mapping[str, int]) -> Figure:
    """Test error minus that of the whole network against the number of random blocks, a panel for each network.

    Args:
        rows: of the table ``retraining``, of networks that were trained on random blocks.
        effective: by network, how many blocks its effective lengths ask for; a network may be missing.
    """
    networks = list(dict.fromkeys(row["network"] for row in rows))
    width = SINGLE if len(networks) == 1 else DOUBLE
    with style():
        figure = new_figure(width, 2.4)
        panels: list[Axes] = list(figure.subplots(1, len(networks), squeeze=False, sharex=True, sharey=True)[0])
        for axes, network in zip(panels, networks, strict=True):
            own = sorted((row for row in rows if row["network"] == network), key=_blocks)
            # of a single seed there is no interval
            low, high = (
                [0.0 if row[end] is None else 100 * abs(row[end] - row["difference"]) for row in own]
                for end in ("difference_low", "difference_high")
            )
            axes.errorbar(
                [_blocks(row) for row in own], [100 * row["difference"] for row in own], [low, high], fmt="o-", ms=3,
                color=COLOURS[0], elinewidth=0.8, capsize=1.5, label="mean over seeds, 95 % interval", zorder=3,
            )  # fmt: skip
            axes.axhline(0, color=INK, lw=0.6, label="whole network")
            axes.axhline(100 * MARGIN, color=COLOURS[3], ls=(0, (4, 2)), lw=0.8, label=f"{100 * MARGIN:g} points worse")
            if network in effective:
                axes.axvline(effective[network], color=MUTED, ls=":", lw=0.8, label="first plus last effective length")
            axes.set_title(network, loc="left")
            axes.set_xlabel("random blocks in each batch")
            axes.xaxis.set_major_locator(block_ticks())
        panels[0].set_ylabel("difference of\ntest error (points)")
        legend_outside(panels[0], width)
    return figure


def _blocks(row: Mapping[str, Any]) -> int:
    """How many random blocks each batch had."""
    return int(row["trained"][1:])
