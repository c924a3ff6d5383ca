"""Verdicts on lesions, from the tables of ``delete-blocks`` and ``reorder-blocks``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pathlens.metrics import holm
from pathlens.results.measured import distinct, members
from pathlens.tables import Table
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES, LEVEL, Verdict, decide, majority, shown, welch
from studies.rules.veit import CLASSES, NEAR_CHANCE, NOTICEABLE

_RESAMPLES = 2000
#: numbers of deleted blocks, or of exchanges, that pages show; the tables have all
SIZES = (1, 2, 5, 10, 15, 20)
_ERRORS = (
    ("mean", "fraction", "mean error"),
    ("median", "fraction", "median error"),
    ("smallest", "fraction", "smallest error"),
    ("largest", "fraction", "largest error"),
)
#: what :func:`split_rows` says of sets, and of orders
SPLIT_SETS = (
    ("size", "blocks", "deleted blocks"),
    ("critical", "", "with: sets that hold a critical block; without: the others"),
    ("n", "", "distinct sets"),
    *_ERRORS,
)
SPLIT_ORDERS = (
    ("size", "", "random exchanges of two blocks"),
    ("critical", "", "with: orders that move a critical block; without: the others"),
    ("n", "", "distinct orders"),
    *_ERRORS,
)
#: ends the caption of a figure that draws both kinds, see :func:`apart`
_APART = {
    "sets": "; sets that hold a critical block apart, each kind with its medians.",
    "orders": "; orders that move a critical block apart, each kind with its medians in bins of five orders or more.",
}


@dataclass(frozen=True)
class Cost:
    """What deleting one block costs, in error against the intact network on the same images.

    Attributes:
        block: its index.
        name: its module.
        kind: its shortcut.
        difference: paired, as a fraction.
        low: lower end of its 95 % interval.
        high: upper end.
        p_holm: of McNemar's exact test, corrected over the blocks.
        noticeable: corrected p value of the one-sided test that it is above the margin.
        small: of the one that it is below.
        freedom: degrees of freedom of the interval; infinity where it is not Student's.
    """

    block: int
    name: str
    kind: str
    difference: float
    low: float
    high: float
    p_holm: float
    noticeable: float
    small: float
    freedom: float

    @property
    def downsamples(self) -> bool:
        """Whether its shortcut changes shapes."""
        return self.kind in ("projection", "padding")

    @property
    def is_noticeable(self) -> bool:
        """Whether it is shown to cost more than the margin."""
        return self.noticeable < LEVEL

    @property
    def is_small(self) -> bool:
        """Whether it is shown to cost less than the margin."""
        return self.small < LEVEL


def costs(lesions: Table) -> list[Cost]:
    """The cost of each single deletion of a table of ``delete-blocks``."""
    widest = {"difference_low": -1.0, "difference_high": 1.0}  # where nothing tells the spread
    rows = [
        {**row, **{end: bound if row[end] is None else row[end] for end, bound in widest.items()}}
        for row in lesions.rows
        if row["block"] is not None
    ]
    # where each example has an error of its own, as sequences have
    (said,) = (column.description for column in lesions.columns if column.name == "difference_low")
    freedom = [row["n"] - 1 if "interval: Student's" in said else math.inf for row in rows]
    beyond = [
        holm(
            [
                _beyond(sign * (row["difference"] - NOTICEABLE), abs(row["difference"] - row[end]), of)
                for row, of in zip(rows, freedom, strict=True)
            ]
        )
        for sign, end in ((1, "difference_low"), (-1, "difference_high"))
    ]
    ends = ("difference", "difference_low", "difference_high", "p_holm")
    return [
        Cost(row["block"], row["name"], row["kind"], *(float(row[name]) for name in ends), *ps, of)
        for row, *ps, of in zip(rows, *beyond, freedom, strict=True)
    ]


def _beyond(gap: float, half: float, freedom: float) -> float:
    """One-sided p value that a number is above 0, by the half of its 95 % interval on that side."""
    if not half:
        return 0.0 if gap > 0 else 1.0
    return float(stats.t.sf(gap * stats.t.ppf(0.975, freedom) / half, freedom))


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def critical_blocks(lesions: Table) -> list[int]:
    """Blocks that are shown to cost more than the margin alone."""
    return [cost.block for cost in costs(lesions) if cost.is_noticeable]


def single(lesions: Table) -> Verdict:
    """Does deleting one block cost little, in most blocks?"""
    found = costs(lesions)
    small, large = [cost.small for cost in found], [cost.noticeable for cost in found]
    outcome, p = majority(small, large)
    differ = sum(cost.p_holm < LEVEL for cost in found)
    middle = statistics.median(cost.difference for cost in found)
    worst = max(found, key=lambda cost: cost.difference)
    return Verdict(
        outcome,
        f"{shown(small)} of {len(found)} deletions are shown to cost less than 5 points and {shown(large)} to cost "
        f"more; {differ} differ from the intact network at all (paired, Holm); median {_points(middle)} points, "
        f"largest {_points(worst.difference)} (block {worst.block})",
        middle,
        p=p,
    )


def others(lesions: Table) -> Verdict:
    """Is no block but those that downsample noticed?"""
    found = [cost for cost in costs(lesions) if not cost.downsamples]
    large = [cost for cost in found if cost.is_noticeable]
    worst = max(found, key=lambda cost: cost.difference)
    outcome = DISAGREES if large else AGREES if all(cost.high < NOTICEABLE for cost in found) else CANNOT_TELL
    named = f" (block{'s' * (len(large) > 1)} {', '.join(str(cost.block) for cost in large)})" if large else ""
    which = "blocks that do not downsample" if len(found) < len(costs(lesions)) else "blocks"
    return Verdict(
        outcome,
        f"{len(large)} of {len(found)} {which} are shown to cost more than 5 points{named}; the "
        f"largest of them {_points(worst.difference)} points ({_points(worst.low)} to {_points(worst.high)})",
        worst.difference,
        worst.low,
        worst.high,
        None if outcome == AGREES else min(cost.noticeable for cost in found),
    )


def downsampling(lesions: Table) -> Verdict:
    """Do the blocks that downsample cost more than all others?"""
    found = costs(lesions)
    changing, rest = [cost for cost in found if cost.downsamples], [cost for cost in found if not cost.downsamples]
    if not changing or not rest:
        return Verdict(CANNOT_TELL, "no block downsamples")
    tests = [_against(one, [other]) for one in changing for other in rest]
    every = max(more for more, _ in tests)
    against = min(holm([less for _, less in tests]))
    order = sorted(found, key=lambda cost: -cost.difference)
    ranks = [str(order.index(cost) + 1) for cost in changing]
    told = "; ".join(f"block {cost.block} {_points(cost.difference)} points" for cost in changing)
    best = max(rest, key=lambda cost: cost.difference)
    outcome, p = _decided(every, against)
    return Verdict(
        outcome,
        f"downsampling blocks are at rank {' and '.join(ranks)} of {len(found)} ({told}); the costliest other, block "
        f"{best.block}, {_points(best.difference)}",
        min(cost.difference for cost in changing) - best.difference,
        p=p,
    )


def _decided(every: float, against: float) -> tuple[str, float]:
    """An outcome, and the p value behind it, of a claim about all of many things.

    Args:
        every: largest p value of the tests that each shows it.
        against: smallest corrected p value of those that one does not.
    """
    return (AGREES, every) if every < LEVEL else (DISAGREES if against < LEVEL else CANNOT_TELL, against)


def _against(one: Cost, others: Sequence[Cost]) -> tuple[float, float]:
    """One-sided p values that one deletion costs more than some others together, and that it costs less."""
    gap = one.difference - sum(other.difference for other in others)
    below = math.hypot(one.difference - one.low, *(other.high - other.difference for other in others))
    above = math.hypot(one.high - one.difference, *(other.difference - other.low for other in others))
    freedom = min(cost.freedom for cost in (one, *others))
    return _beyond(gap, below, freedom), _beyond(-gap, above, freedom)


def costlier(costs_of: Sequence[Cost], *others: Sequence[Cost]) -> tuple[list[float], list[float]]:
    """P values that each deletion costs more than those of the others, added up; and that it costs less.

    One-sided tests by the difference, with variances added as if of different images (too wide rather than too
    narrow); Holm over the deletions and both directions.
    """
    tests = [_against(one, rest) for one, *rest in zip(costs_of, *others, strict=True)]
    ps = holm([p for both in tests for p in both])
    return list(ps[::2]), list(ps[1::2])


def at_chance(lesions: Table) -> Verdict:
    """Does each single deletion bring a plain network to chance?"""
    bound = 1 - 1 / CLASSES - NEAR_CHANCE
    rows = [row for row in lesions.rows if row["count"] == 1]
    wrong = [(round(row["error"] * row["n"]), row["n"]) for row in rows]
    every = max(float(stats.binomtest(k, n, bound, "greater").pvalue) for k, n in wrong)
    below = holm([float(stats.binomtest(k, n, bound, "less").pvalue) for k, n in wrong])
    errors = [row["error"] for row in rows]
    outcome, p = _decided(every, min(below))
    return Verdict(
        outcome,
        f"without one of {len(rows)} layers the error is {min(errors):.1%} to {max(errors):.1%}, median "
        f"{statistics.median(errors):.1%}; {sum(p < LEVEL for p in below)} are shown to be below 85 % (Holm)",
        min(errors),
        p=p,
    )


@dataclass(frozen=True)
class Drawn:
    """A random set or order.

    Attributes:
        size: blocks deleted, or exchanges made.
        distance: what the error should rise with.
        blocks: what it touches.
        error: of the network.
    """

    size: int
    distance: float
    blocks: frozenset[int]
    error: float


def distinct_sets(table: Table) -> list[Drawn]:
    """The distinct sets of a table of ``delete-blocks --count``."""
    rows = distinct([row for row in table.rows if row["sample"] is not None], "blocks")
    return [Drawn(row["count"], row["count"], frozenset(members(row)), row["error"]) for row in rows]


def distinct_orders(table: Table) -> list[Drawn]:
    """The distinct orders of a table of ``reorder-blocks`` but the trained one; distance is 1 minus Kendall's tau."""
    rows = distinct([row for row in table.rows if row["sample"] is not None and row["moved"]], "order")
    return [Drawn(row["swaps"], 1 - row["kendall_tau"], frozenset(members(row)), row["error"]) for row in rows]


