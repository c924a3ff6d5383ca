"""What is expected and what came out, computed from the tables alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pathlens.metrics import sample_interval
from pathlens.tables import Table
from studies.rules.claims import (
    AGREES,
    CANNOT_TELL,
    DISAGREES,
    OURS,
    OVER_ROWS,
    TOGETHER,
    Claim,
    Verdict,
    by_interval,
    corrected,
    corrected_by_claim,
    decide,
    made_ours,
    of_seeds,
    paired,
    row,
    span,
)
from studies.udl11 import growth, shattered
from studies.udl11.trained import EPOCHS_OF_PAPER, differences

Rows = Sequence[Mapping[str, Any]]

#: how far from an expected autocorrelation a mean may be, and from an expected factor or slope, as a share of it
CORRELATION, FACTOR, SLOPE = 0.1, 0.05, 0.1

BOOK = "Prince, Understanding Deep Learning"


_MEAN = "Mean over networks with Student's 95 % interval"
_MEANS = f"{_MEAN}, {OVER_ROWS}"
_DRAWN = (
    "Difference paired by seed, from which both networks draw what they share: Student's 95 % interval over networks, "
    "and the paired t test with Holm's correction over the rows of the claim."
)
_PAIRED = f"Difference paired by seed with Student's 95 % interval, {OVER_ROWS}"


def _within(share: float, of: str) -> str:
    return f"Within {share:.0%} of {of}; disagrees where it is shown to be outside."


RELATED = Claim(
    "nearby-unrelated",
    "nearby gradients of deep networks are unrelated, their autocorrelation close to zero",
    f"{BOOK}, figure 11.3c",
    f"Autocorrelation at lag 4 within {CORRELATION} of zero; disagrees where it is shown to be outside.",
    _MEANS,
)
DEEPER = Claim(
    "deeper-less-alike",
    "nearby gradients are less alike in a deep network than in a shallow one",
    f"{BOOK}, figure 11.3",
    "Autocorrelation at lag 4 minus that of the next shallower network of its family below zero.",
    _DRAWN,
    revised="three times, when numbers were known. On 29 November 2026 two rows were added, of 50 layers against 24 "
    "with batch norm and in the notebook. On 30 November by Holm's correction: of 50 layers with batch norm against "
    "24 it had disagreed. Then 24 layers with batch norm against one without were left out, which agreed, and in which "
    "depth and batch norm change together.",
)
RESIDUAL = Claim(
    "residual-more-alike",
    "with batch norm, nearby gradients of a residual network are more alike than those of a plain one",
    "Balduzzi et al. 2017, abstract (of networks with skip connections; batch norm in both is our reading)",
    "Autocorrelation at lag 4 minus that of the plain network above zero.",
    _DRAWN,
)
SCALE = Claim(
    "small-scale-more-alike",
    "and still more so with branches scaled by 0.1 (Balduzzi et al. 2017 scale branches too)",
    OURS,
    "Autocorrelation at lag 4 minus that with scale 1 above zero.",
    _DRAWN,
    revised="on 30 November 2026, when numbers were known, only in whose claim it is: it had counted as that of "
    "Balduzzi et al.",
)
NUMBERS = Claim(
    "autocorrelation",
    "the autocorrelation at lags 1, 4 and 16 is what other code had measured before this study",
    OURS,
    f"Within {CORRELATION} of the number that was found before; disagrees where it is shown to be outside.",
    _MEANS,
)
HALVES = Claim(
    "signal-halves",
    "with weights of variance 1/D the signal halves with every layer",
    OURS,
    _within(FACTOR, "a factor of 1/2"),
    f"{_MEAN}.",
)
BIASES = Claim(
    "biases-take-over",
    "the signal shrinks and biases of every layer take over, which keeps the notebook's gradients alike",
    OURS,
    "Autocorrelation at lag 4 without the cause, minus that of the notebook, below zero.",
    _DRAWN,
    revised="on 28 November 2026, after a first run, from the number of stretches of inputs with one gradient, of "
    "which deep networks have as many as there are inputs.",
)
DOUBLES = Claim(
    "variance-doubles",
    "the variance doubles with every residual block",
    f"{BOOK}, figure 11.6a; problem 11.5",
    _within(FACTOR, "a factor of 2"),
    _MEANS,
)
BACKWARD = Claim(
    "gradient-doubles",
    "a similar argument applies to the gradients in the backward pass",
    f"{BOOK}, section 11.3; problem 11.5",
    _within(FACTOR, "a factor of 2"),
    _MEANS,
)
STABLE = Claim(
    "stable",
    "1/sqrt(2) times the output of every block keeps it",
    f"{BOOK}, figure 11.6b; problem 11.6",
    _within(FACTOR, "a factor of 1"),
    _MEANS,
)
LINEAR = Claim(
    "linear-growth",
    "with batch norm each residual block adds one unit of variance",
    f"{BOOK}, figure 11.6c",
    _within(SLOPE, "a slope of 1"),
    f"{_MEAN}.",
)
LINEAR_UNIT = made_ours(
    LINEAR,
    "on 30 November 2026, when slopes were known, in whose claim it is: it had counted as the book's, whose variance "
    "is that over the weights.",
    name="linear-growth-of-a-unit",
    says="with batch norm each residual block adds 1 to the variance of a unit over the inputs",
)
UNITS = Claim(
    "unit-variance",
    "of this one, 1 - 1/pi is variance of a unit over the inputs and 1/pi its squared mean",
    "Brock, De and Smith 2021",
    _within(SLOPE, "the number"),
    _MEANS,
)
LAYER = Claim(
    "normed-layer",
    "in plain ReLU networks a layer with batch norm makes gradients sqrt(pi/(pi - 1)) = 1.21 times as large",
    f"{BOOK}, chapter 11, notes (Yang et al. 2019); problem 11.13",
    _within(FACTOR, "that factor"),
    f"{_MEAN}.",
)
COUNT = Claim(
    "parameters",
    f"the number of parameters in problems 11.8 and 11.10 of {BOOK}, by arithmetic",
    OURS,
    "Equal.",
    "Counted; nothing is random.",
)
DEEP_PLAIN = Claim(
    "deep-plain-worse",
    "56 plain layers are worse than 20",
    f"{BOOK}, figure 11.2",
    "Error of 56 layers minus that of 20 above zero.",
    _PAIRED,
)
DEEP_RESIDUAL = Claim(
    "deep-residual-better",
    "with shortcuts, 56 layers are better than 20",
    "He et al. 2016a, section 4.2",
    "Error of 56 layers minus that of 20 below zero.",
    _PAIRED,
)

#: autocorrelations that the measured ones are compared with, at lags 1, 4 and 16
GIVEN = {
    shattered.PLAIN[0].name: (0.98, 0.92, 0.69),
    shattered.PLAIN[1].name: (0.84, 0.54, 0.20),
    shattered.NORMED[0].name: (-0.03, 0.01, 0.01),
    shattered.RESIDUAL[0].name: (0.74, 0.30, -0.07),
    shattered.RESIDUAL[1].name: (0.92, 0.72, 0.37),
}


def compared(claim: Claim, network: str, values: Sequence[float], expected: float, slack: float) -> dict[str, Any]:
    """A row of a mean over networks that should be near a number."""
    if not values:
        return row(claim, network, Verdict(CANNOT_TELL, "no number"))
    mean, (low, high) = statistics.fmean(values), sample_interval(values)
    here = f"{mean:.4g}{span(low, high, '.4g')}, expected {expected:.4g} within {slack:.2g}"
    outcome, p = by_interval(low, high, len(values) - 1, within=(expected, slack))
    return row(claim, network, of_seeds(Verdict(outcome, here, mean, low, high, p), len(values)))


def difference(
    claim: Claim, network: str, one: Mapping[int, float], other: Mapping[int, float], sign: int
) -> dict[str, Any]:
    """A row of a difference, paired by seed, that should be above (sign 1) or below (sign -1) zero.

    Args:
        claim: that is judged.
        network: what is compared, in words.
        one: seed -> number of a network.
        other: likewise, of what is subtracted.
        sign: of the claim.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return row(claim, network, Verdict(CANNOT_TELL, "no number"))
    found = paired([one[seed] - other[seed] for seed in seeds])
    here = f"{found.mean:+.4g}{span(found.low, found.high, '.4g')}"
    verdict = Verdict(_direction(found.low, found.high, sign), here, found.mean, found.low, found.high, found.p)
    return row(claim, network, of_seeds(verdict, found.pairs))


