"""How long an epoch of each network takes: the networks in turn in one process, apart from the trainings.

Trainings run side by side and for long, so that their own times say little; these are taken one after the other, on a
machine that should do nothing else: ``python -m studies.wider_or_deeper --only times``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

import pathlens
from pathlens.training import Recipe, train
from studies.benchmarks.side_by_side import spread
from studies.common import StudySetting, say
from studies.wider_or_deeper.trained import NETS, Part

BATCH = 128
TIMES = (
    ("network", "", "function of studies/wider_or_deeper/nets.py"),
    ("device", "", "what computes"),
    ("threads", "", "of it"),
    ("batch_size", "images", "of a step"),
    ("steps", "", "that were timed, in each repeat"),
    ("repeats", "", "each with all networks in turn"),
    ("epoch_images", "images", "of an epoch of the trainings"),
    ("epoch_seconds", "s", "of one such epoch, from the time of the steps; median over the repeats"),
    ("epoch_seconds_min", "s", "shortest"),
    ("epoch_seconds_max", "s", "longest"),
    ("time_ratio", "", "over that of the deep network in the same repeat, median"),
    ("time_ratio_min", "", "smallest"),
    ("time_ratio_max", "", "largest"),
)


def time_rows(part: Part, study: StudySetting) -> list[dict[str, Any]]:
    """Rows of the table of times: the second of two short epochs, since the first also warms up."""
    steps, repeats = study.pick(1, 10, 10), study.pick(2, 5, 5)
    data = part.images(min(steps * BATCH, part.epoch_images), "train")
    networks = {name: pathlens.load_model(f"{NETS}:{name}").model for name in part.networks}
    device = study.device if study.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(epochs=2, batch_size=BATCH, crop=2)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats):
        for name, network in networks.items():
            rows: list[dict[str, Any]] = []
            train(copy.deepcopy(network), data, recipe=recipe, device=device, on_epoch=rows.append)
            seconds[name].append(rows[-1]["seconds"] * part.epoch_images / data.n)
            say(f"times, repeat {repeat}: {name} {seconds[name][-1]:.1f} s an epoch")
    return [
        {
            "network": name,
            "device": device,
            "threads": torch.get_num_threads(),
            "batch_size": BATCH,
            "steps": math.ceil(data.n / BATCH),
            "repeats": repeats,
            "epoch_images": part.epoch_images,
            **spread("epoch_seconds", taken),
            **spread("time_ratio", [one / deep for one, deep in zip(taken, seconds[part.networks[0]], strict=True)]),
        }
        for name, taken in seconds.items()
    ]
