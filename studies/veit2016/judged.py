"""The verdicts, from the tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from pathlens.tables import Table
from studies.rules import lesions as lesion_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import (
    OURS,
    Claim,
    Differences,
    Verdict,
    corrected,
    counted,
    decide,
    of_seeds,
    over_networks,
    paired,
    row,
    satterthwaite,
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
    judged: dict[Claim, dict[str, Verdict]] = {}
    for run in runs:
        name, trained, seed = run["run"], run["trained"], f"seed {run['seed']}"
        if f"lesions-{name}" not in tables:
            continue
        if trained == "full":
            own = {kind: tables[f"{kind}-{name}"] for kind in KINDS if f"{kind}-{name}" in tables}
            for claim, verdict in judge(own).items():
                judged.setdefault(claim, {})[seed] = verdict
        elif trained == "plain":
            judged.setdefault(veit_claims.PLAIN, {})[seed] = lesion_rules.at_chance(tables[f"lesions-{name}"])
        elif trained == "highway":
            judged.setdefault(veit_claims.HIGHWAY, {})[seed] = lesion_rules.single(tables[f"lesions-{name}"])
    return [row(claim, network, over_networks(seeds)) for claim, seeds in judged.items()]


def _of_training(tables: Mapping[str, Table], network: str, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Claims about what a training does, over seeds."""
    by_rule: dict[str, dict[int, str]] = {}
    for run in runs:
        by_rule.setdefault(run["trained"], {})[run["seed"]] = run["run"]
    whole = by_rule.get("full", {})
    epochs = min(run["epochs"] for run in runs)
    of_paths = {f"m{PAPER_BLOCKS}", *(f"m{number}" for number in own_number(tables, network))}
    retrained = veit_claims.trained_for(veit_claims.RETRAINED, epochs)
    found = [
        row(
            retrained if one["trained"] in of_paths else veit_claims.OTHER_NUMBERS,
            f"{network}, {one['trained']}",
            retraining.as_good(one),
        )
        for one in tables["retraining"].rows
        if one["network"] == network and retraining.is_blocks(one) and one["difference"] is not None
    ]
    after = {
        kind: _lower(paired(gaps), "single deletions cost")
        for kind, gaps in _after_stochastic_depth(tables, by_rule.get("sd", {}), whole).items()
    }
    resilient = veit_claims.trained_for(veit_claims.STOCHASTIC, epochs)
    harder = _harder(tables, by_rule, whole)
    return [
        *found,
        *corrected([row(resilient, f"{network}{kind}", verdict) for kind, verdict in after.items()]),
        *corrected([row(veit_claims.HARDER, f"{network}, {rule}", verdict) for rule, verdict in harder.items()]),
    ]


def own_number(tables: Mapping[str, Table], network: str) -> list[int]:
    """How many random blocks a batch the effective lengths of a network's seed 0 ask for; none if not known.

    Args:
        tables: of the study.
        network: its name, with which those of its runs begin.
    """
    rows = tables["effective"].rows if "effective" in tables else ()
    own = [one for one in rows if one["contribution"] == "sampled" and one["network"] == f"{network}-full-seed0"]
    return [one["blocks_per_batch"] for one in own]


def _after_stochastic_depth(
    tables: Mapping[str, Table], deep: Mapping[int, str], whole: Mapping[int, str]
) -> dict[str, list[float]]:
    """For each seed what a single deletion costs on average more than in the whole network: all blocks, and some."""
    gaps: dict[str, list[float]] = {}
    for seed in sorted(deep.keys() & whole.keys()):
        stems = [f"lesions-{names[seed]}" for names in (deep, whole)]
        if not tables.keys() >= set(stems):
            continue
        both = [lesion_rules.costs(tables[stem]) for stem in stems]
        spared = set.intersection(*({cost.block for cost in costs if not cost.is_noticeable} for costs in both))
        for kind, blocks in (("", range(len(both[0]))), (", blocks critical in neither", spared)):
            after, before = (
                statistics.fmean(cost.difference for cost in costs if cost.block in blocks) for costs in both
            )
            gaps.setdefault(kind, []).append(after - before)
    return gaps


