"""What is expected and what came out, with the rule of each verdict; computed from the tables alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from pathlens.metrics import sample_interval
from pathlens.tables import Table
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES, decide
from studies.udl11 import growth, shattered
from studies.udl11.trained import differences

Rows = Sequence[Mapping[str, Any]]

#: networks below which nothing is said
FEWEST = 3
#: how far from an expected autocorrelation a mean may be, and from an expected factor or slope, as a share of it
CORRELATION, FACTOR, SLOPE = 0.1, 0.05, 0.1

COLUMNS = (
    ("claim", "", "name of the claim"),
    ("says", "", "what is claimed"),
    ("source", "", "where it is claimed"),
    ("rule", "", "what the numbers have to show"),
    ("network", "", "what it was judged on"),
    ("expected", "", "the expected number; missing where the claim is a direction"),
    ("measured", "", "mean over networks, or of differences of networks"),
    ("measured_low", "", "lower end of its 95 % interval over networks"),
    ("measured_high", "", "upper end"),
    ("networks", "", "networks behind it; missing where nothing is random"),
    ("outcome", "", "agrees, disagrees, or cannot tell"),
)

BOOK = "Prince, Understanding Deep Learning"
BRIEF = "measured with other code before this study"


@dataclass(frozen=True)
class Claim:
    """A statement that can be wrong.

    Attributes:
        name: for tables.
        says: the statement.
        source: where it is made.
    """

    name: str
    says: str
    source: str


RELATED = Claim(
    "nearby-unrelated",
    "nearby gradients of deep networks are unrelated, their autocorrelation close to zero",
    f"{BOOK}, figure 11.3c",
)
DEEPER = Claim(
    "deeper-less-alike",
    "nearby gradients are less alike in a deep network than in a shallow one",
    f"{BOOK}, figure 11.3",
)
RESIDUAL = Claim(
    "residual-more-alike",
    "with batch norm, nearby gradients of a residual network are more alike than those of a plain one",
    "Balduzzi et al. 2017",
)
SCALE = Claim("small-scale-more-alike", "and still more so with branches scaled by 0.1", "as residual-more-alike")
NUMBERS = Claim("autocorrelation", "the autocorrelation at lags 1, 4 and 16", BRIEF)
HALVES = Claim("signal-halves", "with weights of variance 1/D the signal halves with every layer", BRIEF)
BIASES = Claim(
    "biases-take-over",
    "the signal shrinks and biases of every layer take over, which keeps the notebook's gradients alike",
    BRIEF,
)
DOUBLES = Claim(
    "variance-doubles", "the variance doubles with every residual block", f"{BOOK}, figure 11.6a; problem 11.5"
)
BACKWARD = Claim(
    "gradient-doubles",
    "a similar argument applies to the gradients in the backward pass",
    f"{BOOK}, section 11.3; problem 11.5",
)
STABLE = Claim("stable", "1/sqrt(2) times the output of every block keeps it", f"{BOOK}, figure 11.6b; problem 11.6")
LINEAR = Claim(
    "linear-growth", "with batch norm each residual block adds one unit of variance", f"{BOOK}, figure 11.6c"
)
UNITS = Claim(
    "unit-variance",
    "of this one, 1 - 1/pi is variance of a unit over the inputs and 1/pi its squared mean",
    "Brock, De and Smith 2021",
)
LAYER = Claim(
    "normed-layer",
    "in plain ReLU networks a layer with batch norm makes gradients sqrt(pi/(pi - 1)) = 1.21 times as large",
    f"{BOOK}, chapter 11, notes (Yang et al. 2019); problem 11.13",
)
COUNT = Claim("parameters", "the number of parameters", f"{BOOK}, problems 11.8 and 11.10, by arithmetic")
DEEP_PLAIN = Claim("deep-plain-worse", "56 plain layers are worse than 20", f"{BOOK}, figure 11.2")
DEEP_RESIDUAL = Claim(
    "deep-residual-better", "with shortcuts, 56 layers are better than 20", "He et al. 2016a, section 4.2"
)

#: autocorrelations that the measured ones are compared with, at lags 1, 4 and 16
GIVEN = {
    shattered.PLAIN[0].name: (0.98, 0.92, 0.69),
    shattered.PLAIN[1].name: (0.84, 0.54, 0.20),
    shattered.NORMED[0].name: (-0.03, 0.01, 0.01),
    shattered.RESIDUAL[0].name: (0.74, 0.30, -0.07),
    shattered.RESIDUAL[1].name: (0.92, 0.72, 0.37),
}


def is_random(row: Mapping[str, Any]) -> bool:
    """Whether a verdict is about networks that were drawn, and not one of counting."""
    return bool(row["claim"] != COUNT.name)


def near(low: float | None, high: float | None, expected: float, slack: float) -> str:
    """Whether a number is within some slack of another, by its interval."""
    if low is None or high is None:
        return CANNOT_TELL
    if expected - slack <= low and high <= expected + slack:
        return AGREES
    return DISAGREES if high < expected - slack or low > expected + slack else CANNOT_TELL


def direction(low: float | None, high: float | None, sign: int) -> str:
    """Whether a number is above (sign 1) or below (sign -1) zero, by its interval."""
    return decide(low, high, above=0) if sign > 0 else decide(low, high, below=0)


def row(claim: Claim, network: str, rule: str, **numbers: Any) -> dict[str, Any]:
    """A row of the table."""
    row = {"claim": claim.name, "says": claim.says, "source": claim.source, "rule": rule, "network": network}
    return {**row, "expected": None, "networks": None, **numbers}


def compared(claim: Claim, network: str, values: Sequence[float], expected: float, slack: float) -> dict[str, Any]:
    """A row of a mean over networks that should be near a number."""
    low, high = sample_interval(values) if values else (None, None)
    return row(
        claim,
        network,
        f"95 % interval of the mean within {slack:.3g} of {expected:.4g}",
        expected=expected,
        measured=statistics.fmean(values) if values else None,
        measured_low=low,
        measured_high=high,
        networks=len(values),
        outcome=near(low, high, expected, slack) if len(values) >= FEWEST else CANNOT_TELL,
    )


def difference(claim: Claim, network: str, one: Sequence[float], other: Sequence[float], sign: int) -> dict[str, Any]:
    """A row of the difference of two independent means, by Welch's interval."""
    low = high = None
    if min(len(one), len(other)) >= FEWEST:
        found = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
        low, high = float(found.low), float(found.high)
    return row(
        claim,
        network,
        f"Welch's 95 % interval of the difference {'above' if sign > 0 else 'below'} 0",
        measured=statistics.fmean(one) - statistics.fmean(other) if one and other else None,
        measured_low=low,
        measured_high=high,
        networks=min(len(one), len(other)),
        outcome=direction(low, high, sign),
    )


