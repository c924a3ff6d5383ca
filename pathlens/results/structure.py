"""The table of ``blocks``: a row for each block of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathlens.results.charts import Chart, block_head, chart, stages_of
from pathlens.results.result import Headline, Provenance, Result, Rows, Shown, column, formatted

_EXAMPLE = "for one example"


@dataclass(frozen=True, kw_only=True)
class BlockRow:
    """One block of a network."""

    block: int = column("", "index of the block, from 0")
    name: str = column("", "module that the block lies in")
    stage: int = column(
        "", "consecutive blocks of one output shape, from 0; all of one shape where blocks are no chain"
    )
    kind: str = column("", "shortcut of the block, or layer of a plain network")
    branch: str = column("", "modules of the branch")
    shortcut: str = column("", "operations of the shortcut; empty for an identity")
    post_activation: str = column("", "operations between the addition and the output of the block")
    transition: str = column("", "operations between the output of the block before and the branch point of this one")
    in_shape: str = column("", "shape of the branch point, without the batch")
    out_shape: str = column("", "shape of the output, without the batch")
    parameters: int = column("", "parameters of the branch")
    shortcut_parameters: int = column("", "parameters of the shortcut")
    multiply_adds: int = column(_EXAMPLE, "multiply-adds of the branch")
    shortcut_multiply_adds: int = column(_EXAMPLE, "multiply-adds of the shortcut")
    nested: int = column("", "residual additions inside the branch")


class Structure(Result):
    """The table of ``blocks``."""

    name = "blocks"
    row = BlockRow
    needed = ("block", "name", "kind", "parameters", "multiply_adds")
    shown: ClassVar[Mapping[str, Shown]] = {
        "block": Shown(),
        "name": Shown(left=True, folds=True),
        "stage": Shown(gives_way=4),
        "kind": Shown(left=True, gives_way=2),
        "post_activation": Shown("post\nactivation", left=True, gives_way=5),
        "in_shape": Shown("in\nshape", gives_way=3),
        "out_shape": Shown("out\nshape"),
        "parameters": Shown(text=formatted(",")),
        "multiply_adds": Shown("multiply\nadds", formatted(","), gives_way=1),
    }
    figure = "blocks.structure"

    def notes(self, provenance: Provenance) -> list[str]:
        """Parameters and multiply-adds of the whole network; no data were used."""
        counts = [provenance.get(name) for name in ("parameters", "norm_parameters", "multiply_adds")]
        if not all(isinstance(count, int) for count in counts):
            return []
        parameters, of_norms, multiply_adds = counts
        return [
            f"whole network, with stem, shortcuts and head: {parameters:,} parameters ({of_norms:,} of them in norms), "
            f"{multiply_adds:,} multiply-adds of an example"
        ]

    def figure_options(self, provenance: Provenance) -> dict[str, Any]:
        """The network's name, for a title."""
        return {"title": str(provenance["model"])}

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """How many blocks there are."""
        return f"{len(rows)} blocks"

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """Numbers of blocks, parameters and multiply-adds."""
        headlines = [Headline("Blocks", str(len(rows)))]
        for name, what in (("parameters", "Parameters"), ("multiply_adds", "Multiply-adds of an example")):
            if isinstance(whole := provenance.get(name), int):
                headlines.append(Headline(what, f"{whole:,}", "with stem and head"))
            headlines.append(Headline(f"{what}, in blocks", f"{sum(_of_blocks(rows, name)):,}"))
        return headlines

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Parameters and multiply-adds, block by block."""
        rows = sorted(rows, key=lambda row: row["block"])
        blocks = [row["block"] for row in rows]
        more: dict[str, Any] = {
            "heads": {str(row["block"]): block_head(row) for row in rows},
            "stages": stages_of(rows),
        }
        charts = []
        for name, label in (("parameters", "parameters"), ("multiply_adds", "multiply-adds of an example")):
            series = {"key": name, "name": label, "colour": 0, "x": blocks, "y": _of_blocks(rows, name)}
            charts.append(chart(name, f"{label.capitalize()} by block", "block", {"label": label}, [series], **more))
        return charts


def _of_blocks(rows: Rows, name: str) -> list[int]:
    """Of each block what branch and shortcut have together."""
    return [sum(row.get(part) or 0 for part in (name, f"shortcut_{name}")) for row in rows]


BLOCKS = Structure()
