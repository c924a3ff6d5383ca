"""Means over seeds with intervals, paired differences to the whole gradient, and what they say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pathlens.metrics import holm, sample_interval
from studies.rules import margin
from studies.rules.answers import PAIRED, both_interval, gaps
from studies.rules.claims import CANNOT_TELL, LEVEL, OURS, Claim, Verdict, decide, made_ours, of_seeds, paired, row

Row = Mapping[str, Any]

PAPER = "Wu, Shen, van den Hengel 2019"
WIDER = Claim(
    "wider instead of deeper",
    "a wider, shallower network does better than a very deep one of the same cost",
    f"{PAPER} (the paper compares designs on ImageNet; equal multiply-adds are our reading of the same cost)",
    "Test error of the wide network minus that of the deep one. Agrees where it is below zero, disagrees where it is "
    "above: by the interval over seeds and test images, and by the test.",
    f"{PAIRED}, one draw for all seeds and both networks. Paired t test over seeds, Holm's correction over all "
    "comparisons with the deep network, of error and loss.",
)
ENOUGH = Claim(
    "long paths need no gradient",
    "a deep network is not trained end to end: paths of more blocks than its effective depth add nothing",
    f"{PAPER} (inferred there from gradients; to cut the gradient by hand is ours, and that the effective depth is the "
    "longest effective length of the whole gradient, its mean over seeds rounded)",
    "Agrees where the error with the gradient of at most L blocks is shown to be at most 0.5 points above that of the "
    "whole gradient (non-inferiority), disagrees where it is shown to be more than that above: by the interval over "
    "seeds and test images, and by the test.",
    "Difference paired by seed, with the interval of wider instead of deeper; one-sided paired t test against the "
    "margin in the direction of the difference, Holm's correction over the depths.",
    revised="on 30 November 2026, when errors were known: an L below the effective depth had counted as the paper's, "
    "of which L = 1 disagreed. On 29 November the test images were taken into the interval, by which L = 8 had agreed.",
)
FEWER = replace(
    ENOUGH,
    name="fewer blocks than the effective depth need a gradient",
    says="paths of at most L blocks are enough to train on, L below the effective depth",
    source=OURS,
    revised="on 30 November 2026, when errors were known, only in whose claim it is: it had counted as the paper's, "
    "and L = 1 disagreed.",
)
ENOUGH_EARLY = made_ours(
    ENOUGH,
    "then in whose claim it is, which had counted as the paper's.",
    says=f"after short trainings on small images: {ENOUGH.says}",
)
EARLY = made_ours(
    WIDER,
    "on 30 November 2026, when errors were known, only in whose claim it is: it had counted as the paper's, which is "
    "of whole trainings on ImageNet.",
    says="after short trainings on small images, a wider, shallower network does better than a very deep one of the "
    "same cost",
)

DISCUSSION = (
    "What the numbers can and cannot say: the paper infers from the gradients of long paths that a network beyond its "
    "effective depth is not trained end to end; here the cut is made by hand, in networks that could also be trained "
    "whole. Without the long paths a step's gradient is smaller as well as in another direction; batch norms make the "
    "networks insensitive to the scale of most weights, but the learning rate was not tuned for each row. The forward "
    "pass uses all blocks at every effective depth, so that L = 1 still trains a deep network, each block as if the "
    "blocks after it were fixed. Equal multiply-adds are not equal parameters, memory, or time. A few epochs on "
    "small images say little of networks trained for long. On data that every network nearly solves, "
    "differences are bounded by what is left to gain, and the test loss shows what the error is too coarse for; its "
    "intervals are over seeds alone. At `--scale cpu` most of an interval of the error on the digits is due to their "
    "360 test images."
)


def summary_rows(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the tables ``summary`` and ``lengths``; differences are to the first network with whole gradients."""
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for run in runs:
        groups.setdefault((run["network"], str(run["effective_depth"])), {})[run["seed"]] = run
    whole = groups[runs[0]["network"], "all"]
    found = []
    for (network, depth), own in groups.items():
        one: dict[str, Any] = {"network": network, "effective_depth": depth, "seeds": len(own)}
        for name, bounds in (("error", (0.0, 1.0)), ("loss", (0.0, float("inf")))):
            values = [run[f"test_{name}"] for run in own.values()]
            one[f"test_{name}"] = statistics.fmean(values)
            one[f"test_{name}_low"], one[f"test_{name}_high"] = sample_interval(values, bounds=bounds)
            parts = ("difference", "difference_low", "difference_high", "p", "p_holm")
            one |= {f"{name}_{part}": None for part in parts}
            if own is not whole:
                made = paired(gaps(own, whole, name))
                ends = (made.mean, made.low, made.high, made.p)
                one |= {f"{name}_{part}": value for part, value in zip(parts[:4], ends, strict=True)}
        one["both_low"], one["both_high"] = (None, None) if own is whole else both_interval(own, whole)
        one |= margin.tested(() if depth == "all" else gaps(own, whole))
        for name in ("train_loss", "first", "last", "mean_length"):
            one[name] = statistics.fmean(run[name] for run in own.values())
        found.append(one)
    _correct(found)
    margin.correct(found)
    return found


