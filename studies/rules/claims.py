"""What a study judges: a claim with its source and its rule, the verdict on each network, and their combination.

A rule is set before looking and is the same in every study; one that was changed when numbers it judges were known says
so (``revised``). It turns numbers into one of three outcomes: the claim ``agrees`` with the numbers, ``disagrees``, or
they ``cannot tell``. No outcome is reached without an interval or a test, and none over networks that were trained here
with fewer than three seeds. Where several tests decide together that *one* of many things is so, their p values are
corrected by Holm's method; where *all* of many things must be so, each has to be shown at its own level and no
correction is due (an intersection-union test).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from pathlens.metrics import holm, sample_interval
from pathlens.tables import Table
from studies.record import make_table

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"
OUTCOMES = (AGREES, DISAGREES, CANNOT_TELL)
#: seeds below which nothing is said of networks that were trained here
SEEDS = 3
LEVEL = 0.05
OURS = "ours"
_MIXED = "mixed"
#: how :func:`by_interval` tests rows that :func:`corrected_by_claim` corrects, to end the words of a test with
OVER_ROWS = "and a two-sided t test against the bound (the nearer of two), Holm over the rows of the claim."
#: since when claims whose rows had been judged one by one are corrected over them
TOGETHER = "on 1 December 2026, when the numbers were known, by Holm's correction over the rows"

COLUMNS = (
    ("claim", "", "name of the claim"),
    ("says", "", "what is claimed; in quotation marks where it is the source's own words"),
    ("source", "", "where it is claimed; ours: stated and judged here, whoever may have said it before"),
    ("rule", "", "what the numbers have to show"),
    ("test", "", "interval or test, and correction"),
    (
        "revised",
        "",
        "when and why it was changed with numbers known, and what it gave before; missing where it was not",
    ),
    ("network", "", "what it was judged on"),
    ("data", "", "images of it"),
    ("seeds", "", "trained networks behind it; missing for one that others trained"),
    ("value", "", "the number that was judged; of several networks the median, of differences over seeds the mean"),
    ("value_low", "", "lower end of its 95 % interval; of several networks the smallest value"),
    ("value_high", "", "upper end of its 95 % interval; of several networks the largest value"),
    ("p", "", "p value where the rule is a test, corrected where the test says so"),
    ("here", "", "the same in words"),
    ("outcome", "", "agrees, disagrees, or cannot tell"),
    ("rests", "", "observation that several claims rest on, which are no independent evidence; missing for one alone"),
)


@dataclass(frozen=True)
class Claim:
    """A statement that can be wrong.

    Attributes:
        name: for tables; the same in every study.
        says: the statement; in quotation marks where it is verbatim.
        source: paper with section or figure, or ``ours``.
        rule: what the numbers have to show.
        test: the interval or test behind it, with its correction.
        rests: the observation that it shares with other claims; empty where it has its own.
        revised: when and why rule or test was changed after numbers that it judges were known, in a way that changed a
            verdict or added some, and what it gave before; empty where it was not.
    """

    name: str
    says: str
    source: str
    rule: str
    test: str
    rests: str = ""
    revised: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came out for one network, or over several.

    Attributes:
        outcome: ``agrees``, ``disagrees`` or ``cannot tell``.
        here: what was measured, in words.
        value: the number that was judged, in the unit of the words.
        low: lower end of its interval.
        high: upper end of it.
        p: p value, corrected where the claim says so.
        seeds: trained networks behind it; None for one that others trained.
    """

    outcome: str
    here: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seeds: int | None = None


def made_ours(claim: Claim, why: str, **changes: Any) -> Claim:
    """What a source claims, of networks, trainings or numbers that it does not say it of: a claim of ours then.

    Args:
        claim: the source's, which stays as it is.
        why: when and why it was made ours after numbers were known, and what it gave before; it goes behind what the
            claim says of other changes.
        changes: other fields, such as ``says`` and ``name``.
    """
    return replace(claim, source=OURS, revised=_changed(claim.revised, why), **changes)


def _changed(before: str | None, why: str) -> str:
    """What a claim says of its changes, and of one more."""
    return f"{before} {why[:1].upper()}{why[1:]}" if before else why


