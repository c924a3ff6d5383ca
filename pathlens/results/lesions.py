"""The tables of ``delete-blocks`` and ``delete-skips``: a row for each lesioned network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results import measured
from pathlens.results.charts import Chart, Series, block_head, chart, stages_of
from pathlens.results.measured import cell, error_rules, error_series, intact_row, lesioned, with_interval
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column
from pathlens.results.tasks import error_axis
from pathlens.results.text import percent


@dataclass(frozen=True, kw_only=True)
class _Deletion:
    block: int | None = column(
        "",
        "index of the deleted block or, in a table by layers, layer, from 0; missing for the intact network and sets",
    )
    name: str | None = column("", "module of the deleted block")
    stage: int | None = column("", "stage of the deleted block, from 0")
    kind: str | None = column("", "shortcut of the deleted block, or layer of a plain network")
    count: int = column("blocks", "number of deleted blocks, or layers; 0 is the intact network")
    sample: int | None = column("", "number of the random set; missing where nothing was drawn and in summary rows")
    blocks: str | None = column("", "all deleted blocks")
    stages: str | None = column("", "their stages")
    kinds: str | None = column("", "their kinds")


@dataclass(frozen=True, kw_only=True)
class LesionRow(measured.Measured, _Deletion):
    """One network with some blocks deleted, the intact one, or the means over sets of a size."""


_SETS = {
    "count": Shown(),
    "sample": Shown(text=cell(mean="mean")),
    "blocks": Shown(text=cell("intact", text=lambda blocks: blocks.replace(",", ", ")), left=True, folds=True),
    **measured.SHOWN,
}


_INSTEAD = {
    "mean": ", the mean of their branches in their place",
    "resample": ", the branches of other images in their place",
}


def single_rows(rows: Rows) -> list[Row]:
    """The rows of one deleted block each, by block; none where sets were deleted."""
    if any(row["count"] != 1 for row in lesioned(rows)):
        return []
    single = [row for row in lesioned(rows) if row["block"] is not None and row["sample"] is None]
    return sorted(single, key=lambda row: row["block"])


def mean_rows(rows: Rows) -> list[Row]:
    """The rows of means over the sets of a size, by size."""
    means = [row for row in lesioned(rows) if row["sample"] is None and row["block"] is None]
    return sorted(means, key=lambda row: row["count"])


def name_of_means(means: Series) -> str:
    """What the line of means over sets is called: where all sets that exist were measured, there is no interval.

    Args:
        means: as of :func:`.error_series`.
    """
    ends = means.get("low", ())
    if all(end is None for end in ends):
        return "mean over sets"
    return "mean over sets, 95 % interval" + (" unless all were measured" if None in ends else "")


def set_rows(rows: Rows) -> list[Row]:
    """The rows of single sets of blocks."""
    return [row for row in lesioned(rows) if row["sample"] is not None or row["block"] is not None]


class Lesions(Result):
    """The table of a verb that deletes: its name, what it deletes (in the singular), and the figure."""

    row = LesionRow
    needed = ("block", "name", "count", "sample", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        "block": Shown(text=cell()),
        "name": Shown(text=cell("intact"), left=True, folds=True, gives_way=1),
        "stage": Shown(text=cell(), gives_way=5),
        "kind": Shown(text=cell(), left=True, gives_way=4),
        **measured.SHOWN,
    }
    bar = "error"

    def __init__(self, name: str, part: str, figure: str) -> None:
        self.name = name
        self.part = part
        self.figure = figure

    def printed(self, rows: Rows) -> Mapping[str, Shown]:
        """Single blocks by name, sets by their blocks."""
        return _SETS if any(row["sample"] is not None for row in rows) else self.shown

    def unit(self, rows: Rows, provenance: Provenance) -> str:
        """What is deleted, in the singular: of a plain network, and where blocks are grouped so, layers.

        Args:
            rows: of the table.
            provenance: of the table.
        """
        named = (row.get(name) for row in lesioned(rows) for name in ("kind", "kinds"))
        kinds = [str(kind) for kind in named if kind is not None]
        if self.part != "block" or not kinds:
            return self.part
        return "layer" if all(kind.startswith("layer") for kind in kinds) else str(provenance.get("group", self.part))

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """Which blocks were deleted."""
        single, unit = len(single_rows(rows)), self.unit(rows, provenance)
        sets = f"runs of neighbouring {unit}s" if provenance.get("contiguous") else f"random sets of {unit}s"
        what = f"each of {single} {unit}s deleted in turn" if single else f"{sets} deleted"
        return what + _INSTEAD.get(str(provenance.get("replace")), "")

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The intact network, worst block and median or the means of sizes, and how many differ from intact."""
        headlines = measured.error_of_intact(rows)
        single, means = single_rows(rows), mean_rows(rows)
        if not single:
            ends = means if len(means) < 2 else [means[0], means[-1]]
            headlines += [with_interval(f"Mean error, {row['count']} deleted", row) for row in ends]
            return headlines + measured.differing(rows, "Sets", provenance)
        worst = max(single, key=lambda row: row["error"])
        unit = self.unit(rows, provenance)
        headlines.append(with_interval("Largest error", worst, f"{unit} {worst['block']}, {worst['name']}"))
        middle = statistics.median(row["error"] for row in single)
        headlines.append(Headline(f"Median over {unit}s", percent(middle)))
        return headlines + measured.differing(rows, "Deletions", provenance)

    def notes(self, provenance: Provenance) -> list[str]:
        """See :func:`.measured.notes`."""
        return measured.notes(provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error block by block, or against how many."""
        single = single_rows(rows)
        return [self._by_block(rows, single, provenance)] if single else self._by_count(rows, provenance)

    def _by_block(self, rows: Rows, single: list[Row], provenance: Provenance) -> Chart:
        kinds, unit = list(dict.fromkeys(str(row.get("kind")) for row in single)), self.unit(rows, provenance)
        series = error_series(single, "block", key="error", name=f"{unit} deleted, 95 % interval", colour=0)
        if len(kinds) > 1:
            series["marks"] = [kinds.index(str(row.get("kind"))) for row in single]
        label = f"deleted {unit}"
        by_block = chart("error by block", f"Error by {label}", label, error_axis(provenance), [series])
        return {
            **by_block,
            "rules": error_rules(intact_row(rows), "intact network"),
            "heads": {str(row["block"]): block_head(row) for row in single},
            "stages": stages_of(single),
            "kinds": kinds if len(kinds) > 1 else [],
        }

    def _by_count(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        means, sets = mean_rows(rows), set_rows(rows)
        series = []
        if means:
            of_means = error_series(means, "count", key="mean", colour=0)
            series.append({**of_means, "name": name_of_means(of_means)})
        if sets:
            series.append(measured.set_series(sets))
        return measured.chart_by_count(rows, series, self.unit(rows, provenance), provenance)


DELETE_BLOCKS = Lesions("delete-blocks", "block", "lesions.deletion")
DELETE_SKIPS = Lesions("delete-skips", "shortcut", "lesions.skips")
