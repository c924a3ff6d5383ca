"""Wu, Shen, van den Hengel 2019, "Wider or Deeper": how much depth does training use, and would width do better?

Run ``python -m studies.wider_or_deeper --scale cpu``; see ``studies/common.py`` for the options and for scales. The
networks on CIFAR-10 and the paper scale need ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``). ``--only cifar``
trains and measures those on CIFAR-10 alone; the tables of the rest stay as they are in ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from pathlens.tables import Table
from studies import record
from studies.common import Page, StudySetting, carry_out, check_rest, say, setting, start_fresh, train_all
from studies.record import make_table
from studies.rules import answers, margin
from studies.wider_or_deeper.compared import DISCUSSION, summary_rows, verdicts
from studies.wider_or_deeper.drawing import depths_figure, epochs_figure
from studies.wider_or_deeper.trained import (
    CIFAR,
    Part,
    cifar_part,
    costs,
    history_rows,
    main_part,
    run_rows,
    trainings,
)

NAME = "wider_or_deeper"

PROTOCOL = (
    "A deep pre-activation network is trained with the whole gradient, and with the gradient restricted to paths of at "
    "most L blocks (the forward pass stays whole; see docs/path-gradients.md), from several seeds with the same "
    "recipe. Beside it, wider and shallower networks whose multiply-adds for one image differ by at most 5 % from its "
    "own are trained with whole gradients. Errors are of the test split, read once, after the last epoch; differences "
    "are paired by seed (a seed fixes the order of the images and the initial weights of a network). Test images are "
    "read with batch norms in eval mode and in batches as in training, 64 of digits and 128 of CIFAR-10; which of them "
    "a network gets right and another does not, in batches of 250. After training, "
    "the whole gradient of every network is resolved by path length (exact; the first 64 test images at `--scale cpu`, "
    "in batches of 64, batch norms with running statistics). Differences from the paper: it takes the effective depth "
    "of a residual network for a property of its architecture, derives wider designs from it, and trains those on "
    "ImageNet; to restrict the gradient of one network by hand is ours. At `--scale cpu` the images are scikit-learn's "
    "8x8 digits, the deep network has 27 blocks, training takes 30 epochs, and the test split has 360 images. A second "
    "set of networks, with whole gradients alone, is trained there on CIFAR-10 (as JPEG files), shrunk to 18x18 and "
    "cut to the 16x16 in the middle: 27 narrow blocks against 9 and 3 wider ones, 19,000 training images, 16 epochs, "
    "three seeds, all 10,000 test images; the rule of its verdicts is that of the digits, with Holm's correction over "
    "its own comparisons."
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
    *answers.COLUMNS,
    ("test_loss", "nats", "mean cross-entropy of the test images"),
    ("train_loss", "nats", "mean loss of the last epoch as trained"),
    ("first", "blocks", "shortest effective length of the whole gradient after training (exact, 95 %)"),
    ("last", "blocks", "longest effective length"),
    ("mean_length", "blocks", "mean length weighted by the norm of the sum over its paths"),
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
    ("error_p_holm", "", "the same after Holm's correction over all comparisons of error and loss"),
    *answers.BOTH,
    *margin.COLUMNS,
    ("test_loss", "nats", "mean over seeds"),
    ("test_loss_low", "nats", "lower end of Student's 95 % interval over seeds"),
    ("test_loss_high", "nats", "upper end"),
    ("loss_difference", "nats", "of the test loss, as error_difference"),
    ("loss_difference_low", "nats", "lower end"),
    ("loss_difference_high", "nats", "upper end"),
    ("loss_p", "", "as error_p"),
    ("loss_p_holm", "", "as error_p_holm"),
)

LENGTHS = (
    *_WHICH,
    ("seeds", "", "runs"),
    ("train_loss", "nats", "of the last epoch as trained, mean over seeds"),
    ("first", "blocks", "shortest effective length after training, mean over seeds"),
    ("last", "blocks", "longest effective length, mean over seeds"),
    ("mean_length", "blocks", "mean length weighted by contribution (exact), mean over seeds"),
)

EPOCHS = (
    *_WHICH,
    ("epoch", "", "epochs done"),
    ("train_loss", "nats", "as trained, mean over seeds"),
    ("train_error", "fraction", "share classified wrongly as trained, mean over seeds"),
    ("validation_error", "fraction", "share of held-out images classified wrongly, mean over seeds"),
)

NETWORKS_SHOWN = {
    "network": "", "blocks": "d", "widths": "", "parameters": ",d", "multiply_adds": ",d", "ratio": ".3f"
}  # fmt: skip
SUMMARY_SHOWN = {
    "network": "", "effective_depth": "", "seeds": "d", "test_error": ".2%", "error_difference": "+.2%",
    "error_difference_low": "+.2%", "error_difference_high": "+.2%", "both_low": "+.2%", "both_high": "+.2%",
    "error_p": ".2g", "error_p_holm": ".2g", "test_loss": ".3f", "loss_difference": "+.3f", "loss_p": ".2g",
    "loss_p_holm": ".2g",
}  # fmt: skip
LENGTHS_SHOWN = {
    "network": "", "effective_depth": "", "seeds": "d", "train_loss": ".3f", "first": ".1f", "last": ".1f",
    "mean_length": ".2f",
}  # fmt: skip


def measure(study: StudySetting, only: str | None = None) -> list[dict[str, Any]]:
    """Train, resolve the gradients, and return where the networks come from.

    Args:
        study: what was asked for.
        only: the part that is measured; None for all that there are images for.

    Raises:
        SystemExit: the part has no images, or there are no tables of the rest at this scale beside it.
    """
    cifar = cifar_part(study)
    if only is not None:
        if cifar is None:
            raise SystemExit(
                f"--only {only} needs CIFAR-10 at --scale cpu: set PATHLENS_DATA to the folder that holds cifar10-jpeg/"
            )
        check_rest(study, only)
    parts = [] if only is not None else [main_part(study)]
    if cifar is None and study.scale != "paper":
        say("the networks on CIFAR-10 are left out: PATHLENS_DATA has no folder cifar10-jpeg")
    if cifar is not None:
        parts.append(cifar)
    measured = [_measure_part(part, study) for part in parts]
    if only is None:
        start_fresh(study)
    for tables, _ in measured:
        for stem, table in tables.items():
            study.tables.put(stem, table)
    return [one for _, done in measured for one in done]


def _measure_part(part: Part, study: StudySetting) -> tuple[dict[str, Table], list[dict[str, Any]]]:
    """Tables of a part by stem, and where its networks come from."""
    nets = costs(part)
    done = train_all({training.name: training.arguments for training in trainings(part, study)}, study)
    say("path lengths of the trained networks")
    facts = _facts(part, study)
    tables = {
        f"{part.prefix}networks": make_table(NETWORKS, nets, **facts),
        f"{part.prefix}runs": make_table(RUNS, run_rows(part, done, study), **facts),
        f"{part.prefix}epochs": make_table(EPOCHS, history_rows(part, done, study), **facts),
    }
    return tables, [record.training(name, folder) for name, folder in done.items()]


def _facts(part: Part, study: StudySetting) -> dict[str, Any]:
    return {"study": NAME, "scale": study.scale, **record.images(part.images())}


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(
        study,
        "Wu, Shen, van den Hengel 2019: wider or deeper?",
        "Is a deep residual network trained end to end, or only through paths of few blocks; and does a wider, "
        "shallower network of the same multiply-adds do better?",
    )
    tables = page.tables
    runs, nets, epochs = (list(tables[stem].rows) for stem in ("runs", "networks", "epochs"))
    summary = summary_rows(runs)
    tables.put("summary", make_table(SUMMARY, summary))
    tables.put("lengths", make_table(LENGTHS, summary))
    page.section("Networks")
    page.table("networks", NETWORKS_SHOWN)
    page.section("Error by effective depth, and by width")
    page.figure(
        "depths",
        lambda: depths_figure(summary, runs),
        "Test error and loss: mean over seeds with Student's 95 % interval; small points are the seeds.",
    )
    page.table("summary", SUMMARY_SHOWN)
    page.table("runs")
    page.figure(
        "epochs", lambda: epochs_figure(epochs), "Training loss and validation error by epoch, mean over seeds."
    )
    page.table("epochs")
    page.section(
        "After training",
        "Which path lengths carry the whole gradient of each network after its training (norm of the sum over all "
        "paths of a length: shortest interval that holds 95 %, and mean). The two need not move together with the "
        "error, and nothing is concluded from them here.",
    )
    page.table("lengths", LENGTHS_SHOWN)
    is_whole = tables["runs"].provenance["scale"] == "paper"
    judged = {"": verdicts(summary, nets, is_whole), f"{CIFAR}-": _state_cifar(page)}
    data = {
        row["network"]: tables[f"{prefix}runs"].provenance["data"] for prefix, rows in judged.items() for row in rows
    }
    page.claims([row for rows in judged.values() for row in rows], data.__getitem__)
    page.text(DISCUSSION)
    return page


def _state_cifar(page: Page) -> list[dict[str, Any]]:
    """The section on CIFAR-10; rows of the table of claims."""
    tables = page.tables
    if tables["runs"].provenance["scale"] == "paper":  # the networks above are trained on it
        return []
    page.section("Wide against deep on CIFAR-10")
    if f"{CIFAR}-runs" not in tables:
        page.text(
            "Left out: these networks were not trained. With CIFAR-10 in the folder that `PATHLENS_DATA` names, "
            f"`--only {CIFAR}` trains them."
        )
        return []
    runs, nets, epochs = (list(tables[f"{CIFAR}-{stem}"].rows) for stem in ("runs", "networks", "epochs"))
    summary = summary_rows(runs)
    tables.put(f"{CIFAR}-summary", make_table(SUMMARY, summary))
    tables.put(f"{CIFAR}-lengths", make_table(LENGTHS, summary))
    page.table(f"{CIFAR}-networks", NETWORKS_SHOWN)
    page.figure(
        f"{CIFAR}-errors",
        lambda: depths_figure(summary, runs),
        "Test error and loss: mean over seeds with Student's 95 % interval; small points are the seeds.",
    )
    page.table(f"{CIFAR}-summary", {name: look for name, look in SUMMARY_SHOWN.items() if name != "effective_depth"})
    page.table(f"{CIFAR}-runs")
    page.figure(
        f"{CIFAR}-epochs",
        lambda: epochs_figure(epochs),
        "Training loss and validation error by epoch, mean over seeds.",
    )
    page.table(f"{CIFAR}-epochs")
    page.table(f"{CIFAR}-lengths", LENGTHS_SHOWN)
    return verdicts(summary, nets, is_whole=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", choices=(CIFAR,))
    options, rest = own.parse_known_args(argv)
    measured = partial(measure, only=options.only)
    return carry_out(setting(NAME, __doc__, rest), PROTOCOL, measured, state, options.only)


if __name__ == "__main__":
    sys.exit(main())
