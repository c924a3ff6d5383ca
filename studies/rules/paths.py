"""Verdicts on gradients by path length, from the tables of ``path-gradients``."""

from __future__ import annotations

from typing import Any

import numpy as np

from pathlens.analyses.profiles import effective_range, what_is_left
from pathlens.estimators import estimators
from pathlens.estimators.resampling import RESAMPLES
from pathlens.estimators.sampled import decay as decay_line
from pathlens.paths import length_range
from pathlens.results.path_profile import contributions
from pathlens.tables import Table
from studies.rules.claims import AGREES, CANNOT_TELL, Verdict, decide
from studies.rules.veit import FEW_PATHS, PAPERS, STRAIGHT

_CANCELLED = 0.1
#: estimator -> column of its value, of the lower end of its interval (None: it has a standard error), of the upper
_INTERVALS = {
    "sampled": ("path_norm_mean", "path_norm_low", "path_norm_high"),
    "signed": ("path_norm_rms", None, "path_norm_rms_error"),
    "exact": ("total_norm", "total_low", "total_high"),
}
_Z = 1.959964

RANGES = (
    ("network", "", "network"),
    ("blocks", "blocks", "residual blocks"),
    ("contribution", "", "sampled: mean path norms (the paper's); signed: root mean square; exact: the sum"),
    ("peak", "blocks", "length that contributes most"),
    ("first", "blocks", "shortest effective length"),
    ("first_low", "blocks", "lower end of its 95 % bootstrap interval, in which all lengths have the same images"),
    ("first_high", "blocks", "upper end of it"),
    ("last", "blocks", "longest effective length"),
    ("last_low", "blocks", "lower end of its 95 % interval"),
    ("last_high", "blocks", "upper end of it"),
    ("share_of_paths", "fraction", "what the range holds of all paths"),
    ("share_low", "fraction", "lower end of its 95 % interval"),
    ("share_high", "fraction", "upper end of it"),
    ("blocks_per_batch", "blocks", "random blocks whose path lengths are centred on the range: first plus last"),
)


def has_intervals(table: Table) -> bool:
    """Whether a table of ``path-gradients`` comes with bootstrap intervals of what it says of lengths."""
    return all("first_low" in span for span in table.provenance["effective"].values()) and (
        "cancellation" in table.provenance or len(table.provenance["effective"]) == 1
    )


def with_intervals(table: Table) -> Table:
    """A table of ``path-gradients`` whose provenance has the intervals of effective lengths and of the decay.

    One that was measured before bootstrap samples were drawn has norms drawn from their own intervals in their place,
    as normal and each length on its own.
    """
    if has_intervals(table):
        return table
    rng, share, numbers = np.random.default_rng(0), table.provenance["share"], [row["n_paths"] for row in table.rows]
    said: dict[str, Any] = {"effective": {}}
    drawn = {estimator.name: estimator for estimator in estimators()}
    for estimator in drawn.values():
        middle, low, high = _INTERVALS[estimator.name]
        values, ends = (np.array([row[name] or 0.0 for row in table.rows]) for name in (middle, high))
        error = ends if low is None else (ends - np.array([row[low] for row in table.rows])) / (2 * _Z)
        estimator.resampled = np.abs(values + error * rng.standard_normal((RESAMPLES, len(values))))
        said["effective"][estimator.name] = effective_range(estimator, table.rows, share, numbers, True)
        if estimator.name == "sampled":
            said["decay"] = vars(decay_line(table.rows, estimator.resampled))
    said["cancellation"] = what_is_left(drawn, table.rows)
    return Table(table.columns, table.rows, {**table.provenance, **said})


def range_rows(network: str, table: Table) -> list[dict[str, Any]]:
    """Effective range of each kind of contribution that a table of ``path-gradients`` has, with intervals."""
    rows, table = [], with_intervals(table)
    for kind, found in table.provenance["effective"].items():
        contributed = [value or 0.0 for value in contributions(table.rows, kind)]
        row = {"network": network, "blocks": len(contributed) - 1, "contribution": kind}
        row["peak"] = max(range(len(contributed)), key=contributed.__getitem__)
        for name, of in (("first", "first"), ("last", "last"), ("share", "share_of_paths")):
            row |= {of: found[of], f"{name}_low": found[f"{of}_low"], f"{name}_high": found[f"{of}_high"]}
        rows.append(row | {"blocks_per_batch": found["blocks_per_batch"]})
    return rows


def short(row: dict[str, Any]) -> Verdict:
    """Are the effective lengths of a row of :func:`range_rows` below half of the blocks?"""
    half = row["blocks"] / 2
    return Verdict(
        decide(row["last_low"], row["last_high"], below=half),
        f"{row['first']} to {row['last']} of {row['blocks']} blocks (longest {row['last_low']} to {row['last_high']}), "
        f"half is {half:g}; the longest is {row['last'] / row['blocks']:.0%} of the blocks, the paper's {PAPERS:.0%}",
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
    left_out = sum(row["path_norm_mean"] == 0 for row in table.rows)
    line = with_intervals(table).provenance["decay"]
    falls = decide(line["low"], line["high"], below=0)
    return Verdict(
        CANNOT_TELL if falls == AGREES and line["explained"] < STRAIGHT else falls,
        f"the mean norm changes by {line['slope']:+.2f} decades a block ({line['low']:+.2f} to {line['high']:+.2f}); a "
        f"straight line explains {line['explained']:.1%} of the variance of its logarithm"
        + (f"; {left_out} lengths of which no sampled path has a gradient are left out" if left_out else ""),
        line["slope"],
        line["low"],
        line["high"],
    )


def cancellation(table: Table) -> Verdict:
    """How much of the product of number and mean norm is left when gradients are added first?"""
    found = with_intervals(table).provenance["cancellation"]
    left, low, high = found["left"], found["low"], found["high"]
    return Verdict(
        decide(low, high, below=_CANCELLED),
        f"at length {found['length']} the sum is {left:.2%} of the product ({low:.2%} to {high:.2%})",
        left,
        low,
        high,
    )


def lengths_of_paths(blocks: int) -> str:
    """Where the lengths of 95 % of the paths lie: combinatorics, and no evidence for anything."""
    first, last = length_range(blocks)
    return f"Of {blocks} blocks, 95 % of the paths have {first} to {last}: a fact of combinatorics, and not judged."
