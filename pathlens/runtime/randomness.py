"""Random numbers of our own that leave the user's generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def python_kept() -> Iterator[None]:
    """Put the generators of Python and of numpy back, which a network may draw from as well."""
    before, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the generator of the CPU, and of one GPU; both are put back.

    ``torch.manual_seed`` would also seed those of all other GPUs, which nothing puts back.

    Args:
        seed: of both.
        device: where numbers are drawn too, with its index.
    """
    cuda = [device.index] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
