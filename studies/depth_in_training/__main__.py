"""Littwin and Wolf 2016, "The Loss Surface of Residual Networks": does the ensemble get deeper in training?

Run ``python -m studies.depth_in_training --scale cpu``; see ``studies/common.py`` for the options and for scales.
The networks are those of ``studies/veit2016``, in its folder of runs, and the same trained without weight decay. The
paper scale reads ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from studies.common import Page, make_table, one_thread, say, setting, start_fresh, train_all
from studies.depth_in_training import columns
from studies.depth_in_training.answers import DISCUSSION, answers
from studies.depth_in_training.cells import measure_all
from studies.depth_in_training.checkpoints import NAME, cells, shared, validation_errors, wanted
from studies.depth_in_training.drawing import curves_figure, gains_figure, trajectories
from studies.depth_in_training.trends import by_epoch, driven_by, gains_by_epoch, mean_curves, trends

PROTOCOL = (
    "Networks are trained from several seeds and their weights kept at initialisation and after some epochs. At each "
    "of these the gradient of the loss of training images with respect to the input is resolved by path length, with "
    "batch norms on the statistics of the batch and differentiated through them, as the optimizer sees the network. "
    "Three contributions of a length are kept apart: the number of paths times the mean norm of sampled paths (that "
    "of Veit et al. 2016, to which the claim refers), the number times the root mean square norm (random signs), and "
    "the exact norm of the sum over all paths of the length, in which paths may cancel. Of each the effective range "
    "(shortest interval of lengths that holds 95 %), its centre, and the mean length weighted by contribution. The "
    "trend is Spearman's rank correlation of epoch and mean length within each run, tested over the runs; once from "
    "the initialisation and once from the first epoch, because the initialisation is not yet training. Differences "
    "from the paper: it derives the growth from a spin-glass model, whose weights of paths of length r are a scale to "
    "the power of r, and supports it by the growth of trained scales; here lengths are measured on the gradient. At "
    "`--scale cpu` the images are scikit-learn's 8x8 digits and the network has 54 pre-activation blocks. Because the "
    "proposed mechanism is the scale of the branches, on which weight decay acts, some runs are repeated without "
    "weight decay, for them with the exact contribution alone. As a control the exact lengths are also measured with "
    "running statistics; at initialisation these are not yet statistics of anything, and that point says nothing."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    study = shared(setting(NAME, __doc__, argv))
    if study.scale == "smoke":
        one_thread()
    runs = wanted(study)
    done = train_all({name: run.arguments for name, run in runs.items()}, study)
    measured = measure_all(cells(study, runs, done), study)
    ranges = [row for cell in measured for row in cell["ranges"]]
    gains = [cell["gains"] for cell in measured]
    means, scales = by_epoch(ranges, validation_errors(done)), gains_by_epoch(gains)
    tests, mechanism = trends(ranges, (0, 1)), driven_by(gains, ranges)
    decay = max(row["weight_decay"] for row in ranges)

    start_fresh(study.out)
    page = Page(
        study,
        "Littwin and Wolf 2016: does the ensemble get deeper in training?",
        "Does the depth of the virtual ensemble of paths grow as training goes on, and is the scale of the branches "
        "what drives it?",
        PROTOCOL,
    )
    facts: dict[str, Any] = {"study": NAME, "scale": study.scale, "networks": sorted(runs)}
    page.section("Path lengths by epoch")
    page.figure(
        "trajectories",
        trajectories(ranges, means, decay),
        "Path lengths against the epoch. a: mean length weighted by contribution; thick: mean over seeds with "
        "Student's 95 % interval, thin: seeds. b: effective range (band) and its centre, sampled and exact, mean over "
        "seeds. c: exact mean length with and without weight decay. The axis is logarithmic from epoch 5.",
    )
    shown = {
        "contribution": "", "epoch": "d", "seeds": "d", "first": ".1f", "last": ".1f", "mean_length": ".2f",
        "mean_length_low": ".2f", "mean_length_high": ".2f", "validation_error": ".1%",
    }  # fmt: skip
    page.table(
        "by-epoch",
        make_table(columns.BY_EPOCH, means, **facts),
        shown,
        rows=lambda row: row["weight_decay"] == decay and row["mode"] == "train",
    )
    curves = mean_curves([row for cell in measured for row in cell["curves"] if row["mode"] == "train"])
    page.figure(
        "curves",
        curves_figure([row for row in curves if row["weight_decay"] == decay]),
        "Share of the contribution at each path length, by epoch, mean over seeds.",
    )
    page.table("curves", make_table(columns.CURVES, curves, **facts))
    page.table("ranges", make_table(columns.RANGES, ranges, **facts))

    page.section(
        "Is there a trend?",
        "rho is the rank correlation of epoch and mean length within a run, and change the mean length at the end "
        "minus that at the first epoch counted; both with Student's 95 % interval over the seeds.",
    )
    shown = {
        "weight_decay": "g", "mode": "", "contribution": "", "since": "d", "seeds": "d", "rho": "+.2f", "rising": "d",
        "sign_p": ".2g", "change": "+.2f", "change_low": "+.2f", "change_high": "+.2f", "change_p": ".1g",
    }  # fmt: skip
    page.table("trends", make_table(columns.TRENDS, tests, **facts), shown)

    page.section(
        "Mechanism",
        "The claim's driving force is the scale by which a branch enters the sum. Three measures of it: the batch "
        "norms' scales γ, the response of a branch over that of its shortcut, and λ, the norm of the gradient through "
        "a branch over that through its shortcut. If gradients neither turned nor cancelled, paths of length r would "
        "carry the weight of a product of r such λ, and the mean length would be the sum of λ/(1 + λ) over the blocks.",
    )
    by_cell = {(row["run"], row["epoch"]): row["predicted_length"] for row in gains}
    pairs = [{**row, "predicted_length": by_cell[row["run"], row["epoch"]]} for row in ranges if row["mode"] == "train"]
    page.figure(
        "gains",
        gains_figure(scales, pairs),
        "a to c: scales of the branches against the epoch, mean over seeds with Student's 95 % interval. d: measured "
        "mean path length of each checkpoint (with weight decay) against what λ predicts.",
    )
    shown = {
        "weight_decay": "g", "epoch": "d", "gamma": ".3f", "response_ratio": ".3f", "gradient_ratio": ".3f",
        "gradient_ratio_low": ".3f", "gradient_ratio_high": ".3f", "predicted_length": ".1f",
    }  # fmt: skip
    page.table("gains-by-epoch", make_table(columns.GAINS_BY_EPOCH, scales, **facts), shown)
    page.table("gains", make_table(columns.GAINS_COLUMNS, gains, **facts))
    shown = {
        "weight_decay": "g", "contribution": "", "scale": "", "seeds": "d", "rho": "+.2f", "rho_low": "+.2f",
        "rho_high": "+.2f", "measured_over_predicted": ".2f",
    }  # fmt: skip
    page.table("mechanism", make_table(columns.MECHANISM, mechanism, **facts), shown)

    page.section("What agrees and what does not", answers(means, tests, scales, mechanism, decay))
    page.text(DISCUSSION)
    page.write()
    say(f"wrote {study.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
