"""What agrees, what does not, and the likely reason: sentences made from the numbers of the sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.critics.shortcuts import verdict

TALK = (
    "Where the small network on digits and the published network disagree, size and task are confounded. A block that "
    "changes shapes cannot be compared with the others by the size of its response alone, because its shortcut throws "
    "channels or positions away; the rows `identity` leave such blocks out. The ConvNeXt's branches begin scaled by "
    "0.1, which may be all it takes for single ones not to matter. A deleted shortcut also changes the scale "
    "of everything after it, for which the later layers were not trained, so that harm by it is no proof that the "
    "paths through it were members of an ensemble."
)


def answers(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The list of the page's last section.

    Args:
        found: rows of the tables ``shortcuts``, ``responses``, ``effective`` (as ``ranges``), ``tails`` and ``beyond``.
    """
    by_network: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in found["ranges"]:
        by_network.setdefault(row["network"], {})[row["contribution"]] = row
    lines = [_shortcut(row, by_network[row["network"]]["exact"]) for row in found["shortcuts"] if row["which"] == "all"]
    for row in found["responses"]:
        if (row["which"], row["response"], row["harm"]) == ("all", "relative_std", "error"):
            lines.append(_response(row))
    for network, own in by_network.items():
        lines.append(_cancellation(network, own, [row for row in found["tails"] if row["network"] == network]))
    lines += [_beyond(row) for row in found["beyond"]]
    return "\n".join(lines)


def _shortcut(row: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    said = {
        "shortcut": "shortcuts hurt more to delete, which an ensemble whose paths count alike does not predict",
        "branch": "branches hurt more to delete, the opposite of the objection",
        "neither": "the objection is not borne out, both deletions cost about the same",
    }[verdict(row)]
    middle = (exact["first"] + exact["last"]) / 2
    more = (exact["blocks"] - middle) / middle if middle else None
    if more is None:
        return f"- (a) {row['network']}: {said}."
    fits = verdict(row) == ("shortcut" if more > 1 else "branch")
    return (
        f"- (a) {row['network']}: {said}. If a path counts by the gradient that it carries, a shortcut counts "
        f"{more:.1f} times as much as a branch (effective lengths centred at {middle:g} of {exact['blocks']} blocks); "
        f"the sign of the difference {'is' if fits else 'is not'} what that predicts."
    )


def _response(row: Mapping[str, Any]) -> str:
    if row["rho"] is None:
        return f"- (b) {row['network']}: harm or response does not vary, nothing can be said."
    if row["rho_low"] > 0.7:
        said = "the ranking by harm is largely one by relative response, so that harmless means adding little"
    elif row["rho_low"] > 0:
        said = "harm and relative response go together, but a good part of the ranking by harm is something else"
    else:
        said = "the size of the relative response does not tell which blocks are harmless"
    return f"- (b) {row['network']}: {said} (rank correlation {row['rho']:.2f})."


def _cancellation(network: str, own: Mapping[str, Mapping[str, Any]], tails: Sequence[Mapping[str, Any]]) -> str:
    exact, sampled = own["exact"], own["sampled"]
    short = "all" if exact["last"] < exact["blocks"] / 2 else "not all"
    differ = exact["last_high"] < sampled["last_low"] or sampled["last_high"] < exact["last_low"]
    product = (
        f"The paper's product puts the longest at {sampled['last']}, farther off than the intervals explain"
        if differ
        else f"The paper's product puts the longest at {sampled['last']}, within the intervals"
    )
    missed, within = (max(row[name] for row in tails) for name in ("missed", "tail_within"))
    heavy = (
        "so that the product rests on whether the few heavy paths were drawn"
        if missed > 1.5
        else "so that the heavy paths were mostly seen"
    )
    return (
        f"- (c) {network}: that effective paths are short {'survives' if short == 'all' else 'does not fully survive'} "
        f"cancellation: the exact effective lengths are {exact['first']} to {exact['last']}, {short} of them below "
        f"half of the {exact['blocks']} blocks. {product}. Among the sampled paths of one "
        f"example the root mean square norm is up to {within:.2g} times the mean, and over all paths up to "
        f"{missed:.2g} times that of the sample, {heavy}."
    )


def _beyond(row: Mapping[str, Any]) -> str:
    harmless, short = row["harmless"] > 0.5, row["middle"] < 0.5
    said = {2: "both conclusions hold", 1: "one conclusion holds", 0: "neither conclusion holds"}[harmless + short]
    return (
        f"- (d) {row['network']}: {said}: that most single deletions are harmless ({row['harmless']:.0%} of them are), "
        f"and that effective paths are shorter than half of the blocks (centred at {row['middle']:.0%})."
    )
