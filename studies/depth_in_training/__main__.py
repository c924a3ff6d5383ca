"""Littwin and Wolf 2016, "The Loss Surface of Residual Networks": does the ensemble get deeper in training?

Run ``python -m studies.depth_in_training --scale cpu``; see ``studies/common.py`` for the options and for scales.
The networks are those of ``studies/veit2016``, in its folder of runs, and the same trained without weight decay. The
paper scale reads ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pathlens
from studies import record
from studies.common import Page, StudySetting, carry_out, setting, start_fresh, train_all
from studies.depth_in_training import columns
from studies.depth_in_training.cells import measure_all
from studies.depth_in_training.checkpoints import NAME, cells, shared, validation_errors, wanted
from studies.depth_in_training.drawing import curves_figure, gains_figure, trajectories
from studies.depth_in_training.judged import AT_CHANCE, DISCUSSION, moves_told, settled, verdicts
from studies.depth_in_training.trends import by_epoch, driven_by, gains_by_epoch, mean_curves, trends
from studies.record import make_table

PROTOCOL = (
    "Networks are trained from several seeds and their weights kept at initialisation and after some epochs. At each "
    "of these the gradient of the loss of training images with respect to the input is resolved by path length, with "
    "batch norms on the statistics of the batch and differentiated through them, as the optimizer sees the network. "
    "Three contributions of a length are kept apart: the number of paths times the mean norm of sampled paths (that of "
    "Veit et al. 2016, to which the claim refers), the number times the root mean square norm (random signs), and the "
    "exact norm of the sum over all paths of the length, in which paths may cancel. Of each the effective range "
    "(shortest interval of lengths that holds 95 %), its centre, and the mean length weighted by contribution. What is "
    "judged is the change of the mean length from the last kept epoch up to the tenth, when the networks have left "
    "chance, to the end, within each run and tested over the runs; the change from initialisation stands beside it, "
    "most of which is of the escape from chance. Differences from the paper: it derives the growth from a spin-glass "
    "model, whose weights of paths of length r are a scale to the power of r, and supports it by the growth of trained "
    "scales; here lengths are measured on the gradient. At `--scale cpu` the images are scikit-learn's 8x8 digits, the "
    "network has 54 pre-activation blocks, and 10 seeds are trained for 60 epochs. Each checkpoint is measured at the "
    "first 64 training images in one batch, with at most 16 sampled paths of each length (fewer where half the 95 % "
    "interval over paths is within a tenth of the mean) and 4 draws of signs; the seed of the run is that of paths and "
    "signs too. At `--scale paper`: 54 blocks on CIFAR-10, 3 seeds, 128 images, 32 paths, 8 draws. Because the "
    "proposed mechanism is the scale of the branches, on which weight decay acts, the runs are repeated without weight "
    "decay, for them with the exact contribution alone. As a control the exact lengths are also measured with running "
    "statistics; at initialisation these are not yet statistics of anything, and that point says nothing."
)


def measure(study: StudySetting) -> list[dict[str, Any]]:
    """Train, measure every kept checkpoint, and return where the networks come from."""
    runs = wanted(study)
    done = train_all({name: run.arguments for name, run in runs.items()}, study)
    every = cells(study, runs, done)
    measured = measure_all(every, study)
    start_fresh(study)
    curves = mean_curves([row for cell in measured for row in cell["curves"] if row["mode"] == "train"])
    data = pathlens.open_data(every[0].data, split="train", limit=every[0].images)
    facts = {"study": NAME, "scale": study.scale, "networks": sorted(runs), **record.images(data)}
    tables = {
        "ranges": (columns.RANGES, [row for cell in measured for row in cell["ranges"]]),
        "gains": (columns.GAINS_COLUMNS, [cell["gains"] for cell in measured]),
        "curves": (columns.CURVES, curves),
        "errors": (columns.ERRORS, validation_errors(runs, done)),
    }
    for stem, (described, rows) in tables.items():
        study.tables.put(stem, make_table(described, rows, **facts))
    return [record.training(name, folder) for name, folder in done.items()]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(
        study,
        "Littwin and Wolf 2016: does the ensemble get deeper in training?",
        "Does the depth of the virtual ensemble of paths grow as training goes on, and is the scale of the branches "
        "what drives it?",
    )
    tables = page.tables
    ranges, gains, curves, errors = (list(tables[stem].rows) for stem in ("ranges", "gains", "curves", "errors"))
    means, scales = by_epoch(ranges, errors), gains_by_epoch(gains)
    begin = settled([row["epoch"] for row in ranges])
    tests, mechanism = trends(ranges, (0, begin)), driven_by(gains, ranges, begin)
    decay = max(row["weight_decay"] for row in ranges)
    derived = {
        "by-epoch": (columns.BY_EPOCH, means),
        "trends": (columns.TRENDS, tests),
        "gains-by-epoch": (columns.GAINS_BY_EPOCH, scales),
        "mechanism": (columns.MECHANISM, mechanism),
    }
    for stem, (described, rows) in derived.items():
        tables.put(stem, make_table(described, rows))

    page.section("Path lengths by epoch")
    left = [row["epoch"] for row in means if (row["validation_error"] or 1) < AT_CHANCE]
    page.figure(
        "trajectories",
        lambda: trajectories(ranges, means, decay, min(left, default=0)),
        "Path lengths against the epoch. a: mean length weighted by contribution; thick: mean over seeds with "
        "Student's 95 % interval, thin: seeds. b: effective range (band) and its centre, sampled and exact, mean over "
        "seeds. c: exact mean length with and without weight decay. Shaded: the network is escaping from chance "
        f"(validation error above {AT_CHANCE:.0%}). The axis is logarithmic from epoch 5.",
    )
    shown = {
        "contribution": "", "epoch": "d", "seeds": "d", "first": ".1f", "last": ".1f", "mean_length": ".2f",
        "mean_length_low": ".2f", "mean_length_high": ".2f", "validation_error": ".1%",
    }  # fmt: skip
    page.table("by-epoch", shown, rows=lambda row: row["weight_decay"] == decay and row["mode"] == "train")
    page.measured("ranges")
    page.figure(
        "curves",
        lambda: curves_figure([row for row in curves if row["weight_decay"] == decay]),
        "Share of the contribution at each path length, by epoch, mean over seeds.",
    )
    page.table("curves")
    page.table("ranges")
    page.table("errors")

    page.section(
        "How lengths change",
        f"From epoch {begin} to the end, and from initialisation. The change is the mean length at the end minus that "
        "at the first epoch counted, with Student's 95 % interval over the seeds; part is its share of the change "
        "since initialisation. rho is the rank correlation of epoch and mean length within a run.",
    )
    shown = {
        "weight_decay": "g", "mode": "", "contribution": "", "since": "d", "seeds": "d", "change": "+.2f",
        "change_low": "+.2f", "change_high": "+.2f", "change_p": ".1g", "change_p_holm": ".1g", "part": ".0%",
        "rho": "+.2f", "rising": "d",
    }  # fmt: skip
    page.table("trends", shown)

    page.section(
        "Scales of the branches",
        "The claim's driving force is the scale by which a branch enters the sum. Three measures of it: the batch "
        "norms' scales γ, the response of a branch over that of its shortcut, and λ, the norm of the gradient through "
        "a branch over that through its shortcut. If gradients neither turned nor cancelled, paths of length r would "
        "carry the weight of a product of r such λ, and the mean length would be the sum of λ/(1 + λ) over the blocks.",
    )
    by_cell = {(row["run"], row["epoch"]): row["predicted_length"] for row in gains}
    pairs = [{**row, "predicted_length": by_cell[row["run"], row["epoch"]]} for row in ranges if row["mode"] == "train"]
    page.figure(
        "gains",
        lambda: gains_figure(scales, pairs),
        "a to c: scales of the branches against the epoch, mean over seeds with Student's 95 % interval. d: measured "
        "mean path length of each checkpoint (with weight decay) against what λ predicts.",
    )
    shown = {
        "weight_decay": "g", "epoch": "d", "gamma": ".3f", "response_ratio": ".3f", "gradient_ratio": ".3f",
        "gradient_ratio_low": ".3f", "gradient_ratio_high": ".3f", "predicted_length": ".1f",
    }  # fmt: skip
    page.table("gains-by-epoch", shown)
    page.table("gains")
    shown = {
        "weight_decay": "g", "contribution": "", "scale": "", "moves": "d", "seeds": "d", "rho": "+.2f",
        "rho_low": "+.2f", "rho_high": "+.2f", "rho_p": ".1g", "rho_p_holm": ".1g", "measured_over_predicted": ".2f",
    }  # fmt: skip
    page.text(moves_told(mechanism, begin))
    page.table("mechanism", shown)
    page.claims(verdicts(means, tests, scales, decay), lambda _: tables["ranges"].provenance["data"])
    page.text(DISCUSSION)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(shared(setting(NAME, __doc__, argv)), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
