"""What the paper claims and what is asked here, and what the numbers say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pathlens.metrics import holm
from pathlens.tables import Table
from studies.civitelli2021.kinds import BATCH_NORM, BROCK, CONVSHORT, IDSHORT, LEARNSCALAR, PLAIN, SCHEMES, Kind
from studies.rules.answers import PAIRED, both_interval
from studies.rules.claims import (
    AGREES,
    CANNOT_TELL,
    DISAGREES,
    LEVEL,
    OURS,
    OVER_ROWS,
    TOGETHER,
    Claim,
    Differences,
    Verdict,
    by_interval,
    corrected_by_claim,
    made_ours,
    of_seeds,
    paired,
    row,
    span,
)

Row = Mapping[str, Any]

PAPER = "Civitelli et al. 2021"
_GROWS, _KEPT = 1.1, 2.0
_CHANCE, _FAILS = 0.9, 0.8
_MARGIN, _LENGTH = 0.02, 0.05
_T = f"Student's 95 % interval over seeds, {OVER_ROWS}"
_BOTH = "Each direction has half of the level for showing the contrary (Bonferroni)."
_SAME = "All seeds have the same images, whose choice is not in it."

COSTS = Claim(
    "sizes",
    "parameters and FLOPs of the networks",
    f"{PAPER}, tables 1 and 2",
    "Parameters without those of norms, and twice the multiply-adds rounded to two places, are those of the tables, to "
    "the last digit.",
    "Counted; nothing is random.",
)
EXPLODES = Claim(
    "Brock's weights explode",
    "without normalisation, and without standardising the weights, activations and gradients explode with the weights "
    "of Brock et al.",
    f"{PAPER}, figure 2",
    f"The second moment grows by more than {_GROWS} a block, of the activations forward and of the gradient backward "
    "(both must be shown).",
    f"Fitted factor a block inside stages. {_T} {_BOTH}",
    revised="on 1 December 2026, when factors were known, by half of the level for showing the contrary; no verdict "
    "changed.",
)
KEEPS = Claim(
    "the schemes keep the signal",
    "IdShort, as which LearnScalar starts, and ConvShort keep the variance of activations and of gradients",
    f"{PAPER}, figure 6",
    f"Over all blocks the second moment would change, at the rate that is found inside of stages, by a factor between "
    f"1/{_KEPT:g} and {_KEPT:g}, forward and backward "
    "(both must be shown); disagrees where either is shown to be outside.",
    f"Fitted factor a block inside stages, to the power of the number of blocks. {_T} {_BOTH}",
    revised="on 29 November 2026, when the signals were known, from within 10 % of 1 a block, which over 33 blocks is "
    "anything between a 32nd and the 23-fold. By the earlier rule ConvShort of nfresnet50, and IdShort and ConvShort "
    "of nfresnet101 agreed, and none disagreed.",
)
FAILS = Claim(
    "Brock's weights fail to train",
    "without normalisation, and without standardising the weights, a network with the weights of Brock et al. does not "
    "train",
    f"{PAPER}, figure 3 (networks and recipe of the paper)",
    f"Test error after the last epoch above {_FAILS:.0%}, with {_CHANCE:.0%} for a run that diverged; cannot tell "
    "where all runs have the same.",
    f"Mean over seeds. {_T}",
    revised="on 29 November 2026, when errors were known: that all runs diverge agreed before, and has no interval.",
)
TRAINS = Claim(
    "the schemes train",
    "IdShort, LearnScalar and ConvShort train without normalisation",
    f"{PAPER}, figure 7 (networks and recipe of the paper)",
    f"Test error after the last epoch below {_FAILS:.0%}, with {_CHANCE:.0%} for a run that diverged; cannot tell "
    "where all runs have the same.",
    f"Mean over seeds. {_T}",
)
COMPETES = Claim(
    "ConvShort competes with batch norm",
    "the modified architecture achieves results that are competitive with those of batch norm",
    f"{PAPER}, abstract and figure 7 (networks and recipe of the paper)",
    f"Test error of ConvShort minus that of batch norm below {100 * _MARGIN:.0f} points (non-inferiority); disagrees "
    "where it is above.",
    f"{PAIRED}, one draw for all seeds and both kinds, {OVER_ROWS} The test has the degrees of freedom of the seeds.",
)


def early(claim: Claim) -> Claim:
    """A claim about the paper's networks and trainings, of narrow ones and short ones.

    Args:
        claim: the paper's.
    """
    return made_ours(
        claim,
        "on 30 November 2026, when errors were known, in whose claim it is: it had counted as the paper's.",
        says=f"of narrow networks after few epochs of few and small images: {claim.says} ({claim.source} says it of "
        "whole trainings)",
    )


GROWTH = Claim(
    "growth sets the effective length at initialisation",
    "the growth of the gradient tells the mean length of its paths: sum over blocks of 1 - c^2 / r",
    OURS,
    f"Mean length (squared norms as weights) within {_LENGTH:.0%} of the number of blocks of it; disagrees where it is "
    "farther.",
    f"Difference over the number of blocks, of each seed. {_T} {_SAME}",
)
SCALE_START = Claim(
    "1/sqrt(2) and paths at initialisation",
    "the factor 1/sqrt(2) leaves effective paths as long as they are without it (IdShort against plain, He)",
    OURS,
    f"Mean lengths differ by less than {_LENGTH:.0%} of the number of blocks; disagrees where they differ by more. "
    "Both networks have the same weights, so that this follows from homogeneity but for the gradient of the loss.",
    f"Difference over the number of blocks, paired by seed. {_T} {_SAME}",
)
SHORTCUT_START = Claim(
    "convolutions as shortcuts and paths at initialisation",
    "without identities effective paths are longer (ConvShort against IdShort)",
    OURS,
    f"Mean length longer by more than {_LENGTH:.0%} of the number of blocks; disagrees where it is less.",
    f"Difference over the number of blocks, paired by seed. {_T} {_SAME}",
)
SCALE_END = Claim(
    "1/sqrt(2) and paths after training",
    "the factor 1/sqrt(2) shortens effective paths (IdShort against plain, He)",
    OURS,
    f"Mean length shorter by more than {_LENGTH:.0%} of the number of blocks after the last epoch; disagrees where it "
    "is less.",
    f"Difference over the number of blocks, paired by seed. {_T} {_SAME}",
)
SHORTCUT_END = Claim(
    "convolutions as shortcuts and paths after training",
    "without identities effective paths are longer (ConvShort against IdShort)",
    OURS,
    f"Mean length longer by more than {_LENGTH:.0%} of the number of blocks after the last epoch; disagrees where it "
    "is less.",
    f"Difference over the number of blocks, paired by seed. {_T} {_SAME}",
)
SHORTENS = Claim(
    "training shortens effective paths",
    "effective paths are shorter after training than at initialisation",
    OURS,
    "Mean length after the last epoch minus that at initialisation is below zero; disagrees where it is above.",
    "Two-sided t test of the differences, each of a seed, with Holm's correction over the kinds of a network.",
)


def verdicts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Rows of the table of claims."""
    profiles, runs = list(tables["profiles"].rows), list(tables["runs"].rows)
    started = [one for one in profiles if one["expected_length"] is not None]
    trained = [one for one in profiles if one["expected_length"] is None]
    last = [one for one in trained if one["epoch"] == max(other["epoch"] for other in trained)]
    by_rows = [
        *_signals(tables),
        *_errors(runs),
        *_growth(started),
        *_between(SCALE_START, started, IDSHORT, PLAIN, within=True),
        *_between(SHORTCUT_START, started, CONVSHORT, IDSHORT),
        *_between(SCALE_END, last, PLAIN, IDSHORT),
        *_between(SHORTCUT_END, last, CONVSHORT, IDSHORT),
    ]
    return [*_costs(tables["costs"].rows), *corrected_by_claim(by_rows, TOGETHER), *_shortens(trained)]


