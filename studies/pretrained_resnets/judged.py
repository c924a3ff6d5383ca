"""The verdicts on published networks, from the tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.tables import Table
from studies.rules import lesions as lesion_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import LEVEL, OURS, Claim, Verdict, made_ours, majority, row, shown
from studies.rules.networks import judge

TWIN = Claim(
    "deletions cost more without shortcuts",
    "deleting a block costs more where the same network was trained without shortcuts",
    OURS,
    "Agrees where in more than half of the blocks the cost without shortcuts is shown to be higher, disagrees where in "
    "more than half it is shown to be lower. It is about these two trainings.",
    veit_claims.COMPARED.format(part="block", what="both costs"),
)
#: the paper's claim is about VGG
PLAIN = made_ours(
    veit_claims.PLAIN,
    "on 29 November 2026, when errors were known, only in whose claim it is: it had counted as the paper's, and "
    "disagreed.",
    name="a plain twin at chance",
    says="what the paper says of VGG (section 4.1) holds of a plain network of residual design: deleting any layer "
    "brings it to chance",
)


def intact(table: Table) -> Mapping[str, Any]:
    """The row of the whole network."""
    return next(row for row in table.rows if row.get("count") == 0 or row.get("swaps") == 0)


def verdicts(tables: Mapping[str, Table], names: Sequence[str], pair: str, twin: str) -> list[dict[str, Any]]:
    """Rows of the table of claims.

    Args:
        tables: of the study.
        names: networks with shortcuts.
        pair: the one that has a twin.
        twin: the twin without shortcuts.
    """
    found = [row(TWIN, f"{pair} and {twin}", compare_twins(tables[f"lesions-{pair}"], tables[f"twin-{twin}"]))]
    found.append(row(PLAIN, twin, lesion_rules.at_chance(tables[f"lesions-{twin}"])))
    for name in names:
        own = {key: tables[f"{key}-{name}"] for key in ("lesions", "skips", "sets", "orders", "gradients")}
        found += [row(claim, name, verdict) for claim, verdict in judge(own).items()]
    return sorted(found, key=lambda one: one["source"] == OURS)


def compare_twins(lesions: Table, twin: Table) -> Verdict:
    """Does deleting the same block cost more without shortcuts?"""
    own = {cost.block: cost for cost in lesion_rules.costs(lesions)}
    without = lesion_rules.costs(twin)
    higher, lower = lesion_rules.costlier(without, [own[cost.block] for cost in without])
    outcome, p = majority(higher, lower)
    plain, short = (100 * statistics.median(cost.difference for cost in costs) for costs in (without, own.values()))
    # what is near chance without a block can cost no more
    errors, errors_without = ({row["block"]: row["error"] for row in table.rows} for table in (lesions, twin))
    less = [cost.block for cost, p_less in zip(without, lower, strict=True) if p_less < LEVEL]
    worse = sum(errors_without[block] > errors[block] for block in less)
    ceiling = (
        f" (in {worse} of these the error itself is higher without shortcuts: near chance a deletion can cost no more)"
        if worse
        else ""
    )
    return Verdict(
        outcome,
        f"a deleted block costs more without shortcuts in {shown(higher)} of {len(higher)} blocks and less in "
        f"{shown(lower)}{ceiling}; median {plain:+.1f} points against {short:+.1f}",
        shown(higher) / len(higher),
        p=p,
    )