def smooth(drawn: Sequence[Drawn], lesions: Table, what: str, verb: str) -> Verdict:
    """Does the error rise with the distance, and not by jumps of the sets that touch a critical block?

    Args:
        drawn: distinct sets or orders.
        lesions: single deletions of the same network, for its critical blocks.
        what: ``sets`` or ``orders``.
        verb: what they do with a block: ``hold`` or ``move``.
    """
    critical = set(critical_blocks(lesions))
    rho, rho_low, rho_high = rank_interval([one.distance for one in drawn], [one.error for one in drawn])
    if rho is None or rho_low is None or rho_high is None:
        return Verdict(CANNOT_TELL, f"the error of {len(drawn)} {what} does not vary")
    told = f"rank correlation {rho:.2f} ({rho_low:.2f} to {rho_high:.2f}) over {len(drawn)} distinct {what}"
    rises = decide(rho_low, rho_high, above=0)
    if not critical:
        return Verdict(rises, f"{told}; no block is critical", rho, rho_low, rho_high)
    with_it = [one for one in drawn if one.blocks & critical]
    without = [one for one in drawn if not one.blocks & critical]
    # that one block costs much is what makes it critical
    several = [[one for one in kind if len(one.blocks) > 1] for kind in (with_it, without)]
    gap, low, high, many = step(*several)
    if gap is None or low is None or high is None:
        has, not_one = map(len, several)
        kinds = f"{has} {what} {verb} one of the critical blocks {_named(critical)} and {not_one} do not"
        outcome = DISAGREES if rises == DISAGREES else CANNOT_TELL
        return Verdict(outcome, f"{told}; {kinds}, and no size has two of both")
    alone = [
        stats.spearmanr([one.distance for one in kind], [one.error for one in kind]) for kind in (with_it, without)
    ]
    apart = AGREES if max(abs(low), abs(high)) < NOTICEABLE else DISAGREES if low > NOTICEABLE else CANNOT_TELL
    outcome = DISAGREES if DISAGREES in (rises, apart) else AGREES if rises == apart == AGREES else CANNOT_TELL
    return Verdict(
        outcome,
        f"{told}; {what} that {verb} one of the critical blocks {_named(critical)} have {_points(gap)} points of error "
        f"({_points(low)} to {_points(high)}) against others of the same size, by the {many} {what} of the sizes that "
        f"have two of both; within the two kinds the rank correlation is {alone[0].statistic:.2f} and "
        f"{alone[1].statistic:.2f}",
        gap,
        low,
        high,
    )


