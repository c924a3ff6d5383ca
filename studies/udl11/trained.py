"""Figure 11.2: plain networks of 20 and 56 layers on CIFAR-10, and the same with shortcuts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathlens.tables import read_table
from studies.common import StudySetting, over_seeds

RUNS = (
    ("run", "", "name of the training run"),
    ("network", "", "reference name"),
    ("shortcuts", "", "whether it has any"),
    ("layers", "", "convolutions and the linear layer"),
    ("seed", "", "of the run"),
    ("epochs", "", "of the run"),
    ("train_error", "fraction", "share classified wrongly as trained, in the last epoch"),
    ("test_error", "fraction", "share of test images classified wrongly after the last epoch"),
    ("test_images", "images", "read once, after the last epoch"),
    ("commit", "", "of the code that trained it"),
)
EPOCHS = (
    ("network", "", "reference name"),
    ("seeds", "", "runs"),
    ("epoch", "", "epochs done"),
    ("train_error", "fraction", "share classified wrongly as trained, mean over seeds"),
    ("train_error_low", "fraction", "lower end of Student's 95 % interval over seeds"),
    ("train_error_high", "fraction", "upper end"),
    ("validation_error", "fraction", "share of held-out training images classified wrongly, mean over seeds"),
    ("validation_error_low", "fraction", "lower end of Student's 95 % interval over seeds"),
    ("validation_error_high", "fraction", "upper end"),
)

EPOCHS_OF_PAPER = 182
#: what a training is at each scale; "cpu" in float32, the type that every processor has units for
RECIPES = {
    "smoke": ("--data", "digits", "--epochs", "1", "--limit", "64", "--validation", "16"),
    "cpu": ("--limit", "10000", "--image-size", "16", "--epochs", "12", "--schedule", "cosine"),
    # He et al. 2016a, section 4.2: no Nesterov, no warm-up, divided by 10 after 32,000 and 48,000 of 64,000 steps
    "paper": ("--epochs", str(EPOCHS_OF_PAPER), "--warmup", "0", "--no-nesterov", "--validation", "5000"),
}


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        name: of its run.
        network: reference name.
        seed: of the run.
        arguments: of ``pathlens train``.
    """

    name: str
    network: str
    seed: int
    arguments: tuple[str, ...]


def networks(study: StudySetting) -> tuple[str, ...]:
    """Reference names: plain and residual, the shallow one first."""
    names: tuple[str, ...] = study.pick(
        ("plain20", "resnet20"),
        ("plain20", "plain56", "resnet20", "resnet56"),
        ("plain20", "plain56", "resnet20", "resnet56"),
    )
    return names


def trainings(study: StudySetting) -> list[Training]:
    """What is trained at a scale; nothing where there are no images."""
    data: tuple[str, ...] = ()
    if study.scale != "smoke":
        folder = os.environ.get("PATHLENS_DATA")
        path = Path(folder, "cifar10-jpeg").resolve() if folder else None
        if path is None or not path.is_dir():
            return []
        data = ("--data", f"parquet:{path}")
    return [
        Training(
            f"{network}-seed{seed}",
            network,
            seed,
            ("--model", network, "--seed", str(seed), *data, *RECIPES[study.scale]),
        )
        for seed in range(study.pick(1, 3, 3))
        for network in networks(study)
    ]


def finished(wanted: Sequence[Training], study: StudySetting) -> dict[str, Path]:
    """Run folders of the trainings that have ended."""
    folders = {training.name: study.runs / training.name for training in wanted}
    return {name: folder for name, folder in folders.items() if (folder / "manifest.json").is_file()}


def run_rows(wanted: Sequence[Training], done: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of ``runs``."""
    rows = []
    for training in (one for one in wanted if one.name in done):
        result = read_table(done[training.name] / "result.csv")
        history = read_table(done[training.name] / "history.csv")
        (test,) = [row for row in result.rows if row["split"] == "test"]
        rows.append(
            {
                "run": training.name,
                "network": training.network,
                "shortcuts": training.network.startswith("resnet"),
                "layers": int(training.network.removeprefix("plain").removeprefix("resnet")),
                "seed": training.seed,
                "epochs": result.provenance["recipe"]["epochs"],
                "train_error": history.rows[-1]["train_error"],
                "test_error": test["error"],
                "test_images": test["n"],
                "commit": result.provenance["commit"],
            }
        )
    return rows


def epoch_rows(wanted: Sequence[Training], done: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of ``epochs``."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for training in (one for one in wanted if one.name in done):
        for row in read_table(done[training.name] / "history.csv").rows:
            groups.setdefault((training.network, row["epoch"]), []).append(row)
    rows = []
    for (network, epoch), own in groups.items():
        row: dict[str, Any] = {"network": network, "seeds": len(own), "epoch": epoch}
        for name in ("train_error", "validation_error"):
            row |= over_seeds(own, name, (0.0, 1.0))
        rows.append(row)
    return rows


def differences(runs: Sequence[Mapping[str, Any]], shortcuts: bool, name: str) -> list[float]:
    """Error of the deep network minus that of the shallow one, for each seed that both have."""
    own: dict[int, dict[int, float]] = {}
    for row in (row for row in runs if row["shortcuts"] == shortcuts):
        own.setdefault(row["layers"], {})[row["seed"]] = row[name]
    if len(own) != 2:
        return []
    shallow, deep = (own[layers] for layers in sorted(own))
    return [deep[seed] - shallow[seed] for seed in sorted(deep.keys() & shallow.keys())]
