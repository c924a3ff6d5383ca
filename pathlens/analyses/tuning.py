"""Choose how to run a network by measuring it: on a few of its own blocks, with its own activations."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pathlens.residual import ResidualView, engines
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference

#: the choice may cost this share of the sweep
_SHARE = 0.03
#: kinds of blocks that are measured, those with most multiply-adds first
_KINDS = 4
_REPEATS = 2
#: another engine must be faster by this factor, so that noise does not choose
_GAIN = 1.05


def choose(
    view: ResidualView, device: torch.device, dtype: torch.dtype, images: Tensor, batch_size: int, evaluations: float
) -> tuple[Engine, dict[str, Any]]:
    """The fastest engine for a sweep, and what provenance says about the choice.

    Args:
        view: the network.
        device: where to compute.
        dtype: what to compute with.
        images: some of the batches' images, shape (N, ...).
        batch_size: images in a batch.
        evaluations: how many images the sweep takes through the whole network, all lesions together.
    """
    offered = engines.candidates(device, dtype, batch_size)
    probe = images[: max((engine.images or 1) * engine.lanes for engine in offered)]
    kinds = Counter((b.kind, b.in_shape, b.out_shape, b.parameters, b.multiply_adds) for b in view)
    first = {(b.kind, b.in_shape, b.out_shape, b.parameters, b.multiply_adds): b.index for b in reversed(view.blocks)}
    heaviest = sorted(kinds, key=lambda kind: -kind[-1] * kinds[kind])[:_KINDS]
    blocks = {first[kind]: kinds[kind] for kind in heaviest}
    cost = len(probe) * (1 + len(offered) * (1 + _REPEATS) * len(blocks) / len(view))
    if len(offered) == 1 or cost > _SHARE * evaluations:
        return offered[0], {"engine": offered[0].name, "engine_chosen": "default"}
    inputs: dict[int, Tensor] = {}
    with Inference(view, device, dtype, offered[0]) as network:
        x = network.piece("stem")(network.prepare(probe))
        for block in range(max(blocks) + 1):
            if block in blocks:
                inputs[block] = x
            x = network.piece("run", block)(x)
    seconds = {engine: _seconds(Inference(view, device, dtype, engine), inputs, blocks) for engine in offered}
    fastest = min(offered, key=seconds.__getitem__)
    chosen = fastest if seconds[fastest] * _GAIN < seconds[offered[0]] else offered[0]
    speeds = {engine.name: round(seconds[offered[0]] / seconds[engine], 2) for engine in offered}
    return chosen, {"engine": chosen.name, "engine_chosen": "measured", "engine_speeds": speeds}


def _seconds(network: Inference, inputs: dict[int, Tensor], counts: dict[int, int]) -> float:
    """Time of the measured blocks, each as often as the network has its like."""
    total = 0.0
    with network:
        for block, x in inputs.items():
            call = network.piece("run", block)
            x = network.prepare(x)
            parts = network.parts(x)
            times = []
            for _ in range(1 + _REPEATS):
                began = time.perf_counter()
                network.each(lambda part: call(part[0]), parts)
                times.append(time.perf_counter() - began)
            # the first call sets up what the others find
            total += counts[block] * min(times[1:])
    return total
