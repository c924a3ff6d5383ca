"""From checkpoints to statements over seeds: means with intervals at each epoch, and tests of a trend."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from pathlens.metrics import holm, sample_interval

Row = Mapping[str, Any]
GAINS = ("gamma", "response_ratio", "gradient_ratio", "predicted_length")


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and the ends of Student's 95 % interval; a rank correlation lies between -1 and 1."""
    bounds = (-1.0, 1.0) if name == "rho" else (-math.inf, math.inf)
    low, high = sample_interval(values, bounds=bounds)
    return {name: statistics.fmean(values), f"{name}_low": low, f"{name}_high": high}


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, in their order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def by_epoch(ranges: Sequence[Row], errors: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the table ``by-epoch``; ``errors`` are validation errors by weight decay and epoch."""
    names = ("weight_decay", "mode", "contribution", "epoch")
    known = {(row["weight_decay"], row["epoch"]): row["validation_error"] for row in errors}
    found = []
    for group, rows in grouped(ranges, *names).items():
        found.append(
            {
                **dict(zip(names, group, strict=True)),
                "seeds": len(rows),
                "blocks": rows[0]["blocks"],
                "first": statistics.fmean(row["first"] for row in rows),
                "last": statistics.fmean(row["last"] for row in rows),
                **spread("centre", [row["centre"] for row in rows]),
                **spread("mean_length", [row["mean_length"] for row in rows]),
                "validation_error": known.get((group[0], group[-1])),
            }
        )
    return found


def gains_by_epoch(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the table ``gains-by-epoch``."""
    found = []
    for (decay, epoch), own in grouped(rows, "weight_decay", "epoch").items():
        row: dict[str, Any] = {"weight_decay": decay, "epoch": epoch, "seeds": len(own)}
        for name in GAINS:
            row |= spread(name, [one[name] for one in own])
        found.append(row)
    return found


def mean_curves(curves: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the table ``curves``: means over the seeds; what a seed has no row for is too small to be drawn."""
    names = ("weight_decay", "epoch", "contribution")
    found = []
    for group, rows in grouped(curves, *names).items():
        seeds = len({row["run"] for row in rows})
        for (length,), own in sorted(grouped(rows, "length").items()):
            share = math.fsum(row["share"] for row in own) / seeds
            found.append({**dict(zip(names, group, strict=True)), "length": length, "share": share})
    return found


def trends(ranges: Sequence[Row], starts: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the table ``trends``: does the mean length rise with the epoch?

    Args:
        ranges: rows of the table of that name.
        starts: first epochs to count from; 0 is the initialisation.
    """
    found = []
    names = ("weight_decay", "mode", "contribution")
    for group, rows in grouped(ranges, *names).items():
        for start in starts:
            runs = [
                sorted((row["epoch"], row["mean_length"]) for row in own if row["epoch"] >= start)
                for own in grouped(rows, "run").values()
            ]
            changes = [run[-1][1] - run[0][1] for run in runs]
            ranks = [rho for run in runs if (rho := rank_correlation(*zip(*run, strict=True))) is not None]
            row: dict[str, Any] = {**dict(zip(names, group, strict=True)), "since": start, "seeds": len(runs)}
            row |= _tested("rho", ranks)
            rising = sum(rho > 0 for rho in ranks)
            row |= {"rising": rising, "sign_p": stats.binomtest(rising, len(ranks)).pvalue if ranks else None}
            row |= _tested("change", changes)
            found.append(row)
    return _corrected(found)


def _corrected(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm's correction over contributions and first epochs, and the part of the change since the first of them."""
    for own in grouped(found, "weight_decay", "mode").values():
        _put_holm("change", own)
    for own in grouped(found, "weight_decay", "mode", "contribution").values():
        for row in own:
            row["part"] = row["change"] / own[0]["change"] if own[0]["change"] else None
    return found


def _put_holm(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write Holm's correction of the p values of a column over these rows; a row without a test has none."""
    tested = [row for row in rows if row[f"{name}_p"] is not None]
    for row in rows:
        row[f"{name}_p_holm"] = None
    for row, p in zip(tested, holm([row[f"{name}_p"] for row in tested]), strict=True):
        row[f"{name}_p_holm"] = p


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's, or None where one side does not vary or there are only two points."""
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return float(stats.spearmanr(xs, ys).statistic)


def _tested(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_p"))
    varies = len(values) > 1 and not math.isclose(min(values), max(values), rel_tol=1e-9)  # else there is no t
    p = float(stats.ttest_1samp(values, 0).pvalue) if varies else None
    return {**spread(name, values), f"{name}_p": p}


def driven_by(gains: Sequence[Row], ranges: Sequence[Row], since: int) -> list[dict[str, Any]]:
    """Rows of the table ``mechanism``: within a run, does a scale move with the mean length?

    Both fall over training, so that their values correlate whatever causes them. What is correlated are the changes
    from one kept epoch to the next, and over the seeds it is tested that the correlation is 0, with Holm's correction
    over all rows.

    Args:
        gains: rows of the table of that name.
        ranges: likewise.
        since: first epoch to count from.
    """
    found = []
    gains = [row for row in gains if row["epoch"] >= since]
    lengths = {(row["run"], row["epoch"], row["contribution"]): row for row in ranges if row["mode"] == "train"}
    kinds = list(dict.fromkeys(row["contribution"] for row in lengths.values()))
    for (decay,), own in grouped(gains, "weight_decay").items():
        for kind in kinds:
            for name in GAINS:
                ranks, ratios = [], []
                for run, rows in grouped(own, "run").items():
                    pairs = [
                        (row[name], lengths[*run, row["epoch"], kind]["mean_length"])
                        for row in rows
                        if (*run, row["epoch"], kind) in lengths
                    ]
                    moves = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(pairs)]
                    if len(moves) > 2 and (rho := rank_correlation(*zip(*moves, strict=True))) is not None:
                        ranks.append(rho)
                        ratios.append(statistics.fmean(length / scale for scale, length in pairs))
                if ranks:
                    ratio = statistics.fmean(ratios) if name == "predicted_length" else None
                    start = {"weight_decay": decay, "contribution": kind, "scale": name, "seeds": len(ranks)}
                    start |= {"since": since, "moves": len(moves)}
                    found.append({**start, **_tested("rho", ranks), "measured_over_predicted": ratio})
    _put_holm("rho", found)
    return found
