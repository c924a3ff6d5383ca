"""Wu, Shen, van den Hengel 2019, "Wider or Deeper": how much depth does training use, and would width do better?

Run ``python -m studies.wider_or_deeper --scale cpu``; see ``studies/common.py`` for the options and for scales. The
paper scale reads ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common import Page, make_table, one_thread, say, setting, start_fresh, train_all
from studies.wider_or_deeper.compared import DISCUSSION, answers, summary_rows
from studies.wider_or_deeper.drawing import depths_figure, epochs_figure
from studies.wider_or_deeper.trained import costs, history_rows, run_rows, trainings

NAME = "wider_or_deeper"

PROTOCOL = (
    "A deep pre-activation network is trained with the whole gradient, and with the gradient restricted to paths of "
    "at most L blocks (the forward pass stays whole; see docs/path-gradients.md), from several seeds with the same "
    "recipe. Beside it, wider and shallower networks whose multiply-adds for one image differ by at most 5 % from its "
    "own are trained with whole gradients. Errors are of the test split, read once, after the last epoch; differences "
    "are paired by seed (a seed fixes the order of the images and the initial weights of a network), with Student's "
    "95 % interval. After training, the whole gradient of every network is resolved by path length (exact, test "
    "images). Differences from the paper: it takes the effective depth of a residual network for a property of its "
    "architecture, derives wider designs from it, and trains those on ImageNet; to restrict the gradient of one "
    "network by hand is ours. At `--scale cpu` the images are scikit-learn's 8x8 digits, the deep network has 27 "
    "blocks, and training takes 30 epochs."
)

NETWORKS = (
    ("network", "", "function of studies/wider_or_deeper/nets.py"),
    ("blocks", "", "residual blocks"),
    ("widths", "", "channels of the stages"),
    ("parameters", "", "of the network"),
    ("multiply_adds", "", "for one image, by torch.utils.flop_counter"),
    ("multiply_adds_in_blocks", "", "the part of it in residual blocks"),
    ("ratio", "", "multiply-adds over those of the deep network"),
)

_WHICH = (
    ("network", "", "function of studies/wider_or_deeper/nets.py"),
    ("effective_depth", "blocks", "most blocks of a path that gradients run through in training; all: no restriction"),
)

RUNS = (
    ("run", "", "name of the training run"),
    *_WHICH,
    ("seed", "", "of the run"),
    ("epochs", "", "of the run"),
    ("test_error", "fraction", "share of test images classified wrongly after the last epoch"),
    ("test_error_low", "fraction", "lower end of the 95 % interval over images (Wilson)"),
    ("test_error_high", "fraction", "upper end of it"),
    ("test_images", "images", "read once, after the last epoch"),
    ("test_loss", "nats", "mean cross-entropy of the test images"),
    ("train_loss", "nats", "mean loss of the last epoch as trained"),
    ("first", "blocks", "shortest effective length of the whole gradient after training (exact, 95 %)"),
    ("last", "blocks", "longest effective length"),
    ("mean_length", "blocks", "mean length weighted by the norm of the sum over its paths"),
    ("seconds", "s", "of all training steps, beside other runs on the same machine"),
    ("commit", "", "of the code that trained it"),
)

SUMMARY = (
    *_WHICH,
    ("seeds", "", "runs"),
    ("test_error", "fraction", "mean over seeds"),
    ("test_error_low", "fraction", "lower end of Student's 95 % interval over seeds"),
    ("test_error_high", "fraction", "upper end"),
    ("error_difference", "fraction", "test error minus that of the deep network, whole gradients, same seed; mean"),
    ("error_difference_low", "fraction", "lower end of Student's 95 % interval of it over seeds"),
    ("error_difference_high", "fraction", "upper end"),
    ("error_p", "", "two-sided paired t test of it against 0; empty where all seeds differ alike"),
    ("test_loss", "nats", "mean over seeds"),
    ("test_loss_low", "nats", "lower end of Student's 95 % interval over seeds"),
    ("test_loss_high", "nats", "upper end"),
    ("loss_difference", "nats", "of the test loss, as error_difference"),
    ("loss_difference_low", "nats", "lower end"),
    ("loss_difference_high", "nats", "upper end"),
    ("loss_p", "", "as error_p"),
)

LENGTHS = (
    *_WHICH,
    ("seeds", "", "runs"),
    ("train_loss", "nats", "of the last epoch as trained, mean over seeds"),
    ("first", "blocks", "shortest effective length after training, mean over seeds"),
    ("last", "blocks", "longest effective length, mean over seeds"),
    ("mean_length", "blocks", "mean length weighted by contribution (exact), mean over seeds"),
    ("time", "", "training time over that of the deep network with whole gradients, mean over seeds"),
)

EPOCHS = (
    *_WHICH,
    ("epoch", "", "epochs done"),
    ("train_loss", "nats", "as trained, mean over seeds"),
    ("train_error", "fraction", "share classified wrongly as trained, mean over seeds"),
    ("validation_error", "fraction", "share of held-out images classified wrongly, mean over seeds"),
)


def subset(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Those columns of rows that a table has."""
    return [{name: row[name] for name, *_ in columns} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    study = setting(NAME, __doc__, argv)
    if study.scale == "smoke":
        one_thread()
    nets = costs(study)
    wanted = trainings(study)
    done = train_all({training.name: training.arguments for training in wanted}, study)
    say("path lengths of the trained networks")
    runs = run_rows(wanted, done, study)
    summary, epochs = summary_rows(runs), history_rows(wanted, done)

    start_fresh(study.out)
    facts: dict[str, Any] = {"study": NAME, "scale": study.scale}
    page = Page(
        study,
        "Wu, Shen, van den Hengel 2019: wider or deeper?",
        "Is a deep residual network trained end to end, or only through paths of few blocks; and does a wider, "
        "shallower network of the same multiply-adds do better?",
        PROTOCOL,
    )
    page.section("Networks")
    shown = {"network": "", "blocks": "d", "widths": "", "parameters": ",d", "multiply_adds": ",d", "ratio": ".3f"}
    page.table("networks", make_table(NETWORKS, nets, **facts), shown)
    page.section("Error by effective depth, and by width")
    page.figure(
        "depths",
        depths_figure(summary, runs),
        "Test error and loss: mean over seeds with Student's 95 % interval; small points are the seeds.",
    )
    shown = {
        "network": "", "effective_depth": "", "seeds": "d", "test_error": ".2%", "test_error_low": ".2%",
        "test_error_high": ".2%", "error_difference": "+.2%", "error_difference_low": "+.2%",
        "error_difference_high": "+.2%", "error_p": ".2g", "test_loss": ".3f", "loss_difference": "+.3f",
        "loss_difference_low": "+.3f", "loss_difference_high": "+.3f", "loss_p": ".2g",
    }  # fmt: skip
    page.table("summary", make_table(SUMMARY, subset(summary, SUMMARY), **facts), shown)
    page.table("runs", make_table(RUNS, runs, **facts))
    page.figure("epochs", epochs_figure(epochs), "Training loss and validation error by epoch, mean over seeds.")
    page.table("epochs", make_table(EPOCHS, epochs, **facts))
    page.section(
        "After training",
        "Which path lengths carry the whole gradient of each network after its training (norm of the sum over all "
        "paths of a length: shortest interval that holds 95 %, and mean), and the training time over that of the "
        "first `all`.",
    )
    shown = {
        "network": "", "effective_depth": "", "seeds": "d", "train_loss": ".3f", "first": ".1f", "last": ".1f",
        "mean_length": ".2f", "time": ".2f",
    }  # fmt: skip
    page.table("lengths", make_table(LENGTHS, subset(summary, LENGTHS), **facts), shown)
    page.section("What agrees and what does not", answers(summary, nets))
    page.text(DISCUSSION)
    page.write()
    say(f"wrote {study.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
