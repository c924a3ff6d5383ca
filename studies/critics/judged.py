"""The objections as claims, and the verdicts, from the tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.tables import Table
from studies.critics.beyond import by_run, lesions_of
from studies.rules import lesions as lesion_rules
from studies.rules import paths as path_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import (
    CANNOT_TELL,
    OURS,
    Claim,
    Verdict,
    decide,
    of_seeds,
    over_networks,
    row,
)
from studies.rules.networks import shortcuts
from studies.subjects import seeds_of

TALK = (
    "Where the small network on digits and the published network disagree, size and task are confounded. A block that "
    "changes shapes cannot be compared with the others by the size of its response alone, because its shortcut throws "
    "channels or positions away; the rows `identity` leave such blocks out. The ConvNeXt's branches begin scaled by "
    "0.1, which may be all it takes for single ones not to matter. A deleted shortcut also changes the scale "
    "of everything after it, for which the later layers were not trained, so that harm by it is no proof that the "
    "paths through it were members of an ensemble. Networks of (a) to (c) are one training each. The "
    "published one is taken as it is, and what is said holds for it only. The network on digits was trained here with "
    "one seed, so that nothing is concluded from it: its numbers stand beside the verdicts."
)

RESPONSE = Claim(
    "harm rises with the response",
    "blocks whose branches add more are those that cost more to delete",
    OURS,
    "Rank correlation of the response relative to the shortcut and the harm, over the blocks with identity shortcuts "
    "where there are others, by the loss without the branch and by the error without it. Agrees where both are above "
    "zero, disagrees where both are below.",
    "95 % bootstrap interval over blocks; Spearman's rank correlation with average ranks where blocks tie. Both have "
    "to show it (no correction is due).",
    revised="on 29 November 2026, when numbers were known, from all blocks, and from the loss alone: digits54 and "
    "resnet56 had both agreed that harmless blocks respond weakly.",
)
TAILS = Claim(
    "heavy tails",
    "for one example, norms of the paths of a length are heavy-tailed: their root mean square is more than twice their "
    "mean",
    OURS,
    "Root mean square over mean of an example's sampled paths, as the mean over examples, at every measured length "
    "within the effective ones of the exact sum. Agrees where it is above 2 at all of them, disagrees where it is "
    "below at all.",
    "95 % percentile bootstrap of the mean at each length, over paths and examples, each resampled by itself. Where "
    "the root mean square of all paths, by random signs, is another than that of the sample, the end on its side is "
    "moved by the ratio of the two, because a sample of few paths misses the heavy ones. Each length has to show it "
    "(no correction is due).",
    revised="twice, on 29 November 2026, when numbers were known. First both were taken over paths and examples "
    "together, which is above 2 for a single path already: both networks agreed. Then over paths, at the length with "
    "the largest sum alone, with an interval over examples: digits54 disagreed, and resnet56 agreed.",
)
_HEAVY = 2.0


def verdicts(tables: Mapping[str, Table], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table of claims.

    Args:
        tables: of the study.
        names: networks of (a) to (c).
    """
    found = []
    for name in names:
        gradients, lesions = tables[f"path-gradients-{name}"], tables[f"lesions-{name}"]
        ranges = {one["contribution"]: one for one in tables["effective"].rows if one["network"] == name}
        judged = {
            RESPONSE: response(tables["responses"], name),
            TAILS: tail(tables["tails"], name, ranges["exact"]),
        }
        if not taken_over(gradients):
            blocks = ranges["sampled"]["blocks"]
            judged |= {
                veit_claims.SINGLE: lesion_rules.single(lesions),
                veit_claims.OTHERS: lesion_rules.others(lesions),
                veit_claims.DOWNSAMPLING: lesion_rules.downsampling(lesions),
                veit_claims.DECAY: path_rules.decay(gradients),
                veit_claims.in_depth(veit_claims.SHORT, blocks): path_rules.short(ranges["sampled"]),
                veit_claims.in_depth(veit_claims.FEW, blocks): path_rules.few(ranges["sampled"]),
                veit_claims.EXACT: path_rules.short(ranges["exact"]),
                veit_claims.CANCELLATION: path_rules.cancellation(gradients),
                veit_claims.SHORTCUTS: shortcuts(lesions, tables[f"skips-{name}"]),
            }
        seeds = seeds_of(name)
        found += [
            row(claim, name, verdict if seeds is None else of_seeds(verdict, seeds))
            for claim, verdict in judged.items()
        ]
    found += _beyond(tables)
    return sorted(found, key=lambda one: one["source"] == OURS)