def apart(what: str, table: Table, critical: Sequence[int]) -> str:
    """The end of the caption of a figure, which says so where both kinds are drawn apart.

    Args:
        what: ``sets`` or ``orders``.
        table: of them.
        critical: critical blocks of the network.
    """
    drawn = distinct_sets(table) if what == "sets" else distinct_orders(table)
    return _APART[what] if len({one.blocks.isdisjoint(critical) for one in drawn}) > 1 else "."


def _named(blocks: set[int]) -> str:
    first = sorted(blocks)
    return ", ".join(map(str, first[:6])) + (f" and {len(first) - 6} more" if len(first) > 6 else "")


def step(with_it: Sequence[Drawn], without: Sequence[Drawn]) -> tuple[float | None, float | None, float | None, int]:
    """Mean error of sets with a critical block minus that of sets of the same size without, over the sizes.

    Sizes weigh by how well they tell the difference (the harmonic mean of the two numbers of sets). The interval is
    Student's 95 %, with Satterthwaite's degrees of freedom, from the variances within the sizes and kinds; None where
    no size has two of both kinds, or nothing varies. Last is how many sets it rests on.
    """
    pairs = [
        [[one.error for one in kind if one.size == size] for kind in (with_it, without)]
        for size in sorted({one.size for one in with_it})
    ]
    pairs = [pair for pair in pairs if min(map(len, pair)) > 1]
    if not pairs:
        return None, None, None, 0
    weights = [statistics.harmonic_mean(map(len, pair)) for pair in pairs]
    shares = [weight / sum(weights) for weight in weights]
    gap = sum(
        share * (statistics.fmean(with_one) - statistics.fmean(others))
        for share, (with_one, others) in zip(shares, pairs, strict=True)
    )
    parts = [
        (share**2 * statistics.variance(errors) / len(errors), len(errors) - 1)
        for share, pair in zip(shares, pairs, strict=True)
        for errors in pair
    ]
    return gap, *welch(gap, parts), sum(len(kind) for pair in pairs for kind in pair)


