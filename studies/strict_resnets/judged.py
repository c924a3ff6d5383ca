"""What is claimed, and what came out, computed from the tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pathlens.metrics import sample_interval
from pathlens.tables import Table
from studies.rules.claims import (
    AGREES,
    DISAGREES,
    OURS,
    OVER_ROWS,
    TOGETHER,
    Claim,
    Verdict,
    by_interval,
    corrected_by_claim,
    decide,
    of_seeds,
    paired,
    row,
    span,
)
from studies.strict_resnets import shares
from studies.strict_resnets.checkerboard import SIZES
from studies.strict_resnets.trained import DEPTH, LEFT, PLATEAU, paired_values

Rows = Sequence[Mapping[str, Any]]

POST = 'Youssin, "Training deep resnets"'
#: the claimed factor, and the bounds of our own rules
FACTOR, STRAIGHT, EVEN, ALIKE = 1.22, 0.9, 0.02, 0.02
#: the claimed sizes of sub-kernels by side of the kernel, at stride 2
CLAIMED = {3: "1, 2, 2, 4", 5: "4, 6, 6, 9"}

_INITIAL = f"Mean over initialisations with Student's 95 % interval, {OVER_ROWS}"
_STUDENT = "Difference paired by seed with Student's 95 % interval over seeds"
_PAIRED = f"{_STUDENT}, {OVER_ROWS}"
_SAYS = "batch norm after every block shrinks the first blocks' share geometrically, at least 1.22 a block"
_RULE = (
    "The {what} of a block's summand in the last sum over that of the block before it, from a least-squares line "
    f"through the logs of all blocks, above {FACTOR}."
)
_LINE = "the line through the shares of the blocks"
_LEVELS = (
    "on 29 November 2026, when the shares were known, from networks of one level to all, since the claim is about all: "
    "the rows of three levels were added."
)

VARIANCE = Claim(
    "norms shrink the first blocks, in variance", _SAYS, POST, _RULE.format(what="variance"), _INITIAL, _LINE, _LEVELS
)
DEVIATION = Claim(
    "norms shrink the first blocks, in norm",
    f"{_SAYS} (a share measured by its root mean square)",
    POST,
    _RULE.format(what="standard deviation"),
    _INITIAL,
    _LINE,
    _LEVELS,
)
GEOMETRIC = Claim(
    "the shrinking is geometric",
    "batch norm after every block shrinks the first blocks' share geometrically",
    POST,
    f"R squared of that line above {STRAIGHT}.",
    _INITIAL,
    _LINE,
    _LEVELS,
)
END = Claim(
    "a norm at the end alone leaves no trend over the blocks",
    "with a norm only before the end, the variance of the blocks in the last sum neither grows nor shrinks with depth",
    OURS,
    f"That factor within {EVEN} of 1; disagrees where it is shown to be outside.",
    _INITIAL,
    revised=_LEVELS,
)
GLOROT = Claim(
    "Glorot leaves more to the stem",
    "with Glorot's variance the stem has a larger share of the last sum than with He's",
    OURS,
    f"Share of the stem minus that with He's variance above {ALIKE}; disagrees where it is shown to be below.",
    _PAIRED,
    revised="on 29 November 2026, when the shares were known, from above 0 to above the bound of all other rules here: "
    "by the earlier one a difference of a thousandth of one level with norms in every block agreed.",
)
UNIFORM = Claim(
    "normal or uniform does not matter",
    "normal and uniform weights of the same variance give the same shares",
    OURS,
    f"Share of the stem with uniform weights minus that with normal ones within {ALIKE} of 0; disagrees where it is "
    "shown to be outside.",
    _PAIRED,
)
STARTS = Claim(
    "training starts on a plateau",
    "with batch norm after every block training starts on a plateau",
    POST,
    f"Steps until the mean training loss of an epoch is below {LEFT:.0%} of the loss of the best constant answer, "
    "minus those with norms elsewhere, above 0. A run that never gets there counts with all its steps, too few.",
    _PAIRED,
    revised="on 29 November 2026, when the steps of networks between levels were known, only in what it is of: the row "
    "of one level was added.",
)
WIDE = Claim(
    "deep against wide",
    "a deep network does better than a wide, shallower one of the same multiply-adds",
    OURS,
    "Test loss minus that of the wide network below 0.",
    f"{_STUDENT}.",
)
MORE = Claim(
    "more blocks do better",
    "a network of more blocks does better",
    OURS,
    "Test loss minus that of the network with fewer blocks below 0.",
    _PAIRED,
)
SUBKERNELS = Claim(
    "sizes of sub-kernels",
    "at stride 2 a 3x3 kernel falls into sub-kernels of 1, 2, 2 and 4 weights, and a 5x5 kernel into 4, 6, 6 and 9",
    POST,
    "The sizes that are counted are these.",
    "Counted exactly, at outputs of transposed convolutions and at gradients of strided ones; nothing is drawn.",
)
_EXCESS = "Excess at that frequency, in decibels, minus that of the other way above 0."
UPWARDS = Claim(
    "uneven sub-kernels show in outputs",
    "upsampling with sub-kernels of different sizes leaves more power at the frequency of the stride than with equal "
    "ones",
    OURS,
    _EXCESS,
    _PAIRED,
)
DOWNWARDS = Claim(
    "uneven sub-kernels show in gradients",
    "gradients through a strided 3x3 convolution have more power at the stride's frequency than through one whose "
    "sub-kernels are equal",
    OURS,
    _EXCESS,
    _PAIRED,
)
SMOOTHED = Claim(
    "interpolation and pooling leave less",
    "transposed and strided convolutions leave more power at the stride's frequency than interpolation and pooling",
    OURS,
    _EXCESS,
    _PAIRED,
    revised="on 29 November 2026, when numbers were known, only in its name: these comparisons, of which six agreed, "
    "had counted for the two claims on uneven sub-kernels, which they are not about.",
)


def verdicts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Rows of the table of claims."""
    of_networks = [
        *_of_shares(tables["shares-networks"].rows),
        *_of_trainings(tables["runs"].rows, tables["costs"].rows),
    ]
    return [
        *corrected_by_claim(of_networks, TOGETHER),
        *_of_kernels(tables["subkernels"].rows),
        *corrected_by_claim(_of_checkerboards(tables["checkerboards"].rows), TOGETHER),
    ]


