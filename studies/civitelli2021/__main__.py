"""Civitelli et al. 2021, "A Robust Initialization of Residual Blocks": signals, trainings, and lengths of paths.

Run ``python -m studies.civitelli2021 --scale cpu``; see ``studies/common.py`` for the options and for scales. It reads
``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pathlens
from studies import record
from studies.civitelli2021 import drawing, profiles, signals, trained
from studies.civitelli2021.judged import beside_plain, verdicts
from studies.civitelli2021.words import DISCUSSION, PROTOCOL, QUESTION, SECTIONS
from studies.common import DIVERGED, Page, StudySetting, carry_out, setting, start_fresh, train_all
from studies.record import make_table

NAME = "civitelli2021"


def measure(study: StudySetting) -> list[dict[str, Any]]:
    """Train, measure signals and paths, and return where the networks come from."""
    data = trained.data_of(study)
    wanted = trained.trainings(study)
    done = train_all({one.name: one.arguments for one in wanted}, study, may_diverge=True)
    seeds = study.pick(2, 3, 5)
    measured = signals.measure(study, data, seeds)
    started, start_lengths = profiles.at_start(study, data, seeds)
    moving, lengths = profiles.in_training(study, wanted, done, data)
    start_fresh(study)
    facts: dict[str, Any] = {"study": NAME, "scale": study.scale, **record.images(pathlens.open_data(data))}
    tables = {
        "costs": (signals.COSTS, signals.cost_rows(study)),
        "runs": (trained.RUNS, trained.run_rows(study, data, wanted, done)),
        "epochs": (trained.EPOCHS, trained.epoch_rows(wanted, done)),
        "profiles": (profiles.PROFILES, started + moving),
        "lengths": (profiles.LENGTHS, start_lengths),
        "lengths-trained": (profiles.LENGTHS, lengths),
    }
    for stem, (columns, rows) in tables.items():
        study.tables.put(stem, make_table(columns, rows, **facts))
    for stem, table in measured.items():
        study.tables.put(stem, table)
    return [
        {"run": name, "note": "its loss became NaN or infinite"}
        if (folder / DIVERGED).is_file()
        else record.training(name, folder)
        for name, folder in done.items()
    ]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "Civitelli et al. 2021: residual blocks without normalisation", QUESTION)
    tables = page.tables
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: few and narrow networks. Its numbers mean nothing.**")
    rows = {stem: list(tables[stem].rows) for stem in ("runs", "epochs", "profiles", "lengths")}
    page.section("Parameters and FLOPs (tables 1 and 2)", SECTIONS["costs"])
    shown = {
        "network": "", "kind": "", "parameters": ",d", "parameters_stated": ",d", "multiply_adds": ",d",
        "gflops": ".2f", "gflops_stated": ".2f",
    }  # fmt: skip
    page.table("costs", shown)
    page.section("Activations and gradients at initialisation (figures 2 and 6)", SECTIONS["signals"])
    for stem in sorted((stem for stem in tables if stem.startswith("signals-")), key=lambda stem: (len(stem), stem)):
        size = stem.removeprefix("signals-")
        page.figure(
            stem,
            partial(drawing.signals_figure, tables[stem].rows),
            f"{size}: second moment of activations (left) and of the gradient of the loss (right) behind each block, "
            "mean over initialisations with a 95 % interval of its logarithm; dashed: expected. LearnScalar starts as "
            "IdShort.",
        )
        page.table(stem)
        page.measured(stem)
    page.section("Trainings (figures 3 and 7)", SECTIONS["trainings"])
    page.figure(
        "epochs",
        lambda: drawing.epochs_figure(rows["epochs"]),
        "Training loss and error on training images that were held out; mean over seeds with Student's 95 % interval. "
        "Runs that diverged are left out.",
    )
    shown = {
        "network": "", "kind": "", "seed": "d", "diverged": "", "train_error": ".1%", "test_error": ".1%",
    }  # fmt: skip
    page.table("runs", shown)
    for text in beside_plain(rows["runs"]):
        page.text(text)
    page.table("epochs")
    page.section("Lengths of paths at initialisation", SECTIONS["start"])
    started = [row for row in rows["profiles"] if row["expected_length"] is not None]
    page.figure(
        "profiles",
        lambda: drawing.profiles_figure(rows["lengths"]),
        "Norm of the sum over all paths of a length (exact), as a share of that of all lengths, mean over "
        "initialisations. Where curves coincide, thinner ones lie on wider ones.",
    )
    page.table("lengths")
    page.figure(
        "expected",
        lambda: drawing.expected_figure(started),
        "Mean length of paths, squared norms as weights, against what the growth of the gradient alone says. A point "
        "for each network and initialisation.",
    )
    page.section("Lengths of paths in training", SECTIONS["moving"])
    page.figure(
        "moving",
        lambda: drawing.moving_figure([row for row in rows["profiles"] if row["expected_length"] is None]),
        "Mean length of paths by epoch, squared norms as weights; mean over seeds, and the seeds as thin lines.",
    )
    page.table("profiles")
    page.table("lengths-trained")
    page.claims(verdicts(tables), lambda _: tables["runs"].provenance["data"])
    page.section("What the numbers can and cannot say", DISCUSSION)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
