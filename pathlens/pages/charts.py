"""Tables as descriptions of charts, which the page draws.

A chart is a mapping with ``family`` (charts of one family can be laid over each other), ``title``, ``x`` and ``y``
(each with ``label``; ``whole`` for whole numbers, ``log``, ``percent``), and ``series``. A series has ``key``,
``name``, ``colour`` (a number), ``x`` and ``y``, and where it has them ``low`` and ``high`` (intervals), ``band`` (draw
those as a band), ``line`` (``solid``, ``dash``, ``dot`` or ``none``), and ``marks`` (kind of each point, an index into
``kinds``). Beside them stand ``rules`` (horizontal lines), ``shade`` (a range of x), ``stages``, and ``heads`` (what a
place is called).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pathlens.pages.runs import Run
from pathlens.pages.words import is_deletion, is_history, is_profile, is_reordering, is_structure, number, split_rows
from pathlens.tables import Table

Chart = dict[str, Any]
Rows = list[dict[str, Any]]

_PATH_NORMS = tuple(f"path_norm_{name}" for name in ("low", "high", "median", "q05", "q95"))
_COLOUR = {"exact": 2, "sampled": 0, "median": 0, "rms": 1}
_LEAST = 1e-3  # percent: longer paths that contribute less are left out of the panel of contributions


def charts_of(run: Run) -> list[Chart]:
    """The charts of all tables of a run that have one."""
    found: list[Chart] = []
    for table in run.tables.values():
        for fits, draw in _DRAW:
            if fits(table):
                found += draw(run, table)
                break
    return found


def _scaled(values: list[float | None], factor: float) -> list[float | None]:
    return [None if value is None else factor * value for value in values]


def _errors(rows: Rows, x: str, **more: Any) -> dict[str, Any]:
    """Errors in percent with their intervals."""
    found = {"x": [row[x] for row in rows], "y": _scaled([row["error"] for row in rows], 100)}
    if any(row["error_low"] is not None for row in rows):
        found |= {side: _scaled([row[f"error_{side}"] for row in rows], 100) for side in ("low", "high")}
    return {**found, **more}


def _rule(row: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if row is None or row["error"] is None:
        return []
    low, high = _scaled([row["error_low"], row["error_high"]], 100)
    return [{"y": 100 * row["error"], "low": low, "high": high, "name": name}]


_PERCENT = {"label": "error (%)", "percent": True}


def stages_of(rows: Rows, x: str = "block") -> list[dict[str, Any]]:
    """Runs of neighbouring rows of one stage."""
    found: list[dict[str, Any]] = []
    for row in rows:
        stage = row.get("stage")
        if stage is None:
            continue
        if found and found[-1]["stage"] == stage:
            found[-1]["last"] = row[x]
        else:
            found.append({"stage": stage, "first": row[x], "last": row[x], "name": f"stage {stage}"})
    return [{name: item[name] for name in ("first", "last", "name")} for item in found] if len(found) > 1 else []


def _deletion(run: Run, table: Table) -> list[Chart]:
    intact, rows, single = split_rows(table)
    rules = _rule(intact, "intact network")
    what = "shortcut" if run.verb == "delete-skips" else "block"
    if not single:
        points = [row for row in table.rows if row["count"] and row["sample"] is not None and row["error"] is not None]
        series = [_errors(rows, "count", key="mean", name="mean over sets, 95 % interval", colour=0)] if rows else []
        if points:
            series.append(_errors(points, "count", key="sets", name="one set", colour=0, line="none", faint=True))
            series[-1] = {name: value for name, value in series[-1].items() if name not in ("low", "high")}
        label = f"number of deleted {what}s"
        return [_chart("error by count", f"Error by {label}", label, _PERCENT, series, rules=rules)] if series else []
    kinds = list(dict.fromkeys(str(row.get("kind")) for row in rows))
    marked = len(kinds) > 1
    series = [_errors(rows, "block", key="error", name=f"{what} deleted, 95 % interval", colour=0)]
    if marked:
        series[0]["marks"] = [kinds.index(str(row.get("kind"))) for row in rows]
    heads = {str(row["block"]): _head(row) for row in rows}
    chart = _chart("error by block", f"Error by deleted {what}", f"deleted {what}", _PERCENT, series, rules=rules)
    return [{**chart, "heads": heads, "stages": stages_of(rows), "kinds": kinds if marked else []}]


def _head(row: dict[str, Any]) -> str:
    parts = [f"block {row['block']}", str(row["name"]) if row.get("name") is not None else ""]
    if row.get("stage") is not None:
        parts.append(f"stage {row['stage']}")
    if row.get("kind") is not None:
        parts.append(str(row["kind"]))
    return ", ".join(filter(None, parts))


def _chart(family: str, title: str, x: str, y: dict[str, Any], series: Rows, whole: bool = True, **more: Any) -> Chart:
    return {"family": family, "title": title, "x": {"label": x, "whole": whole}, "y": y, "series": series, **more}


def _reordering(run: Run, table: Table) -> list[Chart]:
    rows: Rows = [row for row in table.rows if row["kendall_tau"] is not None and row["error"] is not None]
    trained = next((row for row in rows if row["swaps"] == 0), None)
    orders = [row for row in rows if row["swaps"] and row["sample"] is not None]
    means = [row for row in rows if row["swaps"] and row["sample"] is None]
    series = []
    if orders:
        series.append(_errors(orders, "kendall_tau", key="orders", name="one order", colour=0, line="none"))
        series[0] = {name: value for name, value in series[0].items() if name not in ("low", "high")}
    if means:
        series.append(
            _errors(means, "kendall_tau", key="means", name="mean of a number of swaps", colour=3, line="none")
        )
    if not series:
        return []
    label = "Kendall tau with the trained order"
    rules = _rule(trained, "trained order")
    return [
        _chart("reordering", "Error by distance from the trained order", label, _PERCENT, series, False, rules=rules)
    ]


def _shares(norms: list[Any], counts: list[Any]) -> list[float | None]:
    """Percent of the sum of counts times norms; by logarithms, since numbers of paths outgrow floats."""
    sizes = [
        math.log10(norm) + math.log10(count) if norm and norm > 0 and count > 0 else None
        for norm, count in zip(norms, counts, strict=True)
    ]
    top = max((size for size in sizes if size is not None), default=None)
    if top is None:
        return []
    weights = [0.0 if size is None else 10 ** (size - top) for size in sizes]
    whole = math.fsum(weights)
    return [None if norm is None else 100 * weight / whole for norm, weight in zip(norms, weights, strict=True)]


def _profile(run: Run, table: Table) -> list[Chart]:
    rows: Rows = sorted(table.rows, key=_length)
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in (*table.names, *_PATH_NORMS)}
    shade, x = _effective(run), "path length (blocks)"
    lengths, counts = columns["length"], columns["n_paths"]
    shares = _shares([1] * len(counts), counts)
    paths = [{"key": "paths", "name": "share of all paths", "colour": 7, "x": lengths, "y": shares}]
    y = {"label": "share of all paths (%)", "percent": True}
    found = [_chart("paths by length", "Number of paths", x, y, paths, shade=shade)]
    found[0]["heads"] = {
        str(length): f"length {length}: {_count_words(count)}" for length, count in zip(lengths, counts, strict=True)
    }
    one = _one_path(columns)
    if one:
        y = {"label": "gradient norm of one path", "log": True}
        found.append(_chart("norm of a path", "One path", x, y, one, shade=shade))
    contributions = _contributions(columns)
    if contributions:
        y = {"label": "contribution of a length (%)", "percent": True}
        found.append(_chart("contribution", "All paths of a length", x, y, contributions, shade=shade))
    return found


def _length(row: dict[str, Any]) -> int:
    return row["length"]


def _one_path(columns: dict[str, list[Any]]) -> Rows:
    """Norms of single paths: those of sampled paths, and the root mean square of all."""
    found: Rows = []
    if any(columns["path_norm_mean"]):
        ends = {"low": columns["path_norm_low"], "high": columns["path_norm_high"]}
        band = {"low": columns["path_norm_q05"], "high": columns["path_norm_q95"], "band": True}
        found += [
            {"key": "sampled", "name": "mean of sampled paths, 95 % interval", "y": columns["path_norm_mean"], **ends},
            {"key": "median", "name": "median and 5 to 95 %", "y": columns["path_norm_median"], "line": "dot", **band},
        ]
    if any(columns["path_norm_rms"]):
        found.append({"key": "rms", "name": "root mean square", "y": columns["path_norm_rms"], "line": "dash"})
    return [{**part, "x": columns["length"], "colour": _COLOUR[part["key"]]} for part in found]


def _contributions(columns: dict[str, list[Any]]) -> Rows:
    """What each length contributes, by method, as percent; long paths that contribute next to nothing are left out."""
    lengths, counts, means = columns["length"], columns["n_paths"], columns["path_norm_mean"]
    parts: Rows = [
        {"key": "exact", "name": "sum over all paths (exact)", "y": _shares(columns["total_norm"], [1] * len(counts))},
        {"key": "sampled", "name": "paths × mean norm (sampled)", "y": _shares(means, counts)},
        {
            "key": "rms",
            "name": "paths × root mean square",
            "y": _shares(columns["path_norm_rms"], counts),
            "line": "dash",
        },
    ]
    for side in ("low", "high"):
        parts[1][side] = [
            share * end / mean if share and end is not None else None
            for share, end, mean in zip(parts[1]["y"] or means, columns[f"path_norm_{side}"], means, strict=True)
        ]
    found = [part for part in parts if part["y"]]
    visible = [at for part in found for at, share in enumerate(part["y"]) if share is not None and share > _LEAST]
    end = max(visible, default=0) + 2
    return [
        {name: value[:end] if isinstance(value, list) else value for name, value in part.items()}
        | {"x": lengths[:end], "colour": _COLOUR[part["key"]]}
        for part in found
    ]


def _count_words(count: int) -> str:
    """Exact where it can be read; the table has all digits."""
    return f"{count:,} path{'' if count == 1 else 's'}" if count < 10**15 else f"{number(count)} paths"


def _effective(run: Run) -> dict[str, Any] | None:
    """The effective lengths of the first method that has them, as the run's own figure shows them."""
    effective = run.manifest.get("effective")
    for method in ("sampled", "exact", "signed"):
        span = effective.get(method) if isinstance(effective, dict) else None
        if isinstance(span, dict) and isinstance(span.get("first"), int) and isinstance(span.get("last"), int):
            return {"first": span["first"], "last": span["last"], "name": f"effective lengths ({method})"}
    return None


