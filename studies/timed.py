"""How long an epoch of each of several networks takes: the networks in turn in one process, apart from the trainings.

Trainings run side by side and for long, so that their own times say little; these are taken one after the other, on a
machine that should do nothing else: ``--only times`` of the studies that have it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pathlens.data import ImageData
from pathlens.training import Recipe, train
from studies.benchmarks.side_by_side import spread
from studies.common import StudySetting, say

TIMED = "times"
"""The part of a study that these are."""
TIMES = (
    ("network", "", "function of nets.py of the study"),
    ("device", "", "what computes"),
    ("threads", "", "of it"),
    ("batch_size", "images", "of a step"),
    ("steps", "", "that were timed, in each repeat"),
    ("repeats", "", "each with all networks in turn"),
    ("epoch_images", "images", "of an epoch of the trainings"),
    ("epoch_seconds", "s", "of one such epoch, from the time of the steps; median over the repeats"),
    ("epoch_seconds_min", "s", "shortest"),
    ("epoch_seconds_max", "s", "longest"),
    ("time_ratio", "", "over that of the first network in the same repeat, median"),
    ("time_ratio_min", "", "smallest"),
    ("time_ratio_max", "", "largest"),
)
TIMES_SHOWN = {
    "network": "", "threads": "d", "batch_size": "d", "epoch_images": ",d", "epoch_seconds": ".1f",
    "epoch_seconds_min": ".1f", "epoch_seconds_max": ".1f", "time_ratio": ".2f", "time_ratio_min": ".2f",
    "time_ratio_max": ".2f",
}  # fmt: skip


def time_rows(
    networks: Mapping[str, nn.Module], data: ImageData, recipe: Recipe, epoch_images: int, study: StudySetting
) -> list[dict[str, Any]]:
    """Rows of the table of times: the second of two short epochs, since the first also warms up.

    Args:
        networks: by name; all others are compared with the first.
        data: images of one short epoch.
        recipe: of the trainings; its epochs are not used.
        epoch_images: images of an epoch of the trainings.
        study: what was asked for.
    """
    repeats = study.pick(2, 5, 5)
    device = study.device if study.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats):
        for name, network in networks.items():
            rows: list[dict[str, Any]] = []
            train(copy.deepcopy(network), data, recipe=recipe, device=device, on_epoch=rows.append)
            seconds[name].append(rows[-1]["seconds"] * epoch_images / data.n)
            say(f"times, repeat {repeat}: {name} {seconds[name][-1]:.1f} s an epoch")
    first = next(iter(seconds.values()))
    return [
        {
            "network": name,
            "device": device,
            "threads": torch.get_num_threads(),
            "batch_size": recipe.batch_size,
            "steps": math.ceil(data.n / recipe.batch_size),
            "repeats": repeats,
            "epoch_images": epoch_images,
            **spread("epoch_seconds", taken),
            **spread("time_ratio", [one / other for one, other in zip(taken, first, strict=True)]),
        }
        for name, taken in seconds.items()
    ]
