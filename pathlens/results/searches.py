"""The tables of searches among sets of blocks: the best next block each time, and all sets up to a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results import measured
from pathlens.results.charts import Chart
from pathlens.results.measured import cell, error_series, lesioned, with_interval
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column
from pathlens.results.tasks import loss_unit
from pathlens.results.text import number

_POINT = 0.01
SELECTED = "blocks were chosen on the images that errors are stated of, so that errors of other images are higher"
"""What a reader of a greedy search must know."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    count: int = column("blocks", "number of deleted blocks; 0 is the intact network")
    block: int | None = column("", "index of the block that was deleted last, from 0; missing for the intact network")
    name: str | None = column("", "its module")
    stage: int | None = column("", "its stage, from 0")
    kind: str | None = column("", "its shortcut, or layer of a plain network")
    blocks: str | None = column("", "all deleted blocks, in the order of their deletion")


@dataclass(frozen=True, kw_only=True)
class GreedyRow(measured.Measured, _Step):
    """The network after one more block was deleted: the one without which it errs least."""

    p_holm: float | None = column(
        "", "p after Bonferroni's correction over all sets of as many blocks and over the steps of the search"
    )


_NAMED: Mapping[str, Shown] = {
    "count": Shown(),
    "block": Shown("deleted\nlast", cell()),
    "name": Shown(text=cell("intact"), left=True, folds=True, gives_way=1),
}


class _Steps:
    """What tables of blocks that were deleted one after the other have in common.

    Attributes:
        key: of the line on a page.
        line: what it is called.
    """

    bar: ClassVar[str] = "error"
    key: ClassVar[str]
    line: ClassVar[str]

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The intact network, how many blocks can go, and the last step."""
        steps = lesioned(rows)
        spared = max((row["count"] for row in steps if (row.get("difference") or 0.0) <= _POINT), default=0)
        headlines = measured.error_of_intact(rows)
        headlines.append(Headline("Blocks that can go within a point of error", str(spared)))
        return headlines + [with_interval(f"Error, {row['count']} deleted", row) for row in steps[-1:]]

    def notes(self, provenance: Provenance) -> list[str]:
        """See :func:`.measured.notes`."""
        return measured.notes(provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error against how many blocks are deleted."""
        steps = lesioned(rows)
        series = error_series(steps, "count", key=self.key, name=f"{self.line}, 95 % interval", colour=0)
        return measured.chart_by_count(rows, [series] if steps else [], "block", provenance)


class Greedy(_Steps, Result):
    """The table of a greedy search."""

    name = "delete-blocks-greedy"
    row = GreedyRow
    needed = ("count", "block", "blocks", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        **_NAMED,
        "stage": Shown(text=cell(), gives_way=5),
        "kind": Shown(text=cell(), left=True, gives_way=4),
        **measured.SHOWN,
        "p_holm": Shown("p (Bonferroni)", measured.p_value, gives_way=3),
    }
    figure = "searches.greedy"
    what = "blocks deleted one after the other, the one that costs least each time"
    key, line = "greedy", "best next block"

    def notes(self, provenance: Provenance) -> list[str]:
        """What a reader must know, and the notes of all lesions."""
        return [SELECTED, *super().notes(provenance)]


@dataclass(frozen=True, kw_only=True)
class _Influence:
    influence: float | None = column(
        "",
        "of what was deleted last: 1 minus the cosine of its input and output over the channels, mean over positions "
        "and examples of the intact network; missing where it changes the shape",
    )


@dataclass(frozen=True, kw_only=True)
class InfluenceRow(_Influence, measured.Measured, _Step):
    """The network after one more block, or layer, was deleted: the one of least influence among the rest."""


class Influence(_Steps, Result):
    """The table of deletions in the order of block influence."""

    name = "delete-blocks-influence"
    row = InfluenceRow
    needed = ("count", "block", "blocks", "influence", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {**_NAMED, "influence": Shown(text=cell(text=number)), **measured.SHOWN}
    figure = "searches.influence"
    what = "blocks deleted one after the other, the one of least influence each time"
    key, line = "influence", "least influence first"


@dataclass(frozen=True, kw_only=True)
class _Set:
    count: int = column("blocks", "number of deleted blocks; 0 is the intact network")
    blocks: str | None = column("", "all deleted blocks; missing for the intact network")


@dataclass(frozen=True, kw_only=True)
class _Interaction:
    interaction: float | None = column(
        "fraction",
        "difference minus the sum of the differences of its blocks, each deleted alone; missing for single blocks",
    )
    loss_interaction: float | None = column(
        "nats", "the same of the loss; missing also where a loss is not finite: positive is worse than the sum"
    )


@dataclass(frozen=True, kw_only=True)
class SetRow(_Interaction, measured.Measured, _Set):
    """One network without a set of blocks, or the intact one."""


def _nats(row: Row, name: str) -> str:
    return "" if row[name] is None else f"{row[name]:+.4f}"


class Exhaustive(Result):
    """The table of all sets up to a size."""

    name = "delete-blocks-exhaustive"
    row = SetRow
    needed = ("count", "blocks", "interaction", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        "count": Shown(),
        "blocks": Shown(text=cell("intact", text=lambda blocks: blocks.replace(",", ", ")), left=True),
        **measured.SHOWN,
        "interaction": Shown("beyond\nthe sum", measured.points),
        "loss_interaction": Shown("of the\nloss", _nats, gives_way=1),
    }
    bar = "error"
    figure = "searches.interactions"
    what = "every set of blocks up to a size deleted"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The intact network, and the sets that differ most from the sum of their blocks."""
        headlines = measured.error_of_intact(rows)
        sets = [row for row in rows if row.get("loss_interaction") is not None]
        for pick, words in ((max, "Farthest above the sum of single losses"), (min, "Farthest below")):
            if sets:
                row = pick(sets, key=lambda row: row["loss_interaction"])
                value = f"{number(row['loss_interaction'])} {loss_unit(provenance)}".rstrip()
                headlines.append(Headline(words, value, f"blocks {row['blocks']} deleted"))
        return headlines + measured.differing(rows, "Sets", provenance)

    def notes(self, provenance: Provenance) -> list[str]:
        """See :func:`.measured.notes`."""
        return measured.notes(provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error against the size of the set."""
        sets = lesioned(rows)
        return measured.chart_by_count(rows, [measured.set_series(sets)] if sets else [], "block", provenance)


GREEDY = Greedy()
INFLUENCE = Influence()
EXHAUSTIVE = Exhaustive()
