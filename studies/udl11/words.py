"""What the page says: protocol, and sentences made from the numbers of the tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common import StudySetting
from studies.udl11 import growth, shattered, trained

Rows = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Rows]

QUESTION = (
    "Do networks at initialisation do what chapter 11 of Prince's Understanding Deep Learning says: do gradients of "
    "deep plain networks shatter, do variance and gradients of residual networks double with every block, and what do "
    "a factor of 1/sqrt(2) and batch norm change? And why does the textbook's notebook not show shattered gradients?"
)
PROTOCOL = (
    "Figure 11.3: networks from one number to one number, 200 units wide, on 256 inputs in [-2, 2); the gradient of "
    "the output by the input, and its autocorrelation along the inputs without its mean, of each network, then the "
    "mean over networks. Plain: He's weights, biases in the first layer alone, with the variance of its weights. Batch "
    "norm before every ReLU, over the 256 inputs; its mean and variance are constants to the gradient, which is then "
    "that of a function of one input (rows `through the statistics`: the other way). Residual: x + scale * W "
    "ReLU(norm(x)), one weight layer a block. Figure 11.6: blocks x + W ReLU(x), found by pathlens as in any network, "
    "weights by `pathlens.initialise` with `he-fan-in`, 1000 standard normal inputs (250 at 400 units), the gradient "
    "of a random projection of the output; measured where every block begins, growth is the slope of the logarithm by "
    "least squares, in each network. Notes on batch norm: plain layers of a linear map, batch norm and ReLU, growth "
    "from where the second layer begins to where the last one does. Everything in float64, from seed 1000 on. Rules "
    "and tolerances were fixed before these seeds were run, after a look at 6 to 30 networks of each kind with seeds "
    "below 1000, but for what is said of single ones (*revised*). The look before also chose the order of operations "
    "in the residual network of figure 11.3 and what its gradient is, neither of which came with the numbers it is "
    "compared with, so that its agreement with them is weak evidence. Problem numbers differ between editions: in the "
    "public one that we could read, problems 11.8 and 11.10 are 11.6 and 11.8, and the growth laws are in sections "
    "11.3 and 11.4 and the notes. Figure 11.2: pathlens' reference networks `plain20`, `plain56`, `resnet20` and "
    "`resnet56` on CIFAR-10 as JPEG files (`cifar10-jpeg`), three seeds each; at `--scale cpu` 10,000 images at 16x16 "
    "(the middle of 18x18), a tenth of them held out, 12 epochs and a cosine schedule; at `--scale paper` as He et al. "
    "2016a, section 4.2. Batches are of 128 images. Training errors are as trained, batch norms on the statistics of "
    "the batch; errors of held-out images and of all 10,000 test images have batch norms in eval mode."
)
DISCUSSION = (
    "All of this is about weights as drawn, not about training, except for the section on figure 11.2. The book's laws "
    "are about expectations over weights; the logarithm's mean in single networks is below the logarithm of the "
    "expectation (Jensen), the more so the narrower the network; beside 200 units stand 400. An autocorrelation "
    "depends on the distance of the inputs, which the book does not give, so that `nearby` is our reading (1/16 of a "
    "unit of the input, of which the line has four), and on how biases are drawn. Intervals are over networks, so that "
    "they say how well a mean is known and not how much networks differ. Where a claim has several rows their p values "
    "are corrected (Holm), which decides; no interval is widened for there being several."
)


def _correlation(rows: Tables, name: str, lag: int) -> str:
    for row in rows["autocorrelation"]:
        if row["network"] == name and row["lag"] == lag:
            return f"{row['autocorrelation']:+.2f}"
    return "no number"


def _three(rows: Tables, name: str) -> str:
    return ", ".join(_correlation(rows, name, lag) for lag in shattered.LAGS)


def shattered_lines(rows: Tables) -> list[str]:
    """One line for each kind of network."""
    plain, normed, residual, through = shattered.PLAIN, shattered.NORMED, shattered.RESIDUAL, shattered.THROUGH
    return [
        f"{plain[0].name}: {_three(rows, plain[0].name)}. With one hidden layer the gradient is a walk of small steps.",
        f"{plain[1].name}: {_three(rows, plain[1].name)}; {plain[2].name}: {_three(rows, plain[2].name)}. With He's "
        "weights deep gradients lose their likeness faster, but those of neighbours on this grid stay alike.",
        f"{normed[0].name}: {_three(rows, normed[0].name)}. With batch norm nothing is left of it from one point of "
        "the grid to the next: noise.",
        f"{residual[0].name}: {_three(rows, residual[0].name)}; with scale 0.1: {_three(rows, residual[1].name)}. "
        "Shortcuts bring it back at short distances.",
        f"If the gradient also runs through the statistics of the batch: {_three(rows, through[1].name)} and "
        f"{_three(rows, through[2].name)} for the two residual networks.",
    ]


def shattered_text(rows: Tables) -> str:
    """Text of the section on figure 11.3."""
    lines = "\n".join(f"- {line}" for line in shattered_lines(rows))
    return f"Autocorrelation at lags 1, 4 and 16, that is at distances 1/64, 1/16 and 1/4:\n\n{lines}"


def _variant(rows: Tables, variant: Any, depth: int) -> Mapping[str, Any]:
    return next(row for row in rows["notebook"] if row["variant"] == variant.name and row["depth"] == depth)


def notebook_text(rows: Tables) -> str:
    """The answer to the notebook's question."""
    own, double, first, both = shattered.VARIANTS
    ratio = statistics.fmean(row["signal_ratio"] for row in rows["notebook-halving"])
    profile = [row for row in rows["notebook-layers"] if row["variant"] == own.name]
    middle, last = profile[len(profile) // 2 - 1], profile[-1]
    late = (last["signal"] / middle["signal"]) ** (1 / (last["layer"] - middle["layer"]))
    share = last["signal"] / (last["signal"] + last["rest"])

    def of(variant: Any, name: str = "lag_4", look: str = ".2f") -> str:
        values = (_variant(rows, variant, depth)[name] for depth in shattered.NOTEBOOK_DEPTHS)
        return ", ".join("no number" if value is None else format(value, look) for value in values)

    return (
        "Notebook 11.1 of the textbook draws all weights and biases, also those of the first layer, with variance 1/D, "
        "D the number of hidden units, and asks why this is no convincing replication. The caption of figure 11.3 "
        "names the same draws: Glorot initialization for both the weights and biases. Measured here with them:\n\n"
        f"- The variance over the inputs of what enters the ReLUs falls by a factor of {ratio:.3f} a layer, from layer "
        f"{middle['layer']} on {late:.3f}, while every layer's biases add 1/D anew. In layer {last['layer']} the input "
        f"makes up {share:.1g} of the mean square and the rest is biases.\n"
        f"- So ReLUs no longer switch: {profile[0]['switching']:.0%} of the units do anywhere on the line of inputs in "
        f"layer 1, {middle['switching']:.1%} in layer {middle['layer']}, {last['switching']:.2%} in layer "
        f"{last['layer']}. Layers that do not switch are one linear map and add no structure: at 1, 24 and 50 layers "
        f"the gradient has {of(own, 'pieces', '.0f')} pieces, and its autocorrelation at lag 4 is {of(own)}. The "
        "network of 50 layers is one of a few layers, followed by a constant factor.\n"
        f"- That factor shrinks too, which is the notebook's other question: root mean square of the gradient "
        f"{of(own, 'gradient', '.1g')}.\n\n"
        "Which of the two choices does it? Autocorrelation at lag 4 at 1, 24 and 50 layers with biases in the first "
        f"layer alone: {of(first)}. With the variance of the weights doubled, as He has it, and biases everywhere: "
        f"{of(double)}; the signal keeps its size, but biases of every layer still add up. With both: {of(both)}, "
        "the same as without biases alone, since a ReLU network whose later layers have no biases only scales with its "
        "weights. So the biases are the reason, and the shrinking signal is what makes them large. To see gradients "
        "shatter in the notebook, leave out all biases but the first layer's, and give the weights the factor of two "
        "so that the gradient keeps its size; to see the noise of the figure, put a batch norm before every ReLU."
    )


def growth_text(rows: Tables) -> str:
    """Text of the section on figure 11.6 and on plain layers with batch norm."""

    def mean(case: growth.Case, name: str) -> float:
        return statistics.fmean(row[name] for row in rows["rates"] if row["network"] == case.name)

    def units(case: growth.Case) -> float:
        last = [row for row in rows["growth"] if row["network"] == case.name][-1]
        return float(last["unit_variance"] / last["second_moment"])

    narrow, wide, scaled = growth.RESIDUAL, growth.WIDE, growth.SCALED
    normed, plain = growth.NORMED, growth.PLAIN
    lines = [
        f"He's weights, {narrow.width} units: variance times {mean(narrow, 'forward'):.3f} a block forwards, gradient "
        f"times {mean(narrow, 'backward'):.3f} a block backwards (expected 2); {wide.width} units: "
        f"{mean(wide, 'forward'):.3f} and {mean(wide, 'backward'):.3f}.",
        f"Every block times 1/sqrt(2): {mean(scaled, 'forward'):.3f} and {mean(scaled, 'backward'):.3f} (expected 1).",
        f"Batch norm: the second moment grows by {mean(normed, 'second_moment_slope'):.3f} a block (expected 1); of it "
        f"the variance of a unit over the inputs by {mean(normed, 'unit_variance_slope'):.3f}. The variance that the "
        "book adds up is the one over weights: what a batch norm sees is the smaller one. Of what a branch adds, "
        f"{mean(normed, 'branch_unit_variance'):.3f} is variance of a unit and "
        f"{mean(normed, 'branch_unit_mean_square'):.3f} its squared mean (expected "
        f"{1 - 1 / math.pi:.3f} and {1 / math.pi:.3f}).",
        f"Without batch norm inputs become alike: after {narrow.blocks - 1} blocks the variance of a unit over the "
        f"inputs is {units(narrow):.1%} of the second moment (with batch norm {units(normed):.1%}), because a ReLU "
        "makes the angle between two inputs smaller. The doubling is that of their common part.",
        f"Plain layers with batch norm, {plain.width} units: the gradient's root mean square grows by "
        f"{mean(plain, 'backward') ** 0.5:.3f} a layer backwards (expected {growth.NORMED_LAYER:.3f}): He's weights "
        "keep it, and batch norm divides by the standard deviation of what it normalises, the root of 1 - 1/pi.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def parameters_text(rows: Tables) -> str:
    """Text of the section on parameters."""
    equal = sum(row["by_hand"] == row["counted"] for row in rows["parameters"])
    return (
        "By hand: weights and biases of every layer, and a scale and an offset for every unit or channel that a batch "
        f"norm normalises. {equal} of {len(rows['parameters'])} agree with what the modules of torch hold."
    )


def deeper_text(rows: Tables, study: StudySetting) -> str:
    """Text of the section on figure 11.2."""
    runs = rows.get("runs", ())
    missing = len(trained.networks(study)) * study.pick(1, 3, 3) - len(runs)
    if not runs:
        return (
            f"Not run yet. `python -m studies.udl11 --scale {study.scale}` trains {', '.join(trained.networks(study))} "
            "from three seeds each, or goes on where it was stopped, with the images of `PATHLENS_DATA`."
        )
    parts = []
    for shortcuts, words in ((False, "Plain"), (True, "With shortcuts")):
        errors = [(name, trained.differences(runs, shortcuts, f"{name}_error")) for name in ("train", "test")]
        said = [
            f"{statistics.fmean(values):+.1%} {name} error, {len(values)} seeds" for name, values in errors if values
        ]
        if said:
            parts.append(f"{words}, deep minus shallow: {'; '.join(said)}.")
    if missing:
        parts.append(f"{missing} trainings have not been run yet.")
    if study.scale == "cpu":
        parts.append(
            f"These trainings take {runs[0]['epochs']} epochs of few images, where He et al. take 64,000 steps: what "
            "is seen is how much longer a deep network needs to get going, without shortcuts and with them, and not "
            "where it ends, of which alone the sources speak."
        )
    return " ".join(parts)