def _column(rows: Rows, name: str, **which: Any) -> list[float]:
    return [row[name] for row in rows if all(row[key] == value for key, value in which.items())]


def _of_shares(rows: Rows) -> list[dict[str, Any]]:
    found: dict[Claim, list[dict[str, Any]]] = {
        claim: [] for claim in (VARIANCE, DEVIATION, GEOMETRIC, END, GLOROT, UNIFORM)
    }
    inits = list(dict.fromkeys(row["init"] for row in rows))
    for init in inits:
        for network in shares.NORMS:
            which = {"network": network, "init": init}
            factors = _column(rows, "factor", norms="block", **which)
            for claim, what, values, bound in (
                (VARIANCE, "factor", factors, {"above": FACTOR}),
                (DEVIATION, "factor", [math.sqrt(factor) for factor in factors], {"above": FACTOR}),
                (GEOMETRIC, "R squared", _column(rows, "r_squared", norms="block", **which), {"above": STRAIGHT}),
                (END, "factor", _column(rows, "factor", norms="end", **which), {"within": (1, EVEN)}),
            ):
                value, low, high = math.fsum(values) / len(values), *sample_interval(values)
                outcome, p = by_interval(low, high, len(values) - 1, **bound)
                verdict = Verdict(outcome, f"{what} {value:.3f}{span(low, high, '.3f')}", value, low, high, p)
                found[claim].append(row(claim, f"{network}, {init}", of_seeds(verdict, len(values))))
    for network, norms in ((network, norms) for network, places in shares.NORMS.items() for norms in places):
        for claim, one, other, bound in (
            (GLOROT, "glorot-normal", "he-normal", {"above": ALIKE}),
            (UNIFORM, "glorot-uniform", "glorot-normal", {"within": (0, ALIKE)}),
            (UNIFORM, "he-uniform", "he-normal", {"within": (0, ALIKE)}),
        ):
            if one not in inits:
                continue
            stems = [_column(rows, "stem_share", network=network, norms=norms, init=init) for init in (one, other)]
            gaps = paired([a - b for a, b in zip(*stems, strict=True)])
            outcome, p = by_interval(gaps.low, gaps.high, gaps.pairs - 1, **bound)
            here = f"difference {gaps.mean:+.3f}{span(gaps.low, gaps.high, '.3f')}"
            verdict = of_seeds(Verdict(outcome, here, gaps.mean, gaps.low, gaps.high, p), gaps.pairs)
            found[claim].append(row(claim, f"{network}, norms: {norms}, {one} against {other}", verdict))
    return [one for rows_of_claim in found.values() for one in rows_of_claim]


