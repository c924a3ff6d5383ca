"""The table of ``loss-surface``: a row for each point of a line or grid around the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from pathlens.results import measured
from pathlens.results.charts import Axis, Chart, Series, chart, contour_map, scaled
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column, formatted
from pathlens.results.tasks import error_axis, error_label, loss_label, loss_unit
from pathlens.results.text import number, percent, summary
from pathlens.tables import Table

BASIN = 0.1
"""In nats, or of another loss without a unit: points at most so much above the smallest loss are the basin."""

CONVEX = 0.1
"""A point counts as convex where the smallest eigenvalue is no more negative than this share of the largest one."""

HIGHEST = 10.0
"""Nats that are drawn: what is above is as high (Li et al. 2018 cut their contours off there too)."""

SMALLEST = 1e-4
"""Nats; what is below is drawn as this, on logarithmic scales."""

_CURVATURE = "nats / weight^2"


@dataclass(frozen=True, kw_only=True)
class SurfaceRow:
    """One point."""

    draw: int = column("", "number of the random directions, from 0; 0 where none were drawn")
    x: float = column("", "coordinate along the first direction; the network itself is at 0")
    y: float | None = column("", "coordinate along the second direction; missing on a line")
    loss: float | None = column("nats", "mean cross-entropy; missing where the network gives NaN or infinity")
    error: float = column("fraction", "share of images classified wrongly")
    error_low: float | None = column("fraction", "lower end of the 95 % interval (Wilson)")
    error_high: float | None = column("fraction", "upper end of it")
    nonfinite: int = column("images", "images for which the network gives NaN or infinity (counted as errors)")
    n: int = column("images", "images evaluated")
    largest_eigenvalue: float | None = column(_CURVATURE, "of the Hessian at this point; missing where not asked for")
    smallest_eigenvalue: float | None = column(_CURVATURE, "likewise; negative where the loss curves down")


def is_grid(rows: Rows) -> bool:
    """Whether there are two directions."""
    return any(row.get("y") is not None for row in rows)


def draws_of(rows: Rows) -> dict[int, list[Row]]:
    """The rows of each draw, in the order of their places."""
    by_draw: dict[int, list[Row]] = {}
    for row in rows:
        by_draw.setdefault(row.get("draw") or 0, []).append(row)
    return {
        draw: sorted(part, key=lambda row: (row.get("y") or 0.0, row["x"])) for draw, part in sorted(by_draw.items())
    }


def lowest(rows: Rows) -> Row | None:
    """The point of the smallest loss; None where no loss is finite."""
    finite = [row for row in rows if row["loss"] is not None]
    # of equal ones the nearest to the network
    return min(finite, key=lambda row: (row["loss"], math.hypot(row["x"], row.get("y") or 0.0)), default=None)


def has_basin(rows: Rows) -> bool:
    """Whether the smallest loss lies inside the line or grid, and not on its edge or nowhere."""
    best = lowest(rows)
    if best is None:
        return False
    edge = max(abs(row["x"]) for row in rows)
    return abs(best["x"]) < edge and abs(best.get("y") or 0.0) < edge


def basin_share(rows: Rows) -> float | None:
    """Share of the points whose loss is within 0.1 nat of the smallest one; None where no loss is finite.

    Args:
        rows: of one draw.
    """
    best = lowest(rows)
    if best is None:
        return None
    return sum(row["loss"] is not None and row["loss"] <= best["loss"] + BASIN for row in rows) / len(rows)


def eigenvalue_ratio(row: Row) -> float | None:
    """By how much the loss curves down where it does, relative to how it curves up: |smallest| / |largest| eigenvalue.

    0 where the smallest is not negative; None where the eigenvalues were not computed.

    Source: Li et al. 2018, section 6.
    """
    largest, smallest = row.get("largest_eigenvalue"), row.get("smallest_eigenvalue")
    if largest is None or smallest is None:
        return None
    if smallest >= 0:
        return 0.0
    return abs(smallest / largest) if largest else math.inf


def convexity_share(rows: Rows) -> float | None:
    """Share of the points that count as convex, of those whose eigenvalues are known; None where none are."""
    ratios = [ratio for row in rows if (ratio := eigenvalue_ratio(row)) is not None]
    return sum(ratio <= CONVEX for ratio in ratios) / len(ratios) if ratios else None


def of_curvature(provenance: Provenance) -> list[Headline]:
    """What was measured of the curvature at the network itself."""
    unit = loss_unit(provenance, _CURVATURE)
    curvature = provenance.get("curvature")
    if not isinstance(curvature, Mapping):
        return []
    known = {name: value for name, value in curvature.items() if isinstance(value, int | float)}
    headlines = []
    detail = str(provenance.get("curvature_of", ""))
    for name, label in (("largest", "Largest curvature"), ("smallest", "Smallest curvature")):
        if name in known:
            headlines.append(Headline(label, f"{number(known[name])} {unit}", detail))
    if "trace" in known:
        error = known.get("trace_standard_error")
        value = number(known["trace"]) + ("" if error is None else f" ± {number(error)}")
        headlines.append(Headline("Trace of the Hessian", f"{value} {unit}", "with its standard error"))
    return headlines


class LossSurface(Result):
    """The table of ``loss-surface``."""

    name = "loss-surface"
    row = SurfaceRow
    needed = ("draw", "x", "y", "loss", "error", "nonfinite")
    shown: ClassVar[Mapping[str, Shown]] = {
        "x": Shown(text=formatted(".3g")),
        "y": Shown(text=formatted(".3g")),
        "loss": measured.ALONE["loss"],
        "error": measured.ALONE["error"],
        "error_low": measured.ALONE["error_low"],
        "largest_eigenvalue": Shown("largest\neigenvalue", formatted(".3g"), gives_way=1),
        "smallest_eigenvalue": Shown("smallest\neigenvalue", formatted(".3g"), gives_way=2),
    }
    bar = "error"
    figure = "surface.loss_surface"

    def fits(self, table: Table) -> bool:
        """Whether it is such a table, and every point has a place."""
        return super().fits(table) and None not in table.values("x")

    def listed(self, rows: Rows) -> Rows:
        """Of a grid the points on its axes."""
        return [row for row in rows if row["x"] == 0 or row["y"] == 0] if is_grid(rows) else rows

    def printed(self, rows: Rows) -> Mapping[str, Shown]:
        """Draws where there are several, and eigenvalues where they are known."""
        several = len(draws_of(rows)) > 1
        shown = {"draw": Shown(), **self.shown} if several else dict(self.shown)
        return {name: how for name, how in shown.items() if any(row[name] is not None for row in rows)}

    def notes(self, provenance: Provenance) -> list[str]:
        """What was moved and how, the numbers beside the picture, and on what they rest."""
        lines = [
            *map(str, provenance.get("warnings", ())),
            f"directions: {'; '.join(provenance['directions'])}; parameters of one dimension: "
            f"{provenance['one_dimensional']}; batch norm statistics: {provenance['batch_norm']}",
        ]
        lines += [f"{item.label}: {item.value}" for item in of_curvature(provenance)]
        return [*lines, summary(provenance)]

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """Line or grid."""
        return f"loss on a {'grid' if is_grid(rows) else 'line'} around the weights"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The basin, where the smallest loss lies, and the curvature."""
        parts = list(draws_of(rows).values())
        shares = [share for part in parts if (share := basin_share(part)) is not None]
        headlines = []
        unit = loss_unit(provenance)
        centre = next((row for row in rows if row["x"] == 0 and not row.get("y")), None)
        if centre is not None and centre["loss"] is not None:
            value = f"{centre['loss']:.4f} {unit}".rstrip()
            headlines.append(Headline("Loss of the network itself", value, "at coordinate 0"))
        if shares and (not unit or unit == "nats"):  # what is near depends on the unit of squared errors
            detail = f"share of the points within {BASIN} {unit.removesuffix('s')} of the smallest loss".replace(
                "  ", " "
            )
            if not all(map(has_basin, parts)):
                detail += "; which lies on the edge, so that this is no basin"
            headlines.append(Headline("Basin", percent(sum(shares) / len(shares)), detail))
        convex = convexity_share(rows)
        if convex is not None:
            detail = f"share of the points where the smallest eigenvalue is above -{CONVEX:g} times the largest"
            headlines.append(Headline("Convexity", percent(convex), detail))
        return [*headlines, *of_curvature(provenance)]

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Loss and error along the line; of a grid as a map, and along its two axes."""
        label = loss_label(provenance, "loss (nats)")
        axes: tuple[tuple[str, float, Axis], ...] = (
            ("loss", 1, {"label": label}),
            ("error", 100, error_axis(provenance)),
        )
        charts = []
        surfaces = surfaces_of(rows)
        if surfaces:
            title = "Loss and error on the plane around the weights"
            layers = _layers(rows, label, provenance)
            charts.append(contour_map("surface map", title, "first direction", "second direction", surfaces, layers))
        for what, factor, y in axes:
            series = [one for one in lines_of(rows, what, factor) if any(value is not None for value in one["y"])]
            if series:
                title = f"{what.capitalize()} around the weights"
                charts.append(chart(f"surface {what}", title, "coordinate", y, series, whole=False))
        return charts


def _layers(rows: Rows, label: str, provenance: Provenance) -> list[dict[str, Any]]:
    low, high = drawn_losses(rows, label)
    return [
        {"key": "loss", "name": "loss", "label": label, "log": True, "low": low, "high": high},
        {"key": "error", "name": "error", "label": error_label(provenance), "percent": True},
    ]


def drawn_losses(rows: Rows, label: str) -> tuple[float, float]:
    """The smallest and the largest loss that are drawn: of squared errors, whose unit may be any, those that there are.

    Args:
        rows: of the table.
        label: of the loss.
    """
    losses = [row["loss"] for row in rows if row["loss"]]
    if label.startswith("squared error") and losses:
        return min(losses), max(losses)
    return SMALLEST, HIGHEST


def surfaces_of(rows: Rows) -> list[dict[str, Any]]:
    """Loss and error of each draw on its grid, for a contour map; none of a line, or of a grid that has gaps."""
    surfaces: list[dict[str, Any]] = []
    by_draw = draws_of(rows)
    for draw, part in by_draw.items():
        # in the order of the places: y by y, each from the first x on
        x, y = (sorted({row[axis] for row in part if row.get(axis) is not None}) for axis in ("x", "y"))
        if min(len(x), len(y)) < 2 or [(row["x"], row.get("y")) for row in part] != list(_places(x, y, len(part))):
            continue
        surface: dict[str, Any] = {"name": f"draw {draw}" if len(by_draw) > 1 else "", "x": x, "y": y}
        values = {
            "loss": scaled((row["loss"] for row in part), 1),
            "error": scaled((row["error"] for row in part), 100),
        }
        surfaces.append(surface | values)
    return surfaces


def _places(x: Sequence[float], y: Sequence[float], most: int) -> Iterator[tuple[float, float]]:
    """The points of a grid, and no more than one too many: what a file says need be no grid at all."""
    return islice(((across, up) for up in y for across in x), most + 1)


def lines_of(rows: Rows, what: str, factor: float = 1) -> list[Series]:
    """Loss or error along lines through the network: of each draw, and of a grid along each axis.

    Args:
        rows: of the table.
        what: ``loss`` or ``error``.
        factor: of the values.
    """
    series: list[Series] = []
    grid = is_grid(rows)
    for draw, part in draws_of(rows).items():
        for along, across, words in (("x", "y", "first direction"), ("y", "x", "second direction")):
            if along == "y" and not grid:
                continue
            line = [row for row in part if not row.get(across)]
            many = len(draws_of(rows)) > 1
            one: dict[str, Any] = {
                "key": f"{draw} {along}",
                "name": f"{words}, draw {draw}" if many else words,
                "colour": draw if many else "xy".index(along),
                "x": [row[along] for row in line],
                "y": scaled((row[what] for row in line), factor),
            }
            if what == "error" and all(row.get("error_low") is not None for row in line):
                one |= {side: scaled((row[f"error_{side}"] for row in line), factor) for side in ("low", "high")}
                one["band"] = True
            series.append(one)
    return series


LOSS_SURFACE = LossSurface()
