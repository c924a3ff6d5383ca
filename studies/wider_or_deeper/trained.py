"""What is trained, what the networks cost, and what came out of the runs."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.data import ImageData
from pathlens.runtime.processes import pick_device
from pathlens.tables import read_table
from studies.common import StudySetting
from studies.rules import answers

NETS = Path(__file__).resolve().parent / "nets.py"
ALL = "all"
CIFAR = "cifar"
#: most by which the multiply-adds of two networks may differ to be called the same
SAME = 0.05


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        name: of its run.
        network: function of ``nets.py``.
        depth: most blocks of a path that the gradient runs through, or ``all``.
        seed: of the run.
        arguments: of ``pathlens train``.
    """

    name: str
    network: str
    depth: int | str
    seed: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Networks of equal multiply-adds that are trained alike on one data set.

    Attributes:
        name: of the part.
        prefix: of the stems of its tables and figures.
        networks: functions of ``nets.py``, the deep one first.
        data: in the words of ``--data``.
        depths: effective depths of the deep network; the last is ``all``.
        seeds: trainings of each network.
        recipe: further arguments of ``pathlens train``.
        lengths: test images whose gradients are resolved by path length.
        image_size: pixels that images are resized to; None leaves them.
    """

    name: str
    prefix: str
    networks: tuple[str, ...]
    data: str
    depths: tuple[int | str, ...]
    seeds: int
    recipe: tuple[str, ...]
    lengths: int
    image_size: int | None = None

    def images(self, limit: int | None = None, split: str = "test") -> ImageData:
        """The first images of a split."""
        return pathlens.open_data(self.data, split=split, limit=limit, image_size=self.image_size)


def main_part(study: StudySetting) -> Part:
    """The part that has cut gradients too.

    Raises:
        SystemExit: there are no images for the paper scale.
    """
    data = cifar10() if study.scale == "paper" else "digits"
    if data is None:
        raise SystemExit("the paper scale needs CIFAR-10: set PATHLENS_DATA to the folder that holds cifar10-jpeg/")
    return Part(
        "depths",
        "",
        study.pick(
            ("deep9", "wide3_small"), ("deep27", "wide9", "wide3"), ("deep54_cifar", "wide9_cifar", "wide3_cifar")
        ),
        data,
        (*study.pick((1,), (1, 2, 4, 8), (1, 2, 4, 8)), ALL),
        study.pick(1, 5, 3),
        study.pick(
            ("--epochs", "1", "--limit", "100", "--validation", "20"),
            ("--epochs", "30"),
            ("--epochs", "100", "--warmup", "1", "--dtype", "bfloat16"),
        ),
        study.pick(6, 64, 256),
    )


def cifar_part(study: StudySetting) -> Part | None:
    """Wide against deep on CIFAR-10 at the size of two cores; None without its images.

    The tests have digits in their place. The main part of the paper scale is on CIFAR-10 itself.
    """
    data = study.pick("digits", cifar10(), None)
    if data is None:
        return None
    size, images, held_out, epochs = study.pick((None, 80, 20, 1), (16, 19_000, 1000, 16), ())
    recipe = (
        f"--crop 2 --limit {images + held_out} --validation {held_out} --epochs {epochs} "
        "--schedule cosine --weight-decay 5e-4"
    )
    return Part(
        CIFAR,
        f"{CIFAR}-",
        study.pick(("deep9", "wide3_small"), ("deep27_rgb", "wide9_rgb", "wide3_rgb"), ()),
        data,
        (ALL,),
        study.pick(1, 3, 3),
        (*recipe.split(), *(() if size is None else ("--image-size", str(size)))),
        study.pick(6, 64, 64),
        size,
    )


def cifar10() -> str | None:
    """The images of CIFAR-10 in the words of ``--data``; None where PATHLENS_DATA has none."""
    folder = os.environ.get("PATHLENS_DATA")
    path = Path(folder, "cifar10-jpeg").resolve() if folder else None
    return f"parquet:{path}" if path is not None and path.is_dir() else None


def spec_of(network: str, study: StudySetting) -> str:
    """``--model`` for a network, from the folder of the runs, so that no place of this machine gets into a table."""
    return f"{os.path.relpath(NETS, study.runs.resolve())}:{network}"


def trainings(part: Part, study: StudySetting) -> list[Training]:
    """Every network and seed: the deep one with each effective depth, the wide ones with whole gradients."""
    deep, *wide = part.networks
    plans = [(deep, depth) for depth in part.depths] + [(name, ALL) for name in wide]
    return [
        Training(
            f"{part.prefix}{network}-L{depth}-seed{seed}",
            network,
            depth,
            seed,
            (
                *("--model", spec_of(network, study), "--data", part.data, "--seed", str(seed)),
                *(() if depth == ALL else ("--effective-depth", str(depth))),
                *part.recipe,
            ),
        )
        for seed in range(part.seeds)
        for network, depth in plans
    ]


def cost(network: str, part: Part) -> dict[str, Any]:
    """A row of the table ``networks``: blocks, widths, parameters, and multiply-adds of one image."""
    loaded = pathlens.load_model(f"{NETS}:{network}")
    model = loaded.model.eval()
    image = part.images(1).batch(0, 1).images
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    view = pathlens.find_blocks(model, image.expand(2, *image.shape[1:]))
    return {
        "network": network,
        "blocks": len(view),
        "widths": ", ".join(str(view[stage[0]].out_shape[0]) for stage in view.stages),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
        "multiply_adds_in_blocks": sum(block.multiply_adds + block.shortcut_multiply_adds for block in view),
    }


def costs(part: Part) -> list[dict[str, Any]]:
    """Rows of the table ``networks``.

    Raises:
        SystemExit: a wide network's multiply-adds are not those of the deep one.
    """
    rows = [cost(network, part) for network in part.networks]
    for row in rows:
        row["ratio"] = row["multiply_adds"] / rows[0]["multiply_adds"]
        if abs(row["ratio"] - 1) > SAME:
            raise SystemExit(f"{row['network']} has {row['ratio']:.2f} times the multiply-adds of {rows[0]['network']}")
    return rows


def run_rows(part: Part, done: Mapping[str, Path], study: StudySetting) -> list[dict[str, Any]]:
    """Rows of the table ``runs``: errors of each run, and which path lengths carry its whole gradient afterwards."""
    data, tested, where = part.images(part.lengths), part.images(), pick_device(study.device)
    rows: list[dict[str, Any]] = []
    right: dict[str, torch.Tensor] = {}
    for training in trainings(part, study):
        folder = done[training.name]
        result, history = read_table(folder / "result.csv"), read_table(folder / "history.csv")
        (test,) = [row for row in result.rows if row["split"] == "test"]
        loaded = pathlens.load_model(f"{NETS}:{training.network}", folder / "weights.safetensors")
        right[training.name] = answers.is_right(loaded, tested, where)
        table = pathlens.path_gradients(
            loaded.model, data, method="exact", batch_size=64, mean=loaded.mean, std=loaded.std, device=where
        )
        norms = [row["total_norm"] for row in table.rows]
        effective = table.provenance["effective"]["exact"]
        rows.append(
            {
                "run": training.name,
                "network": training.network,
                "effective_depth": str(training.depth),
                "seed": training.seed,
                "epochs": result.provenance["recipe"]["epochs"],
                "test_error": test["error"],
                "test_error_low": test["error_low"],
                "test_error_high": test["error_high"],
                "test_images": test["n"],
                "test_loss": test["loss"],
                "train_loss": history.rows[-1]["train_loss"],
                "first": effective["first"],
                "last": effective["last"],
                "mean_length": math.fsum(k * norm for k, norm in enumerate(norms)) / math.fsum(norms),
                "commit": result.provenance["commit"],
            }
        )
    deep = {
        row["seed"]: row["run"] for row in rows if (row["network"], row["effective_depth"]) == (part.networks[0], ALL)
    }
    answers.compare(rows, right, lambda row: deep[row["seed"]])
    return rows


def history_rows(part: Part, done: Mapping[str, Path], study: StudySetting) -> list[dict[str, Any]]:
    """Rows of the table ``epochs``: means over the seeds."""
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for training in trainings(part, study):
        for row in read_table(done[training.name] / "history.csv").rows:
            found.setdefault((training.network, str(training.depth), row["epoch"]), []).append(row)
    return [
        {
            "network": network,
            "effective_depth": depth,
            "epoch": epoch,
            **{
                name: statistics.fmean(row[name] for row in rows)
                for name in ("train_loss", "train_error", "validation_error")
            },
        }
        for (network, depth, epoch), rows in found.items()
    ]