def rank_interval(
    xs: Sequence[float], ys: Sequence[float], resamples: int = _RESAMPLES
) -> tuple[float | None, float | None, float | None]:
    """Spearman's rank correlation with its 95 % percentile bootstrap interval; None where a side does not vary."""
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None, None, None
    rho = float(stats.spearmanr(xs, ys).statistic)
    first, second = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    picked = np.random.default_rng(0).integers(0, len(first), size=(resamples, len(first)))
    ranks = (stats.rankdata(values[picked], axis=1) for values in (first, second))
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):  # a sample of one point alone has no correlation
        rhos = (centred[0] * centred[1]).sum(1) / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    low, high = np.nanquantile(rhos, (0.025, 0.975))
    return rho, float(low), float(high)


def split_rows(drawn: Sequence[Drawn], lesions: Table) -> list[dict[str, Any]]:
    """For each size the sets or orders with and without a critical block: how many, and what their errors are."""
    critical = set(critical_blocks(lesions))
    rows = []
    for size in sorted({one.size for one in drawn}):
        for touched in (True, False):
            errors = [one.error for one in drawn if one.size == size and bool(one.blocks & critical) is touched]
            rows.append(
                {
                    "size": size,
                    "critical": "with" if touched else "without",
                    "n": len(errors),
                    "mean": statistics.fmean(errors) if errors else None,
                    "median": statistics.median(errors) if errors else None,
                    "smallest": min(errors, default=None),
                    "largest": max(errors, default=None),
                }
            )
    return rows


def side_by_side(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    """Rows of :func:`split_rows` as a table of a page: how many there are of both kinds, and their median errors.

    Args:
        rows: of some networks, each named by ``run`` or else ``network``; those of :data:`SIZES` are shown.
        what: ``sets`` or ``orders``.
    """
    size, with_it, without = {
        "sets": ("deleted", "sets with a critical block", "sets without"),
        "orders": ("exchanges", "orders that move a critical block", "orders that do not"),
    }[what]
    lines = [f"| network | {size} | {with_it} | median error | {without} | median error |", f"|{'---|' * 6}"]
    shown = [row for row in rows if row["size"] in SIZES]
    for pair in zip(shown[::2], shown[1::2], strict=True):
        named, cells = pair[0].get("run", pair[0]["network"]), []
        for row in pair:
            cells += [str(row["n"]), "" if row["median"] is None else f"{row['median']:.2%}"]
        lines.append(f"| {named} | {pair[0]['size']} | {' | '.join(cells)} |")
    return "\n".join(lines)
