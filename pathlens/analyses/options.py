"""Keyword arguments that analyses share; they are described in :func:`evaluating` and :func:`opened`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch

from pathlens.analyses.runner import Progress
from pathlens.tables import Provenance


class Options(TypedDict, total=False):
    """Keywords of every analysis."""

    batch_size: int
    device: str | torch.device | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    journal: str | Path | None
    provenance: Provenance | None


class SweepOptions(Options, total=False):
    """Keywords of analyses of lesioned networks; see :func:`pathlens.analyses.evaluation.evaluating`."""

    dtype: str
    task: str | None
    loss: str | None
    seed: int
    engine: str
    fast: bool
    progress: Progress | None


class GradientOptions(Options, total=False):
    """Keywords of analyses of gradients; see :func:`pathlens.analyses.linear.opened`."""

    dtype: str | None
    mode: str
    stacked: bool
