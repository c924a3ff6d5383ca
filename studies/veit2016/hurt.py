"""How much the deletion of random sets of blocks costs networks that were trained by different rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns

from pathlens.figures import DOUBLE, SINGLE, Figure
from pathlens.figures.style import COLOURS, INK, new_figure, style

#: groups of points for which one column is too narrow
_MANY = 8


def hurt_figure(rises: Mapping[tuple[str, int], Sequence[float]]) -> Figure:
    """Rise of error of each set, by seed and rule, with means and their intervals over the sets.

    Args:
        rises: (rule in words, seed) -> rise of error of each set, as a fraction.
    """
    frame = pd.DataFrame(
        [
            {"trained": trained, "seed": seed, "rise": 100 * rise}
            for (trained, seed), found in rises.items()
            for rise in found
        ]
    )
    rules, seeds = (list(dict.fromkeys(frame[name])) for name in ("trained", "seed"))
    with style():
        figure = new_figure(SINGLE if len(rules) * len(seeds) < _MANY else DOUBLE, 2.4)
        axes = figure.add_subplot()
        apart = 0.8 - 0.8 / len(rules)
        for rule, (trained, colour) in enumerate(zip(rules, COLOURS, strict=False)):
            own = frame[frame["trained"] == trained]
            # beside each other by the golden ratio, so that no two lie on each other, and alike each time
            aside = 0.6 / len(rules) * (own.groupby("seed").cumcount() * 0.618034 % 1 - 0.5)
            middle = apart * (rule / max(1, len(rules) - 1) - 0.5)
            at = own["seed"].map(seeds.index) + middle + aside
            axes.plot(at, own["rise"], ls="none", marker="o", ms=2, mew=0, color=colour, label=trained)
        sns.pointplot(
            frame, x="seed", y="rise", hue="trained", dodge=apart, order=seeds, palette=dict.fromkeys(rules, INK),
            linestyle="none", marker="_", markersize=14, markeredgewidth=1.2, errorbar=("ci", 95), seed=0,
            err_kws={"linewidth": 1.2}, legend=False, zorder=10, ax=axes,
        )  # fmt: skip
        axes.axhline(0, color=INK, lw=0.6)
        axes.set_xlabel("seed")
        axes.set_ylabel("rise of error (points)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(rules), title=None)
    return figure
