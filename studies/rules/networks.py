"""Every claim about one residual network, judged from its tables."""

from __future__ import annotations

from collections.abc import Mapping

from pathlens.tables import Table
from studies.rules import lesions as lesion_rules
from studies.rules import paths as path_rules
from studies.rules import veit as veit_claims
from studies.rules.claims import LEVEL, Claim, Verdict, majority, shown


def judge(tables: Mapping[str, Table]) -> dict[Claim, Verdict]:
    """Every claim about one residual network that its tables tell of.

    Args:
        tables: ``lesions``, and which there are of ``sets``, ``orders``, ``gradients`` and ``skips``.
    """
    lesions = tables["lesions"]
    found = {
        veit_claims.SINGLE: lesion_rules.single(lesions),
        veit_claims.OTHERS: lesion_rules.others(lesions),
        veit_claims.DOWNSAMPLING: lesion_rules.downsampling(lesions),
    }
    if "sets" in tables:
        sets = lesion_rules.distinct_sets(tables["sets"])
        found[veit_claims.SETS] = lesion_rules.smooth(sets, lesions, "sets", "hold")
    if "orders" in tables:
        orders = lesion_rules.distinct_orders(tables["orders"])
        found[veit_claims.ORDERS] = lesion_rules.smooth(orders, lesions, "orders", "move")
    if "gradients" in tables:
        found |= _of_paths(tables["gradients"])
    if "skips" in tables:
        found[veit_claims.SHORTCUTS] = shortcuts(lesions, tables["skips"])
    return found


def _of_paths(gradients: Table) -> dict[Claim, Verdict]:
    ranges = {one["contribution"]: one for one in path_rules.range_rows("", gradients)}
    blocks = ranges["sampled"]["blocks"]
    return {
        veit_claims.DECAY: path_rules.decay(gradients),
        veit_claims.in_depth(veit_claims.SHORT, blocks): path_rules.short(ranges["sampled"]),
        veit_claims.in_depth(veit_claims.FEW, blocks): path_rules.few(ranges["sampled"]),
        veit_claims.EXACT: path_rules.short(ranges["exact"]),
        veit_claims.CANCELLATION: path_rules.cancellation(gradients),
    }


def shortcuts(lesions: Table, skips: Table) -> Verdict:
    """In how many of the blocks does the shortcut hurt more to delete than the branch?"""
    ps = _compared(lesions, skips)
    shortcut, branch = ([p[side] for p in ps.values()] for side in (0, 1))
    outcome, p = majority(shortcut, branch)
    return Verdict(
        outcome,
        f"the shortcut hurts more in {shown(shortcut)} of {len(ps)} blocks and the branch in {shown(branch)}",
        shown(shortcut) / len(ps),
        p=p,
    )


def worse(lesions: Table, skips: Table) -> dict[int, str | None]:
    """What of each block is shown to hurt more to delete; None where neither is.

    Args:
        lesions: of ``delete-blocks``.
        skips: of ``delete-skips``, of the same network and images.
    """
    return {
        block: "shortcut" if more < LEVEL else "branch" if less < LEVEL else None
        for block, (more, less) in _compared(lesions, skips).items()
    }


def _compared(lesions: Table, skips: Table) -> dict[int, tuple[float, float]]:
    """For each block the p values that its shortcut costs more than its branch, and that it costs less."""
    branch = {cost.block: cost for cost in lesion_rules.costs(lesions)}
    shortcut = lesion_rules.costs(skips)
    ps = lesion_rules.costlier(shortcut, [branch[cost.block] for cost in shortcut])
    return {cost.block: both for cost, both in zip(shortcut, zip(*ps, strict=True), strict=True)}
