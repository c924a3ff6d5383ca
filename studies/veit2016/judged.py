"""The verdicts, from the tables."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pathlens.tables import Table
from studies.rules import lesions as lesion_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import (
    OURS,
    Claim,
    Verdict,
    corrected,
    counted,
    decide,
    of_seeds,
    over_networks,
    paired,
    row,
)
from studies.rules.networks import judge
from studies.veit2016 import retraining
from studies.veit2016.measured import KINDS
from studies.veit2016.trainings import PAPER_BLOCKS


def verdicts(tables: Mapping[str, Table], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of claims."""
    found = []
    for network in dict.fromkeys(run["network"] for run in runs):
        own = [run for run in runs if run["network"] == network]
        found += _of_networks(tables, network, own)
        found += _of_training(tables, network, own)
    return sorted(found, key=lambda one: one["source"] == OURS)


def _of_networks(tables: Mapping[str, Table], network: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Claims about trained networks, each judged for every seed."""
    judged: dict[Claim, list[Verdict]] = {}
    for run in runs:
        name, trained = run["run"], run["trained"]
        if f"lesions-{name}" not in tables:
            continue
        if trained == "full":
            own = {kind: tables[f"{kind}-{name}"] for kind in KINDS if f"{kind}-{name}" in tables}
            for claim, verdict in judge(own).items():
                judged.setdefault(claim, []).append(verdict)
        elif trained == "plain":
            judged.setdefault(veit_claims.PLAIN, []).append(lesion_rules.at_chance(tables[f"lesions-{name}"]))
        elif trained == "highway":
            judged.setdefault(veit_claims.HIGHWAY, []).append(lesion_rules.single(tables[f"lesions-{name}"]))
    return [row(claim, network, over_networks(seeds)) for claim, seeds in judged.items()]


def _of_training(tables: Mapping[str, Table], network: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Claims about what a training does, over seeds."""
    by_rule: dict[str, dict[int, str]] = {}
    for run in runs:
        by_rule.setdefault(run["trained"], {})[run["seed"]] = run["run"]
    whole = by_rule.get("full", {})
    of_paths = {f"m{PAPER_BLOCKS}", *(f"m{number:g}" for number in own_number(tables, network))}
    found = [
        row(
            veit_claims.RETRAINED if one["trained"] in of_paths else veit_claims.OTHER_NUMBERS,
            f"{network}, {one['trained']}",
            retraining.as_good(one),
        )
        for one in tables["retraining"].rows
        if one["network"] == network and retraining.is_blocks(one) and one["difference"] is not None
    ]
    after = {
        kind: _lower(gaps, "single deletions cost")
        for kind, gaps in _after_stochastic_depth(tables, by_rule.get("sd", {}), whole).items()
    }
    harder = _harder(tables, by_rule, whole)
    return [
        *found,
        *corrected([row(veit_claims.STOCHASTIC, f"{network}{kind}", verdict) for kind, verdict in after.items()]),
        *corrected([row(veit_claims.HARDER, f"{network}, {rule}", verdict) for rule, verdict in harder.items()]),
    ]


def own_number(tables: Mapping[str, Table], network: str) -> list[float]:
    """How many random blocks a batch the effective lengths of a network ask for, median over seeds; none if not known.

    Args:
        tables: of the study.
        network: its name, with which those of its runs begin.
    """
    rows = tables["effective"].rows if "effective" in tables else ()
    own = [one for one in rows if one["contribution"] == "sampled" and one["network"].startswith(f"{network}-")]
    return [statistics.median(one["blocks_per_batch"] for one in own)] if own else []


def _after_stochastic_depth(
    tables: Mapping[str, Table], deep: Mapping[int, str], whole: Mapping[int, str]
) -> dict[str, list[float]]:
    """For each seed what a single deletion costs on average more than in the whole network: all blocks, and some."""
    gaps: dict[str, list[float]] = {}
    for seed in sorted(deep.keys() & whole.keys()):
        both = [lesion_rules.costs(tables[f"lesions-{names[seed]}"]) for names in (deep, whole)]
        spared = set.intersection(*({cost.block for cost in costs if not cost.is_noticeable} for costs in both))
        for kind, blocks in (("", range(len(both[0]))), (", blocks critical in neither", spared)):
            after, before = (
                statistics.fmean(cost.difference for cost in costs if cost.block in blocks) for costs in both
            )
            gaps.setdefault(kind, []).append(after - before)
    return gaps


def _lower(gaps: Sequence[float], what: str) -> Verdict:
    """Is a paired difference over seeds below zero?"""
    made = paired(gaps)
    interval = "no interval" if made.low is None else f"{100 * made.low:+.2f} to {100 * (made.high or 0):+.2f}"
    told = (
        f"{what} {100 * made.mean:+.2f} points against the whole network's ({interval}, {counted(made.pairs, 'seed')})"
    )
    return of_seeds(
        Verdict(decide(made.low, made.high, below=0), told, made.mean, made.low, made.high, made.p), made.pairs
    )


def _harder(
    tables: Mapping[str, Table], by_rule: Mapping[str, Mapping[int, str]], whole: Mapping[int, str]
) -> dict[str, Verdict]:
    """For each number of random blocks, what some deletions cost against the whole network of the same seed.

    Of all sets, and of those that hold no block that is critical in the whole network.
    """
    found = {}
    for rule, own in by_rule.items():
        seeds = [
            seed for seed in own if seed in whole and all(f"sets-{names[seed]}" in tables for names in (own, whole))
        ]
        if not rule[1:].isdigit() or not seeds:
            continue
        if len(seeds) > 3:
            seeds = [seed for seed in seeds if seed != 0]
        size = min(veit_claims.HURT, max(one["size"] for one in tables["many"].rows if one["run"] == own[seeds[0]]))
        for kind in ("", ", sets without a critical block"):
            spared = [lesion_rules.critical_blocks(tables[f"lesions-{whole[seed]}"]) if kind else [] for seed in seeds]
            rises = [
                [_rise(tables[f"sets-{names[seed]}"], size, blocks) for names in (own, whole)]
                for seed, blocks in zip(seeds, spared, strict=True)
            ]
            gaps = [after - before for after, before in rises if after is not None and before is not None]
            if gaps:
                found[f"{rule}{kind}"] = _lower(gaps, f"{size} deletions cost")
    return found


def _rise(sets: Table, size: int, spared: Collection[int]) -> float | None:
    """Mean rise of error over the distinct sets of a size that hold none of some blocks; None where there are none."""
    (intact,) = [one["error"] for one in sets.rows if one["count"] == 0]
    errors = [
        one.error for one in lesion_rules.distinct_sets(sets) if one.size == size and one.blocks.isdisjoint(spared)
    ]
    return statistics.fmean(errors) - intact if errors else None
