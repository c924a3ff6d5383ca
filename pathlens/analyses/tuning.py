"""Choose how to run a network by measuring it: on a few of its own blocks, with its own activations."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from torch import Tensor

from pathlens.analyses.agreement import check_images
from pathlens.analyses.provenance import EngineProvenance
from pathlens.analyses.runner import Runner
from pathlens.residual import ResidualView, engines
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part

#: largest share of the sweep's time that measuring may take
_SHARE = 0.03
#: how many kinds of blocks are measured, those with most multiply-adds first
_KINDS = 4
_REPEATS = 2
#: another engine must be faster by this factor, so that noise does not decide
_GAIN = 1.05


def choose(view: ResidualView, runner: Runner, plans: int) -> tuple[Inference, EngineProvenance]:
    """The network in the fastest form for a sweep, and what provenance says about the choice.

    Args:
        view: the network.
        runner: of the sweep.
        plans: how many networks are evaluated.
    """
    source, device, dtype = runner.source, runner.device, runner.dtype
    size = source.batch_size or len(source.first())
    total = source.provenance.images or size * (source.count or 1)
    offered = engines.candidates(device, dtype, min(size, total), view.largest_activation)
    network = Inference(view, device, dtype, offered[0])
    default = network, EngineProvenance(engine=network.engine.name, engine_chosen="default")
    if not network.chain.in_series:  # there is no block to be run by itself
        return default
    probe = min(total, max((engine.images or 1) * engine.lanes for engine in offered))
    blocks = _kinds(view)
    # work in images through the whole network; plans that share their beginnings take about half
    sweep = total * plans / 2
    if len(offered) == 1 or probe * (1 + (1 + _REPEATS) * len(blocks) / len(view)) > _SHARE * sweep:
        return default
    inputs = _inputs(network, source.first()[:probe], blocks)
    if any(len(x) != probe for x in inputs.values()):
        # activations that are not one row per image (such as windows) cannot be split by images
        return default
    began = time.perf_counter()
    seconds = {network.engine: _seconds(Inference(view, device, dtype, network.engine), inputs, blocks)}
    others = (time.perf_counter() - began) * (len(offered) - 1)
    # the time is measured, because in a small sweep preparing the other engines takes longest
    if others > _SHARE * seconds[network.engine] / probe * sweep:
        return default
    for engine in offered[1:]:
        seconds[engine] = _seconds(Inference(view, device, dtype, engine), inputs, blocks)
    fastest = min(offered, key=seconds.__getitem__)
    speeds = {engine.name: round(seconds[network.engine] / seconds[engine], 2) for engine in offered}
    if seconds[fastest] * _GAIN < seconds[network.engine]:
        network = Inference(view, device, dtype, fastest)
    return network, EngineProvenance(engine=network.engine.name, engine_chosen="measured", engine_speeds=speeds)


def _inputs(network: Inference, images: Tensor, blocks: Collection[int]) -> dict[int, Tensor]:
    """Inputs of some blocks when the intact network runs."""
    check_images(network, images, 0)
    inputs: dict[int, Tensor] = {}
    x = network.stem(network.prepare(images))
    for block in range(max(blocks) + 1):
        if block in blocks:
            inputs[block] = x
        x = network.step(Part.BLOCK, block)(x)
    return inputs


def _kinds(view: ResidualView) -> dict[int, int]:
    """One block of each of the heaviest kinds -> the number of blocks of that kind."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for block in view:
        kind = (block.multiply_adds, block.kind, block.in_shape, block.out_shape, block.parameters)
        alike.setdefault(kind, []).append(block.index)
    heaviest = sorted(alike.values(), key=lambda group: -view[group[0]].multiply_adds * len(group))
    return {group[0]: len(group) for group in heaviest[:_KINDS]}


def _seconds(network: Inference, inputs: dict[int, Tensor], counts: dict[int, int]) -> float:
    """Time of the measured blocks, each times the number of blocks of its kind."""
    total = 0.0
    with network:
        for block, x in inputs.items():
            parts = [part for (part,) in network.parts(network.prepare(x.contiguous()))]
            times = []
            for _ in range(1 + _REPEATS):
                began = time.perf_counter()
                network.each(network.step(Part.BLOCK, block), parts)
                times.append(time.perf_counter() - began)
            # the first call includes setting up
            total += counts[block] * min(times[1:])
    return total
