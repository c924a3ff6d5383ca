"""Every claim about one residual network, judged from its tables."""

from __future__ import annotations

from collections.abc import Mapping

from pathlens.tables import Table
from studies.rules import lesions as lesion_rules
from studies.rules import paths as path_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import Claim, Verdict, majority


def judge(tables: Mapping[str, Table]) -> dict[Claim, Verdict]:
    """Every claim about one residual network.

    Args:
        tables: ``lesions``, ``sets``, ``orders``, ``gradients``, and maybe ``skips``.
    """
    lesions, gradients = tables["lesions"], tables["gradients"]
    ranges = {one["contribution"]: one for one in path_rules.range_rows("", gradients)}
    sets, orders = lesion_rules.distinct_sets(tables["sets"]), lesion_rules.distinct_orders(tables["orders"])
    found = {
        veit_claims.SINGLE: lesion_rules.single(lesions),
        veit_claims.OTHERS: lesion_rules.others(lesions),
        veit_claims.DOWNSAMPLING: lesion_rules.downsampling(lesions),
        veit_claims.SETS: lesion_rules.smooth(sets, lesions, "sets", "hold"),
        veit_claims.ORDERS: lesion_rules.smooth(orders, lesions, "orders", "move"),
        veit_claims.DECAY: path_rules.decay(gradients),
        veit_claims.SHORT: path_rules.short(ranges["sampled"]),
        veit_claims.FEW: path_rules.few(ranges["sampled"]),
        veit_claims.EXACT: path_rules.short(ranges["exact"]),
        veit_claims.CANCELLATION: path_rules.cancellation(gradients),
    }
    if "skips" in tables:
        found[veit_claims.SHORTCUTS] = shortcuts(lesions, tables["skips"])
    return found


def shortcuts(lesions: Table, skips: Table) -> Verdict:
    """In how many of the blocks does the shortcut hurt more to delete than the branch?"""
    branch = {row["block"]: row for row in lesions.rows if row["block"] is not None}
    pairs = [(row, branch[row["block"]]) for row in skips.rows if row["block"] is not None]
    worse = sum(skip["error_low"] > own["error_high"] for skip, own in pairs)
    better = sum(skip["error_high"] < own["error_low"] for skip, own in pairs)
    return Verdict(
        majority(len(pairs), worse, better),
        f"the shortcut hurts more in {worse} of {len(pairs)} blocks and the branch in {better}",
        worse / len(pairs),
    )
