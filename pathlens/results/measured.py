"""What the tables of lesions share: errors with their intervals, the intact network, and means of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pathlens.results.charts import Chart, Series, chart, scaled
from pathlens.results.result import Headline, Provenance, Row, Rows, Shown, column
from pathlens.results.tasks import WORDS, error_axis
from pathlens.results.text import percent, summary


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The columns that end a table of lesions. As the first base of a row, its columns come last."""

    error: float = column("fraction", "share of images classified wrongly; of a summary row the mean over samples")
    error_low: float | None = column(
        "fraction", "lower end of the 95 % interval: Wilson's, of a summary row Student's over samples"
    )
    error_high: float | None = column("fraction", "upper end of that interval")
    difference: float | None = column(
        "fraction",
        "error minus that of the intact network on the same images; missing for that network, mean over samples of a "
        "summary row",
    )
    difference_low: float | None = column(
        "fraction", "lower end of its 95 % interval: Tango's of paired rates, of a summary row Student's over samples"
    )
    difference_high: float | None = column("fraction", "upper end of that interval")
    lost: int | None = column("images", "those that the intact network alone classifies correctly")
    gained: int | None = column("images", "those that this network alone classifies correctly, not the intact one")
    p: float | None = column(
        "", "McNemar's exact test of no difference, two-sided; missing for the intact network and in summary rows"
    )
    p_holm: float | None = column(
        "", "p after Holm's correction; the family is all different lesioned networks of this table, without means"
    )
    loss: float | None = column("nats", "mean cross-entropy; missing where the lesioned network gives NaN or infinity")
    nonfinite: int = column("images", "images for which the lesioned network gives NaN or infinity (counted as errors)")
    n: int = column("images", "images evaluated")


def _interval(row: Row, name: str) -> str:
    low, high = row["error_low"], row["error_high"]
    return "" if low is None else f"{100 * low:.2f} - {100 * high:.2f}"


LEVEL = 0.05
"""Of the tests that are counted."""

_SMALLEST = 1e-4  # of p-values that are printed as they are


def points(row: Row, name: str) -> str:
    """A difference of errors, in percentage points."""
    return "" if row[name] is None else f"{100 * row[name]:+.2f}"


def p_value(row: Row, name: str) -> str:
    """A p value; of a small one that it is."""
    if row[name] is None:
        return ""
    return f"{row[name]:.4f}" if row[name] >= _SMALLEST else f"<{_SMALLEST:.4f}"


NEEDED = ("error", "error_low", "error_high")
ALONE = {
    "error": Shown("error %", lambda row, name: f"{100 * row[name]:.2f}"),
    "error_low": Shown("95 % interval", _interval),
    "loss": Shown(text=lambda row, name: "not finite" if row[name] is None else f"{row[name]:.4f}"),
}
"""How a terminal prints what was measured of one network."""

_COMPARED = {"difference": Shown(text=points, gives_way=2), "p_holm": Shown("p (Holm)", p_value, gives_way=3)}

SHOWN = {**{name: ALONE[name] for name in ("error", "error_low")}, **_COMPARED, "loss": ALONE["loss"]}
"""Likewise, and how it differs from the intact network."""


def notes(provenance: Provenance) -> list[str]:
    """Lines under a table of lesions: how networks were compared, of what few exist, and on what the numbers rest.

    Args:
        provenance: of a table that was just made.
    """
    lines = []
    if compared := provenance.get("comparison"):
        lines.append(
            f"networks that differ from the intact one at {100 * LEVEL:.0f} %: {compared['differ']} of "
            f"{compared['networks']} ({compared['test']}), {compared['differ_corrected']} after "
            f"{str(compared['correction']).split(',')[0]} correction"
        )
    if few := provenance.get("few"):
        lines.append(few)
    return [*lines, summary(provenance)]


