"""The training runs of the study, and the checkpoints that they kept."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathlens.runtime.processes import pick_device
from pathlens.tables import read_table
from studies.common import ROOT, StudySetting
from studies.depth_in_training.cells import Cell
from studies.veit2016.trainings import cifar, trainings

NAME = "depth_in_training"
#: of the networks on digits; the study of Veit et al. trains the first ones
SEEDS = 10
TINY = f"{Path(__file__).resolve().parent / 'nets.py'}:tiny"


@dataclass(frozen=True)
class WatchedTraining:
    """A training run of the whole network.

    Attributes:
        network: in the words of ``--model``.
        seed: of the run.
        arguments: of ``pathlens train``.
        sampled: whether single paths are sampled too, or the exact totals are enough.
    """

    network: str
    seed: int
    arguments: tuple[str, ...]
    sampled: bool


def shared(study: StudySetting) -> StudySetting:
    """The setting with the runs of the study of Veit et al., whose networks these are, unless ``--runs`` was given."""
    if study.scale == "smoke" or study.runs != ROOT / "runs" / f"{NAME}-{study.scale}":
        return study
    return dataclasses.replace(study, runs=ROOT / "runs" / f"veit2016-{study.scale}")


def wanted(study: StudySetting) -> dict[str, WatchedTraining]:
    """Name -> run: the whole networks of the study of Veit et al., and the same without weight decay."""
    if study.scale == "smoke":
        short = ("--data", "digits", "--epochs", "2", "--limit", "100", "--validation", "20", "--keep-epochs", "0,1,2")
        whole = {
            f"tiny-full-seed{seed}": WatchedTraining(TINY, seed, ("--model", TINY, "--seed", str(seed), *short), True)
            for seed in (0, 1)
        }
    else:
        network = study.pick(None, "digits54", "preresnet110")
        whole = {
            training.name: WatchedTraining(training.network, training.seed, training.arguments, True)
            for training in trainings(study)
            if training.rule == "full" and training.network == network
        }
        whole |= _more_seeds(whole, study.pick(0, SEEDS, 3))
    without = {
        name.replace("-full-", "-nodecay-"): WatchedTraining(
            run.network, run.seed, (*run.arguments, "--weight-decay", "0"), False
        )
        for name, run in whole.items()
        if run.seed < study.pick(1, SEEDS, 3)
    }
    return {**whole, **without}


def _more_seeds(whole: Mapping[str, WatchedTraining], seeds: int) -> dict[str, WatchedTraining]:
    """The same training from the seeds that are not there yet."""
    name, first = next(iter(whole.items()))
    found = {}
    for seed in range(len(whole), seeds):
        place = first.arguments.index("--seed") + 1
        arguments = (*first.arguments[:place], str(seed), *first.arguments[place + 1 :])
        another = name.replace(f"-seed{first.seed}", f"-seed{seed}")
        found[another] = WatchedTraining(first.network, seed, arguments, first.sampled)
    return found


def cells(study: StudySetting, runs: Mapping[str, WatchedTraining], done: Mapping[str, Path]) -> list[Cell]:
    """Every kept checkpoint of every run."""
    device = str(pick_device(study.device))
    data = str(cifar()) if study.scale == "paper" else "digits"
    found = []
    for name, run in runs.items():
        recipe = read_table(done[name] / "result.csv").provenance["recipe"]
        files = sorted((done[name] / "epochs").glob("epoch-*.safetensors"))
        if not files:
            raise SystemExit(f"{done[name]} kept no weights of its epochs; remove the folder, and it is trained again")
        for file in files:
            number = re.search(r"\d+", file.stem)
            assert number is not None
            found.append(
                Cell(
                    run=name,
                    network=run.network,
                    seed=run.seed,
                    weight_decay=recipe["weight_decay"],
                    epoch=int(number[0]),
                    weights=file,
                    data=data,
                    images=study.pick(6, 64, 128),
                    samples=study.pick(2, 16, 32) if run.sampled else 0,
                    draws=study.pick(1, 4, 8),
                    device=device,
                )
            )
    return found


def validation_errors(runs: Mapping[str, WatchedTraining], done: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of the table ``errors``: error on the held-out images, whole network."""
    found: dict[tuple[float, int], list[float]] = {}
    for name in runs:
        decay = read_table(done[name] / "result.csv").provenance["recipe"]["weight_decay"]
        for row in read_table(done[name] / "history.csv").rows:
            if row["validation_error"] is not None:
                found.setdefault((decay, row["epoch"]), []).append(row["validation_error"])
    return [
        {"weight_decay": decay, "epoch": epoch, "seeds": len(errors), "validation_error": statistics.fmean(errors)}
        for (decay, epoch), errors in found.items()
    ]
