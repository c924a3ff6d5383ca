"""Activations and gradients at initialisation, at the paper's sizes, and what the networks weigh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.data import ImageData
from pathlens.runtime.processes import pick_device
from pathlens.tables import Table
from studies.civitelli2021.kinds import BATCH_NORM, CONVSHORT, IDSHORT, KINDS, Kind, images, spec
from studies.common import StudySetting, once, say

PAPERS = ("nfresnet18", "nfresnet50", "nfresnet101")
"""The networks of the paper."""

#: parameters without those of norms, and FLOPs in units of 1e9, as the paper states them
STATED = {
    ("nfresnet18", CONVSHORT): (11_516_618, 1.16),
    ("nfresnet18", IDSHORT): (11_164_362, 1.12),
    ("nfresnet50", CONVSHORT): (38_016_714, 4.20),
    ("nfresnet50", IDSHORT): (23_467_722, 2.60),
    ("nfresnet101", CONVSHORT): (74_782_410, 8.92),
    ("nfresnet101", IDSHORT): (42_407_626, 5.02),
}

COSTS = (
    ("network", "", "reference name"),
    ("kind", "", "how its blocks add up"),
    ("parameters", "", "without those of norms"),
    ("parameters_stated", "", "by the paper (tables 1 and 2)"),
    ("multiply_adds", "", "of one image of 32x32"),
    ("gflops", "1e9", "multiply-adds in units of 1e9, rounded to two places, times two: as the paper counts"),
    ("gflops_stated", "1e9", "by the paper"),
)


def sizes(study: StudySetting) -> tuple[str, ...]:
    """Networks whose signals are measured."""
    return ("tiny18",) if study.scale == "smoke" else PAPERS


def cost_rows(study: StudySetting) -> list[dict[str, Any]]:
    """Rows of ``costs``; at the scale of tests of the smallest network alone.

    Batch norm has the convolutions of ConvShort, and the other kinds those of IdShort.
    """
    rows = []
    for size in PAPERS[: study.pick(1, 3, 3)]:
        for kind in (BATCH_NORM, CONVSHORT, IDSHORT):
            model = pathlens.load_model(spec(size, kind), "random").model.to("meta")  # shapes are all that counts
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, 32, 32, device="meta"))
            norms = {id(p) for part in model.modules() if isinstance(part, nn.BatchNorm2d) for p in part.parameters()}
            multiply_adds = counter.get_total_flops() // 2
            parameters, gflops = STATED.get((size, kind), STATED[size, CONVSHORT])
            rows.append(
                {
                    "network": size,
                    "kind": kind.name,
                    "parameters": sum(p.numel() for p in model.parameters() if id(p) not in norms),
                    "parameters_stated": parameters,
                    "multiply_adds": multiply_adds,
                    "gflops": round(2 * round(multiply_adds / 1e9, 2), 2),
                    "gflops_stated": gflops,
                }
            )
    return rows


def measure(study: StudySetting, data: str, seeds: int) -> dict[str, Table]:
    """A table of ``signal-propagation`` for each size, of which ``network`` names the kind."""
    batch = images(study, data, 64)
    tables = {}
    for size in sizes(study):
        parts = []
        for kind in KINDS:
            stem = f"signals-{size}-{kind.variant}-{kind.init}"
            parts.append(once(study, stem, partial(_of_one, size, kind, batch, seeds, pick_device(study.device))))
        tables[f"signals-{size}"] = together(parts, [kind.name for kind in KINDS])
    return tables


def _of_one(size: str, kind: Kind, batch: ImageData, seeds: int, device: torch.device) -> Table:
    say(f"signals: {size}, {kind.name}")
    model = pathlens.load_model(spec(size, kind), "random").model
    options: dict[str, Any] = {"mode": "train", "batch_size": batch.n, "device": device}
    return pathlens.signal_propagation(model, batch, init=kind.init, seeds=seeds, **options)


def together(parts: Sequence[Table], names: Sequence[str]) -> Table:
    """Tables of one form as one, the networks named."""
    rows = tuple({**row, "network": name} for part, name in zip(parts, names, strict=True) for row in part.rows)
    warnings = [
        f"{name}: {warning}" for part, name in zip(parts, names, strict=True) for warning in part.provenance["warnings"]
    ]
    return Table(parts[0].columns, rows, {**parts[0].provenance, "warnings": warnings})
