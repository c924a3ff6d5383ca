"""The objections as claims, and the verdicts, from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.tables import Table
from studies.critics.beyond import by_run
from studies.rules import paths as path_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import (
    CANNOT_TELL,
    OURS,
    Claim,
    Verdict,
    decide,
    majority,
    over_networks,
    row,
)
from studies.rules.networks import shortcuts

TALK = (
    "Where the small network on digits and the published network disagree, size and task are confounded. A block that "
    "changes shapes cannot be compared with the others by the size of its response alone, because its shortcut throws "
    "channels or positions away; the rows `identity` leave such blocks out. The ConvNeXt's branches begin scaled by "
    "0.1, which may be all it takes for single ones not to matter. A deleted shortcut also changes the scale "
    "of everything after it, for which the later layers were not trained, so that harm by it is no proof that the "
    "paths through it were members of an ensemble. Networks of (a) to (c) are one training each: what is said is of "
    "these networks."
)

RESPONSE = Claim(
    "harmless blocks respond weakly",
    "the blocks that can be deleted without harm are those whose branches add little",
    f"{OURS}",
    "Rank correlation of the response relative to the shortcut and the loss without the branch. Agrees above zero, "
    "disagrees below. How much of the ranking by harm it is, the square tells.",
    "95 % bootstrap interval over blocks; Spearman's rank correlation with average ranks where blocks tie.",
)
TAILS = Claim(
    "heavy tails",
    "norms of single paths of a length are heavy-tailed, so that the mean of few sampled paths understates what the "
    "root mean square over all paths says",
    OURS,
    "Root mean square over all paths (random signs) over the mean of the sampled ones, at the length where the exact "
    "sum is largest. Agrees above 2, disagrees below.",
    "95 % interval from the standard errors of both.",
)
_HEAVY = 2.0
_Z = 1.959964


def verdicts(tables: Mapping[str, Table], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table of claims.

    Args:
        tables: of the study.
        names: networks of (a) to (c).
    """
    found = []
    for name in names:
        gradients = tables[f"path-gradients-{name}"]
        ranges = {one["contribution"]: one for one in tables["effective"].rows if one["network"] == name}
        judged = {
            veit_claims.DECAY: path_rules.decay(gradients),
            veit_claims.SHORT: path_rules.short(ranges["sampled"]),
            veit_claims.FEW: path_rules.few(ranges["sampled"]),
            veit_claims.EXACT: path_rules.short(ranges["exact"]),
            veit_claims.CANCELLATION: path_rules.cancellation(gradients),
            veit_claims.SHORTCUTS: shortcuts(tables[f"lesions-{name}"], tables[f"skips-{name}"]),
            RESPONSE: response(tables["responses"], name),
            TAILS: tail(tables["tails"], name, ranges["exact"]["peak"]),
        }
        found += [row(claim, name, verdict) for claim, verdict in judged.items()]
    found += _beyond(tables)
    return sorted(found, key=lambda one: one["source"] == OURS)


def response(correlations: Table, name: str) -> Verdict:
    """Does the loss without a branch go with its response?"""
    (one,) = [
        one
        for one in correlations.rows
        if (one["network"], one["which"], one["response"], one["harm"]) == (name, "all", "relative_std", "loss")
    ]
    if one["rho"] is None:
        return Verdict(CANNOT_TELL, "harm or response does not vary")
    return Verdict(
        decide(one["rho_low"], one["rho_high"], above=0),
        f"rank correlation {one['rho']:.2f} ({one['rho_low']:.2f} to {one['rho_high']:.2f}, {one['n_blocks']} blocks, "
        f"{one['ties']} tied); its square is {one['rho'] ** 2:.0%}",
        one["rho"],
        one["rho_low"],
        one["rho_high"],
    )


def tail(tails: Table, name: str, length: int) -> Verdict:
    """Are the norms of single paths heavy-tailed?"""
    (one,) = [one for one in tails.rows if (one["network"], one["length"]) == (name, length)]
    half = _Z * one["tail_error"]
    told = (
        f"at length {length} {one['tail']:.2g} times the mean of {one['paths']} paths (standard error "
        f"{one['tail_error']:.1g}); among the sampled paths of one example {one['tail_within']:.2g} times"
    )
    if not math.isfinite(half) or not half:
        return Verdict(CANNOT_TELL, told, one["tail"])
    low, high = one["tail"] - half, one["tail"] + half
    return Verdict(decide(low, high, above=_HEAVY), told, one["tail"], low, high)


def _beyond(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """What the paper claims of residual networks, on the trained transformers and ConvNeXts."""
    judged: dict[tuple[Claim, str], list[Verdict]] = {}
    lengths = by_run(tables["beyond-lengths"])
    for run, blocks in by_run(tables["beyond-blocks"]).items():
        (exact,) = path_rules.range_rows(run[0], lengths[run])
        judged.setdefault((veit_claims.SINGLE, run[0]), []).append(single(blocks))
        judged.setdefault((veit_claims.EXACT, run[0]), []).append(path_rules.short(exact))
        judged.setdefault((veit_claims.SHORTCUTS, run[0]), []).append(_shortcuts(blocks))
    return [row(claim, network, over_networks(own)) for (claim, network), own in judged.items()]


def single(blocks: Table) -> Verdict:
    """Does deleting one branch cost little, in most blocks?"""
    margin = veit_claims.NOTICEABLE
    small = sum(one["harm_high"] < margin for one in blocks.rows)
    large = sum(one["harm_low"] > margin for one in blocks.rows)
    costs = sorted(one["harm_branch"] for one in blocks.rows)
    middle = costs[len(costs) // 2]
    return Verdict(
        majority(len(costs), small, large),
        f"{small} of {len(costs)} deletions are shown to cost less than 5 points and {large} to cost more; median "
        f"{100 * middle:+.2f} points",
        middle,
    )


def _shortcuts(blocks: Table) -> Verdict:
    told = [one["worse"] for one in blocks.rows]
    worse, better = told.count("shortcut"), told.count("branch")
    return Verdict(
        majority(len(told), worse, better),
        f"the shortcut hurts more in {worse} of {len(told)} blocks and the branch in {better}",
        worse / len(told),
    )
