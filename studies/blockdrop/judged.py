"""Does a policy beat networks that run as many blocks for all images?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pathlens.metrics import holm
from pathlens.tables import Table
from studies.rules import claims
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES, OURS, Claim, Verdict
from studies.subjects import seeds_of

_TEST = (
    "McNemar's exact test on the same images, two-sided, corrected by Holm's method over all networks that the policy "
    "of a seed is compared with; at least three policies, trained from three seeds, that show the same, and nothing of "
    "a network that was trained here with fewer than three."
)
_ONE = (
    "on 29 November 2026, when errors were known: a policy of one choice for all images is a fixed set of blocks and "
    "no longer judged. The policies of digits54, which are such, had agreed against random sets."
)


def _claim(name: str, beaten: str, rule: str) -> Claim:
    says = f"A policy that chooses blocks image by image errs less than {beaten} of as many blocks for all images."
    rule += " Cannot tell where it chooses the same blocks for all images."
    return Claim(name, says, OURS, rule, _TEST, revised=_ONE)


RANDOM = _claim(
    "policy against random sets", "random sets", "The policy errs less than more than half of the random sets."
)
SINGLE = _claim(
    "policy against single lesions",
    "the set whose blocks cost most when they alone are deleted",
    "The policy errs less than that network.",
)
GREEDY = _claim(
    "policy against greedy deletion", "the set that a greedy deletion leaves", "The policy errs less than that network."
)
ONE_CHOICE = "the policy makes one choice for all images; as a fixed set of blocks: "
_KINDS = {"random": RANDOM, "single": SINGLE, "greedy": GREEDY}


def of_seed(table: Table) -> dict[Claim, Verdict]:
    """What one policy shows.

    Args:
        table: of ``blockdrop``.
    """
    others = [row for row in table.rows if row["kept"] is not None]
    corrected = holm([row["policy_p"] for row in others])
    (policy,) = (row for row in table.rows if row["network"] == "policy")
    verdicts = {}
    for kind, claim in _KINDS.items():
        own = [(row, p) for row, p in zip(others, corrected, strict=True) if row["network"] == kind]
        found = _verdict(own) if own else Verdict(CANNOT_TELL, "the policy runs all blocks")
        if own and policy["choices"] == 1:
            found = replace(found, outcome=CANNOT_TELL, here=ONE_CHOICE + found.here)
        verdicts[claim] = found
    return verdicts


def _verdict(compared: Sequence[tuple[Mapping[str, Any], float]]) -> Verdict:
    better, worse = ([p if sign * row["policy_difference"] > 0 else 1.0 for row, p in compared] for sign in (1, -1))
    outcome, p = claims.majority(better, worse)
    gap = statistics.median(100 * row["policy_difference"] for row, _ in compared)
    if len(compared) > 1:
        return Verdict(
            outcome,
            f"better than {claims.shown(better)} of {len(compared)}, worse than {claims.shown(worse)}; median "
            f"{gap:+.2f} points",
            gap,
            p=p,
        )
    words = {AGREES: "better", DISAGREES: "worse", CANNOT_TELL: "no difference shown"}
    return Verdict(outcome, f"{words[outcome]}, {gap:+.2f} points", gap, p=p)


def verdicts(tables: Mapping[str, Table], network: str) -> list[dict[str, Any]]:
    """The rows of the table of claims.

    Args:
        tables: of ``blockdrop``, one of each seed, by names such as ``seed 0``.
        network: that the policies choose from.
    """
    policies, seeds = {name: of_seed(table) for name, table in tables.items()}, seeds_of(network)
    found = []
    for claim in _KINDS.values():
        own = {name: one[claim] for name, one in policies.items()}
        over = replace(claims.over_networks(own, ("policy", "policies")), seeds=seeds)
        found.append(claims.row(claim, network, over if seeds is None else claims.of_seeds(over, seeds)))
    return found
