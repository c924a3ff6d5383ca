"""The table of ``signal-propagation``: moments of activations and gradients at each place of each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

from pathlens.results.charts import Axis, Chart, Series, chart, stages_of
from pathlens.results.curves import OfCurve, by_label, heads
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column, formatted
from pathlens.results.text import number

QUANTITIES = {
    "squared_mean": "mean over channels of the squared mean of a channel",
    "channel_variance": "mean over channels of the variance of a channel",
    "variance": "variance over everything",
    "second_moment": "mean of the squares",
}
"""What is measured of the activations, and under names that begin with ``gradient_`` of the gradients."""

GRADIENTS = {f"gradient_{name}": f"the same of the gradient: {meaning}" for name, meaning in QUANTITIES.items()}
_LOSS = "loss^2 / activation^2"
_BLOCK = "a block"


@dataclass(frozen=True, kw_only=True)
class _Where(OfCurve):
    block: int = column("", "index of the block, from 0; -1 is the stem")
    name: str = column("", "module of the block")
    stage: int = column("", "stage of the block, from 0")
    kind: str | None = column("", "shortcut of the block, or layer of a plain network; missing for the stem")
    place: str = column(
        "", "stem; or the end of branch or shortcut, their sum, or the output behind the post-activation"
    )


def _measured() -> list[tuple[str, Any, Any]]:
    fields: list[tuple[str, Any, Any]] = []
    for names, unit in ((QUANTITIES, ""), (GRADIENTS, _LOSS)):
        for name, meaning in names.items():
            fields.append((name, float | None, column(unit, f"{meaning}; missing where one is not finite")))
            for side, end in (("low", "lower"), ("high", "upper")):
                words = f"{end} end of the 95 % interval of the mean over seeds (Student); missing for one seed"
                fields.append((f"{name}_{side}", float | None, column(unit, words)))
    return fields


_Measured = make_dataclass("_Measured", _measured(), frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class _Theory:
    expected_squared_mean: float | None = column("", "what theory expects at initialisation; missing for none")
    expected_channel_variance: float | None = column("", "likewise")
    expected_variance: float | None = column("", "likewise")
    expected_second_moment: float | None = column("", "likewise")
    expected_gradient_second_moment: float | None = column(_LOSS, "likewise")
    growth: float | None = column(_BLOCK, "fitted factor of the second moment at this place, inside stages")
    growth_low: float | None = column(_BLOCK, "lower end of its 95 % interval: over seeds, for one seed of the fit")
    growth_high: float | None = column(_BLOCK, "upper end of it")
    gradient_growth: float | None = column(_BLOCK, "the same of the gradient, from a block to the one before")
    gradient_growth_low: float | None = column(_BLOCK, "lower end of its 95 % interval")
    gradient_growth_high: float | None = column(_BLOCK, "upper end of it")


@dataclass(frozen=True, kw_only=True)
class SignalRow(_Theory, _Measured, _Where):  # type: ignore[misc, valid-type]
    """One place of a block."""


def curves(rows: Rows, place: str = "output") -> dict[str, list[Row]]:
    """The rows of a place and the stem, by network and weights, in the order of the blocks.

    Args:
        rows: of one or more tables.
        place: of each block.
    """
    return by_label([row for row in rows if row["place"] in (place, "stem")])


class SignalPropagation(Result):
    """The table of ``signal-propagation``."""

    name = "signal-propagation"
    row = SignalRow
    needed = ("network", "weights", "block", "place", "second_moment", "gradient_second_moment")
    shown: ClassVar[Mapping[str, Shown]] = {
        "weights": Shown(left=True),
        "block": Shown(),
        "name": Shown(left=True, folds=True, gives_way=3),
        "place": Shown(left=True),
        "squared_mean": Shown("channel\nmean^2", formatted(".3g"), gives_way=2),
        "channel_variance": Shown("channel\nvariance", formatted(".3g")),
        "second_moment": Shown("second\nmoment", formatted(".3g")),
        "expected_second_moment": Shown("expected", formatted(".3g"), gives_way=1),
        "growth": Shown(text=formatted(".3g"), gives_way=4),
        "gradient_second_moment": Shown("second moment\nof gradient", formatted(".3g")),
        "gradient_growth": Shown("its growth\nbackwards", formatted(".3g"), gives_way=5),
    }
    figure = "signal.signal_propagation"
    what = "moments of activations and gradients, block by block"

    def notes(self, provenance: Provenance) -> list[str]:
        """Warnings, and on what the numbers rest."""
        return [*map(str, provenance.get("warnings", ())), *super().notes(provenance)]

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """Growth per block, forward and backward, of each curve."""
        headlines = []
        for label, part in curves(rows).items():
            last = part[-1]
            for name, words in (("growth", "Second moment, a block"), ("gradient_growth", "Of gradients, backwards")):
                if isinstance(last.get(name), float):
                    ends = [number(end) for side in ("low", "high") if (end := last.get(f"{name}_{side}"))]
                    interval = f", 95 % {' to '.join(ends)}" if len(ends) == 2 else ""
                    headlines.append(Headline(words, f"times {number(last[name])}", f"{label}{interval}"))
        return headlines

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Forward and backward, block by block."""
        lines = curves(rows)
        charts = []
        for quantity, title in (
            ("second_moment", "Second moment of activations"),
            ("channel_variance", "Average channel variance"),
            ("gradient_second_moment", "Second moment of gradients"),
        ):
            series = [
                one for at, (label, part) in enumerate(lines.items()) for one in _series(part, quantity, label, at)
            ]
            if series:
                first = next(iter(lines.values()))
                more: dict[str, Any] = {
                    "heads": heads(first),
                    "stages": stages_of([row for row in first if row["block"] >= 0]),
                }
                y: Axis = {"label": title.lower(), "log": True}
                charts.append(chart(f"signal {quantity}", f"{title} by block", "block", y, series, **more))
        return charts


def _series(rows: list[Row], quantity: str, label: str, colour: int) -> list[Series]:
    """What was measured and what is expected, where it is above zero."""
    lines = []
    for key, name, line in ((quantity, label, "solid"), (f"expected_{quantity}", f"{label}, expected", "dash")):
        positive = [row for row in rows if isinstance(row.get(key), int | float) and row[key] > 0]
        if positive:
            look = {"key": f"{label} {line}", "name": name, "colour": colour, "line": line}
            series: Series = {"x": [row["block"] for row in positive], "y": [row[key] for row in positive], **look}
            if line == "solid" and any(row.get(f"{key}_low") is not None for row in positive):
                ends = (row.get(f"{key}_low") for row in positive)
                series["low"] = [None if end is None else max(end, 0.0) for end in ends]
                series["high"] = [row.get(f"{key}_high") for row in positive]
                series["band"] = True
            lines.append(series)
    return lines


SIGNAL_PROPAGATION = SignalPropagation()