def _direction(low: float | None, high: float | None, sign: int) -> str:
    return decide(low, high, above=0) if sign > 0 else decide(low, high, below=0)


def _correlations(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    rows = tables["autocorrelation-networks"].rows

    def at(lag: int, spec: Any) -> dict[int, float]:
        own = (one for one in rows if one["network"] == spec.name)
        return {one["seed"]: one[f"lag_{lag}"] for one in own if one[f"lag_{lag}"] is not None}

    plain, normed, residual = shattered.PLAIN, shattered.NORMED, shattered.RESIDUAL
    found = [
        compared(NUMBERS, f"{spec.name}, lag {lag}", [*at(lag, spec).values()], expected, CORRELATION)
        for spec in (plain[0], plain[1], normed[0], *residual)
        for lag, expected in zip(shattered.LAGS, GIVEN[spec.name], strict=True)
    ]
    found += [
        compared(RELATED, f"{spec.name}, lag 4", [*at(4, spec).values()], 0.0, CORRELATION)
        for spec in (plain[1], plain[2], *normed, *shattered.NOTEBOOKS[1:])
    ]
    found = corrected_by_claim(found, TOGETHER)
    found += corrected(
        [
            difference(DEEPER, f"{one.name}, minus {other.name}; lag 4", at(4, one), at(4, other), -1)
            for family in (plain, normed, shattered.NOTEBOOKS)
            for other, one in pairwise(family)
        ]
    )
    found += corrected(
        [
            difference(RESIDUAL, f"{one.name}, minus {normed[1].name}; lag 4", at(4, one), at(4, normed[1]), 1)
            for one in residual
        ]
    )
    one, other = residual[1], residual[0]
    return [*found, *corrected([difference(SCALE, "scale 0.1 minus scale 1; lag 4", at(4, one), at(4, other), 1)])]


def _notebook(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    networks = tables["notebook-networks"].rows
    own, double, first, _ = shattered.VARIANTS

    def at(variant: Any) -> dict[int, float]:
        own = (one for one in networks if (one["variant"], one["depth"]) == (variant.name, 50))
        return {one["seed"]: one["lag_4"] for one in own if one["lag_4"] is not None}

    ratios = [one["signal_ratio"] for one in tables["notebook-halving"].rows]
    return [
        compared(HALVES, "notebook, 24 layers: factor of the signal's variance", ratios, 0.5, FACTOR * 0.5),
        *corrected(
            [
                difference(BIASES, f"50 layers, lag 4: {other.name}, minus notebook", at(other), at(own), -1)
                for other in (first, double)
            ]
        ),
    ]


def _growth(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    rates = tables["rates"].rows

    def of(case: growth.Case, name: str, change: Callable[[float], float] = float) -> list[float]:
        return [change(one[name]) for one in rates if one["network"] == case.name]

    found = []
    for case in (growth.RESIDUAL, growth.WIDE):
        where = f"{case.name}: {case.width} units, {case.blocks} blocks"
        found += [
            compared(DOUBLES, f"{where}, factor a block", of(case, "forward"), 2.0, 2 * FACTOR),
            compared(BACKWARD, f"{where}, factor a block", of(case, "backward"), 2.0, 2 * FACTOR),
        ]
    scaled, normed, plain = growth.SCALED, growth.NORMED, growth.PLAIN
    found += [
        compared(STABLE, f"{scaled.name}: variance, factor a block", of(scaled, "forward"), 1.0, FACTOR),
        compared(STABLE, f"{scaled.name}: gradient, factor a block", of(scaled, "backward"), 1.0, FACTOR),
        compared(LINEAR, f"{normed.name}: second moment, a block", of(normed, "second_moment_slope"), 1.0, SLOPE),
        compared(
            LINEAR_UNIT, f"{normed.name}: variance of a unit, a block", of(normed, "unit_variance_slope"), 1.0, SLOPE
        ),
    ]
    square = 1 / math.pi
    for name, words, expected in (
        ("branch_unit_variance", "variance of a unit of the branch", 1 - square),
        ("branch_unit_mean_square", "squared mean of a unit of the branch", square),
    ):
        found.append(compared(UNITS, f"{normed.name}: {words}", of(normed, name), expected, SLOPE * expected))
    root = of(plain, "backward", lambda factor: float(factor**0.5))
    expected = growth.NORMED_LAYER
    found.append(compared(LAYER, f"{plain.name}: factor a layer", root, expected, FACTOR * expected))
    return corrected_by_claim(found, TOGETHER)


def _parameters(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    return [
        row(
            COUNT,
            one["network"],
            Verdict(
                AGREES if one["by_hand"] == one["counted"] else DISAGREES,
                f"{one['counted']:,} counted, {one['by_hand']:,} by hand",
                float(one["counted"]),
            ),
        )
        for one in tables["parameters"].rows
    ]


def _early(claim: Claim, epochs: int) -> Claim:
    """A claim about networks that are trained to their end, of ones that have only begun."""
    return made_ours(
        claim,
        "on 30 November 2026, when errors were known, only in whose claim it is: it had counted as the source's, "
        "which is of networks trained to the end.",
        says=f"{claim.says}, after {epochs} epochs of few images ({claim.source} says it of networks trained to the "
        "end)",
    )


def _trained(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    found = []
    epochs = min((one["epochs"] for one in tables["runs"].rows), default=0) if "runs" in tables else 0
    for published, shortcuts, sign in ((DEEP_PLAIN, False, 1), (DEEP_RESIDUAL, True, -1)):
        claim = published if epochs >= EPOCHS_OF_PAPER else _early(published, epochs)
        for name in ("train_error", "test_error"):
            values = differences(tables["runs"].rows if "runs" in tables else [], shortcuts, name)
            if not values:
                continue
            own = paired(values)
            here = f"{100 * own.mean:+.2f} points" + (
                "" if own.low is None or own.high is None else f" ({100 * own.low:+.2f} to {100 * own.high:+.2f})"
            )
            verdict = Verdict(_direction(own.low, own.high, sign), here, own.mean, own.low, own.high, own.p)
            found.append(row(claim, name.replace("_", " "), of_seeds(verdict, own.pairs)))
    return corrected_by_claim(found, TOGETHER)


def data(network: str) -> str:
    """Which images a row of the table of claims is about."""
    return "cifar10-jpeg" if network.endswith("error") else "no images"


def verdicts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Rows of the table of claims, from the other tables."""
    parts = (_correlations, _notebook, _growth, _parameters, _trained)
    return [one for part in parts for one in part(tables)]
