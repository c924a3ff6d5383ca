"""The table of ``reorder-blocks --runs``: a row for each run of blocks or layers that is carried out in another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results import measured
from pathlens.results.charts import Chart, chart
from pathlens.results.measured import cell, error_rules, error_series, intact_row, lesioned, with_interval
from pathlens.results.result import Headline, Provenance, Result, Rows, Shown, column
from pathlens.results.tasks import error_axis

WAYS = {
    "reverse": "in reverse order",
    "parallel": "side by side, their outputs averaged",
    "middle": "replaced by their middle one",
    "repeat": "carried out again",
}
"""How a run is carried out, and what is said of it."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    count: int = column("blocks", "blocks of the run, or layers; 0 is the intact network")
    first: int | None = column("", "the first of them, from 0")
    name: str | None = column("", "its module")
    stages: str | None = column("", "stages of all blocks of the run")
    blocks: str | None = column("", "all blocks of the run")


@dataclass(frozen=True, kw_only=True)
class RunRow(measured.Measured, _Run):
    """One network in which a run of neighbours is carried out in another way, or the intact one."""


def by_size(rows: Rows) -> dict[int, Rows]:
    """The rows of runs, by how many blocks or layers they have, each by the first of them."""
    runs = sorted((row for row in lesioned(rows) if row["first"] is not None), key=lambda row: row["first"])
    return {count: [row for row in runs if row["count"] == count] for count in sorted({row["count"] for row in runs})}


class Runs(Result):
    """The table of ``reorder-blocks --runs``."""

    name = "reorder-blocks-runs"
    row = RunRow
    needed = ("count", "first", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        "count": Shown(),
        "first": Shown(text=cell()),
        "name": Shown(text=cell("intact"), left=True, folds=True, gives_way=1),
        **measured.SHOWN,
    }
    bar = "error"
    figure = "runs.runs"

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """How the runs were carried out."""
        way = WAYS.get(str(provenance.get("runs")), "carried out in another way")
        return f"runs of neighbouring {provenance.get('group', 'block')}s {way}"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The intact network, and the least and the most harm."""
        headlines = measured.error_of_intact(rows)
        runs = [row for group in by_size(rows).values() for row in group]
        if runs:
            for label, pick in (("Smallest error", min), ("Largest error", max)):
                row = pick(runs, key=lambda row: row["error"])
                headlines.append(with_interval(label, row, f"{row['count']} from {row['first']} on"))
        return headlines + measured.differing(rows, "Runs", provenance)

    def notes(self, provenance: Provenance) -> list[str]:
        """See :func:`.measured.notes`."""
        return measured.notes(provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error against where the run begins, a line for each size."""
        series = [
            error_series(group, "first", key=f"runs of {count}", name=f"runs of {count}, 95 % interval", colour=number)
            for number, (count, group) in enumerate(by_size(rows).items())
        ]
        label = f"first {provenance.get('group', 'block')} of the run"
        rules = error_rules(intact_row(rows), "intact network")
        return [chart("runs", "Error by run", label, error_axis(provenance), series, rules=rules)] if series else []


RUNS = Runs()
