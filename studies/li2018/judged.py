"""What is claimed of surfaces with and without shortcuts, and what the numbers say."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pathlens.metrics import wilson_interval
from pathlens.tables import Table
from studies.li2018.measured import CUT, PUBLISHED, TREATMENTS, WITH, WITHOUT
from studies.rules.claims import (
    CANNOT_TELL,
    OURS,
    OVER_ROWS,
    TOGETHER,
    Claim,
    Verdict,
    corrected_by_claim,
    decide,
    of_seeds,
    paired,
    row,
    welch,
)

Row = Mapping[str, Any]

PAPER = "Li et al. 2018"
_FAILS = 0.8
_RISE = "The mean loss of a line (10 nats at most) above that at its middle, the weights themselves,"
_WELCH = "Welch's 95 % interval of the difference of two means over random directions, which are of each network alone."

FLATTER = Claim(
    "shortcuts make the minimum flat",
    "residual networks have flatter minimisers than the same networks without shortcuts",
    f"{PAPER}, section 6; Understanding Deep Learning, figure 11.13",
    "The basin (share of the points of a line within 0.1 nat of its smallest loss) is larger with shortcuts than in "
    "the network trained without, by the published treatment; disagrees where it is smaller. It is counted in points "
    "of a grid, and one of them always has the smallest loss: where it is that point alone in both networks, the grid "
    "cannot tell.",
    _WELCH,
)
CHAOTIC = Claim(
    "without shortcuts the surface is not convex",
    "without shortcuts surfaces of deep networks go from nearly convex to chaotic",
    f"{PAPER}, section 6",
    "The share of inner points of a line at which the loss itself, however high, curves down is larger in the network "
    "trained without shortcuts, by each treatment of parameters of one dimension and of statistics that was measured; "
    "disagrees where it is smaller by each.",
    f"{_WELCH} Each treatment has to show it (no correction is due); value and interval are by the published one.",
    revised="twice, when the lines were known. On 29 November 2026 from the published treatment alone, with the draws "
    "of both networks paired by their number: it agreed. On 30 November from losses cut at 10 nats, which curve down "
    "where they are cut: one treatment disagreed by that.",
)
TWINS = Claim(
    "shortcuts make the minimum flat, trained here",
    "the same of ResNet-20 and its twin that was trained through the plan which deletes its shortcuts",
    OURS,
    "The basin, mean over directions, is larger with shortcuts; disagrees where it is smaller.",
    "Student's 95 % interval of differences paired by seed.",
)
STATISTICS = Claim(
    "kept statistics make the surface steeper",
    "a part of the rise around the weights is that of batch norm statistics that are no longer right",
    OURS,
    f"{_RISE} is higher with statistics kept than re-estimated, parameters of one dimension still; disagrees where it "
    "is lower.",
    f"Student's 95 % interval of differences in the same directions, {OVER_ROWS}",
    revised="on 30 November 2026, when the lines were known, from the mean loss itself, which differs at the weights "
    "already where statistics are re-estimated: by that the cut network agreed.",
)
ONE_DIMENSIONAL = Claim(
    "biases and norms make the surface steeper",
    "moving the parameters of one dimension too raises the loss around the weights",
    OURS,
    f"{_RISE} is higher with them moved than still, statistics kept; disagrees where it is lower.",
    f"Student's 95 % interval of differences in the same directions of all other parameters, {OVER_ROWS}",
)
ROBUST = Claim(
    "the comparison does not depend on the treatment",
    "the basin is larger with shortcuts by each treatment of parameters of one dimension and of statistics",
    OURS,
    "As for the first claim, by each treatment that was measured; disagrees where it is smaller by each.",
    f"{_WELCH} Each treatment has to show it (no correction is due); value and interval are by the published one.",
    revised="on 1 December 2026, when the lines were known, from the one treatment that changes both, by which the "
    "grid cannot tell either.",
)
NO_PLAIN = Claim(
    "a cut network is no plain network",
    "a network whose shortcuts are deleted by a plan errs like one that was never trained",
    OURS,
    f"It classifies more than {_FAILS:.0%} of the images wrongly; disagrees where it classifies fewer wrongly.",
    "Wilson's 95 % interval over images.",
)
TRACE = Claim(
    "without shortcuts the loss curves more",
    "the trace of the Hessian is larger in the network trained without shortcuts",
    OURS,
    "The difference of the traces is above 0; disagrees where it is below. Weights before batch norms have no scale of "
    "their own, so this compares these two networks and not their kinds.",
    "Welch's 95 % interval from the standard errors over random vectors.",
)


def verdicts(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """The rows of the table of claims."""
    return corrected_by_claim([row(claim, network, verdict) for claim, network, verdict in _judged(tables)], TOGETHER)


def _judged(tables: Mapping[str, Table]) -> Iterator[tuple[Claim, str, Verdict]]:
    numbers = list(tables["numbers"].rows)
    others = [one for one in numbers if one["seed"] is None]
    names = {kind: next(one["network"] for one in others if one["kind"] == kind) for kind in (WITH, WITHOUT, CUT)}
    both = f"{names[WITH]} and {names[WITHOUT]}"
    yield FLATTER, both, over_treatments(others, WITH, WITHOUT, "basin", [PUBLISHED])
    yield CHAOTIC, both, over_treatments(others, WITHOUT, WITH, "concave", TREATMENTS)
    yield ROBUST, both, over_treatments(others, WITH, WITHOUT, "basin", TREATMENTS)
    yield TWINS, "resnet20", by_seed(numbers, "basin")
    for kind, name in names.items():
        own = [one for one in others if one["kind"] == kind]
        yield STATISTICS, name, by_treatment(own, PUBLISHED, ("still", "re-estimated"))
        yield ONE_DIMENSIONAL, name, by_treatment(own, ("moved", "kept"), PUBLISHED)
    yield NO_PLAIN, names[CUT], fails(tables[f"surface-{names[CUT]}"])
    vectors = {kind: tables[f"surface-{names[kind]}"].provenance["curvature"]["probes"] for kind in (WITH, WITHOUT)}
    yield TRACE, both, trace(tables["curvature"].rows, vectors)


def _draws(rows: Sequence[Row], treatment: tuple[str, str]) -> list[Row]:
    own = [one for one in rows if (one["one_dimensional"], one["batch_norm"]) == treatment]
    return sorted(own, key=lambda one: one["draw"])


def _values(rows: Sequence[Row], treatment: tuple[str, str], name: str) -> list[float]:
    """Of each draw, in their order."""
    return [one[name] for one in _draws(rows, treatment)]


def over_treatments(
    rows: Sequence[Row], more: str, less: str, name: str, treatments: Sequence[tuple[str, str]]
) -> Verdict:
    """Whether a number is larger in one kind of network than in another, by each of some treatments.

    Args:
        rows: of ``numbers``.
        more: the kind in which it is claimed to be larger.
        less: the other kind.
        name: of the number.
        treatments: which; the numbers of the verdict are those of the first.
    """
    single = [by_directions(rows, more, less, name, treatment) for treatment in treatments]
    alike = len({one.outcome for one in single}) == 1
    said = "; ".join(
        f"{', '.join(treatment)}: {one.here}" + ("" if len(single) == 1 else f" ({one.outcome})")
        for treatment, one in zip(treatments, single, strict=True)
    )
    return replace(single[0], outcome=single[0].outcome if alike else CANNOT_TELL, here=f"{name}, {said}")


def by_directions(rows: Sequence[Row], more: str, less: str, name: str, treatment: tuple[str, str]) -> Verdict:
    """Whether a number is larger in one kind of network than in another, by Welch's interval over directions."""
    first, second = (_values([one for one in rows if one["kind"] == kind], treatment, name) for kind in (more, less))
    difference = statistics.fmean(first) - statistics.fmean(second)
    low, high = welch_interval(first, second)
    if low is not None and high is not None:
        told = f"difference {100 * low:+.1f} to {100 * high:+.1f} points, {len(first)} and {len(second)} directions"
    elif difference:
        told = "no interval, since neither varies"
    else:
        told = "alike along every direction of both, so that the grid cannot tell"
    here = f"{statistics.fmean(first):.1%} {more} and {statistics.fmean(second):.1%} {less}, {told}"
    return Verdict(decide(low, high, above=0), here, difference, low, high)


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Welch's 95 % interval of the difference of two means; None where neither side varies."""
    difference = statistics.fmean(first) - statistics.fmean(second)
    return welch(
        difference, [(statistics.variance(values) / len(values), len(values) - 1) for values in (first, second)]
    )


