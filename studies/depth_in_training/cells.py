"""One checkpoint of one training run: which path lengths carry its gradient, and how much a branch passes on."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens import ResidualView
from pathlens.report import provenance
from pathlens.results.path_profile import contributions
from pathlens.storage import atomic_write_bytes
from pathlens.tables import Table
from studies.common import StudySetting, say
from studies.depth_in_training.gains import gains

#: lengths that carry less than this share are left out of the curves
_VISIBLE = 1e-3


@dataclass(frozen=True)
class Cell:
    """A checkpoint to measure.

    Attributes:
        run: name of the training run.
        network: in the words of ``--model``.
        seed: of the run, and of the draws of paths and signs.
        weight_decay: of the run.
        epoch: of the checkpoint.
        weights: its file.
        data: in the words of ``--data``.
        images: training images to differentiate at, all in one batch.
        samples: paths of each length to sample; 0 leaves them and the signs out.
        draws: random sign vectors.
        device: where to compute.
    """

    run: str
    network: str
    seed: int
    weight_decay: float
    epoch: int
    weights: Path
    data: str
    images: int
    samples: int
    draws: int
    device: str

    @property
    def key(self) -> str:
        """Hash of everything that the numbers depend on."""
        facts = {**asdict(self), "weights": hashlib.sha256(self.weights.read_bytes()).hexdigest()}
        made = provenance()
        facts |= {"commit": made["commit"], "versions": made["versions"]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def measure_all(cells: Sequence[Cell], study: StudySetting) -> list[dict[str, Any]]:
    """Measure checkpoints, some side by side on a CPU; those that were measured before are read."""
    folder = study.runs / "depth_in_training"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{cell.run}-epoch-{cell.epoch:03d}.json" for cell in cells]
    if study.scale == "smoke" or study.jobs == 1 or any(cell.device != "cpu" for cell in cells):
        return [_taken_up(cell, file) for cell, file in zip(cells, files, strict=True)]
    threads = max(1, torch.get_num_threads() // study.jobs)
    with ProcessPoolExecutor(study.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        return list(pool.map(_taken_up, cells, files))


def _taken_up(cell: Cell, file: Path) -> dict[str, Any]:
    key = cell.key
    if file.is_file():
        found = json.loads(file.read_text())
        if found["key"] == key:
            return dict(found)
    say(f"path lengths of {cell.run} after epoch {cell.epoch}")
    found = {"key": key, **measure(cell)}
    atomic_write_bytes(file, json.dumps(found).encode())
    return found


def measure(cell: Cell) -> dict[str, Any]:
    """Rows of the tables ``ranges`` and ``curves``, and the row of ``gains``, for one checkpoint."""
    loaded = pathlens.load_model(cell.network, cell.weights)
    data = pathlens.open_data(cell.data, split="train", limit=cell.images)
    batch = data.batch(0, cell.images, mean=loaded.mean, std=loaded.std, device=cell.device)
    view = _view(cell.network, batch.images.shape, cell.device)
    view.model.load_state_dict(loaded.model.state_dict())
    options: dict[str, Any] = {"mean": loaded.mean, "std": loaded.std, "batch_size": cell.images, "seed": cell.seed}
    whole = {"method": "all", "max_samples": cell.samples, "draws": cell.draws} if cell.samples else {"method": "exact"}
    here = {name: getattr(cell, name) for name in ("run", "seed", "weight_decay", "epoch")}
    ranges, curves = [], []
    for mode, how in (("train", whole), ("eval", {"method": "exact"})):
        table = pathlens.path_gradients(view, data, mode=mode, **how, **options)
        for kind in table.provenance["effective"]:
            found = {**here, "mode": mode, "contribution": kind}
            ranges.append({**found, **effective_row(table, kind)})
            curves += [{**found, **row} for row in curve(table, kind)]
    return {"ranges": ranges, "curves": curves, "gains": {**here, **gains(view, batch.images, batch.labels)}}


@functools.cache
def _view(network: str, shape: torch.Size, device: str) -> ResidualView:
    """A network's blocks, found once for all its checkpoints."""
    model = pathlens.load_model(network, "random", num_classes=10, in_channels=shape[1]).model
    return pathlens.find_blocks(model.to(device).eval(), torch.zeros(shape, device=device))


def effective_row(table: Table, kind: str) -> dict[str, Any]:
    """First, last and centre of the effective range, and the mean length weighted by contribution."""
    weights = contributions(table.rows, kind)
    found: Mapping[str, Any] = table.provenance["effective"][kind]
    return {
        "blocks": len(weights) - 1,
        "first": found["first"],
        "last": found["last"],
        "centre": (found["first"] + found["last"]) / 2,
        "mean_length": math.fsum(length * weight for length, weight in enumerate(weights)) / math.fsum(weights),
        "share_of_paths": found["share_of_paths"],
        "gradient_norm": table.provenance.get("gradient_norm"),
    }


def curve(table: Table, kind: str) -> list[dict[str, Any]]:
    """Share of the contribution at each length."""
    weights = contributions(table.rows, kind)
    whole = math.fsum(weights)
    return [
        {"length": length, "share": weight / whole}
        for length, weight in enumerate(weights)
        if weight >= _VISIBLE * whole
    ]