def _costs(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for one in rows:
        same = (one["parameters"], one["gflops"]) == (one["parameters_stated"], one["gflops_stated"])
        here = (
            f"{one['parameters']:,} parameters and {one['gflops']:.2f} GFLOPs, stated {one['parameters_stated']:,} and "
            f"{one['gflops_stated']:.2f}"
        )
        verdict = Verdict(AGREES if same else DISAGREES, here, float(one["parameters"]))
        yield row(COSTS, f"{one['network']}, {one['kind']}", verdict)


def _signals(tables: Mapping[str, Table]) -> Iterator[dict[str, Any]]:
    stems = [stem for stem in tables if stem.startswith("signals-")]
    for claim, kinds in ((EXPLODES, (BROCK,)), (KEEPS, (IDSHORT, CONVSHORT))):
        for stem in sorted(stems, key=lambda stem: (len(stem), stem)):
            for kind in kinds:
                outputs = [one for one in tables[stem].rows if (one["network"], one["place"]) == (kind.name, "output")]
                verdict = _grown(claim, outputs[0], len(outputs))
                yield row(claim, f"{stem.removeprefix('signals-')}, {kind.name}", verdict)


def _grown(claim: Claim, one: Row, blocks: int) -> Verdict:
    """Both directions: if both are shown it agrees, by the larger p value; if one is shown not to, by twice its own."""
    power, over = (1, "a block") if claim is EXPLODES else (blocks, f"over {blocks} blocks")
    factors = {
        direction: [None if (end := one[f"{name}{which}"]) is None else end**power for which in ("", "_low", "_high")]
        for name, direction in (("growth", "forward"), ("gradient_growth", "backward"))
    }
    found, words = [], []
    for direction, (value, low, high) in factors.items():
        found.append(_of_direction(claim, low, high, one["seeds"] - 1))
        words.append(
            f"{direction} no gradient"
            if value is None
            else f"{direction} {value:.3g} {over}" + ("" if low is None else f" ({low:.3g} to {high:.3g})")
        )
    against = [p for outcome, p in found if outcome == DISAGREES and p is not None]
    if against:
        p = 2 * min(against)
        told = DISAGREES if p < LEVEL else CANNOT_TELL
    else:
        ps = [p for _, p in found]
        p = None if None in ps else max(ps)
        told = AGREES if all(outcome == AGREES for outcome, _ in found) else CANNOT_TELL
    value, low, high = factors["forward"]
    return of_seeds(Verdict(told, ", ".join(words), value, low, high, p), one["seeds"])


def _of_direction(claim: Claim, low: float | None, high: float | None, freedom: int) -> tuple[str, float | None]:
    """Outcome and p value of a factor, whose interval is one of its logarithm."""
    if low is None or high is None or low <= 0:
        return CANNOT_TELL, None
    ends = math.log(low), math.log(high)
    if claim is EXPLODES:
        return by_interval(*ends, freedom, above=math.log(_GROWS))
    return by_interval(*ends, freedom, within=(0.0, math.log(_KEPT)))


def _errors(runs: Sequence[Row]) -> Iterator[dict[str, Any]]:
    networks = list(dict.fromkeys(run["network"] for run in runs))
    for claim, kinds in ((FAILS, (BROCK,)), (TRAINS, SCHEMES)):
        for network in networks:
            for kind in kinds:
                errors = list(_test_errors(runs, network, kind).values())
                diverged = sum(run["diverged"] for run in runs if (run["network"], run["kind"]) == (network, kind.name))
                known = paired(errors)  # without an interval where all diverged: there is no spread to estimate
                bound = {"above" if claim is FAILS else "below": _FAILS}
                outcome, p = by_interval(known.low, known.high, known.pairs - 1, **bound)
                low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (known.low, known.high))
                here = f"test error {_percent(known.mean, low, high)}" + (f", {diverged} diverged" if diverged else "")
                if claim is TRAINS and (control := _test_errors(runs, network, PLAIN)):
                    here += (
                        f"; the control without a scheme (plain, He) ends at {statistics.fmean(control.values()):.1%}"
                    )
                verdict = of_seeds(Verdict(outcome, here, known.mean, low, high, p), len(errors))
                yield row(_of(claim, network), f"{network}, {kind.name}", verdict)
    for network in networks:
        kinds = (CONVSHORT, BATCH_NORM)
        own, other = (_test_errors(runs, network, kind) for kind in kinds)
        low, high = both_interval(*(_by_seed(runs, network, kind) for kind in kinds))
        found = replace(paired([own[seed] - other[seed] for seed in own.keys() & other.keys()]), low=low, high=high)
        here = f"{100 * found.mean:+.2f} points" + span(found.low, found.high, "+.2f", 100)
        # by the degrees of freedom of the seeds alone, the fewest: below 0.05, p is too large rather than too small
        told = by_interval(found.low, found.high, found.pairs - 1, below=_MARGIN)
        yield row(_of(COMPETES, network), network, _verdict(told, here, found))


