"""The verdicts on a language model, from the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathlens.tables import Table
from studies.rules.claims import OURS, Claim, Verdict, majority, over_networks, row
from studies.rules.networks import judge
from studies.rules.veit import DOWNSAMPLING

MLP = Claim(
    "MLP against attention",
    "in a transformer's layer, deleting the MLP costs more than deleting the attention",
    OURS,
    "Agrees where in more than half of the layers the MLP is shown to cost more, disagrees where in more than half the "
    "attention is.",
    "Per layer the 95 % intervals of both paired differences do not overlap.",
)
BEYOND = Claim(
    "a layer is more than its blocks",
    "deleting a layer costs more than deleting its attention and its MLP each alone, added up",
    OURS,
    "Cost is error above that of the intact network. Agrees where in more than half of the layers the cost of both "
    "is shown to be above the sum, disagrees where in more than half it is shown to be below.",
    "Per layer the 95 % interval of the cost of the layer against the sum of the ends of those of its blocks.",
)


#: kinds of tables of a network that claims are judged by
JUDGED = ("lesions", "skips", "sets", "orders", "gradients", "layers")


def verdicts(tables: Mapping[str, Table], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table of claims; networks that differ in their seed have one row together.

    Args:
        tables: of the study, by kind and name of the network.
        names: of the networks; ``-seedN`` at the end says which training of one it is.
    """
    judged: dict[tuple[Claim, str], list[Verdict]] = {}
    for name in names:
        network = name.partition("-seed")[0]
        for claim, verdict in judge_one({kind: tables[f"{kind}-{name}"] for kind in JUDGED}).items():
            judged.setdefault((claim, network), []).append(verdict)
    return [
        row(claim, network, own[0] if f"{network}-seed0" not in names else over_networks(own))
        for (claim, network), own in judged.items()
    ]


def judge_one(tables: Mapping[str, Table]) -> dict[Claim, Verdict]:
    """Every claim about one network.

    Args:
        tables: its own, by kind.
    """
    found = judge(tables)
    del found[DOWNSAMPLING]  # no block changes the shape
    pairs = layers(tables)
    return {**found, MLP: mlp_against_attention(pairs), BEYOND: beyond_its_blocks(pairs)}


def layers(tables: Mapping[str, Table]) -> list[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    """The rows of each layer, of its attention and of its MLP."""
    single = {row["block"]: row for row in tables["lesions"].rows if row["block"] is not None}
    rows = [row for row in tables["layers"].rows if row["block"] is not None]
    return [(row, *(single[int(block)] for block in row["blocks"].split(","))) for row in rows]


def mlp_against_attention(pairs: list[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]) -> Verdict:
    """In how many layers does the MLP cost more?"""
    more = sum(mlp["difference_low"] > attention["difference_high"] for _, attention, mlp in pairs)
    less = sum(mlp["difference_high"] < attention["difference_low"] for _, attention, mlp in pairs)
    return Verdict(
        majority(len(pairs), more, less),
        f"the MLP costs more in {more} of {len(pairs)} layers and the attention in {less}",
        more / len(pairs),
    )


def beyond_its_blocks(pairs: list[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]) -> Verdict:
    """In how many layers does deleting both cost more than the sum of each?"""
    more = sum(both["difference_low"] > one["difference_high"] + two["difference_high"] for both, one, two in pairs)
    less = sum(both["difference_high"] < one["difference_low"] + two["difference_low"] for both, one, two in pairs)
    sums = [both["difference"] - one["difference"] - two["difference"] for both, one, two in pairs]
    middle = sorted(sums)[len(sums) // 2]
    return Verdict(
        majority(len(pairs), more, less),
        f"the layer costs more than the sum in {more} of {len(pairs)} layers and less in {less}; median "
        f"{100 * middle:+.1f} points beyond the sum",
        middle,
    )