def _correlations(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    rows = tables["autocorrelation-networks"].rows

    def at(lag: int, spec: Any) -> list[float]:
        found = (one[f"lag_{lag}"] for one in rows if one["network"] == spec.name)
        return [value for value in found if value is not None]

    plain, normed, residual = shattered.PLAIN, shattered.NORMED, shattered.RESIDUAL
    found = [
        compared(NUMBERS, f"{spec.name}, lag {lag}", at(lag, spec), expected, CORRELATION)
        for spec in (plain[0], plain[1], normed[0], *residual)
        for lag, expected in zip(shattered.LAGS, GIVEN[spec.name], strict=True)
    ]
    found += [
        compared(RELATED, f"{spec.name}, lag 4", at(4, spec), 0.0, CORRELATION)
        for spec in (plain[1], plain[2], *normed, *shattered.NOTEBOOKS[1:])
    ]
    pairs = [(plain[1], plain[0]), (plain[2], plain[1]), (normed[0], plain[0])]
    pairs += [(shattered.NOTEBOOKS[1], shattered.NOTEBOOKS[0])]
    found += [
        difference(DEEPER, f"{one.name}, minus {other.name}; lag 4", at(4, one), at(4, other), -1)
        for one, other in pairs
    ]
    found += [
        difference(RESIDUAL, f"{one.name}, minus {normed[1].name}; lag 4", at(4, one), at(4, normed[1]), 1)
        for one in residual
    ]
    one, other = residual[1], residual[0]
    return [*found, difference(SCALE, "scale 0.1 minus scale 1; lag 4", at(4, one), at(4, other), 1)]


def _notebook(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    networks = tables["notebook-networks"].rows
    own, double, first, _ = shattered.VARIANTS

    def at(variant: Any) -> list[float]:
        found = (one["lag_4"] for one in networks if one["variant"] == variant.name and one["depth"] == 50)
        return [value for value in found if value is not None]

    ratios = [one["signal_ratio"] for one in tables["notebook-halving"].rows]
    return [
        compared(HALVES, "notebook, 24 layers: factor of the signal's variance", ratios, 0.5, FACTOR * 0.5),
        *(
            difference(BIASES, f"50 layers, lag 4: {other.name}, minus notebook", at(other), at(own), -1)
            for other in (first, double)
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
        compared(LINEAR, f"{normed.name}: variance of a unit, a block", of(normed, "unit_variance_slope"), 1.0, SLOPE),
    ]
    square = 1 / math.pi
    for name, words, expected in (
        ("branch_unit_variance", "variance of a unit of the branch", 1 - square),
        ("branch_unit_mean_square", "squared mean of a unit of the branch", square),
    ):
        found.append(compared(UNITS, f"{normed.name}: {words}", of(normed, name), expected, SLOPE * expected))
    root = of(plain, "backward", lambda factor: float(factor**0.5))
    expected = growth.NORMED_LAYER
    return [*found, compared(LAYER, f"{plain.name}: factor a layer", root, expected, FACTOR * expected)]


def _parameters(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    return [
        row(
            COUNT,
            one["network"],
            "equal",
            expected=one["by_hand"],
            measured=one["counted"],
            measured_low=None,
            measured_high=None,
            outcome=AGREES if one["by_hand"] == one["counted"] else DISAGREES,
        )
        for one in tables["parameters"].rows
    ]


def _trained(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    found = []
    for claim, shortcuts, sign in ((DEEP_PLAIN, False, 1), (DEEP_RESIDUAL, True, -1)):
        for name in ("train_error", "test_error"):
            values = differences(tables["runs"].rows if "runs" in tables else [], shortcuts, name)
            if not values:
                continue
            low, high = sample_interval(values)
            found.append(
                row(
                    claim,
                    name.replace("_", " "),
                    "Student's 95 % interval of the paired difference "
                    f"{'above' if sign > 0 else 'below'} 0, at least {FEWEST} seeds",
                    measured=statistics.fmean(values),
                    measured_low=low,
                    measured_high=high,
                    networks=len(values),
                    outcome=direction(low, high, sign) if len(values) >= FEWEST else CANNOT_TELL,
                )
            )
    return found


def verdicts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Rows of ``expectations``, from the other tables."""
    parts = (_correlations, _notebook, _growth, _parameters, _trained)
    return [one for part in parts for one in part(tables)]