def _of(claim: Claim, network: str) -> Claim:
    """Whose claim it is of a network: those of the paper have its name for them, and are trained as there."""
    return claim if network.startswith("nfresnet") else early(claim)


def beside_plain(runs: Sequence[Row]) -> Iterator[str]:
    """For each network what the schemes do beside the plain network with weights by He et al.: a paragraph."""
    for network in dict.fromkeys(run["network"] for run in runs):
        plain = _test_errors(runs, network, PLAIN)
        told = []
        for kind in SCHEMES:
            own = _test_errors(runs, network, kind)
            found = paired([own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())])
            told.append(f"{kind.name} {100 * found.mean:+.2f} points{span(found.low, found.high, '+.2f', 100)}")
        yield (
            f"The control of {network} is the plain network with weights by He et al., without normalisation and "
            f"without any scheme, which ends at {_percent(statistics.fmean(plain.values()), None, None)}. Against it, "
            f"paired by seed (Student's 95 % interval): {', '.join(told)}. Where it trains as well, that the schemes "
            "train is no merit of theirs: this network is not deep enough to need them."
        )


def _test_errors(runs: Sequence[Row], network: str, kind: Kind) -> dict[int, float]:
    """By seed; chance for a run that diverged."""
    return {
        seed: _CHANCE if run["diverged"] else run["test_error"] for seed, run in _by_seed(runs, network, kind).items()
    }


