"""Growth laws at initialisation: chapter 11 of S. J. D. Prince, "Understanding Deep Learning", measured.

Run ``python -m studies.udl11 --scale cpu``; see ``studies/common.py`` for the options and for scales. Figure 11.2 needs
trainings on the images of ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``); with ``--no-training`` those that have
not ended are left out, and the rest takes minutes. ``--restate`` only makes the page, from the tables in ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from studies import record
from studies.common import Page, StudySetting, carry_out, say, setting, start_fresh, train_all
from studies.record import make_table
from studies.udl11 import counted, drawing, growth, judged, shattered, trained, words

NAME = "udl11"


def measure(study: StudySetting, training: bool) -> list[dict[str, Any]]:
    """Everything that the page is made from; returns where the trained networks come from.

    Args:
        study: what was asked for.
        training: train what has not been trained.
    """
    facts: dict[str, Any] = {"study": NAME, "scale": study.scale}
    wanted = trained.trainings(study)
    if training:
        done = train_all({one.name: one.arguments for one in wanted}, study)
    else:
        done = trained.finished(wanted, study)
    networks, width = study.pick(3, 50, 50), study.pick(20, shattered.WIDTH, shattered.WIDTH)
    say("gradients along a line of inputs")
    specs = (
        *shattered.PLAIN, *shattered.NORMED, *shattered.RESIDUAL, *shattered.THROUGH, *shattered.NOTEBOOKS
    )  # fmt: skip
    correlations, each, curves = shattered.curves(specs, networks, width)
    say("the notebook")
    variants, networks_of_variants = shattered.question(networks, width)
    layers, halving = shattered.layers(networks, width=width)
    profiles: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    for case in growth.CASES:
        say(f"growth: {case.name}")
        if study.scale == "smoke":
            case = replace(case, width=8, blocks=3, networks=3, inputs=32)  # noqa: PLW2901
        found = growth.walks(case)
        profiles += growth.growth_rows(case, found)
        rates += growth.rate_rows(case, found)
    tables = {
        "autocorrelation": (shattered.AUTOCORRELATION, correlations),
        "autocorrelation-networks": (shattered.EACH, each),
        "gradients": (shattered.CURVES, curves),
        "notebook": (shattered.QUESTION, variants),
        "notebook-networks": (shattered.VARIANT_NETWORKS, networks_of_variants),
        "notebook-layers": (shattered.LAYERS, layers),
        "notebook-halving": (shattered.HALVING, halving),
        "growth": (growth.GROWTH, profiles),
        "rates": (growth.RATES, rates),
        "parameters": (counted.PARAMETERS, counted.rows()),
    }
    if done:
        tables["runs"] = trained.RUNS, trained.run_rows(wanted, done)
        tables["epochs"] = trained.EPOCHS, trained.epoch_rows(wanted, done)
    start_fresh(study)
    for stem, (columns, rows) in tables.items():
        study.tables.put(stem, make_table(columns, rows, **facts))
    return [record.training(name, folder) for name, folder in done.items()]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "Understanding Deep Learning, chapter 11: growth laws", words.QUESTION)
    tables = page.tables
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: few and narrow networks. Its numbers mean nothing.**")
    rows = {stem: table.rows for stem, table in tables.items()}

    page.section("Shattered gradients (figure 11.3)", words.shattered_text(rows))
    page.figure(
        "shattered",
        lambda: drawing.gradients_figure(rows["gradients"], rows["autocorrelation"]),
        "Above: gradient of the output by the input, one network of each kind. Below: its autocorrelation, mean over "
        "the networks with Student's 95 % interval.",
    )
    shown = {
        "network": "", "networks": "d", "lag": "d", "distance": ".3f", "autocorrelation": "+.2f",
        "autocorrelation_low": "+.2f", "autocorrelation_high": "+.2f",
    }  # fmt: skip
    page.table("autocorrelation", shown, rows=lambda row: row["lag"] in shattered.LAGS)
    page.table("autocorrelation-networks")
    page.table("gradients")

    page.section("Why the textbook's notebook does not show it", words.notebook_text(rows))
    page.figure(
        "notebook",
        lambda: drawing.notebook_figure(rows["notebook-layers"]),
        "Left: what enters the ReLUs of the notebook's network of 24 layers, split into what varies with the input and "
        "what does not. Right: units whose ReLU switches anywhere in [-2, 2], by how weights and biases are drawn.",
    )
    shown = {
        "variant": "", "depth": "d", "networks": "d", "constant": "d", "pieces": ".1f", "pieces_low": ".1f",
        "pieces_high": ".1f", "gradient": ".2g", "lag_1": "+.2f", "lag_4": "+.2f", "lag_16": "+.2f",
        "raw_lag_16": "+.2f",
    }  # fmt: skip
    page.table("notebook", shown)
    for stem in ("notebook-networks", "notebook-layers", "notebook-halving"):
        page.table(stem)

    page.section("Growth of activations and gradients (figure 11.6)", words.growth_text(rows))
    page.figure(
        "growth",
        lambda: drawing.growth_figure(rows["growth"]),
        "Mean over networks with Student's 95 % interval; dashed: expected. Above: variance where each block begins, "
        "and mean square of the gradient there. Below left: with batch norm; right: plain layers with batch norm.",
    )
    page.table("growth")
    page.table("rates")

    page.section("Parameters", words.parameters_text(rows))
    page.table("parameters", {"network": "", "problem": "", "by_hand": ",d", "counted": ",d"})

    page.section("Deeper and worse, and shortcuts (figure 11.2)", words.deeper_text(rows, study))
    if "epochs" in tables:
        page.figure(
            "errors",
            lambda: drawing.errors_figure(rows["epochs"]),
            "Training error, and error on training images that were held out; mean over seeds with Student's 95 % "
            "interval. The test images are read once, after the last epoch.",
        )
        shown = {"run": "", "epochs": "d", "train_error": ".2%", "test_error": ".2%", "test_images": ",d"}
        page.table("runs", shown)
        page.table("epochs")

    page.claims(judged.verdicts(tables), judged.data)
    page.section("What the numbers can and cannot say", words.DISCUSSION)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--no-training", action="store_true")
    options, rest = own.parse_known_args(argv)
    measured = partial(measure, training=not options.no_training)
    return carry_out(setting(NAME, __doc__, rest), words.PROTOCOL, measured, state)


if __name__ == "__main__":
    sys.exit(main())
