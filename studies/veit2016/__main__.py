"""Veit, Wilber, Belongie 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", redone.

Run ``python -m studies.veit2016 --scale cpu``; ``studies/common.py`` says what a scale is. Of the environment it
reads ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``), and for the ImageNet part ``PATHLENS_IMAGENET`` (a folder of
images by class) and ``PATHLENS_IMAGENET_WEIGHTS`` (a file; default: the published weights, which are downloaded).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pathlens
from pathlens import figures
from pathlens.data import ImageData
from pathlens.paths import length_range
from studies.common import Page, StudySetting, keep_checkpoint, one_thread, say, setting, start_fresh, train_all
from studies.veit2016.facts import facts
from studies.veit2016.retraining import retraining
from studies.veit2016.trainings import Training, cifar, trainings

NAME = "veit2016"

LESIONS = {"block": "", "name": "", "stage": "", "kind": "", "error": ".2%", "error_low": ".2%", "error_high": ".2%"}
SETS = {"count": "d", "error": ".2%", "error_low": ".2%", "error_high": ".2%", "n": "d"}

PROTOCOL = (
    "One residual network of 54 pre-activation blocks, trained here, and studied on its test images as in the paper: "
    "each block deleted in turn, random sets of blocks deleted, blocks exchanged inside their stages, gradients "
    "through single paths sampled for every length, retraining with random blocks in each batch. Differences from the "
    "paper: at `--scale cpu` the images are scikit-learn's 8x8 digits and not CIFAR-10, with CIFAR-10 (as JPEG) only "
    "for retraining a 9-block network; beside sampled path norms the exact gradient of every path length is computed."
)


class Study:
    """The networks and the page that the sections work on."""

    def __init__(self, study: StudySetting) -> None:
        self.setting = study
        self.page = Page(
            study,
            "Veit, Wilber, Belongie 2016, redone",
            "Does a trained residual network behave like an ensemble of relatively shallow networks?",
            PROTOCOL,
        )
        self.wanted = trainings(study)
        self.done = train_all({training.name: training.arguments for training in self.wanted}, study)
        #: numbers for the table of facts
        self.found: dict[str, Any] = {}

    def first(self, rule: str) -> Training:
        """The first network that was trained by a rule."""
        return next(training for training in self.wanted if training.rule == rule)

    def open(self, training: Training, images: int) -> tuple[Any, ImageData, dict[str, Any]]:
        """A trained network, its test images, and the options that go with both."""
        loaded = pathlens.load_model(training.network, self.done[training.name] / "weights.safetensors")
        spec = "digits" if training.data == "digits" else cifar()
        data = pathlens.open_data(str(spec), limit=images)
        options: dict[str, Any] = {
            "mean": loaded.mean,
            "std": loaded.std,
            "device": None if self.setting.device == "auto" else self.setting.device,
            "provenance": {"model": training.network, "run": training.name, "weights": loaded.sha256},
        }
        return loaded.model, data, options


def single_lesions(study: Study) -> None:
    """Figure 3, and its plain network; section 6's highway network."""
    page, images = study.page, study.setting.pick(40, 10**9, 10**9)
    page.section("Deleting single blocks (figure 3)")
    tables = {}
    for rule, words in (
        ("full", "the residual network"),
        ("plain", "the plain network, its layers deleted"),
        ("highway", "the highway network (section 6)"),
    ):
        training = study.first(rule)
        say(f"single lesions of {training.name}")
        model, data, options = study.open(training, images)
        table = tables[rule] = pathlens.delete_blocks(model, data, **options)
        stem = f"lesions-{training.network}"
        page.figure(
            stem, figures.deletion(table), f"Error with each block deleted in turn: {words}, {training.network}."
        )
        page.table(stem, table)
    study.found |= facts.lesions(tables)