def _correct(found: list[dict[str, Any]]) -> None:
    """Holm's correction over all comparisons of error and loss."""
    family = [(one, name) for one in found for name in ("error", "loss") if one[f"{name}_p"] is not None]
    for (one, name), p in zip(family, holm([one[f"{name}_p"] for one, name in family]), strict=True):
        one[f"{name}_p_holm"] = p


def verdicts(summary: Sequence[Row], costs: Sequence[Row], is_whole: bool) -> list[dict[str, Any]]:
    """Rows of the table of claims.

    Args:
        summary: of the networks, by :func:`summary_rows`.
        costs: of the networks, the deep one first.
        is_whole: whether they were trained as long as the paper's.
    """
    deep = costs[0]["network"]
    (longest,) = (one["last"] for one in summary if (one["network"], one["effective_depth"]) == (deep, "all"))
    effective = round(longest)
    found = []
    for one in summary:
        if one["network"] != deep:
            found.append(row(WIDER if is_whole else EARLY, f"{one['network']} against {deep}", wider(one)))
        elif one["effective_depth"] != "all":
            beyond = ENOUGH if is_whole else ENOUGH_EARLY
            claim = beyond if int(one["effective_depth"]) >= effective else FEWER
            found.append(row(claim, f"{deep}, L = {one['effective_depth']}", enough(one)))
    return found


def _told(one: Row) -> str:
    if one["both_low"] is None:
        return f"{100 * one['error_difference']:+.2f} points of error (no interval), {one['seeds']} seed"
    return (
        f"{100 * one['error_difference']:+.2f} points of error ({100 * one['both_low']:+.2f} to "
        f"{100 * one['both_high']:+.2f} over seeds and images; {one['seeds']} seeds)"
    )


def wider(one: Row) -> Verdict:
    """Is a wide network better than the deep one?"""
    p, low, high = one["error_p_holm"], one["both_low"], one["both_high"]
    outcome = decide(low, high, below=0) if p is not None and p < LEVEL else CANNOT_TELL
    corrected = "" if p is None else f"; p {one['error_p']:.2g}, {p:.2g} after Holm's correction"
    loss = "" if one["loss_p_holm"] is None else f" (p {one['loss_p']:.2g}, {one['loss_p_holm']:.2g} corrected)"
    told = f"{_told(one)}{corrected}; test loss {one['loss_difference']:+.3f} nats{loss}"
    return of_seeds(Verdict(outcome, told, one["error_difference"], low, high, p), one["seeds"])


def enough(one: Row) -> Verdict:
    """Is a network as good that was trained with the gradient of short paths alone?"""
    low, high = one["both_low"], one["both_high"]
    outcome, p, corrected = margin.judged(one, one["error_difference"], low, high)
    told = "; ".join(filter(None, (_told(one), corrected)))
    return of_seeds(Verdict(outcome, told, one["error_difference"], low, high, p), one["seeds"])
