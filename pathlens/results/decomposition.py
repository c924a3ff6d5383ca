"""The table of ``decompose``: what stem, constants and branches contribute to a sum, or to the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results.charts import PERCENT, Axis, Chart, Series, chart, scaled, stages_of
from pathlens.results.curves import OfCurve, by_label, heads
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column, formatted
from pathlens.results.text import number

STEM, CONSTANTS, BLOCK = "stem", "constants", "block"
"""Kinds of summands."""

_OVER = "over seeds; missing for one seed"


@dataclass(frozen=True, kw_only=True)
class DecompositionRow(OfCurve):
    """One summand."""

    summand: str = column("", "block; stem; or constants, which are all biases between the stem and where it is")
    block: int | None = column("", "index of the block, from 0; -1 is the stem; missing for the constants")
    name: str = column("", "module of the block")
    stage: int | None = column("", "stage of the block, from 0; missing for the constants")
    kind: str | None = column("", "shortcut of the block; missing for stem and constants")
    share: float | None = column(
        "", "covariance with the whole over the variance of the whole, channels averaged; these add up to 1"
    )
    share_low: float | None = column("", f"lower end of its 95 % interval {_OVER}")
    share_high: float | None = column("", f"upper end of its 95 % interval {_OVER}")
    variance_ratio: float | None = column(
        "", "variance over that of the whole, channels averaged; need not add up to 1"
    )
    correlation: float | None = column("", "covariance with the whole over both deviations; missing for a constant")
    norm: float | None = column("activation", "root of the mean square")
    norm_ratio: float | None = column("", "norm over that of the whole")
    logit: float | None = column(
        "", "added to the logit of the label, less what is added to the mean logit; missing where the whole is a sum"
    )
    logit_low: float | None = column("", "lower end of its 95 % interval: over seeds, for one seed over examples")
    logit_high: float | None = column("", "upper end of it")
    error_through: float | None = column(
        "fraction",
        "error with this summand and those before it alone, in the order constants, stem, blocks; missing where the "
        "whole is a sum, or a value is not finite",
    )


def curves(rows: Rows) -> dict[str, list[Row]]:
    """Stem and blocks in order, by network and weights.

    Args:
        rows: of one or more tables.
    """
    return by_label([row for row in rows if row["block"] is not None])


class Decomposition(Result):
    """The table of ``decompose``."""

    name = "decompose"
    row = DecompositionRow
    needed = ("network", "weights", "summand", "block", "share", "norm")
    shown: ClassVar[Mapping[str, Shown]] = {
        "weights": Shown(left=True),
        "summand": Shown(left=True),
        "block": Shown(),
        "name": Shown(left=True, folds=True, gives_way=2),
        "share": Shown(text=formatted(".2%")),
        "correlation": Shown(text=formatted(".3f")),
        "norm_ratio": Shown("norm /\nwhole", formatted(".3g"), gives_way=1),
    }
    figure = "decomposition.decomposition"
    what = "what each block contributes to the sum"

    def printed(self, rows: Rows) -> Mapping[str, Shown]:
        """With the logits, where the whole is the output."""
        if not any(row.get("logit") is not None for row in rows):
            return self.shown
        logits = {
            "logit": Shown("logit of\nthe label", formatted("+.3f")),
            "error_through": Shown("error\nup to here", formatted(".2%")),
        }
        return {**self.shown, **logits}

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """With the place."""
        return f"what each block contributes to the {provenance.get('at', 'sum')}"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The largest share of a block, and what belongs to it."""
        headlines = []
        for label, own in curves(rows).items():
            shares = sorted((row["share"] for row in own if isinstance(row["share"], float)), reverse=True)
            if not shares:
                continue
            top = next(row for row in own if row["share"] == shares[0])
            what = f"block {top['block']}" if top["block"] >= 0 else "the stem"
            headlines.append(Headline("Largest share of the variance", f"{shares[0]:.1%}", f"{what}, {label}"))
            first = own[0]["share"]
            if own[0]["block"] < 0 and isinstance(first, float) and first != shares[0]:
                headlines.append(Headline("Share of the stem", f"{number(100 * first)} %", label))
        return headlines

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Each quantity, block by block."""
        lines = curves(rows)
        first = next(iter(lines.values()), [])
        charts = []
        for key, title, axis in (
            ("share", "Share of the variance", {"label": "share of the variance (%)", "percent": True}),
            ("norm_ratio", "Norm over that of the whole", {"label": "norm over that of the whole", "log": True}),
            ("logit", "Contribution to the logit of the label", {"label": "logit of the label, less the mean"}),
            ("error_through", "Error with the blocks up to here", PERCENT),
        ):
            y: Axis = axis  # type: ignore[assignment]
            series = [_series(own, key, label, at) for at, (label, own) in enumerate(lines.items())]
            if any(value is not None for one in series for value in one["y"]):
                stages = stages_of([row for row in first if row["block"] >= 0])
                charts.append(
                    chart(
                        f"decompose {key}", f"{title} by block", "block", y, series, heads=heads(first), stages=stages
                    )
                )
        return charts


def _series(rows: list[Row], key: str, label: str, colour: int) -> Series:
    def values(name: str) -> list[float | None]:
        return scaled((row.get(name) for row in rows), 100.0 if key in ("share", "error_through") else 1.0)

    series: Series = {
        "x": [row["block"] for row in rows],
        "y": values(key),
        "key": label,
        "name": label,
        "colour": colour,
    }
    if any(row.get(f"{key}_low") is not None for row in rows):
        series |= {"low": values(f"{key}_low"), "high": values(f"{key}_high"), "band": True}
    return series


DECOMPOSE = Decomposition()
