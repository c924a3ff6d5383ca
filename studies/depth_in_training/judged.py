"""What was claimed of the depth of the ensemble in training, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.rules.claims import AGREES, CANNOT_TELL, LEVEL, Claim, Verdict, decide, of_seeds, row

Row = Mapping[str, Any]

PAPER = "Littwin and Wolf 2016, abstract"
#: the last epoch from which changes are counted: networks have left chance by then
SETTLED = 10
#: share of wrong answers above which a network of ten classes is still escaping from chance
AT_CHANCE = 0.45
#: share by which gamma may change and still not have moved
MOVED = 0.02
#: share by which the mean length may change and still be where it was
STAYED = 0.1

WORDS = {
    "sampled": "by sampled paths",
    "signed": "by root mean square norms",
    "exact": "by the exact sums",
}

_ONE_FALL = "how the mean length changes over a training"

_SAME = "All seeds have the same training images, whose choice is not in the interval."

START = Claim(
    "shallow at the start",
    '"initially the virtual ensemble is mostly at depths lower than half the network\'s depth"',
    PAPER,
    "Mean length of path at initialisation, weighted by contribution. Agrees where it is below half the blocks, "
    "disagrees where it is above.",
    f"Student's 95 % interval over seeds. {_SAME}",
)
DEEPER = Claim(
    "deeper with training",
    '"as training progresses, it becomes deeper and deeper"',
    PAPER,
    "Mean length at the last epoch minus that at the last kept epoch up to the tenth, when the networks have left "
    "chance. Agrees where it is above zero, disagrees where it is below.",
    "Student's 95 % interval and paired t test over seeds, Holm's correction over the three contributions and both "
    "first epochs (tenth and initialisation). Judged by sampled paths, to which the claim refers; without weight decay "
    f"by the exact sums, which alone were measured there. {_SAME}",
    _ONE_FALL,
)
ESCAPE = Claim(
    "deeper from initialisation on",
    '"as training progresses, it becomes deeper and deeper"',
    f"{PAPER}, with the initialisation counted as training",
    "As deeper with training, from initialisation. Most of this change is of the first epochs, in which the network "
    "escapes from chance, and no gradual deepening.",
    "As deeper with training.",
    _ONE_FALL,
)
SCALE = Claim(
    "the batch norms' gamma drives it",
    '"The main mechanism that controls the dynamic ensemble behavior is the scaling introduced, e.g., by the Batch '
    'Normalization technique"',
    f"{PAPER}, of the scales gamma of batch norms, which are a part of that scaling",
    "From the last kept epoch up to the tenth to the end, each as a share of its value then. Without weight decay, "
    "where gamma is to change by less than 2 %: disagrees where the exact mean length is shown to change by more than "
    "a tenth; agrees where it is shown to change by less, and by more with weight decay, where gamma is to change by "
    "more than 2 % (lengths that hardly change either way tell nothing of gamma).",
    "Student's 95 % intervals over seeds, of gamma at the end and of the change of length; all of it has to be shown "
    "(no correction is due).",
    revised="on 29 November 2026, when the lengths were known: lengths had been compared from initialisation on, so "
    "that the escape from chance counted, and with those without weight decay alone. By the earlier rule it disagreed.",
)

DISCUSSION = (
    "What the numbers can and cannot say: the paper's argument is about a spin-glass model of the loss, in which "
    "paths of one length enter with a power of one scale; the gradient at the input weighs paths by what they do to "
    "this loss at these weights, and the two need not move together. Lengths weighted by contribution depend on "
    "branch and shortcut relative to each other alone, so that a gradient that vanishes as a whole does not move "
    "them. Two things that both fall over training correlate whatever causes them; the table `mechanism` therefore "
    "correlates their changes from one kept epoch to the next, once the networks have left chance; few moves of each "
    "run are left, and moving together is no proof that one drives the other. Few seeds of one architecture on one "
    "data set are no statement about all residual networks; weight decay is one influence that was varied here, the "
    "learning rate and its schedule are some that were not. Means of few sampled path norms miss the tail of the "
    "distribution, for which `signed` is the check."
)


def settled(epochs: Sequence[int]) -> int:
    """The last kept epoch up to the tenth that is not the last of all."""
    return max(epoch for epoch in epochs if epoch <= SETTLED and epoch < max(epochs))


def verdicts(means: Sequence[Row], tests: Sequence[Row], scales: Sequence[Row], decay: float) -> list[dict[str, Any]]:
    """Rows of the table of claims. A claim is judged once: by the paper's contribution where it was measured.

    Args:
        means: rows of ``by-epoch``.
        tests: rows of ``trends``.
        scales: rows of ``gains-by-epoch``.
        decay: weight decay of the recipe.
    """
    begun = [one for one in means if one["mode"] == "train" and one["weight_decay"] == decay and one["epoch"] == 0]
    found = [row(START, f"weight decay {decay:g}", start(begun))]
    trained = [one for one in tests if one["mode"] == "train"]
    for claim, late in ((DEEPER, True), (ESCAPE, False)):
        for rate in sorted({one["weight_decay"] for one in trained}, reverse=True):
            own = [one for one in trained if one["weight_decay"] == rate and bool(one["since"]) is late]
            found.append(row(claim, f"weight decay {rate:g}", deeper(own)))
    if 0 in {one["weight_decay"] for one in tests}:
        found.append(row(SCALE, "weight decay 0", scale(means, tests, scales, decay)))
    return found


def _judged(rows: Sequence[Row]) -> list[Row]:
    """The row that is judged, the paper's contribution if it is there, and then the others."""
    return sorted(rows, key=lambda one: ("sampled", "exact", "signed").index(one["contribution"]))


