"""Charts of a table as plain descriptions, which pages draw, and the series that figures draw too.

A chart is a mapping with ``family`` (charts of one family can be laid over each other), ``title``, ``x`` and ``y``
(each with ``label``; ``whole`` for whole numbers, ``log``, ``percent``, and a ``note`` on what is not drawn), and
``series``. A series has ``key``, ``name``, ``colour`` (a number), ``x`` and ``y``, and where it has them ``low`` and
``high`` (intervals), ``band`` (draw those as a band), ``line`` (``solid``, ``dash``, ``dot`` or ``none``), and
``marks`` (kind of each point, an index into ``kinds``). Beside them stand ``rules`` (horizontal lines), ``shade`` (a
range of x), ``stages``, and ``heads`` (what a place is called).

A contour map has ``surfaces`` and ``layers`` in the place of series. A surface has ``name``, the coordinates ``x`` and
``y`` of a grid, and by the key of each layer the values, row by row from the first y on. A layer has ``key``, ``name``,
``label``, and where it has them ``log``, ``percent``, and ``low`` and ``high``, beyond which values look like these.
All surfaces of a map have the same colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from pathlens.results.text import power_of_ten

Chart = dict[str, Any]
Series = dict[str, Any]

_DECADES = 16
"""Of a logarithmic axis: what is smaller is lost when it is added to the largest in double precision."""


class Axis(TypedDict, total=False):
    """Label of an axis, and whether it shows whole numbers, logarithms or percent; a note says what is not drawn."""

    label: str
    whole: bool
    log: bool
    percent: bool
    note: str


PERCENT: Axis = {"label": "error (%)", "percent": True}


def chart(family: str, title: str, x: str, y: Axis, series: list[Series], whole: bool = True, **more: Any) -> Chart:
    """A chart; ``x`` is the label of its axis, ``whole`` says that places on it are whole numbers."""
    return {"family": family, "title": title, "x": {"label": x, "whole": whole}, "y": y, "series": series, **more}


def contour_map(
    family: str, title: str, x: str, y: str, surfaces: list[dict[str, Any]], layers: list[dict[str, Any]]
) -> Chart:
    """A contour map; ``x`` and ``y`` are the labels of its axes."""
    axes = {"x": {"label": x}, "y": {"label": y}}
    return {"family": family, "title": title, **axes, "surfaces": surfaces, "layers": layers}


def cut_off(series: Sequence[Series], decades: int = _DECADES) -> tuple[list[Series], str]:
    """Leave out points that only make a logarithmic axis long, and say where.

    Args:
        series: with values, and maybe the ends of their intervals.
        decades: powers of ten below the largest value that are drawn, at most.

    Returns:
        The series, without the points whose value is smaller, and the words for it, which are empty where none is.
    """
    values = [value for item in series for value in item["y"] if value and value > 0]
    if not values:
        return list(series), ""
    power = math.floor(math.log10(max(values))) - decades
    below = [[bool(value) and value < 10.0**power for value in item["y"]] for item in series]
    cut = [
        {
            name: [None if out else value for out, value in zip(outside, values, strict=True)]
            if name in ("y", "low", "high")
            else values
            for name, values in item.items()
        }
        for item, outside in zip(series, below, strict=True)
    ]
    return cut, f"below {power_of_ten(power)} not drawn" if any(map(any, below)) else ""


def scaled(values: Iterable[float | None], factor: float) -> list[float | None]:
    """Values times a factor; missing ones stay missing, and what is beyond floats is missing too."""
    products = (None if value is None else factor * value for value in values)
    return [product if product is not None and math.isfinite(product) else None for product in products]


class StageRun(NamedTuple):
    """Neighbouring blocks of one stage: the stage, and its first and last position."""

    stage: object
    first: int
    last: int


def stage_runs(stages: Iterable[Any], positions: Iterable[Any], over_gaps: bool = False) -> list[StageRun]:
    """Split blocks, in order, where the stage changes; blocks without a stage give no run.

    Args:
        stages: of each block.
        positions: of each block.
        over_gaps: go on where blocks are left out in between.
    """
    runs: list[StageRun] = []
    for stage, position in zip(stages, positions, strict=True):
        if stage is None or (isinstance(stage, float) and math.isnan(stage)):
            continue
        at = int(position)
        if runs and runs[-1].stage == stage and (over_gaps or runs[-1].last + 1 >= at):
            runs[-1] = runs[-1]._replace(last=at)
        else:
            # a data frame reads whole numbers as floats where some are missing
            whole = int(stage) if isinstance(stage, float) and stage.is_integer() else stage
            runs.append(StageRun(whole, at, at))
    return runs


def stages_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str | int]]:
    """The stages of blocks for a chart; none where there is only one."""
    runs = stage_runs((row.get("stage") for row in rows), (row["block"] for row in rows), over_gaps=True)
    named: list[dict[str, str | int]] = [
        {"first": run.first, "last": run.last, "name": f"stage {run.stage}"} for run in runs
    ]
    return named if len(named) > 1 else []


def block_head(row: Mapping[str, Any]) -> str:
    """What a block is called: number, module, stage and kind, as far as they are known."""
    parts = [f"block {row['block']}", str(row["name"]) if row.get("name") is not None else ""]
    if row.get("stage") is not None:
        parts.append(f"stage {row['stage']}")
    if row.get("kind") is not None:
        parts.append(str(row["kind"]))
    return ", ".join(filter(None, parts))
