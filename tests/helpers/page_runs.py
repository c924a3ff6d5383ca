"""Run folders for the tests of pages: real ones from ``results/``, and small ones with known numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pathlens.analyses.path_rows import lattice as lattice_rows
from pathlens.report import write_run
from pathlens.results.lattice import LATTICE
from pathlens.results.lesions import DELETE_BLOCKS, LesionRow
from pathlens.results.path_profile import PATH_GRADIENTS, PathRow
from pathlens.tables import Column, Table
from tests.helpers import ROOT

RESULTS = ROOT / "results"
HOSTILE = "</script><img src=x onerror=alert(1)>"


def lesions(names: list[str], errors: list[float]) -> Table:
    """A table of single deletions; errors are those of the intact network, block 0, block 1, ..."""
    rows: list[dict[str, Any]] = []
    for block, error in enumerate(errors, start=-1):
        row: dict[str, Any] = vars(LesionRow())
        if block >= 0:
            row |= {"block": block, "name": names[block], "stage": block // 3, "kind": "identity", "blocks": str(block)}
        row |= {"count": int(block >= 0), "error": error, "error_low": error / 2, "error_high": error * 2, "n": 100}
        rows.append(row)
    return DELETE_BLOCKS.table(rows, {})


def norm(boundary: int, length: int) -> float:
    return 0.1 ** (1 + length / 2) / (2 + boundary)


def counts(free: int) -> dict[int, int]:
    return {length: math.comb(free, length) for length in range(free + 1)}


def lattice(blocks: int) -> Table:
    sums = {
        (boundary, length): norm(boundary, length)
        for boundary in range(-1, blocks + 1)
        for length in range(blocks - max(0, boundary) + 1)
    }
    return LATTICE.table(lattice_rows(sums, 1, lambda boundary: counts(blocks - max(0, boundary))), {})


def profile(blocks: int) -> Table:
    rows = []
    for length in range(blocks + 1):
        mean = 0.01**length
        row: dict[str, Any] = vars(PathRow(length=length, n_paths=math.comb(blocks, length), total_norm=0.5**length))
        row |= {"path_norm_mean": mean, "path_norm_low": mean / 2, "path_norm_high": mean * 2}
        row |= {"path_norm_median": mean / 3, "path_norm_q05": mean / 9, "path_norm_q95": mean * 3}
        rows.append(row | {"path_norm_rms": 2 * mean})
    return PATH_GRADIENTS.table(rows, {})


def write_lesions(
    folder: Path, names: list[str] | None = None, errors: list[float] | None = None, **facts: Any
) -> Path:
    names = names or [f"layer{block}" for block in range(6)]
    errors = errors or [0.1, 0.5, 0.11, 0.3, 0.12, 0.1, 0.25]
    manifest = {"verb": "delete-blocks", "model": "net6", "model_sha256": "a" * 64, "blocks": 6, "seed": 0, **facts}
    write_run(folder, {"delete-blocks": lesions(names, errors)}, {}, manifest)
    return folder


def write_paths(folder: Path, blocks: int = 6, **facts: Any) -> Path:
    effective = {"exact": {"first": 0, "last": 3, "share_of_contribution": 0.96, "share_of_paths": 0.3}}
    manifest = {
        "verb": "path-gradients", "model": "net6", "model_sha256": "a" * 64, "blocks": blocks, "at": "input",
        "gradient_norm": 0.75, "effective": effective, **facts,
    }  # fmt: skip
    write_run(folder, {"path-gradients": profile(blocks), "lattice": lattice(blocks)}, {}, manifest)
    return folder


def write_hostile(folder: Path) -> Path:
    """Markup wherever text of a user can stand."""
    table = lesions([f"{HOSTILE}{block}" for block in range(6)], [0.1, 0.5, 0.11, 0.3, 0.12, 0.1, 0.25])
    more = Table((Column("what", HOSTILE, HOSTILE), Column("n")), ({"what": HOSTILE, "n": 1},))
    manifest = {
        "verb": "delete-blocks", "model": HOSTILE, "weights": HOSTILE, "data": HOSTILE, "notes": [HOSTILE],
        "arguments": {"model": HOSTILE, HOSTILE: 3}, "model_sha256": HOSTILE,
    }  # fmt: skip
    write_run(folder, {"delete-blocks": table, "<b>more": more}, {}, manifest)
    return folder