def decide(low: float | None, high: float | None, *, below: float | None = None, above: float | None = None) -> str:
    """An outcome from an interval: the claim is that the number is below, or above, a bound.

    Args:
        low: lower end; None where there is no interval.
        high: upper end.
        below: the bound that the number is claimed to be below.
        above: the bound that it is claimed to be above.
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return CANNOT_TELL
    if below is not None:
        return AGREES if high < below else DISAGREES if low > below else CANNOT_TELL
    assert above is not None
    return AGREES if low > above else DISAGREES if high < above else CANNOT_TELL


def near(low: float | None, high: float | None, expected: float, slack: float) -> str:
    """An outcome from an interval: the claim is that the number is within some slack of another."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return CANNOT_TELL
    if expected - slack <= low and high <= expected + slack:
        return AGREES
    return DISAGREES if high < expected - slack or low > expected + slack else CANNOT_TELL


def by_interval(
    low: float | None,
    high: float | None,
    freedom: float,
    *,
    below: float | None = None,
    above: float | None = None,
    within: tuple[float, float] | None = None,
) -> tuple[str, float | None]:
    """An outcome from Student's 95 % interval, and the two-sided p value that is below 0.05 exactly where it tells.

    Of a number that is claimed to be within some slack of another, it is the p value at the nearer bound: that of two
    one-sided tests where the number lies between them, of one where it lies beyond.

    Args:
        low: lower end; None where there is no interval.
        high: upper end.
        freedom: degrees of freedom.
        below: the bound that the number is claimed to be below.
        above: the bound that it is claimed to be above.
        within: the number that it is claimed to be near, and the slack.

    Returns:
        Cannot tell and None where nothing varies.
    """
    if low is None or high is None or not low < high:
        return CANNOT_TELL, None
    if within is not None:
        expected, slack = within
        outcome, bounds = near(low, high, expected, slack), [expected - slack, expected + slack]
    else:
        outcome = decide(low, high, below=below, above=above)
        bounds = [bound for bound in (below, above) if bound is not None]
    middle, error = (low + high) / 2, (high - low) / 2 / float(stats.t.ppf(0.975, freedom))
    return outcome, max(float(2 * stats.t.sf(abs(middle - bound) / error, freedom)) for bound in bounds)


def majority(holds: Sequence[float], fails: Sequence[float]) -> tuple[str, float]:
    """An outcome by what is shown of more than half of some things, and the p value that decides it.

    Args:
        holds: for each thing the corrected p value of the test that shows that the claim holds.
        fails: of the one that shows that it does not.

    Returns:
        The outcome, and the largest p value of the smallest majority.
    """
    middle = len(holds) // 2
    p, p_not = sorted(holds)[middle], sorted(fails)[middle]
    return (AGREES, p) if p < LEVEL else (DISAGREES, p_not) if p_not < LEVEL else (CANNOT_TELL, min(p, p_not))


def span(low: float | None, high: float | None, look: str, times: float = 1) -> str:
    """An interval in words, such as `` (0.1 to 0.3)``, to end a number with; nothing where there is none."""
    return "" if low is None or high is None else f" ({format(times * low, look)} to {format(times * high, look)})"


def counted(number: int, thing: str) -> str:
    """A number of things, in words such as ``1 seed``."""
    return f"{number} {thing}{'s' * (number != 1)}"


def shown(ps: Iterable[float]) -> int:
    """How many of some corrected p values show what they test."""
    return sum(p < LEVEL for p in ps)


