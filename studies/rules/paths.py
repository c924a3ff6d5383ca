"""Verdicts on gradients by path length, from the tables of ``path-gradients``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from pathlens.paths import effective_paths, length_range
from pathlens.tables import Table
from studies.rules.claims import AGREES, CANNOT_TELL, Verdict, decide
from studies.rules.veit import FEW_PATHS, STRAIGHT

#: contribution -> column of its value, of the lower end of its interval (None: it has a standard error), of the upper
CONTRIBUTIONS = {
    "sampled": ("path_norm_mean", "path_norm_low", "path_norm_high"),
    "signed": ("path_norm_rms", None, "path_norm_rms_error"),
    "exact": ("total_norm", "total_low", "total_high"),
}
_Z = float(stats.norm.ppf(0.975))
_CANCELLED = 0.1

RANGES = (
    ("network", "", "network"),
    ("blocks", "blocks", "residual blocks"),
    ("contribution", "", "sampled: mean path norms (the paper's); signed: root mean square; exact: the sum"),
    ("peak", "blocks", "length that contributes most"),
    ("first", "blocks", "shortest effective length"),
    ("first_low", "blocks", "lower end of its 95 % interval, from the intervals of the lengths drawn independently"),
    ("first_high", "blocks", "upper end of it"),
    ("last", "blocks", "longest effective length"),
    ("last_low", "blocks", "lower end of its 95 % interval"),
    ("last_high", "blocks", "upper end of it"),
    ("share_of_paths", "fraction", "what the range holds of all paths"),
    ("share_low", "fraction", "lower end of its 95 % interval"),
    ("share_high", "fraction", "upper end of it"),
    ("blocks_per_batch", "blocks", "random blocks whose path lengths are centred on the range: first plus last"),
)


def range_rows(network: str, table: Table, draws: int = 1000) -> list[dict[str, Any]]:
    """Effective range of each kind of contribution that a table of ``path-gradients`` has, with intervals.

    The norms of the lengths are drawn from their intervals, independently and as normal, and the range is found again.
    """
    counts = np.array([float(row["n_paths"]) for row in table.rows])
    share, rng, rows = table.provenance["share"], np.random.default_rng(0), []
    for kind, (middle, low, high) in CONTRIBUTIONS.items():
        if middle not in table.names or table.rows[0][middle] is None:
            continue
        values = np.array(table.values(middle), dtype=float)
        ends = np.array([row[high] or 0.0 for row in table.rows], dtype=float)
        error = ends if low is None else (ends - np.array(table.values(low), dtype=float)) / (2 * _Z)
        scale = counts if kind != "exact" else np.ones_like(counts)
        drawn = np.abs(values + error * rng.standard_normal((draws, len(values)))) * scale
        tried = [effective_paths(weights.tolist(), share) for weights in drawn]
        best = effective_paths((values * scale).tolist(), share)
        row: dict[str, Any] = {"network": network, "blocks": len(values) - 1, "contribution": kind}
        row["peak"] = int(np.argmax(values * scale))
        for name, of in (("first", "first"), ("last", "last"), ("share", "share_of_paths")):
            ends_of = np.quantile([getattr(one, of) for one in tried], (0.025, 0.975), method="nearest")
            whole = int if name != "share" else float
            row |= {of: getattr(best, of), f"{name}_low": whole(ends_of[0]), f"{name}_high": whole(ends_of[1])}
        rows.append(row | {"blocks_per_batch": best.blocks_per_batch})
    return rows


def short(row: dict[str, Any]) -> Verdict:
    """Are the effective lengths of a row of :func:`range_rows` below half of the blocks?"""
    half = row["blocks"] / 2
    return Verdict(
        decide(row["last_low"], row["last_high"], below=half),
        f"{row['first']} to {row['last']} of {row['blocks']} blocks (longest {row['last_low']} to {row['last_high']}), "
        f"half is {half:g}",
        row["last"],
        row["last_low"],
        row["last_high"],
    )


def few(row: dict[str, Any]) -> Verdict:
    """Are they few of all paths?"""
    return Verdict(
        decide(row["share_low"], row["share_high"], below=FEW_PATHS),
        f"{row['share_of_paths']:.2g} of all paths of {row['blocks']} blocks ({row['share_low']:.2g} to "
        f"{row['share_high']:.2g})",
        row["share_of_paths"],
        row["share_low"],
        row["share_high"],
    )


def decay(table: Table) -> Verdict:
    """Does the mean norm of a path fall exponentially with its length? Lengths whose mean is 0 have no logarithm."""
    means = {row["length"]: row["path_norm_mean"] for row in table.rows if row["length"] > 0}
    pairs = [(length, math.log10(mean)) for length, mean in means.items() if mean > 0]
    left_out = len(means) - len(pairs)
    line = stats.linregress(*zip(*pairs, strict=True))
    half = float(stats.t.ppf(0.975, len(pairs) - 2)) * float(line.stderr)
    low, high, straight = line.slope - half, line.slope + half, line.rvalue**2
    falls = decide(low, high, below=0)
    return Verdict(
        CANNOT_TELL if falls == AGREES and straight < STRAIGHT else falls,
        f"the mean norm changes by {line.slope:+.2f} decades a block ({low:+.2f} to {high:+.2f}); a straight line "
        f"explains {straight:.1%} of the variance of its logarithm"
        + (f"; {left_out} lengths of which no sampled path has a gradient are left out" if left_out else ""),
        float(line.slope),
        float(low),
        float(high),
        float(line.pvalue),
    )


def cancellation(table: Table) -> Verdict:
    """How much of the product of number and mean norm is left when gradients are added first?"""
    peak = max(table.rows, key=lambda row: row["total_norm"])
    product = float(peak["n_paths"]) * np.array([peak[f"path_norm_{end}"] for end in ("mean", "low", "high")])
    value, low, high = peak["total_norm"] / product[0], peak["total_low"] / product[2], peak["total_high"] / product[1]
    return Verdict(
        decide(low, high, below=_CANCELLED),
        f"at length {peak['length']} the sum is {value:.2%} of the product ({low:.2%} to {high:.2%})",
        float(value),
        float(low),
        float(high),
    )


def lengths_of_paths(blocks: int) -> str:
    """Where the lengths of 95 % of the paths lie: combinatorics, and no evidence for anything."""
    first, last = length_range(blocks)
    return f"Of {blocks} blocks, 95 % of the paths have {first} to {last}: a fact of combinatorics, and not judged."
