"""Error after blocks or shortcuts are deleted: block by block, or against how many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathlens.errors import UsageError
from pathlens.figures.style import (
    COLOURS,
    DOUBLE,
    INK,
    MUTED,
    SINGLE,
    block_ticks,
    kind_mark,
    label_stages,
    legend_outside,
    new_figure,
    shade_stages,
    style,
    to_rows,
)
from pathlens.results import tasks
from pathlens.results.charts import Series
from pathlens.results.lesions import mean_rows, name_of_means, set_rows, single_rows
from pathlens.results.measured import error_series, intact_row, lesioned, members
from pathlens.results.result import Row, Rows
from pathlens.tables import Provenance, Table

NEEDED = ("block", "stage", "kind", "count", "sample", "error", "error_low", "error_high")
_MANY = 30  # blocks beyond which one column of a page is too narrow
_ASIDE = 0.12  # by which the lines of sets stand apart, so that each interval is seen
_MARKERS = "oDs^vP"  # of several networks
_LISTED = 4  # blocks that a legend has room for
_DENSE = 150  # blocks beyond which intervals touch each other


def deletion(
    table: Table | pd.DataFrame,
    width: float | None = None,
    critical: Collection[int] = (),
    chance: float | None = None,
) -> Figure:
    """Error of the network after blocks were deleted, from the table of ``delete-blocks``.

    Where each block was deleted by itself: error against the deleted block, with 95 % intervals, the intact network as
    a dashed line with its interval as a band, stages shaded and named, blocks that change shapes marked (Veit, Wilber,
    Belongie 2016, figure 3). With random sets of blocks: error against the number of deleted blocks; points are the
    samples, the line is the rows without ``sample``, the mean over samples (figure 5a).

    Args:
        table: with the columns ``block, stage, kind, count, sample, error, error_low, error_high``; errors are
            fractions and drawn in percent, called after the split that the provenance states, else test errors.
        width: in inches; by default one column of a page, or the whole page for more than 30 blocks.
        critical: blocks; sets that hold one of them are drawn apart, by the column ``blocks``, and the median of each
            kind by their size; the mean, which is over both kinds, is then grey.
        chance: error of guessing, a fraction, drawn as a dotted line.

    Raises:
        UsageError: columns are missing, or there is nothing to draw.
    """
    return _lesions(table, width, "block", critical, chance)


def skips(table: Table | pd.DataFrame, width: float | None = None) -> Figure:
    """Error of the network after shortcuts were deleted and branches kept; otherwise as :func:`deletion`.

    Args:
        table: as of :func:`deletion`, from ``delete-skips``.
        width: in inches; as of :func:`deletion`.
    """
    return _lesions(table, width, "shortcut")


def deletions(
    tables: Mapping[str, Table | pd.DataFrame],
    width: float | None = None,
    chance: float | None = None,
    zoom: float | None = None,
) -> Figure:
    """Several tables of deletions in one panel with one scale: of networks, or of one network under several rules.

    Where each block was deleted by itself: error against the deleted block, a line with 95 % intervals for each table,
    its intact network dashed in its colour (Veit, Wilber, Belongie 2016, figure 3, has a residual network and a plain
    one). With random sets of blocks: mean error over the sets of a size, with its interval, against their number
    (figure 5a).

    Args:
        tables: by the name that the legend gives them, each as of :func:`deletion` or :func:`skips`; either of single
            blocks or of sets, all alike.
        width: in inches; by default one column of a page, or the whole page for more than 30 blocks.
        chance: error of guessing, a fraction, drawn as a dotted line.
        zoom: an error, a fraction, up to which a second panel below shows the same.

    Raises:
        UsageError: no tables, columns are missing, there is nothing to draw, or single blocks beside sets.
    """
    named = {name: to_rows(table, NEEDED, "block deletion") for name, table in tables.items()}
    singles = {name: single_rows(rows) for name, rows in named.items()}
    means = {name: mean_rows(rows) for name, rows in named.items()}
    by_block = all(singles.values())
    lines = {
        name: error_series(singles[name], "block") if by_block else error_series(means[name], "count") for name in named
    }
    empty = next((name for name, line in lines.items() if not line["x"]), None)
    if not lines or empty is not None:
        what = "there are no tables" if empty is None else f"table {empty!r} has neither"
        raise UsageError(f"{what}; give tables that all have single deleted blocks, or all have means over random sets")
    intact = {name: row["error"] for name, rows in named.items() if (row := intact_row(rows)) is not None}
    last = max(max(line["x"]) for line in lines.values())
    width = width or (DOUBLE if by_block and last >= _MANY else SINGLE)
    with style():
        figure = new_figure(width, 2.6 if zoom is None else 3.4)
        panels = [figure.add_subplot()] if zoom is None else list(figure.subplots(2, 1, sharex=True))
        ends = [end for line in lines.values() for end in (*line["y"], *line.get("high", ())) if end is not None]
        labels = {error_label(table) for table in tables.values()}
        label = labels.pop() if len(labels) == 1 else tasks.error_label({})
        for axes in panels:
            _side_by_side(axes, lines, intact, by_block)
            chance_line(axes, chance)
            percent_axis(axes, [*intact.values(), chance, *(end / 100 for end in ends)], label)
            axes.set_xlim(-0.7 if by_block else 0.3, last + 0.7)
            axes.xaxis.set_major_locator(block_ticks())
        if zoom is not None:
            axes.set_ylim(0, 100 * zoom)
        axes.set_xlabel("deleted block" if by_block else "number of deleted blocks")
        legend_outside(panels[0], width)
    return figure


def _side_by_side(axes: Axes, lines: Mapping[str, Series], intact: Mapping[str, float], by_block: bool) -> None:
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        marker = _MARKERS[number % len(_MARKERS)]
        aside = 0.0 if by_block else _ASIDE * (number - (len(lines) - 1) / 2)
        places = [x + aside for x in line["x"]]
        axes.errorbar(places, line["y"], whiskers(line), color=colour, fmt=f"{marker}-", ms=2.8, mew=0, lw=0.8,
                      elinewidth=0.6, label=name, zorder=3)  # fmt: skip
        if name in intact:
            axes.axhline(100 * intact[name], color=colour, ls=(0, (4, 2)), lw=0.7, zorder=2)
    if intact:
        axes.plot([], [], color=INK, ls=(0, (4, 2)), lw=0.7, label="intact network")


def chance_line(axes: Axes, chance: float | None) -> None:
    """The error of guessing, where it is given."""
    if chance is not None:
        axes.axhline(100 * chance, color=MUTED, ls=":", lw=0.8, zorder=1, label="chance")


def one_each(
    axes: Axes,
    rows: Rows,
    series: Callable[[Rows], Series],
    critical: Collection[int],
    words: str,
    medians: Callable[[Series], Series],
) -> None:
    """A point for each set or order; those of critical blocks apart, each kind with the line of its medians.

    Args:
        axes: where.
        rows: with the column ``blocks`` where there are critical ones.
        series: places and errors of rows.
        critical: blocks that are told apart.
        words: what a point is, and what it does to the blocks of the column.
        medians: of points; nothing where they are too few.
    """
    what, does = words.split()
    groups = {f"one {what}": rows}
    if critical:
        those = {id(row) for row in rows if not set(critical).isdisjoint(members(row))}
        listed = " or ".join(map(str, sorted(critical)))
        which = f"one of {len(critical)} critical blocks" if len(critical) > _LISTED else f"block {listed}"
        groups = {
            f"one {what}": [row for row in rows if id(row) not in those],
            f"one {what} that {does} {which}": [row for row in rows if id(row) in those],
        }
    has_medians = False
    for (label, group), colour, marker in zip(groups.items(), (COLOURS[0], COLOURS[3]), "oD", strict=False):
        if group:
            points = series(group)
            axes.plot(points["x"], points["y"], marker, color=colour, ms=2.6, mew=0, alpha=0.3, label=label)
            if critical and (line := medians(points)):
                # with marks, since a single median has no line
                axes.plot(line["x"], line["y"], "_-", color=colour, ms=5, lw=1.2, zorder=3)
                has_medians = True
    if has_medians:
        axes.plot([], [], "_-", color=INK, ms=5, lw=1.2, label="median of each kind")


def _lesions(
    table: Table | pd.DataFrame,
    width: float | None,
    what: str,
    critical: Collection[int] = (),
    chance: float | None = None,
) -> Figure:
    rows = to_rows(table, (*NEEDED, *(("blocks",) if critical else ())), f"{what} deletion")
    damaged, single = lesioned(rows), single_rows(rows)
    if not damaged:
        raise UsageError(f"the table has no deleted {what}; give one from delete-blocks or delete-skips")
    kinds = [str(kind) for row in damaged for kind in (row["kind"], row.get("kinds")) if kind is not None]
    if what == "block" and kinds and all(kind.startswith("layer") for kind in kinds):
        what = "layer"  # of a plain network
    if what == "block":
        what = str(of(table).get("group", what))
    if single:
        return _one_by_one(single, intact_row(rows), width, what, error_label(table), chance)
    return _by_count(rows, width or SINGLE, what, error_label(table), critical, chance)


def of(table: Table | pd.DataFrame) -> Provenance:
    """What a table says of where it comes from; nothing for a data frame."""
    return table.provenance if isinstance(table, Table) else {}


def error_label(table: Table | pd.DataFrame) -> str:
    """What the errors of a table are of: images of the split that it states, or tokens or pixels."""
    split = str(of(table).get("split") or "test")
    return tasks.error_label(of(table), "training" if split == "train" else split)


def _one_by_one(
    single: list[Row], intact: Row | None, width: float | None, what: str, error: str, chance: float | None
) -> Figure:
    blocks = [int(row["block"]) for row in single]
    first, last = min(blocks), max(blocks)
    span = last - first + 1
    width = width or (DOUBLE if span > _MANY else SINGLE)
    with style():
        figure = new_figure(width, 2.4)
        axes = figure.add_subplot()
        runs = shade_stages(axes, single)
        if len(runs) > 1:
            label_stages(axes, runs, 72 * (width - 0.6) / span)
        axes.plot(blocks, error_series(single, "block")["y"], color=MUTED, lw=0.5, alpha=0.7, zorder=2)
        size = min(4.0, max(1.6, 0.65 * 72 * (width - 0.6) / span))
        marks = [kind_mark(row["kind"]) for row in single]
        for mark in sorted(set(marks), key=lambda mark: (mark.changes_shape, mark.words)):
            series = error_series([row for row, own in zip(single, marks, strict=True) if own == mark], "block")
            axes.errorbar(
                series["x"],
                series["y"],
                whiskers(series),
                fmt=mark.marker,
                color=mark.colour,
                ecolor=(mark.colour, 0.4 if span > _DENSE else 1.0),
                ms=size * (1.25 if mark.changes_shape else 1.0),
                mew=0,
                elinewidth=0.7,
                label=mark.words,
                zorder=4 if mark.changes_shape else 3,
            )
        axes.set_xlim(first - 0.7, last + 0.7)
        axes.xaxis.set_major_locator(block_ticks())
        label = "block whose shortcut is deleted" if what == "shortcut" else f"deleted {what}"
        finish(axes, intact, single, label, width, enlarge=4 / size, error=error, chance=chance)
    return figure


def _by_count(
    rows: Rows, width: float, what: str, error: str, critical: Collection[int], chance: float | None
) -> Figure:
    means = error_series(mean_rows(rows), "count")
    with style():
        figure = new_figure(width, 2.6 if critical else 2.4)
        axes = figure.add_subplot()
        one_each(axes, set_rows(rows), lambda sets: error_series(sets, "count"), critical, "set holds", _medians)
        if means["x"]:
            mean_line(axes, means, name_of_means(means), MUTED if critical else COLOURS[0])
        axes.xaxis.set_major_locator(block_ticks())
        label = f"number of deleted {what}s"
        finish(axes, intact_row(rows), lesioned(rows), label, width, error=error, chance=chance)
    return figure


def _medians(points: Series) -> Series:
    """The median error at each place."""
    by_place = pd.DataFrame({name: points[name] for name in ("x", "y")}, dtype=float).groupby("x")["y"].median()
    return {"x": list(by_place.index), "y": list(by_place)}


def mean_line(axes: Axes, series: Series, label: str, colour: str = COLOURS[0]) -> None:
    """Means over samples, joined, with their intervals."""
    axes.errorbar(
        series["x"],
        series["y"],
        whiskers(series),
        fmt="o-",
        color=colour,
        ms=3,
        elinewidth=0.8,
        capsize=1.5,
        label=label,
    )


def whiskers(series: Series) -> list[list[float]]:
    """Distances from the values to the ends of their intervals; nothing where there is no interval."""
    nothing = [None] * len(series["y"])
    return [
        [
            0.0 if end is None else max(0.0, sign * (end - value))
            for end, value in zip(series.get(side, nothing), series["y"], strict=True)
        ]
        for side, sign in (("low", -1), ("high", 1))
    ]


def intact_line(axes: Axes, intact: Row | None) -> None:
    """The intact network: a dashed line, and a band for its interval where it has one."""
    if intact is None:
        return
    left, right = axes.get_xlim()
    level = 2 if right - left <= _DENSE else 5  # behind the marks, unless so many would hide it
    if intact["error_low"] is not None and intact["error_high"] is not None:
        axes.axhspan(100 * intact["error_low"], 100 * intact["error_high"], color=INK, alpha=0.12, lw=0, zorder=1)
    axes.axhline(100 * intact["error"], color=INK, ls=(0, (4, 2)), lw=0.8, zorder=level, label="intact network")


def percent_axis(axes: Axes, fractions: Sequence[float | None], label: str = "test error (%)") -> None:
    """From zero to a little above the highest error or interval."""
    top = max((fraction for fraction in fractions if fraction is not None), default=1.0)
    # shares end at 1, relative squared errors do not
    axes.set_ylim(0, 107 * top if top > 1 else min(104.0, max(1.0, 107 * top)))
    axes.set_ylabel(label)


def finish(
    axes: Axes,
    intact: Row | None,
    rows: list[Row],
    label: str,
    width: float,
    enlarge: float = 1.0,
    error: str = "test error (%)",
    chance: float | None = None,
) -> None:
    """The intact network, chance, the axis of errors up to the highest of the rows, the labels, and the legend."""
    intact_line(axes, intact)
    chance_line(axes, chance)
    visible = [intact, *rows] if intact else rows
    percent_axis(axes, [chance, *(row[name] for row in visible for name in ("error", "error_high"))], error)
    axes.set_xlabel(label)
    legend_outside(axes, width, enlarge=enlarge)