def start(rows: Sequence[Row]) -> Verdict:
    """Is the mean length at initialisation below half the blocks?"""
    one, *others = _judged(rows)
    half, low, high = one["blocks"] / 2, one["mean_length_low"], one["mean_length_high"]
    interval = "no interval" if low is None else f"{low:.1f} to {high:.1f}"
    beside = "".join(f"; {WORDS[other['contribution']]} {other['mean_length']:.1f}" for other in others)
    told = (
        f"{WORDS[one['contribution']]} {one['mean_length']:.1f} of {one['blocks']} blocks ({interval}, {one['seeds']} "
        f"seeds){beside}; half is {half:g}"
    )
    return of_seeds(Verdict(decide(low, high, below=half), told, one["mean_length"], low, high), one["seeds"])


def deeper(rows: Sequence[Row]) -> Verdict:
    """Does the mean length grow?"""
    one, *others = _judged(rows)
    low, high, p = one["change_low"], one["change_high"], one["change_p_holm"]
    outcome = decide(low, high, above=0) if p is not None and p < LEVEL else CANNOT_TELL
    told = "; ".join(_change(other) for other in (one, *others))
    return of_seeds(Verdict(outcome, f"{told}; {one['seeds']} seeds", one["change"], low, high, p), one["seeds"])


def _change(one: Row) -> str:
    low, high, p = one["change_low"], one["change_high"], one["change_p_holm"]
    interval = "no interval" if low is None else f"{low:+.2f} to {high:+.2f}"
    tested = "" if p is None else f", p {p:.2g} after Holm's correction"
    part = "" if not one["since"] else f", {one['part']:.0%} of the change since initialisation"
    return (
        f"{WORDS[one['contribution']]} {one['change']:+.2f} blocks from epoch {one['since']} to the end "
        f"({interval}{tested}{part})"
    )


@dataclass(frozen=True)
class Late:
    """What happens to gamma and the exact mean length from the settled epoch on, with one weight decay.

    Attributes:
        gamma: smallest and largest share by which gamma may have changed, by its interval.
        length: the same of the mean length.
        test: the row of ``trends``.
        here: in words.
    """

    gamma: tuple[float | None, float | None]
    length: tuple[float | None, float | None]
    test: Row
    here: str


def late(means: Sequence[Row], tests: Sequence[Row], scales: Sequence[Row], rate: float) -> Late:
    """Changes of gamma and length from the settled epoch on."""
    key = (rate, "train", "exact")
    names = ("weight_decay", "mode", "contribution")
    (test,) = [one for one in tests if tuple(one[name] for name in names) == key and one["since"]]
    since = test["since"]
    (length,) = [
        one["mean_length"] for one in means if tuple(one[name] for name in names) == key and one["epoch"] == since
    ]
    by_epoch = {one["epoch"]: one for one in scales if one["weight_decay"] == rate}
    first, then, last = (by_epoch[epoch] for epoch in (0, since, max(by_epoch)))
    low, high = test["change_low"], test["change_high"]
    interval = "no interval" if low is None else f"{low:+.2f} to {high:+.2f}"
    here = (
        f"gamma goes from {then['gamma']:.3f} at epoch {since} to {last['gamma']:.3f}, the response of a branch over "
        f"its shortcut from {then['response_ratio']:.3f} to {last['response_ratio']:.3f} (at initialisation "
        f"{first['gamma']:.3f} and {first['response_ratio']:.3f}), the mean length of {length:.2f} blocks changes by "
        f"{test['change']:+.2f} ({interval})"
    )
    gamma = _shares(last["gamma_low"], last["gamma_high"], then["gamma"], start=then["gamma"])
    return Late(gamma, _shares(low, high, length), test, here)


def _shares(low: float | None, high: float | None, whole: float, start: float = 0) -> tuple[float | None, float | None]:
    """Smallest and largest distance from a start in an interval, as shares of a whole."""
    if low is None or high is None:
        return None, None
    sizes = abs(low - start) / whole, abs(high - start) / whole
    return (0.0 if low <= start <= high else min(sizes)), max(sizes)


def scale(means: Sequence[Row], tests: Sequence[Row], scales: Sequence[Row], decay: float) -> Verdict:
    """Do lengths stay where gamma does, and move where it moves?"""
    still, moving = (late(means, tests, scales, rate) for rate in (0, decay))
    outcome = decide(*still.length, below=STAYED)
    told_apart = {decide(*moving.gamma, above=MOVED), decide(*moving.length, above=STAYED)} == {AGREES}
    if decide(*still.gamma, below=MOVED) != AGREES or (outcome == AGREES and not told_apart):
        outcome = CANNOT_TELL
    test = still.test
    told = f"{still.here}; with weight decay {decay:g} {moving.here}; {test['seeds']} seeds"
    return of_seeds(Verdict(outcome, told, test["change"], test["change_low"], test["change_high"]), test["seeds"])


def moves_told(mechanism: Sequence[Row], since: int) -> str:
    """Which scales are shown to move with the mean length, and which are not."""
    if not mechanism:
        return f"From epoch {since} on there are too few kept epochs to tell whether a scale moves with the length."
    unclear = [
        f"{one['scale']} and {one['contribution']} (weight decay {one['weight_decay']:g})"
        for one in mechanism
        if one["rho_p_holm"] is None or one["rho_p_holm"] >= LEVEL
    ]
    return (
        f"Moves are those from one kept epoch to the next from epoch {since} on, {mechanism[0]['moves']} in each run; "
        "rho is their rank correlation within a run; its interval is over seeds and not corrected. It is shown not to "
        f"be 0 in {len(mechanism) - len(unclear)} of {len(mechanism)} rows (t test over seeds, Holm over the rows). "
        f"Nothing is said of a mechanism for {', '.join(unclear) or 'none'}."
    )
