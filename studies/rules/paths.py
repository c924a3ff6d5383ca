"""Verdicts on gradients by path length, from the tables of ``path-gradients``."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pathlens.analyses.profiles import effective_range, what_is_left
from pathlens.estimators import estimators
from pathlens.estimators.exact import half_interval
from pathlens.estimators.resampling import RESAMPLES
from pathlens.estimators.sampled import decay as decay_line
from pathlens.paths import length_range
from pathlens.results.path_profile import contributions
from pathlens.tables import Table
from studies.rules.claims import AGREES, CANNOT_TELL, Verdict, decide
from studies.rules.veit import FEW_PATHS, PAPERS, STRAIGHT

_CANCELLED = 0.1
#: half a 95 % interval in standard errors, in tables that were measured before
_HALF = 1.96
ON_THEIR_OWN = (
    "95 % interval from those of the single lengths, each drawn on its own as normal: they were measured before "
    "samples of all lengths together were drawn. Those of path norms are over paths alone, those of exact sums over "
    "images."
)
"""What the intervals of :func:`with_intervals` are, for claims that rest on them."""
_SAID = {"effective": "effective lengths", "decay": "the slope", "cancellation": "cancellation"}
#: estimator -> column of its value, of the lower end of its interval (None: it has a standard error), of the upper
_INTERVALS = {
    "sampled": ("path_norm_mean", "path_norm_low", "path_norm_high"),
    "signed": ("path_norm_rms", None, "path_norm_rms_error"),
    "exact": ("total_norm", "total_low", "total_high"),
}

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
SHARES = (
    ("network", "", "network"),
    ("blocks", "blocks", "residual blocks"),
    ("mean_length", "blocks", "sum over the lengths of length times share, of the gradient by projection"),
    ("mean_length_sampled", "blocks", "mean length weighted by number of paths times mean norm (the paper's)"),
    ("longest", "blocks", "longest effective length (sampled)"),
    ("up_to_longest", "fraction", "sum of the shares of the lengths up to it"),
    ("largest", "fraction", "largest share of a length"),
    ("largest_at", "blocks", "that length"),
    ("negative", "fraction", "sum of the shares below zero, of lengths that pull against the whole; 0 where none does"),
)
SHARES_SHOWN = {
    "network": "", "mean_length": ".1f", "mean_length_sampled": ".1f", "longest": "d", "up_to_longest": ".2%",
    "largest": ".1%", "largest_at": "d", "negative": ".1g",
}  # fmt: skip


def with_intervals(table: Table) -> Table:
    """A table of ``path-gradients`` whose provenance has the intervals of what it says of lengths.

    What a table lacks that was measured before bootstrap samples of all lengths together were drawn is taken from norms
    drawn as normal from the intervals of the lengths, each on its own; ``on_their_own`` then names it. What was
    measured stays.
    """
    known, rng = table.provenance, np.random.default_rng(0)
    drawn = {
        estimator.name: estimator for estimator in estimators() if any(row.get(estimator.norm) for row in table.rows)
    }
    for estimator in drawn.values():
        middle, low, high = _INTERVALS[estimator.name]
        values, ends, starts = (
            np.array([row[name] or 0.0 for row in table.rows]) for name in (middle, high, low if low else middle)
        )
        error = (ends - starts) / (2 * _HALF) if low else ends
        estimator.resampled = np.abs(values + error * rng.standard_normal((RESAMPLES, len(values))))
    numbers = [row["n_paths"] for row in table.rows]
    effective = {
        name: found
        if "first_low" in (found := known.get("effective", {}).get(name, {}))
        else effective_range(estimator, table.rows, known["share"], numbers, True)
        for name, estimator in drawn.items()
    }
    said: dict[str, Any] = {"effective": effective}
    if "sampled" in drawn and "explained" not in known.get("decay", {}):
        line = decay_line(table.rows, drawn["sampled"].resampled)
        said |= {"decay": vars(line)} if line else {}
    if {"sampled", "exact"} <= drawn.keys() and "cancellation" not in known:
        said["cancellation"] = what_is_left(drawn, table.rows)
    own = [name for name, value in said.items() if value != known.get(name)]
    return Table(table.columns, table.rows, {**known, **said, "on_their_own": own})


def own_intervals(table: Table) -> str:
    """A sentence for a page on what :func:`with_intervals` had to fill in; empty where that is nothing."""
    own = with_intervals(table).provenance["on_their_own"]
    if not own:
        return ""
    return (
        "These tables are older than the joint bootstrap of all lengths: the intervals of "
        f"{', '.join(_SAID[name] for name in own)} are built from those of single lengths."
    )


def range_rows(network: str, table: Table) -> list[dict[str, Any]]:
    """Effective range of each kind of contribution that a table of ``path-gradients`` has, with intervals."""
    rows, known = [], with_intervals(table).provenance
    for kind, found in known["effective"].items():
        contributed = [value or 0.0 for value in contributions(table.rows, kind)]
        peak = max(range(len(contributed)), key=contributed.__getitem__)
        row = {"network": network, "blocks": table.rows[-1]["length"], "contribution": kind}
        row["peak"] = table.rows[peak]["length"]
        for name, of in (("first", "first"), ("last", "last"), ("share", "share_of_paths")):
            row |= {of: found[of], f"{name}_low": found[f"{of}_low"], f"{name}_high": found[f"{of}_high"]}
        rows.append(row | {"blocks_per_batch": found["blocks_per_batch"]})
    return rows


def share_row(network: str, table: Table) -> dict[str, Any]:
    """What the shares come to that the lengths have in the whole gradient, by projection on it."""
    shares = {row["length"]: row["share"] for row in table.rows}
    longest = table.provenance["effective"]["sampled"]["last"]
    largest = max(shares, key=shares.__getitem__)
    contributed = [value or 0.0 for value in contributions(table.rows, "sampled")]
    return {
        "network": network,
        "blocks": table.rows[-1]["length"],
        "mean_length": math.fsum(length * share for length, share in shares.items()),
        "mean_length_sampled": math.fsum(map(operator.mul, shares, contributed)) / math.fsum(contributed),
        "longest": longest,
        "up_to_longest": math.fsum(share for length, share in shares.items() if length <= longest),
        "largest": shares[largest],
        "largest_at": largest,
        "negative": math.fsum(share for share in shares.values() if share < 0),
    }


def by_projection(rows: Sequence[Mapping[str, Any]]) -> str:
    """What rows of :func:`share_row` say beside the norms, for a page.

    Args:
        rows: one of each network.
    """
    whole, product = (
        f"{min(values):.1f} to {max(values):.1f}"
        for values in ([row[name] for row in rows] for name in ("mean_length", "mean_length_sampled"))
    )
    least = min(row["up_to_longest"] for row in rows)
    return (
        "Norms of lengths do not add up to that of the gradient; their components along it do. These shares (column "
        "`share` of `gradients`) sum to 1, and are negative where a length pulls against the whole. Weighted by them, "
        f"paths take {whole} branches on average (over the networks of `shares`); weighted by the paper's product, "
        f"{product}. Lengths up to the longest effective one (sampled) make up {least:.2%} of the gradient or more."
    )


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
    # a mean that few of the paths carry is a mean of few numbers
    rare = sum(row["path_norm_median"] == 0 < row["path_norm_mean"] for row in table.rows)
    line = with_intervals(table).provenance["decay"]
    falls = decide(line["low"], line["high"], below=0)
    return Verdict(
        CANNOT_TELL if falls == AGREES and (left_out or line["explained"] < STRAIGHT) else falls,
        f"the mean norm changes by {line['slope']:+.2f} decades a block ({line['low']:+.2f} to {line['high']:+.2f}); a "
        f"straight line explains {line['explained']:.1%} of the variance of its logarithm"
        + (f"; {left_out} lengths of which no sampled path has a gradient are left out" if left_out else "")
        + (
            f"; at {rare} lengths more than half of the sampled gradients are zero, so that few carry it"
            if rare
            else ""
        ),
        line["slope"],
        line["low"],
        line["high"],
    )


def cancellation(table: Table) -> Verdict:
    """How much of the product of number and mean norm is left when gradients are added first?"""
    found = with_intervals(table).provenance.get("cancellation")
    if not found:
        return Verdict(CANNOT_TELL, "one of the two norms is not known, or zero")
    left, low, high = found["left"], found["low"], found["high"]
    (row,) = (one for one in table.rows if one["length"] == found["length"])
    told = f"at length {found['length']} the sum is {left:.2%} of the product ({low:.2%} to {high:.2%})"
    total, alone = beside_independent(table, row)
    if alone:
        told += f"; it is {total / alone:.2g} times that of {row['n_paths']:,} paths of these norms in independent "
        told += "directions (root mean squares)"
    return Verdict(decide(low, high, below=_CANCELLED), told, left, low, high)


def beside_independent(table: Table, row: Mapping[str, Any]) -> tuple[float, float]:
    """Norm of the sum over the paths of a length, and what it would be if they had independent directions.

    Both are root mean squares over examples, since squares of independent directions add up; the latter by random signs
    (0 where these were not drawn).

    Args:
        table: of ``path-gradients``, with exact sums.
        row: of it, of one length.
    """
    # of the normal distribution in tables that were measured before
    (said,) = (column.description for column in table.columns if column.name == "total_low")
    examples = table.provenance["images_measured"]
    half = half_interval(examples) if "Student" in said else _HALF
    # the interval over examples tells their variance
    error = (row["total_high"] - row["total_norm"]) / half
    alone = math.sqrt(row["n_paths"]) * (row["path_norm_rms"] or 0.0)
    return math.hypot(row["total_norm"], error * math.sqrt(examples - 1)), alone


def lengths_of_paths(blocks: int) -> str:
    """Where the lengths of 95 % of the paths lie: combinatorics, and no evidence for anything."""
    first, last = length_range(blocks)
    return f"Of {blocks} blocks, 95 % of the paths have {first} to {last}: a fact of combinatorics, and not judged."
