"""The networks and initialisations that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import pathlens
from pathlens import ResidualView
from pathlens.data import ImageData
from studies.common import StudySetting

NETS = Path(__file__).with_name("nets.py").resolve()


@dataclass(frozen=True)
class Kind:
    """A way to add up a block, and a way to start.

    Attributes:
        name: for tables and figures.
        variant: of the network, see :mod:`pathlens.models.nfresnet_cifar`.
        init: scheme of :func:`pathlens.initialise`.
        as_built: whether the networks' own initial weights follow the scheme, so that trainings need not ask for it.
    """

    name: str
    variant: str
    init: str = "he-fan-in"
    as_built: bool = True

    @property
    def factor(self) -> float:
        """What the scale c of a block's sum does to a second moment: its square."""
        return 1.0 if self.variant in ("batchnorm", "plain") else 0.5


BATCH_NORM = Kind("batch norm", "batchnorm")
PLAIN = Kind("plain, He", "plain")
BROCK = Kind("plain, Brock", "plain", "brock", as_built=False)
STANDARDISED = Kind("plain, Brock, scaled WS", "plain", "scaled-ws", as_built=False)
IDSHORT = Kind("IdShort", "idshort")
LEARNSCALAR = Kind("LearnScalar", "learnscalar")
CONVSHORT = Kind("ConvShort", "convshort")
KINDS = (BATCH_NORM, PLAIN, BROCK, STANDARDISED, IDSHORT, LEARNSCALAR, CONVSHORT)
SCHEMES = (IDSHORT, LEARNSCALAR, CONVSHORT)
"""What the paper proposes."""


def spec(size: str, kind: Kind) -> str:
    """``--model``: a reference name for a size such as ``nfresnet50``, else a function of ``nets.py``."""
    if size.startswith("nfresnet"):
        return f"{size}:{kind.variant}"
    return f"{NETS}:{size}_{kind.variant}"


def fresh(size: str, kind: Kind, seed: int, example: torch.Tensor) -> ResidualView:
    """A network with initial weights by the scheme of its kind, and its blocks."""
    view = pathlens.find_blocks(pathlens.load_model(spec(size, kind), "random", seed=seed).model, example)
    pathlens.initialise(view, kind.init, generator=torch.Generator().manual_seed(seed))
    return view


def images(study: StudySetting, data: str, limit: int, size: int | None = None) -> ImageData:
    """The first test images."""
    return pathlens.open_data(data, split="test", limit=study.pick(8, limit, limit), image_size=size)
