"""The table of ``reorder-blocks``: a row for each order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results import measured
from pathlens.results.charts import Chart, chart
from pathlens.results.measured import cell, error_rules, error_series, intact_row, lesioned, with_interval
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column
from pathlens.results.tasks import error_axis


@dataclass(frozen=True, kw_only=True)
class _Order:
    swaps: int = column("", "random exchanges of two blocks, or layers; 0 is the trained order")
    sample: int | None = column("", "number of the random order; missing in the trained order and in summary rows")
    kendall_tau: float | None = column("", "rank correlation of the order with the trained one")
    moved: int | None = column("blocks", "blocks that are not at their trained position")
    blocks: str | None = column("", "those blocks")
    stages: str | None = column("", "their stages")
    kinds: str | None = column("", "their kinds")
    order: str | None = column("", "block that runs at each position")


@dataclass(frozen=True, kw_only=True)
class ReorderingRow(measured.Measured, _Order):
    """One network with its blocks in another order, the trained one, or the means over orders of as many swaps."""


def order_rows(rows: Rows) -> list[Row]:
    """The rows of single orders other than the trained one."""
    return [row for row in lesioned(rows) if row["sample"] is not None and row["kendall_tau"] is not None]


def mean_rows(rows: Rows) -> list[Row]:
    """The rows of means over the orders of as many swaps, by swaps."""
    return sorted((row for row in lesioned(rows) if row["sample"] is None), key=lambda row: row["swaps"])


class Reordering(Result):
    """The table of ``reorder-blocks``; a terminal has no room for the blocks."""

    name = "reorder-blocks"
    row = ReorderingRow
    needed = ("swaps", "sample", "kendall_tau", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        "swaps": Shown(),
        "sample": Shown(text=cell(mean="mean")),
        "kendall_tau": Shown(text=cell(text="{:.3f}".format)),
        "moved": Shown(gives_way=4),
        **measured.SHOWN,
    }
    bar = "error"
    figure = "reorder.reordering"
    what = "blocks in other orders"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The intact network, and the mean of the most swaps."""
        headlines = measured.error_of_intact(rows)
        for row in mean_rows(rows)[-1:]:
            tau = "" if row["kendall_tau"] is None else f"mean Kendall tau {row['kendall_tau']:.3f}"
            headlines.append(with_interval(f"Mean error, {row['swaps']} swaps", row, tau))
        return headlines + measured.differing(rows, "Orders", provenance)

    def notes(self, provenance: Provenance) -> list[str]:
        """See :func:`.measured.notes`."""
        return measured.notes(provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error against Kendall's tau."""
        orders, means = order_rows(rows), [row for row in mean_rows(rows) if row["kendall_tau"] is not None]
        series = []
        if orders:
            points = error_series(orders, "kendall_tau", False, key="orders", name="one order", colour=0)
            series.append({**points, "line": "none"})
        if means:
            points = error_series(means, "kendall_tau", key="means", name="mean of a number of swaps", colour=3)
            series.append({**points, "line": "none"})
        title, label = "Error by distance from the trained order", "Kendall tau with the trained order"
        rules = error_rules(intact_row(rows), "trained order")
        return [chart("reordering", title, label, error_axis(provenance), series, False, rules=rules)] if series else []


REORDER_BLOCKS = Reordering()
