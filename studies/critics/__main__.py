"""Objections raised against the ensemble view of residual networks, put to the numbers.

Run ``python -m studies.critics --scale cpu``; see ``studies/common.py`` for the options and what a scale is. Of the
environment it reads ``PATHLENS_MODELS`` and ``PATHLENS_DATA``; where both name folders with the published ResNet-56 and
the JPEG images of CIFAR-10, that network is studied beside the one that comes with the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pathlens.errors import DataError
from studies import record
from studies.common import Page, StudySetting, carry_out, setting, start_fresh
from studies.critics import beyond, cancellation, responses, shortcuts
from studies.critics.judged import TALK, verdicts
from studies.subjects import Subject, packaged, published, untrained

NAME = "critics"

PROTOCOL = (
    "(a) Every block twice: without its branch, and without its shortcut, on all test images; also distinct random "
    "sets, on the first 2,000 at `--scale cpu`. (b) Standard deviation of each branch's output over all test images "
    "(batches of 128, eval mode), against the loss without that branch: Spearman's rank correlation. The loss comes "
    "first, because errors tie: a block that costs nothing has the error of the intact network. (c) For each path "
    "length the paper's product of number and mean norm of sampled paths, the exact norm of the sum, and the root "
    "mean square norm by random signs; distributions of distinct single paths of some lengths. Norms are of the "
    "gradient at the input of training images, batch norms with running statistics. (d) The same lesions and exact "
    "gradients on a vision transformer and a ConvNeXt, several seeds. Networks of (a) to (c): the 54-block network "
    "that comes with the package, on digits, and the published ResNet-56 on CIFAR-10 as JPEG files (`cifar10-jpeg`), "
    "whose errors are higher than on the original images. Differences from the papers: Veit et al. 2016 do not delete"
    " shortcuts; He et al. 2016a (figure 7) measure the response of every 3x3 layer after batch norm and set it "
    "beside no lesion, and here it is that of the whole branch where it enters the addition (in pre-activation "
    "networks no batch norm comes after it); Veit et al. sample paths in a CIFAR-10 network of 54 blocks. Whose "
    "objections: a public review of the paper (NIPS 2016) finds that it defines no ensemble and leaves open why its "
    "findings come about; (a) to (d) are our own ways of putting that to the numbers. Blocks are the unit of the "
    "intervals over blocks, although blocks of one network are not independent."
)


def subjects_of(study: StudySetting) -> list[Subject]:
    """The networks of (a) to (c); the published one is left out where its files are not there."""
    if study.scale == "smoke":
        return [untrained(study, "preresnet20")]
    try:
        return [packaged(study), published(study, "resnet56")]
    except DataError:
        return [packaged(study)]


def measure(study: StudySetting) -> list[dict[str, Any]]:
    """All measurements; returns where the networks of (d) come from."""
    chosen = subjects_of(study)
    done = beyond.train(study)
    start_fresh(study)
    shortcuts.measure(study, chosen)
    responses.measure(study, chosen)
    cancellation.measure(study, chosen)
    beyond.measure(study, done)
    return [record.training(name, folder) for name, folder in done.items()]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(
        study,
        "The critics of the ensemble view",
        "Do the objections raised against Veit, Wilber, Belongie 2016 hold: against deleting branches alone, against "
        "reading harmlessness as redundancy, against norms of sampled paths, and against ResNets alone?",
    )
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: a network with random weights. Its numbers mean nothing.**")
    names = [stem.removeprefix("skips-") for stem in page.tables if stem.startswith("skips-")]
    if study.scale != "smoke" and "resnet56" not in names:
        page.text("The published ResNet-56 is left out: PATHLENS_MODELS and PATHLENS_DATA did not name its files.")
    for part in (shortcuts, responses, cancellation):
        part.state(page, names)
    beyond.state(page)
    tables = page.tables
    data = {name: tables[f"lesions-{name}"].provenance["data"] for name in names}
    page.claims(verdicts(tables, names), lambda name: data.get(name, tables["beyond-blocks"].provenance["data"]))
    page.text(TALK)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
