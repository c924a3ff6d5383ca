"""Random numbers of our own that leave the user's generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
