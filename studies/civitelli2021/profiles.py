"""Path lengths at initialisation and in training, and what the growth of the gradient says of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pathlens
from pathlens import ResidualView
from pathlens.data import ImageData
from pathlens.runtime.processes import pick_device
from pathlens.tables import Table
from studies.civitelli2021.kinds import KINDS, Kind, fresh, images, spec
from studies.civitelli2021.signals import sizes
from studies.civitelli2021.trained import Training, image_size, kept_epochs
from studies.common import DIVERGED, StudySetting, once, say

_WHICH = (
    ("network", "", "reference name, or function of nets.py"),
    ("kind", "", "how its blocks add up and start"),
    ("epoch", "", "epochs of training; 0: as initialised"),
)
PROFILES = (
    *_WHICH,
    ("seed", "", "of the initialisation and of the run"),
    ("blocks", "", "residual blocks"),
    ("mean_length", "blocks", "mean length, weighted by the square of total_norm (exact)"),
    ("share_length", "blocks", "mean length, weighted by share: the part of a length in the gradient by projection"),
    ("expected_length", "blocks", "sum over blocks of 1 - c^2 / r, r the growth of the squared gradient; at epoch 0"),
    ("first", "blocks", "shortest effective length: the shortest interval that holds 95 % of total_norm"),
    ("last", "blocks", "longest effective length"),
)
LENGTHS = (
    *_WHICH,
    ("seeds", "", "initialisations or runs"),
    ("length", "blocks", "number of branches that a path takes"),
    (
        "total_share",
        "fraction",
        "norm of the sum over the paths of this length over that of all lengths, mean of seeds",
    ),
)


def at_start(study: StudySetting, data: str, seeds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``profiles`` and of ``lengths`` of fresh networks of the paper's sizes."""
    batch, where = images(study, data, 16), pick_device(study.device)
    rows, lengths = [], []
    for size in sizes(study):
        for kind in KINDS:
            tables = []
            for seed in range(seeds):
                stem = f"paths-{size}-{kind.variant}-{kind.init}-seed{seed}"
                table = once(study, stem, partial(_fresh, size, kind, seed, batch, where))
                expected = table.provenance["expected_length"]
                rows.append(_row(size, kind.name, 0, seed, table) | {"expected_length": expected})
                tables.append(table)
            lengths += _lengths(size, kind.name, 0, tables)
    return rows, lengths


def _fresh(size: str, kind: Kind, seed: int, batch: ImageData, device: torch.device) -> Table:
    say(f"path lengths at initialisation: {size}, {kind.name}, seed {seed}")
    view = fresh(size, kind, seed, batch.batch(0, 2).images)
    table = _measured(view, batch, device)
    expected = expected_length(view, kind.factor, batch)
    return replace(table, provenance={**table.provenance, "expected_length": expected})


def in_training(
    study: StudySetting, wanted: Sequence[Training], done: Mapping[str, Path], data: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``profiles`` and of ``lengths`` of the weights that were kept, without runs that diverged."""
    rows, lengths = [], []
    batch, where = images(study, data, 64, image_size(study)), pick_device(study.device)
    groups: dict[tuple[str, str, int], list[Table]] = {}
    for training in wanted:
        folder = done[training.name]
        if (folder / DIVERGED).is_file():
            continue
        for epoch in kept_epochs(study):
            measure = partial(_kept, training, folder, epoch, batch, where)
            table = once(study, f"paths-{training.name}-epoch{epoch}", measure)
            rows.append(_row(training.network, training.kind.name, epoch, training.seed, table))
            groups.setdefault((training.network, training.kind.name, epoch), []).append(table)
    for (network, kind, epoch), tables in groups.items():
        lengths += _lengths(network, kind, epoch, tables)
    return rows, lengths


def _kept(training: Training, folder: Path, epoch: int, batch: ImageData, device: torch.device) -> Table:
    say(f"path lengths in training: {training.name}, epoch {epoch}")
    weights = folder / "epochs" / f"epoch-{epoch:03d}.safetensors"
    loaded = pathlens.load_model(spec(training.network, training.kind), weights)
    return _measured(loaded.model, batch, device, mean=loaded.mean, std=loaded.std)


def _measured(network: nn.Module | ResidualView, batch: ImageData, device: torch.device, **more: Any) -> Table:
    """The exact gradient by path length, of all images as one batch in train mode."""
    options: dict[str, Any] = {"method": "exact", "mode": "train", "batch_size": batch.n, "device": device, **more}
    return pathlens.path_gradients(network, batch, **options)


def _row(network: str, kind: str, epoch: int, seed: int, table: Table) -> dict[str, Any]:
    lengths = [row["length"] for row in table.rows]
    norms = [row["total_norm"] for row in table.rows]
    effective = table.provenance["effective"]["exact"]
    return {
        "network": network,
        "kind": kind,
        "epoch": epoch,
        "seed": seed,
        "blocks": table.provenance["blocks_in_paths"],
        "mean_length": mean_length(lengths, [norm**2 for norm in norms]),
        "share_length": mean_length(lengths, [row["share"] for row in table.rows]),
        "expected_length": None,
        "first": effective["first"],
        "last": effective["last"],
    }


def mean_length(lengths: Sequence[int], weights: Sequence[float]) -> float:
    """Weighted mean of lengths."""
    return sum(map(math.prod, zip(lengths, weights, strict=True))) / sum(weights)


def _lengths(network: str, kind: str, epoch: int, tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [
        {
            "network": network,
            "kind": kind,
            "epoch": epoch,
            "seeds": len(tables),
            "length": of_length[0]["length"],
            "total_share": statistics.fmean(row["total_share"] for row in of_length),
        }
        for of_length in zip(*(table.rows for table in tables), strict=True)
    ]


def expected_length(view: ResidualView, factor: float, batch: ImageData) -> float:
    r"""Mean number of branches of a path, as the growth of the gradient alone tells it.

    Backwards through block i the squared norm of the gradient grows by :math:`r_i = c^2 (a_i + b_i)`, where a and b are
    what shortcut and branch do to it. Where paths are uncorrelated, the squared norm over paths of length k is the
    coefficient of :math:`z^k` in :math:`\prod_i c^2 (a_i + b_i z)`, of which the mean is
    :math:`\sum_i b_i / (a_i + b_i) = \sum_i (1 - c^2 a_i / r_i)`. A shortcut that is the identity, or a convolution
    whose weights have the variance 1 / fan-in, has a = 1.

    Args:
        view: the network, with the weights of its initialisation.
        factor: :math:`c^2`.
        batch: images, taken as one batch.
    """
    table = pathlens.signal_propagation(view, batch, given=True, mode="train", batch_size=batch.n)
    moments = {row["block"]: row["gradient_second_moment"] for row in table.rows if row["place"] in ("stem", "output")}
    shapes = [view[0].in_shape, *(block.out_shape for block in view)]
    squared = [moments[index - 1] * math.prod(shape) for index, shape in enumerate(shapes)]
    return sum(1 - factor * after / before for before, after in itertools.pairwise(squared))