def taken_over(table: Table) -> bool:
    """Whether another study measured a table, and judges what rests on it alone."""
    return "taken_from" in table.provenance


def response(correlations: Table, name: str) -> Verdict:
    """Does the harm of a branch's deletion, by loss and by error, go with its response?"""
    both = {}
    for harm in ("loss", "error"):
        own = {
            one["which"]: one
            for one in correlations.rows
            if (one["network"], one["response"], one["harm"]) == (name, "relative_std", harm)
        }
        both[harm] = own.get("identity", own["all"])
    if any(one["rho"] is None for one in both.values()):
        return Verdict(CANNOT_TELL, "harm or response does not vary")
    outcomes = {decide(one["rho_low"], one["rho_high"], above=0) for one in both.values()}
    told = ", ".join(
        f"by {harm} {one['rho']:.2f} ({one['rho_low']:.2f} to {one['rho_high']:.2f}, {one['ties']} tied, square "
        f"{one['rho'] ** 2:.0%})"
        for harm, one in both.items()
    )
    by_loss = both["loss"]
    return Verdict(
        outcomes.pop() if len(outcomes) == 1 else CANNOT_TELL,
        f"rank correlation over {by_loss['n_blocks']} blocks {told}",
        by_loss["rho"],
        by_loss["rho_low"],
        by_loss["rho_high"],
    )


def tail(tails: Table, name: str, effective: Mapping[str, Any]) -> Verdict:
    """Are the norms of single paths heavy-tailed at every measured length within the effective ones?"""
    own = [
        one for one in tails.rows if one["network"] == name and effective["first"] <= one["length"] <= effective["last"]
    ]
    if any(one["tail_example_low"] is None for one in own) or not own:
        return Verdict(CANNOT_TELL, "no interval at a measured length within the effective ones")
    values, lows, highs = ([one[f"tail_example{end}"] for one in own] for end in ("", "_low", "_high"))
    each = ", ".join(
        f"{value:.2f} at {one['length']} ({low:.2f} to {high:.2f})"
        for one, value, low, high in zip(own, values, lows, highs, strict=True)
    )
    return Verdict(
        decide(min(lows), max(highs), above=_HEAVY),
        f"{min(values):.2f} to {max(values):.2f} times the mean of an example's {own[0]['paths']} sampled paths over "
        f"the measured lengths within {effective['first']} to {effective['last']}: {each}; mean over "
        f"{own[0]['images']} examples",
        statistics.median(values),
        min(lows),
        max(highs),
    )


def _beyond(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """What the paper claims of residual networks, on the trained transformers and ConvNeXts."""
    judged: dict[tuple[Claim, str], dict[str, Verdict]] = {}
    lengths = by_run(tables["beyond-lengths"])
    for run, blocks in by_run(tables["beyond-blocks"]).items():
        (exact,) = path_rules.range_rows(run[0], lengths[run])
        branches, skips = lesions_of(blocks)
        found = {
            veit_claims.elsewhere(veit_claims.SINGLE): lesion_rules.single(branches),
            veit_claims.EXACT: path_rules.short(exact),
            veit_claims.SHORTCUTS: shortcuts(branches, skips),
        }
        for claim, verdict in found.items():
            judged.setdefault((claim, run[0]), {})[f"seed {run[1]}"] = verdict
    return [row(claim, network, over_networks(own)) for (claim, network), own in judged.items()]
