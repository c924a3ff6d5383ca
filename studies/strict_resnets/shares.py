"""What the stem and every block have in the last sum, at initialisation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.models import StrictUNet, strictunet
from pathlens.tables import Table
from studies.common import StudySetting, once, over_seeds, say
from studies.record import images as about
from studies.record import make_table
from studies.strict_resnets.nets import CLASSES

SCHEMES = ("he-normal", "he-uniform", "glorot-normal", "glorot-uniform")
CHAIN, UNET = "one level", "three levels"
NORMS = {CHAIN: ("end", "block"), UNET: ("each", "end", "block")}

_WHICH = (
    ("network", "", "one level: blocks in a row; three levels: a U-Net"),
    ("norms", "", "where batch norms are on the main path"),
    ("init", "", "scheme, one of those of pathlens.initialise"),
)
SUMMANDS = (
    *_WHICH,
    ("seeds", "", "initialisations"),
    ("block", "", "in the order of the forward pass; -1 is the stem"),
    ("share", "fraction", "covariance of the summand with the last sum over the variance of the sum, mean over seeds"),
    ("share_low", "fraction", "lower end of Student's 95 % interval over seeds"),
    ("share_high", "fraction", "upper end"),
    ("log_variance_ratio", "", "log of the variance of the summand over that of the sum, mean over seeds"),
    ("log_variance_ratio_low", "", "lower end of Student's 95 % interval over seeds"),
    ("log_variance_ratio_high", "", "upper end"),
)
NETWORKS = (
    *_WHICH,
    ("seed", "", "of the initialisation"),
    ("blocks", "", "of the network"),
    ("stem_share", "fraction", "share of the stem"),
    ("first_share", "fraction", "share of the first quarter of the blocks"),
    ("factor", "", "variance of a block's summand over that of the block before it: exp of the least-squares slope of "
     "the log of the variance ratio over all blocks"),
    ("r_squared", "", "of that line"),
)  # fmt: skip


def broken_up(net: StrictUNet, images: Tensor) -> Tensor:
    """The summands of the last sum of a network in train mode: the stem, and every block in the order of the forward.

    ``pathlens decompose`` breaks up a chain, in which all that lies below the first level of a U-Net is one block. The
    main path of a strict U-Net is linear but for batch norms, so that its inner blocks are carried as easily.

    Args:
        net: with biases of zero, and batch norms that have learned nothing.
        images: shape (N, channels, H, W).

    Returns:
        Shape (1 + blocks, N, channels, H, W).
    """
    stack = net.stem(images)[None]
    passed: list[Tensor] = []
    for level, shrink in zip(net.down, net.shrink, strict=False):
        stack = _through(level, stack)
        passed.append(stack)
        stack = _through(shrink, stack)
    stack = _through(net.down[-1], stack)
    for level, grow, after in zip(reversed(net.up), reversed(net.grow), reversed(net.after), strict=True):
        before = passed.pop()
        size = list(before.shape[-2:])
        grown = torch.stack([grow(summand, output_size=size) for summand in stack])
        stack = _through(after, grown)
        stack = torch.cat([stack[: len(before)] + before, stack[len(before) :]])
        stack = _through(level, stack)
    return stack


def _through(layers: nn.Module, stack: Tensor) -> Tensor:
    """Carry the summands through convolutions, norms and blocks; each block adds one."""
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d):
            stack = torch.stack([layer(summand) for summand in stack])
        elif isinstance(layer, nn.BatchNorm2d):
            variance = stack.sum(0).var((0, 2, 3), correction=0)
            centred = stack - stack.mean((1, 3, 4), keepdim=True)
            stack = centred / (variance + layer.eps).sqrt()[:, None, None]
        else:
            whole = stack.sum(0)
            stack = torch.cat([stack, (layer(whole) - whole)[None]])
    return stack


def moments(stack: Tensor) -> list[dict[str, float]]:
    """Share and variance ratio of each summand; moments of a channel over images and places, mean over channels."""
    whole = stack.sum(0)
    whole = whole - whole.mean((0, 2, 3), keepdim=True)
    total = whole.square().mean()
    centred = stack - stack.mean((1, 3, 4), keepdim=True)
    shares = (centred * whole).mean((1, 2, 3, 4)) / total
    ratios = centred.square().mean((1, 2, 3, 4)) / total
    return [
        {"share": share, "log_variance_ratio": math.log(ratio)}
        for share, ratio in zip(shares.tolist(), ratios.tolist(), strict=True)
    ]


def _of_chain(norms: str, init: str, seed: int, blocks: int, images: Tensor) -> list[dict[str, float]]:
    net = strictunet((blocks,), 16, CLASSES, norms=norms)
    batches = [(images, torch.zeros(len(images), *images.shape[-2:], dtype=torch.long))]
    table = pathlens.decompose(net, batches, init=init, seeds=1, seed=seed, mode="train", dtype="float64")
    return [
        {"share": row["share"], "log_variance_ratio": math.log(row["variance_ratio"])}
        for row in table.rows
        if row["block"] is not None
    ]


def _draw_transposed(layer: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw a transposed convolution of stride 2, which ``pathlens.initialise`` keeps.

    Its fan-in is the mean number of weights that reach an output, a quarter of those of its kernels.
    """
    assert isinstance(layer, nn.ConvTranspose2d)
    places = layer.weight[0, 0].numel()
    fan_in, fan_out = layer.in_channels * places / 4, layer.out_channels * places
    variance = 2 / fan_in if init.startswith("he") else 2 / (fan_in + fan_out)
    if init.endswith("normal"):
        nn.init.normal_(layer.weight, std=math.sqrt(variance), generator=generator)
    else:
        nn.init.uniform_(layer.weight, -math.sqrt(3 * variance), math.sqrt(3 * variance), generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _of_unet(norms: str, init: str, seed: int, blocks: int, images: Tensor) -> list[dict[str, float]]:
    net = strictunet((blocks,) * 3, 8, CLASSES, norms=norms).double()
    generator = torch.Generator().manual_seed(seed)
    pathlens.initialise(net, init, example=images[:2], generator=generator)
    for grow in net.grow:
        _draw_transposed(grow, init, generator)
    last: list[Tensor] = []
    net.norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
    with torch.no_grad():
        net(images)
        stack = broken_up(net, images)
    torch.testing.assert_close(stack.sum(0), last[0])
    return moments(stack)


def measure(study: StudySetting) -> dict[str, Table]:
    """The tables of this part by stem, taken up again where they were measured before."""
    tables: dict[str, Table] = {}

    def of(stem: str) -> Table:
        tables.update(tables or _measure(study))
        return tables[stem]

    return {stem: once(study, stem, lambda stem=stem: of(stem)) for stem in ("shares", "shares-networks")}


def _measure(study: StudySetting) -> dict[str, Table]:
    data = pathlens.open_data("digit-scenes", limit=study.pick(4, 16, 64))
    images = data.batch(0, data.n).images.double()
    networks = {
        CHAIN: (_of_chain, study.pick(3, 24, 100), F.avg_pool2d(images, 4)),
        UNET: (_of_unet, study.pick(1, 4, 18), images[: study.pick(2, 8, 64)]),
    }
    rows: list[dict[str, Any]] = []
    single: list[dict[str, Any]] = []
    for network, (break_up, blocks, shown) in networks.items():
        for norms in NORMS[network]:
            for init in SCHEMES[:: study.pick(2, 1, 1)]:
                say(f"shares: {network}, norms {norms}, {init}")
                which = {"network": network, "norms": norms, "init": init}
                seeds = [break_up(norms, init, seed, blocks, shown) for seed in range(study.pick(1, 5, 10))]
                single += [{**which, "seed": seed, **_summary(summands)} for seed, summands in enumerate(seeds)]
                rows += [{**which, "seeds": len(seeds), "block": block - 1, **_mean(of)} for block, of in
                         enumerate(zip(*seeds, strict=True))]  # fmt: skip
    facts = {"study": study.name, "scale": study.scale, **about(data)}
    return {
        "shares": make_table(SUMMANDS, rows, **facts),
        "shares-networks": make_table(NETWORKS, single, **facts),
    }


def _mean(summands: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    everywhere = (-math.inf, math.inf)
    return over_seeds(summands, "share", everywhere) | over_seeds(summands, "log_variance_ratio", everywhere)


def _summary(summands: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    stem, *blocks = summands
    logs = [block["log_variance_ratio"] for block in blocks]
    line = statistics.linear_regression(range(len(logs)), logs)
    return {
        "blocks": len(blocks),
        "stem_share": stem["share"],
        "first_share": math.fsum(block["share"] for block in blocks[: -(-len(blocks) // 4)]),
        "factor": math.exp(line.slope),
        "r_squared": float(np.corrcoef(range(len(logs)), logs)[0, 1] ** 2),
    }