def over_networks(
    verdicts: Mapping[str, Verdict], what: tuple[str, str] = ("trained network", "trained networks")
) -> Verdict:
    """One verdict over networks that differ in the seed of their training: what all of at least three show alike.

    Args:
        verdicts: of each, by a name such as ``seed 0``.
        what: word for one of them, and for several.
    """
    outcomes = [verdict.outcome for verdict in verdicts.values()]
    alike = len(verdicts) >= SEEDS and len(set(outcomes)) == 1
    counts = ", ".join(f"{one} in {outcomes.count(one)}" for one in OUTCOMES if one in outcomes)
    values = [verdict.value for verdict in verdicts.values() if verdict.value is not None]
    ranked = sorted(verdicts.items(), key=lambda one: math.inf if one[1].value is None else one[1].value)
    which, told = ranked[(len(values) - 1) // 2 if values else 0]
    if values:
        which += ", the median" if len(values) % 2 else ", the lower median"
    if 0 < len(values) < len(verdicts):
        which += f" of the {len(values)} with a number"
    of = f"of {len(verdicts)} {what[1]}; {which}" if len(verdicts) > 1 else what[0]
    return Verdict(
        outcome=outcomes[0] if alike else CANNOT_TELL,
        here=f"{counts} {of}: {told.here}",
        value=statistics.median(values) if values else None,
        low=min(values, default=None),
        high=max(values, default=None),
        seeds=len(verdicts),
    )


def of_seeds(verdict: Verdict, seeds: int) -> Verdict:
    """A verdict whose interval is over seeds; with fewer than three of them nothing can be told."""
    return replace(verdict, seeds=seeds, outcome=verdict.outcome if seeds >= SEEDS else CANNOT_TELL)


@dataclass(frozen=True)
class Differences:
    """Differences of paired runs.

    Attributes:
        mean: over the pairs.
        low: lower end of Student's 95 % interval; None where there is no spread.
        high: upper end.
        p: two-sided paired t test against 0; None where there is no spread.
        pairs: how many.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


def paired(differences: Sequence[float]) -> Differences:
    """Mean, Student's interval and the t test of paired differences, in any unit."""
    varies = len(differences) > 1 and not math.isclose(min(differences), max(differences), rel_tol=1e-9)
    low, high = sample_interval(differences) if varies else (None, None)
    p = float(stats.ttest_1samp(differences, 0).pvalue) if varies else None
    return Differences(statistics.fmean(differences), low, high, p, len(differences))


def satterthwaite(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum or difference of independent means, and its degrees of freedom by Satterthwaite.

    Args:
        parts: variance of each mean, and its degrees of freedom; infinity where the variance is known.
    """
    parts = [part for part in parts if part[0]]
    variance = sum(part for part, _ in parts)
    unsure = sum(part**2 / freedom for part, freedom in parts)
    return variance**0.5, variance**2 / unsure if unsure else math.inf


def welch(difference: float, parts: Iterable[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of a sum or difference of independent means, with Satterthwaite's degrees of freedom.

    Args:
        difference: in the middle of it.
        parts: as of :func:`satterthwaite`.

    Returns:
        Lower and upper end; None where nothing varies.
    """
    error, freedom = satterthwaite(parts)
    if not error:
        return None, None
    half = float(stats.t.ppf(0.975, freedom)) * error
    return difference - half, difference + half


def mean_interval(values: Sequence[float], resamples: int = 9999) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of a mean; None where nothing varies."""
    if len(values) < 2 or np.ptp(values) == 0:
        return None, None
    found = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def row(claim: Claim, network: str, verdict: Verdict) -> dict[str, Any]:
    """The row of a verdict in a table of claims."""
    return {
        "claim": claim.name,
        "says": claim.says,
        "source": claim.source,
        "rule": claim.rule,
        "test": claim.test,
        "revised": claim.revised or None,
        "network": network,
        "seeds": verdict.seeds,
        "value": verdict.value,
        "value_low": verdict.low,
        "value_high": verdict.high,
        "p": verdict.p,
        "here": verdict.here,
        "outcome": verdict.outcome,
        "rests": claim.rests or None,
    }


def corrected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one family of tests, their p values corrected by Holm's method; what is not shown then cannot tell."""
    ps = {index: one["p"] for index, one in enumerate(rows) if one["p"] is not None and math.isfinite(one["p"])}
    holms = dict(zip(ps, holm(list(ps.values())), strict=True))
    found = []
    for index, one in enumerate(rows):
        p = holms.get(index)
        told = one["here"] if p is None else f"{one['here']}, p {p:.2g} after Holm's correction"
        outcome = one["outcome"] if p is not None and p < LEVEL else CANNOT_TELL
        found.append({**one, "p": p, "here": told, "outcome": outcome})
    return found


def corrected_by_claim(rows: Iterable[dict[str, Any]], since: str = "") -> list[dict[str, Any]]:
    """Rows of several claims, in their order: those of each claim that has several are corrected together.

    Args:
        rows: each of a test.
        since: when this correction was added, where that was after numbers were known; said of each claim of several
            rows, with the verdicts that it changes as they are without it.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    for one in (rows := list(rows)):
        families.setdefault(one["claim"], []).append(one)
    found = {}
    for name, own in families.items():
        told = corrected(own) if len(own) > 1 else own
        lost = [
            f"{one['network']} {one['outcome']}"
            for one, other in zip(own, told, strict=True)
            if one["outcome"] != other["outcome"]
        ]
        if since and len(own) > 1:
            why = f"{since}: without it {'; '.join(lost)}." if lost else f"{since}, which changed no verdict."
            told = [{**one, "revised": _changed(one["revised"], why)} for one in told]
        found[name] = iter(told)
    return [next(found[one["claim"]]) for one in rows]


def table(rows: Iterable[Mapping[str, Any]], **facts: Any) -> Table:
    """The table of claims."""
    return make_table(COLUMNS, list(rows), **facts)


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """The claims for a page: each with its source, rule and test, and below it what every network shows."""
    lines = []
    for name in dict.fromkeys(row["claim"] for row in rows):
        own = [row for row in rows if row["claim"] == name]
        first = own[0]
        lines.append(
            f"**{name}.** {first['says']} *({first['source']})*\n"
            f"Rule: {first['rule']} Test: {first['test']}{revised(first)}\n"
            + "\n".join(f"- {one['network']}: **{one['outcome']}**. {_sentence(one['here'])}" for one in own)
        )
    return "\n\n".join(lines)


def revised(row: Mapping[str, Any]) -> str:
    """What a claim's row says of a change of its rule, with a blank before it; nothing where there was none."""
    return f" Revised: {row['revised']}" if row["revised"] else ""


def tally(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many verdicts on claims of others there are of each outcome, and how many claims are ours.

    Verdicts on one network that rest on one observation are counted once beside it: as mixed where they differ.
    """
    theirs = [row for row in rows if row["source"] != OURS]
    counts = ", ".join(f"{one} {sum(row['outcome'] == one for row in theirs)}" for one in OUTCOMES)
    names = {row["claim"] for row in theirs}
    ours = len({row["claim"] for row in rows} - names)
    own = f"Claims of our own: {ours}, which are no evidence for or against a paper."
    if not theirs:
        return own
    said = f"Claims of others: {len(names)}, with {len(theirs)} verdicts (networks): {counts}."
    shared: dict[str, list[str]] = {}
    for row in theirs:
        if row["rests"] and row["claim"] not in shared.setdefault(row["rests"], []):
            shared[row["rests"]].append(row["claim"])
    shared = {rests: claims for rests, claims in shared.items() if len(claims) > 1}
    if shared:
        outcomes: dict[tuple[str, str], set[str]] = {}
        for row in theirs:
            outcomes.setdefault((row["network"], row["rests"] or row["claim"]), set()).add(row["outcome"])
        once = [found.pop() if len(found) == 1 else _MIXED for found in outcomes.values()]
        told = [one for one in (*OUTCOMES, _MIXED) if one != _MIXED or _MIXED in once]
        which = "; ".join(f"{rests} ({', '.join(claims)})" for rests, claims in shared.items())
        said += (
            f" Some rest on one observation: {which}. Counted once for each network and observation: "
            f"{', '.join(f'{one} {once.count(one)}' for one in told)}."
        )
    return f"{said} {own}"


def in_short(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which claims came out how, and for which networks, those of others first."""
    parts = []
    for whose, own in (("Claims of others", False), ("Claims of our own", True)):
        said = []
        for outcome in OUTCOMES:
            networks: dict[str, list[str]] = {}
            for row in rows:
                if row["outcome"] == outcome and (row["source"] == OURS) == own:
                    networks.setdefault(row["claim"], []).append(row["network"])
            if networks:
                said.append(
                    f"*{outcome}* on " + ", ".join(f"{claim} ({'; '.join(of)})" for claim, of in networks.items())
                )
        if said:
            parts.append(f"{whose}: {'; '.join(said)}.")
    return " ".join(parts)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
