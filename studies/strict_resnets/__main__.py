"""Strict residual U-Nets (Youssin, "Training deep resnets"): shares of blocks, plateaus, depth, checkerboards.

Run ``python -m studies.strict_resnets --scale cpu``; see ``studies/common.py`` for the options and for scales.
Trainings run one after the other in this process, with the threads that ``OMP_NUM_THREADS`` says.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from studies import record
from studies.common import Page, StudySetting, carry_out, say, setting, start_fresh, train_all
from studies.strict_resnets import checkerboard, drawing, judged, shares, trained

NAME = "strict_resnets"
QUESTION = (
    "What have the stem and each block in the last sum of a strict residual network at initialisation, and what has "
    "that to do with how its training starts; does depth or width pay; and which ways of up- and downsampling leave a "
    "checkerboard?"
)
PROTOCOL = (
    "Shares are those of the last sum before the head, batch norms with statistics of the batch, in float64: of a row "
    "of blocks by `pathlens decompose`, and of U-Nets of three levels block by block, carried in the same way (a norm "
    "centres each summand by itself and divides it by the deviation of the whole), at `--scale cpu` over 16 test "
    "images (pooled by four) and over 8; transposed convolutions, which the schemes do not concern, are drawn by the "
    "mean number of weights that reach an output. Trainings are on "
    "`digit-scenes` (48x48 pixels, 11 classes), with SGD (Nesterov momentum 0.9, weight decay 1e-4) at a constant "
    "rate of 0.05, without warm-up, crops or flips; the rate was chosen on one run of the network with norms between "
    "levels, whose loss hardly reached that of a constant answer with AdamW at 0.001; all blocks lie at the lowest of "
    "three levels, 12x12 pixels, in place of the post's 13x13. Shortcuts between levels pass these blocks by, so that "
    "the plateau is also looked for in rows of blocks of one level (12x12, between images that are pooled by four and "
    "logits that are resized); these were added after the first runs of the others had been seen. At `--scale cpu` "
    "they are short: a row of 24 blocks in place of 100, 4 blocks a level in place of 18, and 20, 40 and 60 blocks in "
    "place of 100, 200 and 300, with 16 channels; the networks of which the plateau is measured see 128 training "
    "images for 20 epochs of 8 steps, those of different depth and width 960 images once, in 60 steps, and those that "
    "differ in their sampling 640 images once, in 40. Of the former three seeds are trained, of the latter one. The "
    "power spectrum of the outputs of an upsampling layer, and of the gradient of the loss through a downsampling "
    "layer at its input, is averaged over 32 test images (at `--scale cpu`) and all channels of a U-Net of two levels, "
    "initial (batch norms with statistics of the batch) and trained (with running ones), in which only this layer is "
    "exchanged. Depth and width are compared at equal multiply-adds; times are not measured. "
    "Differences from the post: other images, short trainings, the recipe, and widths that double with each level. Of "
    "the post no more is claimed here than what stands below as its claim."
)
COSTS_SHOWN = {
    "network": "", "blocks": "d", "channels": "d", "parameters": ",d", "multiply_adds": ",d", "ratio": ".3f"
}  # fmt: skip


def measure(study: StudySetting) -> list[dict[str, Any]]:
    """Everything that the page is made from; returns where the trained networks come from."""
    costs = trained.costs(study)
    tables = shares.measure(study)
    done = train_all({one.name: one.arguments for one in trained.trainings(study)}, study, here=True)
    say("what came out of the trainings")
    tables |= trained.measure(study, done, costs) | checkerboard.measure(study, done)
    start_fresh(study)
    for stem, table in tables.items():
        study.tables.put(stem, table)
    return [record.training(name, folder) for name, folder in done.items()]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "Strict residual networks: shares, plateaus, depth and checkerboards", QUESTION)
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: tiny networks and few images. Its numbers mean nothing.**")
    tables = page.tables
    rows = {stem: table.rows for stem, table in tables.items()}
    page.section(
        "What each block has in the last sum, at initialisation",
        "The natural logarithm of the variance of a summand over that of the last sum; block -1 is the stem.",
    )
    page.figure(
        "shares",
        lambda: drawing.shares_figure(rows["shares"]),
        f"Mean over {rows['shares'][0]['seeds']} initialisations with Student's 95 % interval. Above: a row of blocks. "
        "Below: U-Nets, blocks in the order of the forward pass.",
    )
    page.table("shares")
    page.table(
        "shares-networks",
        {"network": "", "norms": "", "init": "", "blocks": "d", "stem_share": ".3f", "first_share": ".3f",
         "factor": ".3f", "r_squared": ".3f"},
        rows=lambda row: row["seed"] == 0,
    )  # fmt: skip
    page.text("Shown are the networks of the first seed; the table has all.")
    page.section("How training starts, and depth against width")
    page.figure(
        "trainings",
        lambda: drawing.trainings_figure(rows["epochs"], rows["runs"], rows["costs"]),
        "Left and middle: training loss by where norms are, mean over seeds with Student's 95 % interval. Right: test "
        "loss after the last epoch, by depth, and of the wide network, the last one, which costs as much as one "
        "of the others; small points are the seeds.",
    )
    page.table("costs", COSTS_SHOWN)
    page.table(
        "runs",
        {"network": "", "seed": "d", "steps": "d", "train_loss": ".3f", "plateau_steps": "d", "plateau_left": "",
         "test_error": ".2%", "test_loss": ".3f"},
        rows=lambda row: row["part"] != trained.SAMPLING,
    )  # fmt: skip
    page.table("epochs")
    page.section(
        "Checkerboards",
        "How many weights reach an output of a transposed convolution, by its place modulo the stride; and how many "
        "outputs an input of a strided one has its gradient from.",
    )
    page.table("subkernels", {"kernel": "d", "stride": "d", "sizes": "", "counted": "", "counted_backward": ""})
    page.figure(
        "checkerboards",
        lambda: drawing.checkerboards_figure(rows["checkerboards"]),
        "Power at the frequencies of the stride over that of the bins around them; mean over seeds with Student's 95 % "
        "interval, and the seeds. 0 dB: nothing stands out.",
    )
    page.table("checkerboards")
    page.claims(judged.verdicts(tables), lambda _: trained.DATA)
    errors = [row["test_error"] for row in rows["runs"] if row["part"] == trained.DEPTH]
    ((same, alike),) = Counter(errors).most_common(1)
    page.section(
        "What the numbers can and cannot say",
        "The trainings of the cpu scale are short, few and of narrow networks: they show how training starts, and not "
        f"where it ends; after the last step {alike} of {len(errors)} networks of different depth and width have the "
        f"very same test error, {same:.2%}, so that nothing is learned yet that errors would show, and they are "
        "compared by their losses alone. They start from the weights that torch draws, with smaller branches than "
        "those of the schemes above, so that no verdict on a plateau is "
        f"one on these. A plateau is defined by a loss above {trained.LEFT:.0%} of that of a "
        "constant answer, and not by the shape of the curve. The excess is relative to frequencies nearby: a way that "
        "blurs has less power there on both sides of the comparison.",
    )
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
