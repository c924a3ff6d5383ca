"""The table of ``path-gradients``: gradient norms of a path length in each row, and what the length contributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

from pathlens.estimators import estimators
from pathlens.results.charts import Axis, Chart, Series, chart, cut_off
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column
from pathlens.results.text import number, said, summary

_BELOW_PEAKS = 3  # powers of ten below the peak of the smallest curve of contributions that are drawn
_READABLE = 10**15  # numbers of paths below this are written with all digits
_MOST_BLOCKS = 100_000  # a table that was read back may state any number of paths


METHODS = {estimator.name: estimator for estimator in sorted(estimators(), key=lambda estimator: estimator.rank)}
"""By name; a figure shades the effective lengths of the first that was run."""


@dataclass(frozen=True, kw_only=True)
class _Length:
    """What is known without an estimate."""

    length: int = column("blocks", "number of branches that a path takes")
    n_paths: int = column("", "number of paths of this length, exact")


# dataclass fields of the last base come first
_BASES = (*(estimator.columns for estimator in estimators()), *(estimator.last_columns for estimator in estimators()))


@dataclass(frozen=True, kw_only=True)
class PathRow(*reversed([_Length, *(base for base in _BASES if base is not object)])):  # type: ignore[misc]
    """All paths of one length."""


def contributions(rows: Rows, method: str) -> list[float | None]:
    """What each length contributes; see :meth:`pathlens.estimators.estimator.Estimator.contributions`.

    Args:
        rows: of the table.
        method: ``sampled`` (the paper's), ``exact`` or ``signed`` (from the second moment).
    """
    return METHODS[method].contributions(rows)


def all_paths(provenance: Provenance) -> int | None:
    """The number of all paths of the network; None where that is not stated, as by older tables, or is no number."""
    stated = provenance.get("all_paths")
    if isinstance(stated, str):  # beyond 64 bits
        try:
            return int(stated)
        except ValueError:
            return None
    return stated if isinstance(stated, int) else None


def path_shares(rows: Rows, stated: int | None = None) -> list[float]:
    """Percent of all paths of the network that have each length, also where the table leaves long ones out.

    Where their number is not known, blocks are taken for a chain if the counts are those of one: one path chooses no
    branch where it need not, and as many choose one as there are blocks with a choice.

    Args:
        rows: of the table.
        stated: the number of all paths (:func:`all_paths`).
    """
    counts = [int(row["n_paths"]) for row in rows]
    shortest = min(row["length"] for row in rows)
    blocks = next((count for row, count in zip(rows, counts, strict=True) if row["length"] == shortest + 1), 0)
    everything = sum(counts)
    if stated is not None and stated >= everything:
        everything = stated
    elif 0 < blocks <= _MOST_BLOCKS and all(math.comb(blocks, place) == count for place, count in enumerate(counts)):
        everything = 2**blocks
    return [100 * (count / everything) for count in counts] if min(counts) >= 0 and everything else []


def contribution_series(rows: Rows) -> tuple[dict[str, Series], str]:
    """What each length contributes, by method that was run, in one unit: the loss per unit of input.

    Lengths that contribute less than a thousandth of the smallest curve's peak are left out, with the words for it.
    """
    series: dict[str, Series] = {}
    for method, estimator in METHODS.items():

        def contributed(column: str, of_one: bool = estimator.of_one) -> list[float | None]:
            return [_times(row.get(column), int(row["n_paths"]) if of_one else 1) for row in rows]

        curve: Series = {"x": [row["length"] for row in rows], "y": contributed(estimator.norm)}
        if estimator.interval is not None:
            curve |= dict(zip(("low", "high"), map(contributed, estimator.interval), strict=True))
        if any(value and value > 0 for value in curve["y"]):
            series[method] = curve
    peaks = [max(value for value in curve["y"] if value and value > 0) for curve in series.values()]
    decades = math.ceil(math.log10(max(peaks)) - math.log10(min(peaks))) + _BELOW_PEAKS if peaks else 0
    cut, note = cut_off(list(series.values()), decades)
    return dict(zip(series, cut, strict=True)), note


def _times(norm: float | None, count: int) -> float | None:
    """A product with a number of any size; None where it is beyond floats."""
    if norm is None:
        return None
    try:
        return float(Fraction(norm) * count)
    except OverflowError:
        return None


def effective_span(provenance: Provenance) -> tuple[str, int, int] | None:
    """Method, first and last effective length that a figure shades."""
    effective = provenance.get("effective")
    for method in METHODS:
        span = effective.get(method) if isinstance(effective, dict) else None
        if isinstance(span, dict) and _is_span(span):
            return method, span["first"], span["last"]
    return None


def _is_span(span: Any) -> bool:
    return isinstance(span, dict) and isinstance(span.get("first"), int) and isinstance(span.get("last"), int)


def _ends(span: Mapping[str, Any]) -> str:
    """95 % intervals of the ends of an effective range, where they are known."""
    ends = [span.get(f"{end}_{side}") for end in ("first", "last") for side in ("low", "high")]
    return " (95 % intervals {} to {} and {} to {})".format(*ends) if all(isinstance(end, int) for end in ends) else ""


def _decay(provenance: Provenance) -> dict[str, Any] | None:
    """How the mean norm falls; None where that is not said, or not in numbers."""
    line = provenance.get("decay")
    kinds = {"slope": float, "low": float, "high": float, "first": int, "last": int}
    said_all = isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in kinds.items())
    return line if said_all else None


def _exact_count(row: Row, name: str) -> str:
    count = row[name]
    return f"{count:,}" if count < 10**9 else f"{Decimal(count):.3e}"


_SHOWN = {"length": Shown(), "n_paths": Shown("paths", _exact_count, gives_way=2)}
_SHARE_SHOWN = Shown("share %", lambda row, name: "" if row[name] is None else f"{100 * row[name]:.2f}")


class PathProfile(Result):
    """The table of ``path-gradients``."""

    name = "path-gradients"
    row = PathRow
    needed = ("length", "n_paths", "total_norm", "path_norm_mean", "path_norm_rms")
    shown: ClassVar[Mapping[str, Shown]] = {
        name: shown
        for named in (_SHOWN, *(estimator.shown for estimator in estimators()))
        for name, shown in named.items()
    }
    figure = "paths.path_gradients"
    what = "gradient norms by path length"

    def printed(self, rows: Rows) -> Mapping[str, Shown]:
        """Of the methods that were run, and the share of what a length contributes at the end."""
        in_order = {f.name: self.shown[f.name] for f in fields(self.row) if f.name in self.shown}
        columns = {**in_order, _share_column(rows): _SHARE_SHOWN}
        return {name: how for name, how in columns.items() if any(row[name] is not None for row in rows)}

    def bars(self, rows: Rows) -> list[float] | None:
        """Shares of what a length contributes, where they are known."""
        shares = [row[_share_column(rows)] for row in rows]
        return None if all(share is None for share in shares) else [share or 0.0 for share in shares]

    @property
    def bars_title(self) -> str:
        """What the bars show."""
        return "share"

    def notes(self, provenance: Provenance) -> list[str]:
        """Lesions, effective lengths, how exact the sums are, and on what the numbers rest."""
        lines = []
        lesion = provenance.get("lesion", {})
        for part, key in (("branches", "deleted_blocks"), ("shortcuts", "deleted_shortcuts")):
            if lesion.get(key):
                lines.append(f"without the {part} of blocks {', '.join(map(str, lesion[key]))}")
        for method, effective in provenance.get("effective", {}).items():
            lines.append(
                f"effective lengths by {METHODS[method].on_terminal}: {effective['first']} to {effective['last']}"
                f"{_ends(effective)} hold "
                f"{100 * effective['share_of_contribution']:.1f} % with {100 * effective['share_of_paths']:.3g} % of "
                "all paths"
            )
            if effective["blocks_per_batch"]:
                lines[-1] += f"; {effective['blocks_per_batch']} blocks a batch centre a random sub-network on them"
        if "max_length" in provenance:
            lines.append(
                f"paths of more than {provenance['max_length']} branches were left out: what is of all lengths is not "
                "known (effective lengths, cancellation, shares of the contribution)"
            )
        if line := _decay(provenance):
            lines.append(
                f"log10 of the mean path norm changes by {line['slope']:+.3f} per block (95 % interval "
                f"{line['low']:+.3f} to {line['high']:+.3f}): a line through lengths {line['first']} to {line['last']}"
            )
            if isinstance(line.get("explained"), float):
                lines[-1] += f", which explains {100 * line['explained']:.1f} % of the variance"
        if left := provenance.get("cancellation"):
            lines.append(
                f"at length {left['length']} the sum over all paths is {100 * left['left']:.3g} % of their number "
                f"times the mean norm (95 % interval {100 * left['low']:.3g} to {100 * left['high']:.3g} %)"
            )
        difference = provenance.get("relative_difference_to_autograd")
        if difference is not None:
            lines.append(
                f"sum over lengths against autograd's gradient: relative difference {difference:.1e}; left out: "
                f"{provenance['left_out']}"
            )
        return [*lines, summary(provenance)]

    def figure_options(self, provenance: Provenance) -> dict[str, Any]:
        """The effective lengths."""
        span = effective_span(provenance)
        return {"effective": span and span[1:]}

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The norm of the gradient, how that of a path falls, the effective lengths, and how exact the sums are."""
        headlines = []
        if isinstance(provenance.get("gradient_norm"), float):
            headlines.append(
                Headline("Gradient norm", number(provenance["gradient_norm"]), f"at {said(provenance.get('at'))}")
            )
        if line := _decay(provenance):
            interval = f"95\N{NO-BREAK SPACE}% interval {line['low']:+.3f} to {line['high']:+.3f} of a line through "
            value = f"{line['slope']:+.3f} decades per block"
            through = f"{interval}lengths {line['first']} to {line['last']}"
            headlines.append(Headline("Slope of the mean path norm", value, through))
        effective = provenance.get("effective")
        for method, span in effective.items() if isinstance(effective, dict) else ():
            if _is_span(span):
                parts = [
                    f"{number(100 * span[name])}\N{NO-BREAK SPACE}% {of}"
                    for name, of in (
                        ("share_of_contribution", "of the contribution"),
                        ("share_of_paths", "of all paths"),
                    )
                    if isinstance(span.get(name), float)
                ]
                words = METHODS[method].in_headline if method in METHODS else method
                value = f"{span['first']} to {span['last']}"
                headlines.append(Headline(f"Effective lengths, {words}", value + _ends(span), ", ".join(parts)))
        if isinstance(longest := provenance.get("max_length"), int):
            left_out = f"paths of more than {longest} branches were left out"
            headlines.append(Headline("Effective lengths", "not known", left_out))
        difference = provenance.get("relative_difference_to_autograd")
        if isinstance(difference, float):
            headlines.append(Headline("Sum over lengths against autograd", number(difference), "relative difference"))
        return headlines

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Number of paths, norm of one, and what all of a length contribute."""
        rows = sorted(rows, key=lambda row: row["length"])
        span = effective_span(provenance)
        shade = span and {"first": span[1], "last": span[2], "name": f"effective lengths ({span[0]})"}
        lengths, x = [row["length"] for row in rows], "path length (blocks)"
        shares = path_shares(rows, all_paths(provenance))
        paths = {"key": "paths", "name": "share of all paths", "colour": 7, "x": lengths, "y": shares}
        heads = {str(row["length"]): f"length {row['length']}: {_count_words(row['n_paths'])}" for row in rows}
        y: Axis = {"label": "share of all paths (%)", "percent": True}
        charts = [chart("paths by length", "Number of paths", x, y, [paths], shade=shade, heads=heads)]
        for family, title, label, (series, note) in (
            ("norm of a path", "One path", "gradient norm of one path", one_path_series(rows)),
            ("contribution", "All paths of a length", "gradient norm of a length", _in_charts(rows)),
        ):
            y = {"label": label, "log": True, "note": note}
            charts += [chart(family, title, x, y, series, shade=shade)] if series else []
        return charts


def _share_column(rows: Rows) -> str:
    return "contribution_share" if rows[0]["contribution_share"] is not None else "total_share"


def one_path_series(rows: Rows) -> tuple[list[Series], str]:
    """Norms of single paths: those of sampled paths, and the root mean square of all; and what is left out."""
    lengths = [row["length"] for row in rows]
    norms = {
        name: [row.get(f"path_norm_{name}") for row in rows]
        for name in ("mean", "low", "high", "median", "q05", "q95", "rms")
    }
    series: list[Series] = []
    if any(norms["mean"]):
        ends = {"low": norms["low"], "high": norms["high"]}
        band = {"low": norms["q05"], "high": norms["q95"], "band": True}
        name = "mean of sampled paths, 95 % interval"
        series.append({"key": "sampled", "name": name, "y": norms["mean"], "colour": 0, **ends})
        look = {"line": "dot", "colour": 0, **band}
        series.append({"key": "median", "name": "median and 5 to 95 %", "y": norms["median"], **look})
    if any(norms["rms"]):
        look = {"line": "dash", "colour": 1}
        series.append({"key": "rms", "name": "root mean square", "y": norms["rms"], **look})
    return cut_off([{"x": lengths, **item} for item in series])


def _in_charts(rows: Rows) -> tuple[list[Series], str]:
    """Contributions with their looks, in the order of the estimators."""
    contributed, note = contribution_series(rows)
    looks = [estimator for estimator in estimators() if estimator.name in contributed]
    return [{"key": e.name, "name": e.in_chart, **e.look, **contributed[e.name]} for e in looks], note


def _count_words(count: int) -> str:
    """Exact where it can be read; the table has all digits."""
    return f"{count:,} path{'' if count == 1 else 's'}" if count < _READABLE else f"{number(count)} paths"


PATH_GRADIENTS = PathProfile()