def by_seed(rows: Sequence[Row], name: str) -> Verdict:
    """Whether a number, mean over draws, is larger with shortcuts in the networks that were trained here."""

    def mean(kind: str, seed: int) -> float:
        own = [one for one in rows if one["kind"] == kind and one["seed"] == seed]
        return statistics.fmean(_values(own, PUBLISHED, name))

    seeds = sorted({one["seed"] for one in rows if one["seed"] is not None})
    difference = paired([mean(WITH, seed) - mean(WITHOUT, seed) for seed in seeds])
    here = ", ".join(f"{statistics.fmean(mean(kind, seed) for seed in seeds):.1%} {kind}" for kind in (WITH, WITHOUT))
    outcome = decide(difference.low, difference.high, above=0)
    here = f"{name} {here}{_ends(difference.low, difference.high, 100, '.1f', 'points')}"
    return of_seeds(Verdict(outcome, here, difference.mean, difference.low, difference.high), len(seeds))


def _ends(low: float | None, high: float | None, times: float, look: str, unit: str) -> str:
    """The interval of a difference in words, to end a sentence with."""
    if low is None or high is None:
        return ", no interval"
    return f", difference {format(times * low, f'+{look}')} to {format(times * high, f'+{look}')} {unit}"


def by_treatment(rows: Sequence[Row], more: tuple[str, str], less: tuple[str, str]) -> Verdict:
    """Whether the loss rises higher under one treatment than under another, in the same directions."""
    first, second = ([one["mean_loss"] - one["loss"] for one in _draws(rows, treatment)] for treatment in (more, less))
    difference = paired([a - b for a, b in zip(first, second, strict=True)])
    named = zip((first, second), (more, less), strict=True)
    here = "mean rise " + " and ".join(f"{statistics.fmean(own):.3f} nats ({', '.join(which)})" for own, which in named)
    here += _ends(difference.low, difference.high, 1, ".3f", "nats")
    outcome = decide(difference.low, difference.high, above=0)
    return Verdict(outcome, here, difference.mean, difference.low, difference.high, difference.p)


