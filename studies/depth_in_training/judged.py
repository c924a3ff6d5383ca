"""What was claimed of the depth of the ensemble in training, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.rules.claims import CANNOT_TELL, LEVEL, Claim, Verdict, decide, of_seeds, row

Row = Mapping[str, Any]

PAPER = "Littwin and Wolf 2016, abstract"
#: the last epoch from which changes are counted: networks have left chance by then
SETTLED = 10
#: share of wrong answers above which a network of ten classes is still escaping from chance
AT_CHANCE = 0.45
#: by how much a scale may differ from its value at initialisation and still not have moved
MOVED = 0.02

WORDS = {
    "sampled": "by sampled paths",
    "signed": "by root mean square norms",
    "exact": "by the exact sums",
}

START = Claim(
    "shallow at the start",
    '"initially the virtual ensemble is mostly at depths lower than half the network\'s depth"',
    PAPER,
    "Mean length of path at initialisation, weighted by contribution. Agrees where it is below half the blocks, "
    "disagrees where it is above.",
    "Student's 95 % interval over seeds.",
)
DEEPER = Claim(
    "deeper with training",
    '"as training progresses, it becomes deeper and deeper"',
    PAPER,
    "Mean length at the last epoch minus that at the last kept epoch up to the tenth, when the networks have left "
    "chance. Agrees where it is above zero, disagrees where it is below.",
    "Student's 95 % interval and paired t test over seeds, Holm's correction over the three contributions and both "
    "first epochs (tenth and initialisation). Judged by sampled paths, to which the claim refers; without weight decay "
    "by the exact sums, which alone were measured there.",
)
ESCAPE = Claim(
    "deeper from initialisation on",
    '"as training progresses, it becomes deeper and deeper"',
    f"{PAPER}, with the initialisation counted as training",
    "As deeper with training, from initialisation. Most of this change is of the first epochs, in which the network "
    "escapes from chance, and no gradual deepening.",
    "As deeper with training.",
)
SCALE = Claim(
    "the scale drives it",
    '"The main mechanism that controls the dynamic ensemble behavior is the scaling introduced, e.g., by the Batch '
    'Normalization technique"',
    PAPER,
    "Trained without weight decay, where the batch norms' scale stays within 2 % of its start: agrees where the exact "
    "mean length from initialisation to the end is then shown to change by less than a tenth of its start, disagrees "
    "where it is shown to change by more.",
    "Student's 95 % intervals over seeds, of the scale and of the change.",
)

DISCUSSION = (
    "What the numbers can and cannot say: the paper's argument is about a spin-glass model of the loss, in which "
    "paths of one length enter with a power of one scale; the gradient at the input weighs paths by what they do to "
    "this loss at these weights, and the two need not move together. Lengths weighted by contribution depend on "
    "branch and shortcut relative to each other alone, so that a gradient that vanishes as a whole does not move "
    "them. Two things that both fall over training correlate whatever causes them; the table `mechanism` therefore "
    "correlates their changes from one kept epoch to the next. Few seeds of one architecture on one data set are no "
    "statement about all residual networks; weight decay is one influence that was varied here, the learning rate and "
    "its schedule are some that were not. Means of few sampled path norms miss the tail of the distribution, for which "
    "`signed` is the check."
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
        found.append(row(SCALE, "weight decay 0", scale(means, tests, scales)))
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


def scale(means: Sequence[Row], tests: Sequence[Row], scales: Sequence[Row]) -> Verdict:
    """Do lengths stay where the scale of the batch norms does?"""
    own = sorted((one for one in scales if one["weight_decay"] == 0), key=lambda one: one["epoch"])
    first, last = own[0], own[-1]
    (test,) = [
        one
        for one in tests
        if (one["weight_decay"], one["mode"], one["contribution"], one["since"]) == (0, "train", "exact", 0)
    ]
    (begun,) = [
        one["mean_length"]
        for one in means
        if (one["weight_decay"], one["mode"], one["contribution"], one["epoch"]) == (0, "train", "exact", 0)
    ]
    low, high = test["change_low"], test["change_high"]
    told = (
        f"the scale goes from {first['gamma']:.3f} to {last['gamma']:.3f}, the mean length changes by "
        f"{test['change']:+.2f} blocks"
    )
    if low is None or last["gamma_low"] is None:
        return of_seeds(Verdict(CANNOT_TELL, told, test["change"]), test["seeds"])
    still = max(abs(last[f"gamma_{end}"] / first["gamma"] - 1) for end in ("low", "high")) < MOVED
    smallest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    outcome = decide(smallest, max(abs(low), abs(high)), below=begun / 10) if still else CANNOT_TELL
    return of_seeds(
        Verdict(outcome, f"{told} ({low:+.2f} to {high:+.2f}, {test['seeds']} seeds)", test["change"], low, high),
        test["seeds"],
    )