def _of_trainings(runs: Rows, costs: Rows) -> list[dict[str, Any]]:
    found = []
    names = list(dict.fromkeys(_column(runs, "network", part=PLATEAU)))
    for one in (name for name in names if name.endswith("_block")):
        for other in (name for name in names if name != one and name.split("_")[0] == one.split("_")[0]):
            gaps = paired_values(runs, PLATEAU, one, other, "plateau_steps")
            kept, beside = (
                [not left for left in _column(runs, "plateau_left", part=PLATEAU, network=name)]
                for name in (one, other)
            )
            here = f"{{}} steps; not left in {sum(kept)} of {len(kept)} runs, with norms elsewhere in {sum(beside)}"
            found.append(_difference(STARTS, f"{one} against {other}", gaps, here, "+.0f", above=True))
    *_, deep, wide = [one["network"] for one in costs]
    gaps = paired_values(runs, DEPTH, deep, wide, "test_loss")
    found.append(_difference(WIDE, f"{deep} against {wide}", gaps, "{} nats", "+.4f", above=False))
    depths = sorted((one for one in costs if one["network"] != wide), key=lambda one: one["blocks"])
    for few, many in pairwise(depths):
        gaps = paired_values(runs, DEPTH, many["network"], few["network"], "test_loss")
        name = f"{many['network']} against {few['network']}"
        found.append(_difference(MORE, name, gaps, "{} nats", "+.4f", above=False))
    return found


def _difference(claim: Claim, name: str, gaps: Sequence[float], here: str, look: str, above: bool) -> dict[str, Any]:
    """A verdict on differences over the seeds of trainings."""
    known = paired(gaps)
    outcome = decide(known.low, known.high, **({"above": 0} if above else {"below": 0}))
    value = f"{known.mean:{look}}{span(known.low, known.high, look)}"
    verdict = Verdict(outcome, here.format(value), known.mean, known.low, known.high, known.p)
    return row(claim, name, of_seeds(verdict, len(gaps)))


def _of_kernels(rows: Rows) -> list[dict[str, Any]]:
    found = []
    for kernel, claimed in CLAIMED.items():
        (one,) = (row for row in rows if (row["kernel"], row["stride"]) == (kernel, 2))
        same = all(one[name] == claimed for name, _, _ in SIZES[2:])
        name = f"{kernel}x{kernel}, stride 2"
        here = f"{one['counted']} forward, {one['counted_backward']} backward"
        found.append(row(SUBKERNELS, name, Verdict(AGREES if same else DISAGREES, here)))
    return found


def _of_checkerboards(rows: Rows) -> list[dict[str, Any]]:
    found = []
    uneven, smooth = ("transposed3", "transposed5"), ("nearest", "bilinear")
    pairs = [
        *((UPWARDS, "up", one, other) for one in uneven for other in ("transposed4", "shuffle")),
        (DOWNWARDS, "down", "strided3", "strided2"),
        *((SMOOTHED, "up", one, other) for one in uneven for other in smooth),
        *((SMOOTHED, "down", "strided3", other) for other in ("maximum", "average")),
    ]
    there = {row["way"] for row in rows}
    for claim, measured, one, other in (pair for pair in pairs if {*pair[2:]} <= there):
        for weights in ("initial", "trained"):
            which = {"measured": measured, "weights": weights}
            values = [_column(rows, "excess", way=way, **which) for way in (one, other)]
            gaps = [a - b for a, b in zip(*values, strict=True)]
            found.append(_difference(claim, f"{one} against {other}, {weights}", gaps, "{} dB", "+.1f", above=True))
    return found