def sets_and_orders(study: Study) -> None:
    """Figures 5a and 5b, and section 6: the same for networks trained with random blocks."""
    page, pick = study.page, study.setting.pick
    images, most, samples = pick(40, 360, 10_000), pick(2, 20, 20), pick(2, 10, 10)
    page.section("Deleting many blocks (figure 5a), and stochastic depth (section 6)")
    by_rule = {}
    for rule in ("full", "blocks", "stochastic depth"):
        training = study.first(rule)
        say(f"many lesions of {training.name}")
        model, data, options = study.open(training, images)
        table = by_rule[rule] = pathlens.delete_blocks(
            model, data, count=range(1, most + 1), samples=samples, **options
        )
        stem = f"many-{training.name}"
        page.figure(stem, figures.deletion(table), f"Error with random sets of blocks deleted; trained with: {rule}.")
        page.table(stem, table, SETS, rows=lambda row: row["sample"] is None)
    study.found |= facts.many(by_rule)
    page.section("Reordering blocks (figure 5b)")
    model, data, options = study.open(study.first("full"), images)
    table = pathlens.reorder_blocks(model, data, swaps=range(1, most + 1), samples=samples, **options)
    page.figure("reordering", figures.reordering(table), "Error against Kendall's tau of the order of the blocks.")
    page.table("reordering", table)
    study.found |= facts.orders(table)


def path_lengths(study: Study) -> None:
    """Figure 6."""
    page, pick = study.page, study.setting.pick
    say("path gradients")
    model, data, options = study.open(study.first("full"), pick(4, 64, 256))
    table = pathlens.path_gradients(
        model, data, max_samples=pick(2, 64, 64), draws=pick(1, 8, 8), batch_size=16, **options
    )
    effective = table.provenance["effective"]
    best = effective.get("sampled") or effective["exact"]
    page.section(
        "Lengths of paths and where the gradient comes from (figure 6)",
        "The paper samples single paths of each length and multiplies the mean norm of their gradient by the number of "
        "paths. The exact curve is the norm of the sum over all paths of a length, which the paper could not compute: "
        "gradients of different paths partly cancel, which the product does not see.",
    )
    drawn = figures.path_gradients(table, effective=(best["first"], best["last"]))
    page.figure("path-gradients", drawn, "Number of paths, norm of a path's gradient, and contribution, by length.")
    page.table("path-gradients", table)
    study.found |= facts.gradients(table, length_range(len(table.rows) - 1))


def imagenet(study: Study) -> None:
    """Figure 4, where there are images."""
    folder = os.environ.get("PATHLENS_IMAGENET")
    if not folder:
        return
    spec, pick = study.setting.pick("resnet18", "resnet50", "resnet200"), study.setting.pick
    name = "torchvision:resnet50" if spec == "resnet200" else f"torchvision:{spec}"
    say(f"single lesions of {name} on ImageNet")
    data = pathlens.open_data(f"imagefolder:{folder}", split="validation", limit=pick(4, 1000, 50_000))
    weights = os.environ.get("PATHLENS_IMAGENET_WEIGHTS") or "pretrained"
    loaded = pathlens.load_model(name, weights, num_classes=data.num_classes)
    table = pathlens.delete_blocks(
        loaded.model, data, mean=loaded.mean, std=loaded.std, batch_size=pick(2, 32, 256), provenance={"model": name}
    )
    study.page.section(
        "An ImageNet network (figure 4)",
        "The paper deletes blocks of a ResNet of 200 layers, whose weights are not published any more in a format that "
        f"can be read safely; here {name}.",
    )
    study.page.figure("lesions-imagenet", figures.deletion(table), f"Top-1 error with each block deleted: {name}.")
    study.page.table("lesions-imagenet", table, LESIONS)


def checkpoints(study: Study) -> None:
    """Weights that other studies use: those of the networks trained on CIFAR."""
    kept = [training for training in study.wanted if training.data != "digits" and training.residual]
    for training in kept:
        keep_checkpoint(study.done[training.name], study.setting.out, training.name)
    if kept:
        names = ", ".join(f"`weights/{training.name}.safetensors`" for training in kept)
        study.page.section("Checkpoints", f"Weights after the last epoch: {names}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    asked = setting(NAME, __doc__, argv)
    if asked.scale == "smoke":
        one_thread()
    study = Study(asked)
    start_fresh(asked.out)
    for section in (single_lesions, sets_and_orders, path_lengths, imagenet):
        section(study)
    retraining(study.page, study.done, study.wanted)
    checkpoints(study)
    facts.show(study.page, study.found)
    study.page.write()
    say(f"wrote {asked.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