def _lower(made: Differences, what: str, more: str = "") -> Verdict:
    """Is a paired difference over seeds below zero?

    Args:
        made: the difference.
        what: it is a difference of, with a verb.
        more: words on what else it is over.
    """
    interval = "no interval" if made.low is None else f"{100 * made.low:+.2f} to {100 * (made.high or 0):+.2f}"
    told = (
        f"{what} {100 * made.mean:+.2f} points against the whole network's ({interval}, "
        f"{counted(made.pairs, 'seed')}{more})"
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
        rises = {
            seed: [rises_of(tables, run) for run in (own[seed], whole[seed])]
            for seed in sorted(own.keys() & whole.keys())
            if f"lesions-{whole[seed]}" in tables
        }
        seeds = [seed for seed, pair in rises.items() if all(pair)]
        if not rule[1:].isdigit() or not seeds:
            continue
        if len(seeds) > 3:
            seeds = [seed for seed in seeds if seed != 0]
        size = min(veit_claims.HURT, *(max(map(len, rise)) for seed in seeds for rise in rises[seed]))
        for kind in ("", ", sets without a critical block"):
            spared = [lesion_rules.critical_blocks(tables[f"lesions-{whole[seed]}"]) if kind else [] for seed in seeds]
            gaps = [
                {
                    one: after[one] - before[one]
                    for one in after.keys() & before.keys()
                    if len(one) == size and one.isdisjoint(blocks)
                }
                for (after, before), blocks in zip((rises[seed] for seed in seeds), spared, strict=True)
            ]
            if any(gaps):
                sets = len(set[frozenset[int]]().union(*gaps))
                found[f"{rule}{kind}"] = _lower(
                    over_seeds_and_sets([one for one in gaps if one]),
                    f"{size} deletions cost",
                    f", {counted(sets, 'set')}",
                )
    return found


def rises_of(tables: Mapping[str, Table], run: str) -> dict[frozenset[int], float]:
    """Rise of error of each distinct set of blocks that was deleted of a network."""
    found = {}
    for table in (tables[stem] for stem in (f"sets-{run}", f"hurt-{run}") if stem in tables):
        (intact,) = [one["error"] for one in table.rows if one["count"] == 0]
        found |= {one.blocks: one.error - intact for one in lesion_rules.distinct_sets(table)}
    return found


def over_seeds_and_sets(gaps: Sequence[Mapping[frozenset[int], float]]) -> Differences:
    """Differences that are paired by seed and set, for seeds and sets like these.

    The mean over seeds of the means over their sets; the variances over seeds and over sets are added. Never surer than
    by the seeds alone, of which there are few.

    Args:
        gaps: for each seed the difference of each set; a set may be missing from some.
    """
    by_set: dict[frozenset[int], list[float]] = {}
    weights: dict[frozenset[int], float] = {}
    for one in gaps:
        for blocks, gap in one.items():
            by_set.setdefault(blocks, []).append(gap)
            weights[blocks] = weights.get(blocks, 0.0) + 1 / len(one) / len(gaps)
    seeds = [statistics.fmean(one.values()) for one in gaps]
    sets = [statistics.fmean(values) for values in by_set.values()]
    # one over the number of sets where all seeds have the same
    share = sum(weight**2 for weight in weights.values())
    alone = paired(seeds)
    if alone.low is None or alone.high is None or alone.p is None or len(sets) < 2:
        return alone
    parts = [
        (statistics.variance(seeds) / len(seeds), len(seeds) - 1),
        (statistics.variance(sets) * share, 1 / share - 1),
    ]
    error, freedom = satterthwaite(parts)
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(alone.mean) / error, freedom))
    low, high = min(alone.low, alone.mean - half), max(alone.high, alone.mean + half)
    return Differences(alone.mean, low, high, max(alone.p, p), alone.pairs)
