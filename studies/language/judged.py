"""The verdicts on a language model, from the tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pathlens.results.measured import members
from pathlens.tables import Table
from studies.rules.claims import OURS, Claim, Verdict, made_ours, majority, over_networks, row, shown
from studies.rules.lesions import Cost, costlier, costs
from studies.rules.networks import judge
from studies.rules.paths import ON_THEIR_OWN, own_intervals
from studies.rules.veit import COMPARED, DOWNSAMPLING, OTHERS, PATHS, elsewhere

MLP = Claim(
    "MLP against attention",
    "in a transformer's layer, deleting the MLP costs more than deleting the attention",
    OURS,
    "Agrees where in more than half of the layers the MLP is shown to cost more, disagrees where in more than half the "
    "attention is.",
    COMPARED.format(part="layer", what="both costs"),
)
BEYOND = Claim(
    "a layer is more than its blocks",
    "deleting a layer costs more than deleting its attention and its MLP each alone, added up",
    OURS,
    "Cost is error above that of the intact network. Agrees where in more than half of the layers the cost of both "
    "is shown to be above the sum, disagrees where in more than half it is shown to be below.",
    COMPARED.format(part="layer", what="the cost and the sum"),
)
#: the paper's claim with nothing that downsamples
NONE_ALONE = made_ours(
    OTHERS,
    "on 29 November 2026, when errors were known, only in whose claim it is: it had counted as the paper's, and "
    "disagreed on both networks.",
    name="no block is noticed alone",
    says="no single deletion is noticed: nothing downsamples here",
    rule=OTHERS.rule.replace("block that does not downsample", "block"),
)

#: kinds of tables of a network that claims are judged by
JUDGED = ("lesions", "skips", "sets", "orders", "gradients", "layers")


def verdicts(tables: Mapping[str, Table], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table of claims; networks that differ in their seed have one row together.

    Args:
        tables: of the study, by kind and name of the network.
        names: of the networks; ``-seedN`` at the end says which training of one it is.
    """
    judged: dict[tuple[Claim, str], dict[str, Verdict]] = {}
    for name in names:
        network, of_seed, seed = name.partition("-seed")
        for claim, verdict in judge_one({kind: tables[f"{kind}-{name}"] for kind in JUDGED}).items():
            judged.setdefault((claim, network), {})[f"seed {seed}" if of_seed else ""] = verdict
    return [
        row(_of_text(claim), network, own[""] if "" in own else over_networks(own))
        for (claim, network), own in judged.items()
    ]


def _of_text(claim: Claim) -> Claim:
    """A claim with the examples of this study in its rule and test."""
    return replace(
        claim, rule=claim.rule.replace("images", "sequences"), test=claim.test.replace("images", "sequences")
    )


def judge_one(tables: Mapping[str, Table]) -> dict[Claim, Verdict]:
    """Every claim about one network.

    Args:
        tables: its own, by kind.
    """
    found = judge(tables)
    if own_intervals(tables["gradients"]):
        found = {replace(claim, test=ON_THEIR_OWN) if claim in PATHS else claim: one for claim, one in found.items()}
    del found[DOWNSAMPLING]  # no block changes the shape
    found[NONE_ALONE] = found.pop(OTHERS)
    found = {elsewhere(claim): verdict for claim, verdict in found.items()}
    known = layers(tables)
    if known is None:
        return found
    both, attention, mlp = known
    return {**found, MLP: mlp_against_attention(attention, mlp), BEYOND: beyond_its_blocks(both, attention, mlp)}


def layers(tables: Mapping[str, Table]) -> tuple[list[Cost], list[Cost], list[Cost]] | None:
    """What deleting each layer costs, and what its attention and its MLP cost alone.

    None where the layers are not of two blocks, as where attention and MLP are two terms of one sum.
    """
    single = {cost.block: cost for cost in costs(tables["lesions"])}
    parts = [[single[block] for block in members(row)] for row in tables["layers"].rows if row["block"] is not None]
    if any(len(part) != 2 for part in parts):
        return None
    attention, mlp = map(list, zip(*parts, strict=True))
    return costs(tables["layers"]), attention, mlp


def mlp_against_attention(attention: Sequence[Cost], mlp: Sequence[Cost]) -> Verdict:
    """In how many layers does the MLP cost more?"""
    more, less = costlier(mlp, attention)
    outcome, p = majority(more, less)
    return Verdict(
        outcome,
        f"the MLP costs more in {shown(more)} of {len(more)} layers and the attention in {shown(less)}",
        shown(more) / len(more),
        p=p,
    )


def beyond_its_blocks(both: Sequence[Cost], attention: Sequence[Cost], mlp: Sequence[Cost]) -> Verdict:
    """In how many layers does deleting both cost more than the sum of each?"""
    more, less = costlier(both, attention, mlp)
    outcome, p = majority(more, less)
    parts = zip(both, attention, mlp, strict=True)
    middle = statistics.median(layer.difference - one.difference - two.difference for layer, one, two in parts)
    return Verdict(
        outcome,
        f"the layer costs more than the sum in {shown(more)} of {len(more)} layers and less in {shown(less)}; median "
        f"{100 * middle:+.1f} points beyond the sum",
        middle,
        p=p,
    )
