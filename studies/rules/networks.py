"""Every claim about one residual network, judged from its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    told = [worse(branch[row["block"]], row) for row in skips.rows if row["block"] is not None]
    shortcut, other = told.count("shortcut"), told.count("branch")
    return Verdict(
        majority(len(told), shortcut, other),
        f"the shortcut hurts more in {shortcut} of {len(told)} blocks and the branch in {other}",
        shortcut / len(told),
    )


def worse(branch: Mapping[str, Any], skip: Mapping[str, Any]) -> str | None:
    """What of a block hurts more to delete, by intervals that do not overlap; None where they do.

    Args:
        branch: row of ``delete-blocks``.
        skip: row of ``delete-skips``.
    """
    if skip["error_low"] > branch["error_high"]:
        return "shortcut"
    return "branch" if branch["error_low"] > skip["error_high"] else None