def differing(rows: Rows, what: str, provenance: Provenance) -> list[Headline]:
    """How many networks differ from the intact one, if the table has tests.

    Args:
        rows: of the table; an order that was drawn for several numbers of swaps counts once.
        what: lesions are called, in the plural.
        provenance: of the table, which names its task.
    """
    tested = distinct(rows, "order", "blocks")
    both = [(row["p"], row["p_holm"]) for row in tested if None not in (row.get("p"), row.get("p_holm"))]
    if not both:
        return []
    single, corrected = (sum(p <= LEVEL for p in family) for family in zip(*both, strict=True))
    value = f"{single} of {len(both)}, {corrected} after Holm"
    examples, units = WORDS.get(str(provenance.get("task")), ("images", ""))
    test = f"paired t test over the same {examples}" if units else "McNemar's exact test on the same images"
    detail = f"{test}, {100 * LEVEL:.0f}\N{NO-BREAK SPACE}%"
    return [Headline(f"{what} that differ from the intact network", value, detail)]


def cell(intact: str = "-", mean: str = "", text: Callable[[Any], str] = str) -> Callable[[Row, str], str]:
    """How a column of lesions is printed, where the row of the intact network or of means may have no value."""

    def shown(row: Row, name: str) -> str:
        if row[name] is None:
            return intact if is_intact(row) else mean
        return text(row[name])

    return shown


def members(row: Row) -> list[int]:
    """The blocks that a row lists in its column ``blocks``; none where it lists none.

    A data frame reads a single block as a number.
    """
    listed = row["blocks"]
    return [] if listed in (None, "") else [int(float(block)) for block in str(listed).split(",")]


def distinct(rows: Rows, *names: str) -> list[Row]:
    """Each lesion once: rows that say the same in the first of some columns that has a value are of one lesion.

    Args:
        rows: of a table; one without a value in any of the columns is of a lesion of its own.
        names: of the columns.
    """
    told = {next(filter(None, map(row.get, names)), number): row for number, row in enumerate(rows)}
    return list(told.values())


def is_intact(row: Row) -> bool:
    """Whether a row is of the network without a lesion."""
    return row.get("count") == 0 or row.get("swaps") == 0


def intact_row(rows: Rows) -> Row | None:
    """The first row of the intact network."""
    return next((row for row in rows if is_intact(row)), None)


def lesioned(rows: Rows) -> list[Row]:
    """The rows of lesioned networks, and their means."""
    return [row for row in rows if row["error"] is not None and not is_intact(row)]


def with_interval(label: str, row: Row, detail: str = "") -> Headline:
    """The error of a row as a headline."""
    interval = ""
    if row["error_low"] is not None and row["error_high"] is not None:
        interval = f"95\N{NO-BREAK SPACE}% interval {100 * row['error_low']:.2f} to {100 * row['error_high']:.2f}"
    return Headline(label, percent(row["error"]), "; ".join(filter(None, (detail, interval))))


def error_of_intact(rows: Rows) -> list[Headline]:
    """The headline of the intact network, if the table has its error."""
    intact = intact_row(rows)
    return [with_interval("Error of the intact network", intact)] if intact and intact["error"] is not None else []


def error_series(rows: Rows, x: str, intervals: bool = True, **look: Any) -> Series:
    """Errors in percent against a column, with their intervals where there are any."""
    series: Series = {"x": [row[x] for row in rows], "y": scaled((row["error"] for row in rows), 100)}
    if intervals and any(row["error_low"] is not None for row in rows):
        series |= {side: scaled((row[f"error_{side}"] for row in rows), 100) for side in ("low", "high")}
    return {**series, **look}


def error_rules(row: Row | None, name: str) -> list[Series]:
    """The error of a row as a horizontal line of a chart."""
    if row is None:
        return []
    error, low, high = scaled([row["error"], row["error_low"], row["error_high"]], 100)
    return [] if error is None else [{"y": error, "low": low, "high": high, "name": name}]


def chart_by_count(rows: Rows, series: list[Series], part: str, provenance: Provenance) -> list[Chart]:
    """Error against how many parts are deleted, with the intact network as a rule; none without series.

    Args:
        rows: of the table.
        series: what is drawn.
        part: what is deleted, in the singular.
        provenance: of the table.
    """
    label = f"number of deleted {part}s"
    rules = error_rules(intact_row(rows), "intact network")
    y = error_axis(provenance)
    return [chart("error by count", f"Error by {label}", label, y, series, rules=rules)] if series else []


def set_series(sets: Rows) -> Series:
    """The errors of single sets of blocks, as faint points."""
    return {**error_series(sets, "count", False, key="sets", name="one set", colour=0), "line": "none", "faint": True}