def _by_seed(runs: Sequence[Row], network: str, kind: Kind) -> dict[int, Row]:
    return {run["seed"]: run for run in runs if (run["network"], run["kind"]) == (network, kind.name)}


def _growth(started: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for (network, kind), own in _by_network_and_kind(started).items():
        if kind == LEARNSCALAR.name:  # which starts as IdShort
            continue
        off = [(one["mean_length"] - one["expected_length"]) / one["blocks"] for one in own]
        found = paired(off)
        here = (
            f"mean length {statistics.fmean(one['mean_length'] for one in own):.2f} of {own[0]['blocks']} blocks, "
            f"expected {statistics.fmean(one['expected_length'] for one in own):.2f}; {100 * found.mean:+.1f} % of the "
            f"blocks{span(found.low, found.high, '+.1f', 100)}"
        )
        yield row(GROWTH, f"{network}, {kind}", _verdict(_within(found), here, found))


def _between(
    claim: Claim, rows: Sequence[Row], longer: Kind, shorter: Kind, within: bool = False
) -> Iterator[dict[str, Any]]:
    """Of each network: mean length with one kind minus that with the other, over the blocks."""
    groups = _by_network_and_kind(rows)
    for network in dict.fromkeys(one["network"] for one in rows):
        own, other = (
            {one["seed"]: one["mean_length"] / one["blocks"] for one in groups.get((network, kind.name), ())}
            for kind in (longer, shorter)
        )
        differences = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
        if not differences:
            yield row(claim, network, Verdict(CANNOT_TELL, "no pair of runs that ended"))
            continue
        found = paired(differences)
        told = _within(found) if within else by_interval(found.low, found.high, found.pairs - 1, above=_LENGTH)
        here = (
            f"{longer.name} {100 * statistics.fmean(own.values()):.1f} % of the blocks, {shorter.name} "
            f"{100 * statistics.fmean(other.values()):.1f} %; difference {100 * found.mean:+.1f}"
            f"{span(found.low, found.high, '+.1f', 100)}"
        )
        yield row(claim, network, _verdict(told, here, found))


def _shortens(trained: Sequence[Row]) -> Iterator[dict[str, Any]]:
    found: dict[tuple[str, str], Differences] = {}
    for key, own in _by_network_and_kind(trained).items():
        by_epoch: dict[int, dict[int, float]] = {}
        for one in own:
            by_epoch.setdefault(one["epoch"], {})[one["seed"]] = one["mean_length"]
        first, last = by_epoch[min(by_epoch)], by_epoch[max(by_epoch)]
        found[key] = paired([last[seed] - first[seed] for seed in sorted(first.keys() & last.keys())])
    for network in dict.fromkeys(network for network, _ in found):
        kinds = [key for key in found if key[0] == network]
        tested = [key for key in kinds if found[key].p is not None]
        p_values = dict(zip(tested, holm([found[key].p or 0.0 for key in tested]), strict=True))
        for key in kinds:
            one, p = found[key], p_values.get(key)
            told = p is not None and p < LEVEL
            outcome = CANNOT_TELL if not told else AGREES if one.mean < 0 else DISAGREES
            here = f"{one.mean:+.2f} blocks{span(one.low, one.high, '+.2f')}"
            here += "" if p is None else f", p {p:.2g} after Holm's correction"
            yield row(SHORTENS, ", ".join(key), _verdict((outcome, p), here, one))


def _by_network_and_kind(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        groups.setdefault((one["network"], one["kind"]), []).append(one)
    return groups


def _within(found: Differences) -> tuple[str, float | None]:
    """Whether a difference is shown to be smaller than the margin, or larger, and the p value of it."""
    return by_interval(found.low, found.high, found.pairs - 1, within=(0.0, _LENGTH))


def _verdict(told: tuple[str, float | None], here: str, found: Differences) -> Verdict:
    outcome, p = told
    return of_seeds(Verdict(outcome, here, found.mean, found.low, found.high, p), found.pairs)


def _percent(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.1%}{span(low, high, '.1%')}"