def _history(run: Run, table: Table) -> list[Chart]:
    rows: Rows = sorted(table.rows, key=lambda row: row["epoch"])
    epochs = [row["epoch"] for row in rows]
    found = []
    for what, factor, y in (
        ("error", 100, _PERCENT),
        ("loss", 1, {"label": "cross-entropy (nats)"}),
    ):
        series: Rows = []
        for key, name, colour in (("validation", "validation", 1), ("train", "as trained", 0)):
            values = _scaled([row[f"{key}_{what}"] for row in rows], factor)
            if any(value is not None for value in values):
                series.append({"key": key, "name": name, "colour": colour, "x": epochs, "y": values})
                ends = [f"{key}_{what}_{side}" for side in ("low", "high")]
                if all(end in table.names for end in ends):
                    low, high = (_scaled([row[end] for row in rows], factor) for end in ends)
                    series[-1] |= {"low": low, "high": high, "band": len(rows) > 20}
        if series:
            found.append(_chart(f"training {what}", f"{what.capitalize()} by epoch", "epoch", y, series))
    return found


def _structure(run: Run, table: Table) -> list[Chart]:
    rows: Rows = sorted(table.rows, key=lambda row: row["block"])
    heads, stages = {str(row["block"]): _head(row) for row in rows}, stages_of(rows)
    blocks = [row["block"] for row in rows]
    found = []
    for name, label in (("parameters", "parameters"), ("multiply_adds", "multiply-adds of an example")):
        series = [{"key": name, "name": label, "colour": 0, "x": blocks, "y": [row[name] for row in rows]}]
        chart = _chart(name, f"{label.capitalize()} by block", "block", {"label": label}, series)
        found.append({**chart, "heads": heads, "stages": stages})
    return found


_DRAW: tuple[tuple[Callable[[Table], bool], Callable[[Run, Table], list[Chart]]], ...] = (
    (is_deletion, _deletion),
    (is_reordering, _reordering),
    (is_profile, _profile),
    (is_history, _history),
    (is_structure, _structure),
)
