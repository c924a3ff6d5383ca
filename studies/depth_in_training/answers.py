"""What agrees, what does not, and the likely reason: sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

WORDS = {
    "sampled": "by sampled paths",
    "signed": "by root mean square norms",
    "exact": "by the exact sums",
}

DISCUSSION = (
    "What the numbers can and cannot say: the paper's argument is about a spin-glass model of the loss, in which "
    "paths of one length enter with a power of one scale; the gradient at the input weighs paths by what they do to "
    "this loss at these weights, and the two need not move together. Lengths weighted by contribution depend on "
    "branch and shortcut relative to each other alone, so that a gradient that vanishes as a whole does not move "
    "them. Few seeds of one architecture on one data set are no statement about all residual networks; weight decay "
    "is one influence that was varied here, the learning rate and its schedule are some that were not. Means of few "
    "sampled path norms miss the tail of the distribution, for which `signed` is the check."
)


def direction(row: Row, name: str = "change") -> str:
    """``grows``, ``shrinks`` or ``does not change for certain``, by the interval over seeds."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or low <= 0 <= high:
        return "does not change for certain"
    return "grows" if low > 0 else "shrinks"


def apart(one: Row, other: Row, name: str) -> bool:
    """Whether two intervals over seeds do not overlap; one that is missing tells nothing apart."""
    low, high = (tuple(row[f"{name}_{end}"] for row in (one, other)) for end in ("low", "high"))
    return None not in (*low, *high) and (high[0] < low[1] or high[1] < low[0])


def answers(
    means: Sequence[Row], tests: Sequence[Row], scales: Sequence[Row], ranks: Sequence[Row], decay: float
) -> str:
    """The list of the page's last section.

    Args:
        means: rows of ``by-epoch``.
        tests: rows of ``trends``.
        scales: rows of ``gains-by-epoch``.
        ranks: rows of ``mechanism``.
        decay: weight decay of the recipe.
    """
    lines = [_start(row) for row in means if _is(row, decay) and row["epoch"] == 0 and row["contribution"] != "signed"]
    lines += [_trend(row) for row in tests if _is(row, decay)]
    lines += [_control(row, tests) for row in tests if row["mode"] == "eval" and row["since"] == 1]
    lines += [_decay(tests, decay)]
    lines += [_scale(name, scales, decay) for name in ("gamma", "response_ratio", "gradient_ratio")]
    lines += [_predicts(row) for row in ranks if row["weight_decay"] == decay and row["scale"] == "predicted_length"]
    lines += [_peak(means, decay), _reason(tests, scales)]
    return "\n".join(f"- {line}" for line in lines if line)


def _is(row: Row, decay: float) -> bool:
    return bool(row["mode"] == "train" and row["weight_decay"] == decay)


def _start(row: Row) -> str:
    half, high, low = row["blocks"] / 2, row["mean_length_high"], row["mean_length_low"]
    if low is None or low <= half <= high:
        said = "not told apart from half the blocks"
    else:
        said = "below half the blocks, as claimed" if high < half else "above half the blocks, unlike claimed"
    return (
        f"At initialisation the mean length {WORDS[row['contribution']]} is {row['mean_length']:.1f} of "
        f"{row['blocks']} blocks: {said}."
    )


def _trend(row: Row) -> str:
    since = "initialisation" if row["since"] == 0 else f"epoch {row['since']}"
    moves = direction(row)
    verdict = {
        "grows": "agrees with the claim",
        "shrinks": "the opposite of the claim",
        "does not change for certain": "no support for the claim",
    }[moves]
    rising = f"rising in {row['rising']} of {row['seeds']} seeds" if row["rho"] is not None else "no rank correlation"
    return (
        f"From {since} to the end, the mean length {WORDS[row['contribution']]} {moves} ({row['change']:+.1f} blocks, "
        f"{rising}): {verdict}."
    )


