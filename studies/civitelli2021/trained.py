"""The networks that are trained, and what came out of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens.runtime.processes import pick_device
from pathlens.tables import read_table
from studies.civitelli2021.kinds import BATCH_NORM, KINDS, Kind, spec
from studies.common import DIVERGED, StudySetting, over_seeds
from studies.rules import answers
from studies.subjects import cifar10

_WHICH = (("network", "", "reference name, or function of nets.py"), ("kind", "", "how its blocks add up and start"))
RUNS = (
    ("run", "", "name of the training run"),
    *_WHICH,
    ("seed", "", "of the run"),
    ("epochs", "", "of the run"),
    ("diverged", "", "whether the loss became NaN or infinite, which ended the run"),
    ("train_error", "fraction", "share classified wrongly as trained, in the last epoch"),
    ("test_error", "fraction", "share of test images classified wrongly after the last epoch; missing if it diverged"),
    ("test_images", "images", "of the data"),
    *answers.COLUMNS,
)
EPOCHS = (
    *_WHICH,
    ("seeds", "", "runs that reached the epoch"),
    ("epoch", "", "epochs done"),
    *(
        (name, unit, f"{what}; mean over seeds")
        if not end
        else (f"{name}_{end}", unit, f"{side} end of Student's 95 % interval over seeds")
        for name, unit, what in (
            ("train_loss", "nats", "as trained"),
            ("validation_error", "fraction", "share of held-out training images classified wrongly"),
        )
        for end, side in (("", ""), ("low", "lower"), ("high", "upper"))
    ),
)

_SMALL = 16
"""Size of the images at the scale of a CPU."""
_SGD = (
    *("--lr", "0.01", "--momentum", "0.9", "--no-nesterov", "--batch-size", "128"),
    *("--schedule", "cosine", "--warmup", "0"),
)
RECIPES = {
    "smoke": ("--data", "digits", "--epochs", "2", "--limit", "64", "--validation", "16", *_SGD),
    "cpu": ("--limit", "10000", "--image-size", str(_SMALL), "--epochs", "12", *_SGD),
    # the number of epochs is not the paper's but the default
    "paper": ("--augment", "randaugment", *_SGD),
}


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        network: its size.
        kind: how its blocks add up and start.
        seed: of the run.
        arguments: of ``pathlens train``.
    """

    network: str
    kind: Kind
    seed: int
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run."""
        start = "" if self.kind.as_built else f"-{self.kind.init}"
        return f"{self.network}-{self.kind.variant}{start}-seed{self.seed}"


def networks(study: StudySetting) -> tuple[str, ...]:
    """Sizes that are trained."""
    sizes: tuple[str, ...] = study.pick(("tiny18",), ("narrow18",), ("nfresnet18", "nfresnet50", "nfresnet101"))
    return sizes


def data_of(study: StudySetting) -> str:
    """What all is measured on.

    Raises:
        DataError: the images are not there.
    """
    return "digits" if study.scale == "smoke" else cifar10()


def image_size(study: StudySetting) -> int | None:
    """Of the images that networks are trained on; None for that of the data."""
    return _SMALL if study.scale == "cpu" else None


def kept_epochs(study: StudySetting) -> range:
    """Epochs after which weights are kept."""
    kept: range = study.pick(range(0, 3, 2), range(0, 13, 3), range(0, 201, 40))
    return kept


def trainings(study: StudySetting) -> list[Training]:
    """All of them; at the scale of tests one seed."""
    data = () if study.scale == "smoke" else ("--data", data_of(study))
    kept = kept_epochs(study)
    found = []
    for seed in range(study.pick(1, 3, 3)):
        for network in networks(study):
            for kind in KINDS:
                model = spec(network, kind)
                if not network.startswith("nfresnet"):  # no place of this machine in what the run says of itself
                    file, _, function = model.rpartition(":")
                    model = f"{os.path.relpath(file, study.runs.resolve())}:{function}"
                arguments = (
                    *("--model", model, "--seed", str(seed)),
                    *(() if kind.as_built else ("--init", kind.init)),
                    *data,
                    *RECIPES[study.scale],
                    *("--keep-epochs", f"{kept.start}:{kept[-1]}:{kept.step}"),
                )
                found.append(Training(network, kind, seed, arguments))
    return found


def run_rows(
    study: StudySetting, data: str, wanted: Sequence[Training], done: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """Rows of ``runs``; the images that a network loses and gains are those against batch norm, of the same seed."""
    tested, where = pathlens.open_data(data, image_size=image_size(study)), pick_device(study.device)
    rows: list[dict[str, Any]] = []
    right: dict[str, torch.Tensor] = {}
    for training in wanted:
        folder = done[training.name]
        row: dict[str, Any] = {
            "run": training.name,
            "network": training.network,
            "kind": training.kind.name,
            "seed": training.seed,
            "epochs": int(training.arguments[training.arguments.index("--epochs") + 1])
            if "--epochs" in training.arguments
            else None,
            "diverged": (folder / DIVERGED).is_file(),
            "train_error": None,
            "test_error": None,
            "test_images": None,
        }
        if not row["diverged"]:
            history, result = read_table(folder / "history.csv"), read_table(folder / "result.csv")
            (test,) = [one for one in result.rows if one["split"] == "test"]
            row |= {
                "epochs": result.provenance["recipe"]["epochs"],
                "train_error": history.rows[-1]["train_error"],
                "test_error": test["error"],
                "test_images": test["n"],
            }
            loaded = pathlens.load_model(spec(training.network, training.kind), folder / "weights.safetensors")
            right[training.name] = answers.is_right(loaded, tested, where)
        rows.append(row)
    beside = {(one.network, one.seed): one.name for one in wanted if one.kind is BATCH_NORM}
    answers.compare(rows, right, lambda row: beside.get((row["network"], row["seed"])))
    return rows


def epoch_rows(wanted: Sequence[Training], done: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of ``epochs``, from the runs that ended."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for training in wanted:
        history = done[training.name] / "history.csv"
        for row in read_table(history).rows if history.is_file() else ():
            groups.setdefault((training.network, training.kind.name, row["epoch"]), []).append(row)
    rows = []
    for (network, kind, epoch), own in groups.items():
        row: dict[str, Any] = {"network": network, "kind": kind, "seeds": len(own), "epoch": epoch}
        for name, bounds in (("train_loss", (0.0, float("inf"))), ("validation_error", (0.0, 1.0))):
            row |= over_seeds(own, name, bounds)
        rows.append(row)
    return rows
