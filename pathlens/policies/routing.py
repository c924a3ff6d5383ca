"""Images run through the blocks that were chosen for them, and through no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part


def chosen_logits(network: Inference, images: Tensor, choices: Sequence[Tensor]) -> list[Tensor]:
    """Logits of a batch under one or several choices of blocks for each image, each of shape (N, classes).

    At each block the images that keep it run together, whatever they chose before, and the others take its shortcut.
    So a block costs what the images that keep it cost, even where no two images make the same choice. The first blocks,
    as far as all images keep them under all choices, run once.

    Args:
        network: prepared.
        images: shape (N, ...).
        choices: which blocks run for each image, bool, each of shape (N, K), on the CPU.
    """

    def run(part: tuple[Tensor, ...]) -> list[Tensor]:
        images, *kept = part
        x = network.stem(network.prepare(images))
        together = torch.cat(kept)
        shared = int(together.all(0).int().cumprod(0).sum())
        for block in range(shared):
            x = network.step(Part.BLOCK, block)(x)
        x = torch.cat([x] * len(kept)) if len(kept) > 1 else x
        for block in range(shared, len(network)):
            x = _step(network, block, x, together[:, block])
        return list(network.head(x).split(len(images)))

    parts = network.each(run, network.parts(images, *choices))
    return [torch.cat(logits) for logits in zip(*parts, strict=True)]


def _step(network: Inference, block: int, x: Tensor, kept: Tensor) -> Tensor:
    """x_i of a batch of which some images keep block i."""
    if bool(kept.all()):
        return network.step(Part.BLOCK, block)(x)
    if not bool(kept.any()):
        return network.step(Part.SHORTCUT, block)(x)
    groups = [(part, mask.nonzero()[:, 0].to(x.device)) for part, mask in ((Part.BLOCK, kept), (Part.SHORTCUT, ~kept))]
    outputs = [(rows, network.step(part, block)(x[rows])) for part, rows in groups]
    like = outputs[0][1]
    layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format
    together = torch.empty((len(x), *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout)
    for rows, output in outputs:
        together[rows] = output
    return together
