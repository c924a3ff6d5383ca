"""Veit, Wilber, Belongie 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", redone.

Run ``python -m studies.veit2016 --scale cpu``; ``studies/common.py`` says what a scale is. Of the environment it
reads ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``), and for the ImageNet part ``PATHLENS_IMAGENET`` (a folder of
images by class) and ``PATHLENS_IMAGENET_WEIGHTS`` (a file; default: the published weights, which are downloaded).
``--only cifar`` measures what is not measured yet of the networks on CIFAR-10 that lie in ``results/cifar10/``, which
takes hours, or some kinds of tables alone (``--kinds lesions sets``); the tables of the rest stay in ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from studies import record
from studies.common import Page, StudySetting, carry_out, check_rest, keep_checkpoint, setting, start_fresh, train_all
from studies.veit2016 import cifar, retraining, stated
from studies.veit2016.measured import (
    KINDS,
    check_weights,
    is_known,
    measure_imagenet,
    measure_kept,
    measure_trained,
    right_answers,
)
from studies.veit2016.trainings import cifar as cifar_data
from studies.veit2016.trainings import trainings

NAME = "veit2016"
#: part of the study that can be measured alone
CIFAR = "cifar"

PROTOCOL = (
    "Residual networks of 54 pre-activation blocks, trained here, and studied on test images as in the paper: each "
    "block deleted in turn, distinct random sets of blocks deleted, blocks exchanged inside their stages, gradients "
    "of training images through single paths sampled for every length, retraining with random blocks in each batch. "
    "Lesions are made in the networks of every seed that were trained whole, by the paper's or their own number of "
    "random blocks, by stochastic depth, plain or highway; every lesioned network is compared with the intact one on "
    "the same images (McNemar's exact test, Holm's correction over the table). Differences from the paper: at `--scale "
    "cpu` the images are scikit-learn's 8x8 digits (360 test images, so that errors go in steps of 0.28 points), "
    "trained for 60 epochs and not 200, and networks on CIFAR-10 (as JPEG, a shorter schedule) are taken as they have "
    "been trained beside this study (`studies/veit2016/cifar.py`); beside sampled path norms the exact gradient of "
    "every path length is computed. The number of random blocks is the paper's 23 and the one that our rule gives for "
    "the network itself, first plus last effective length (22 for the paper's 5 to 17), and on digits others around "
    "them. On CIFAR-10 figure 8 shows what was trained with random blocks too, which its claim is not judged by, and "
    "stochastic depth where such a training is there. There is no highway network on CIFAR-10. Sets and orders there "
    "are of 2,000 test images, single deletions of all 10,000. A 9-block network is not retrained: the effective "
    "lengths of ResNet-20 are 3 to 8, so that the rule asks for all of its blocks."
)


def measure(study: StudySetting, only: str | None = None, kinds: Collection[str] = KINDS) -> list[dict[str, Any]]:
    """Train, measure, and return where the networks come from.

    Args:
        study: what was asked for.
        only: the part that is measured; None for all.
        kinds: of tables of the networks on CIFAR-10.

    Raises:
        SystemExit: the part has no networks or images, there are no tables of the rest at this scale beside it, or
            images are missing of tables that are there.
    """
    if only is not None:
        return _measure_only(study, kinds)
    # a paper scale trains those of the same names itself
    others = cifar.kept() if study.scale == "cpu" else []
    lost = [one.name for one in others if f"lesions-{one.name}" in study.tables]
    if lost and cifar_data() is None:
        raise SystemExit(
            f"PATHLENS_DATA is not set, and the tables of {len(lost)} networks on CIFAR-10 in {study.out} could not be "
            "made again; set it to a folder with cifar10-jpeg/, or give another --out"
        )
    wanted = trainings(study)
    done = train_all({training.name: training.arguments for training in wanted}, study)
    start_fresh(study)
    rows = retraining.runs_table(done, wanted)
    rows += [cifar.run_row(one) for one in others]
    retraining.compare(rows, right_answers(study, wanted, done, others))
    study.tables.put("runs", record.make_table(retraining.COMPARED, rows))
    _put_fitted(study, rows, others)
    study.tables.put("epochs", record.make_table(retraining.HISTORY, retraining.history_rows(done, wanted)))
    measure_trained(study, wanted, done)
    measure_kept(study, others, kinds)
    measure_imagenet(study)
    if study.scale == "paper":
        for training in wanted:
            keep_checkpoint(done[training.name], study.out, training.name)
    return [*(record.training(name, folder) for name, folder in done.items()), *cifar.phases_of(others)]


def _measure_only(study: StudySetting, kinds: Collection[str]) -> list[dict[str, Any]]:
    """The networks on CIFAR-10 alone."""
    check_rest(study, CIFAR)
    others = cifar.kept()
    if not others or cifar_data() is None:
        needed = f"a network in {cifar.FOLDER}" if not others else "PATHLENS_DATA, with cifar10-jpeg/"
        raise SystemExit(f"--only {CIFAR} needs {needed}; {cifar.__name__} trains the networks")
    check_weights(study, others)
    # what is compared with each other is answered together, unless all of it has been
    waiting = {(one.network, one.seed) for one in others if not is_known(study, one)}
    asked = [one for one in others if (one.network, one.seed) in waiting]
    if asked:
        names = {one.name for one in asked}
        known, fitted = (
            [row for row in study.tables[stem].rows if row["run"] not in names] if stem in study.tables else []
            for stem in ("runs", "fitted")
        )
        added = [cifar.run_row(one) for one in asked]
        retraining.compare(added, right_answers(study, (), {}, asked))
        study.tables.put("runs", record.make_table(retraining.COMPARED, [*known, *added]))
        _put_fitted(study, added, asked, fitted)
    measure_kept(study, others, kinds)
    return cifar.phases_of(others)


def _put_fitted(
    study: StudySetting,
    runs: Sequence[dict[str, Any]],
    others: Sequence[cifar.Kept],
    known: Sequence[Mapping[str, Any]] = (),
) -> None:
    right = right_answers(study, (), {}, others, split="train", limit=study.pick(10, 10_000, 10_000))
    rows = [*known, *retraining.fitted_rows(runs, right)]
    study.tables.put("fitted", record.make_table(retraining.FITTED, rows))


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    beside = study.scale != "paper"  # which trains networks of the same names itself
    return stated.state(study, cifar.missing() if study.scale == "cpu" else [], cifar.kept() if beside else [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", choices=(CIFAR,))
    own.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options, rest = own.parse_known_args(argv)
    measured = partial(measure, **vars(options))
    return carry_out(setting(NAME, __doc__, rest), PROTOCOL, measured, state, options.only)


if __name__ == "__main__":
    sys.exit(main())