def fails(table: Table) -> Verdict:
    """Whether a network classifies most images wrongly."""
    (centre,) = [one for one in table.rows if one["x"] == 0 and one["y"] == 0]
    low, high = wilson_interval(round(centre["error"] * centre["n"]), centre["n"])
    here = f"{centre['error']:.1%} of {centre['n']:,} images wrong"
    return Verdict(decide(low, high, above=_FAILS), here, centre["error"], low, high)


def trace(rows: Sequence[Row], vectors: Mapping[str, int]) -> Verdict:
    """Whether the trace is larger without shortcuts.

    Args:
        rows: of ``curvature``.
        vectors: random vectors behind the trace of each kind of network.
    """
    by_kind = {one["kind"]: one for one in rows}
    first, second = by_kind[WITHOUT], by_kind[WITH]
    difference = first["trace"] - second["trace"]
    low, high = welch(
        difference, [(one["trace_standard_error"] ** 2, vectors[one["kind"]] - 1) for one in (first, second)]
    )
    here = (
        f"trace {first['trace']:.4g} {WITHOUT} ({vectors[WITHOUT]} random vectors) and {second['trace']:.4g} {WITH} "
        f"({vectors[WITH]})"
    ) + _ends(low, high, 1, ".3g", "nats / weight^2")
    return Verdict(decide(low, high, above=0), here, difference, low, high)