def _control(row: Row, tests: Sequence[Row]) -> str:
    same = [one for one in tests if _is(one, row["weight_decay"]) and one["since"] == row["since"]]
    other = next(one for one in same if one["contribution"] == row["contribution"])
    said = "the same" if direction(row) == direction(other) else "not the same"
    return (
        f"With running statistics in place of the batch's (weight decay {row['weight_decay']:g}, from epoch "
        f"{row['since']}) the exact mean length {direction(row)} ({row['change']:+.1f} blocks): {said} as with the "
        "batch's."
    )


def _decay(tests: Sequence[Row], decay: float) -> str:
    def change(of: float) -> Row:
        return next(
            row for row in tests if _is(row, of) and row["contribution"] == "exact" and row["since"] == 0
        )  # fmt: skip

    others = {row["weight_decay"] for row in tests} - {decay}
    if not others:
        return ""
    with_it, without = change(decay), change(min(others))
    if direction(with_it) == direction(without):
        due = with_it["change"] - without["change"]
        told = (
            "are due to it"
            if apart(with_it, without, "change")
            else "between the two are not told apart from the spread of the seeds"
        )
        said = f"the direction does not depend on it, and {due:+.1f} blocks {told}"
    else:
        said = "weight decay decides the direction, so that the claim depends on the recipe"
    return (
        f"Without weight decay the exact mean length {direction(without)} from initialisation to the end "
        f"({without['change']:+.1f} blocks; with it {with_it['change']:+.1f}): {said}."
    )


def _scale(name: str, scales: Sequence[Row], decay: float) -> str:
    words = {
        "gamma": "The batch norms' scale",
        "response_ratio": "The response of the branches over that of the shortcuts",
        "gradient_ratio": "The gradient through the branches over that through the shortcuts",
    }[name]
    own = sorted((row for row in scales if row["weight_decay"] == decay), key=lambda row: row["epoch"])
    first, last = own[0], own[-1]
    moved = (
        ("grows" if last[name] > first[name] else "shrinks")
        if apart(first, last, name)
        else "does not move for certain"
    )
    return f"{words} {moved} in training (weight decay {decay:g}): {first[name]:.3f} to {last[name]:.3f}."


def _predicts(row: Row) -> str:
    if row["rho_low"] is not None:
        said = "goes with" if row["rho_low"] > 0 else "goes against" if row["rho_high"] < 0 else "does not explain"
    else:
        said = "is beside"
    return (
        f"Over the checkpoints, what the gradient ratio of the blocks predicts {said} the mean length "
        f"{WORDS[row['contribution']]} (rank correlation {row['rho']:+.2f}); measured lengths are "
        f"{row['measured_over_predicted']:.2f} times the predicted ones."
    )


def _reason(tests: Sequence[Row], scales: Sequence[Row]) -> str:
    """Where the depth and the claimed driving force part: without weight decay, which acts on the scale itself."""
    own = sorted((row for row in scales if row["weight_decay"] == 0), key=lambda row: row["epoch"])
    trend = [row for row in tests if _is(row, 0) and row["contribution"] == "exact" and row["since"] == 0]
    if not own or not trend or direction(trend[0]) != "shrinks":
        return ""
    gamma, ratio = (own[-1][name] / own[0][name] for name in ("gamma", "gradient_ratio"))
    if ratio >= min(1.0, gamma):
        return ""
    return (
        f"The likely reason: the scale γ does not measure how a branch enters the sum. Without weight decay it ends at "
        f"{gamma:.2f} times its value at initialisation and λ at {ratio:.2f} times: the network lowers what branches "
        "pass on, relative to their shortcuts, by other weights than γ, and with λ the paths get shorter."
    )


def _peak(means: Sequence[Row], decay: float) -> str:
    own = sorted((r for r in means if _is(r, decay) and r["contribution"] == "exact"), key=lambda row: row["epoch"])
    lengths = [row["mean_length"] for row in own]
    least = own[lengths.index(min(lengths))]
    last = own[-1]
    if least is last or least is own[0]:
        return ""
    told = "told" if apart(least, last, "mean_length") else "not told"
    return (
        f"The exact mean length is smallest after epoch {least['epoch']} ({least['mean_length']:.1f} blocks) and "
        f"{last['mean_length']:.1f} at the end; a rise after it is {told} apart from the "
        "spread of the seeds."
    )
