"""Choose how to run a network by measuring it: on a few of its own blocks, with its own activations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathlens.analyses.agreement import check_agreement
from pathlens.analyses.sources import Source
from pathlens.residual import ResidualView, engines
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part

#: the choice may cost this share of the sweep
_SHARE = 0.03
#: kinds of blocks that are measured, those with most multiply-adds first
_KINDS = 4
_REPEATS = 2
#: another engine must be faster by this factor, so that noise does not choose
_GAIN = 1.05


def choose(
    view: ResidualView, device: torch.device, dtype: torch.dtype, source: Source, plans: int
) -> tuple[Engine, dict[str, Any]]:
    """The fastest engine for a sweep, and what provenance says about the choice.

    Args:
        view: the network.
        device: where to compute.
        dtype: what to compute with.
        source: the images.
        plans: how many networks are evaluated on them.
    """
    size = source.batch_size or len(source.first())
    total = source.facts.get("images") or size * (source.count or 1)
    offered = engines.candidates(device, dtype, min(size, total))
    probe = min(total, max((engine.images or 1) * engine.lanes for engine in offered))
    blocks = _kinds(view)
    # in images that go through the whole network; plans that share their beginnings take about half
    cost = probe * (1 + len(offered) * (1 + _REPEATS) * len(blocks) / len(view))
    if len(offered) == 1 or cost > _SHARE * total * plans / 2:
        return _default(offered)
    inputs: dict[int, Tensor] = {}
    with Inference(view, device, dtype, offered[0]) as network:
        images = source.first()[:probe]
        check_agreement(network, images)
        x = network.stem(network.prepare(images))
        for block in range(max(blocks) + 1):
            if block in blocks:
                inputs[block] = x
            x = network.step(Part.BLOCK, block)(x)
    if any(len(x) != probe for x in inputs.values()):
        # what runs between the blocks are no images, such as windows, and cannot be cut into parts
        return _default(offered)
    seconds = {engine: _seconds(Inference(view, device, dtype, engine), inputs, blocks) for engine in offered}
    fastest = min(offered, key=seconds.__getitem__)
    chosen = fastest if seconds[fastest] * _GAIN < seconds[offered[0]] else offered[0]
    speeds = {engine.name: round(seconds[offered[0]] / seconds[engine], 2) for engine in offered}
    return chosen, {"engine": chosen.name, "engine_chosen": "measured", "engine_speeds": speeds}


def _default(offered: Sequence[Engine]) -> tuple[Engine, dict[str, Any]]:
    return offered[0], {"engine": offered[0].name, "engine_chosen": "default"}


def _kinds(view: ResidualView) -> dict[int, int]:
    """One block of each of the heaviest kinds, and how many blocks are like it."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for block in view:
        kind = (block.multiply_adds, block.kind, block.in_shape, block.out_shape, block.parameters)
        alike.setdefault(kind, []).append(block.index)
    heaviest = sorted(alike.values(), key=lambda group: -view[group[0]].multiply_adds * len(group))
    return {group[0]: len(group) for group in heaviest[:_KINDS]}


def _seconds(network: Inference, inputs: dict[int, Tensor], counts: dict[int, int]) -> float:
    """Time of the measured blocks, each as often as the network has its like."""
    total = 0.0
    with network:
        for block, x in inputs.items():
            parts = [part for (part,) in network.parts(network.prepare(x.contiguous()))]
            times = []
            for _ in range(1 + _REPEATS):
                began = time.perf_counter()
                network.each(network.step(Part.BLOCK, block), parts)
                times.append(time.perf_counter() - began)
            # the first call sets up what the others find
            total += counts[block] * min(times[1:])
    return total
