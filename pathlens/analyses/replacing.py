"""What stands in the place of a deleted branch: its mean over the data, or the branch of another image.

Zero is an odd value for a branch. With its mean the layers after it see what they see on average, with another image's
branch what they see in the wrong place (resample ablation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pathlens.analyses.agreement import check_images
from pathlens.analyses.sources import BatchSource
from pathlens.errors import DataError
from pathlens.residual.inference import Call, Inference
from pathlens.residual.routes import Part, Route

Steps = Callable[[Part, int], Call]
"""(What runs, block) -> from x_{i-1} to x_i."""


class Replacing:
    """The blocks of a network of which some branches are replaced.

    Means are of the intact network, over all images and at each position, so that no layout of the channels is assumed;
    they take as much memory as the branches of one image in float64. Another image's branch is that of the lesioned
    network itself, which for one deleted block is that of the intact network.

    Args:
        network: the prepared network.
        routes: of all lesions.
        source: the images; every process goes through all of them once, where means are asked for.
        seed: of the other images.

    Attributes:
        whole_batches: whether the images of a batch have to run together.

    Raises:
        DataError: images that do not fit the network.
    """

    def __init__(self, network: Inference, routes: Iterable[Route], source: BatchSource, seed: int) -> None:
        steps = {step for route in routes for step in route}
        self._network, self._seed = network, seed
        self.whole_batches = any(part is Part.RESAMPLED for part, _ in steps)
        self._means = _means(network, sorted(block for part, block in steps if part is Part.MEAN), source)

    def steps(self, batch: int, images: int) -> Steps:
        """How blocks run in a batch.

        Args:
            batch: its number.
            images: how many it has.

        Raises:
            DataError: a batch of one image, where another one is asked for.
        """
        if self.whole_batches and images < 2:
            raise DataError(
                f"batch {batch} has one image, so there is no other whose branch could be taken; give another "
                "batch size (--batch-size)"
            )

        def step(part: Part, block: int) -> Call:
            if part is Part.MEAN:
                mean = self._means[block]
                return self._replaced(block, lambda branch, x: mean)
            if part is Part.RESAMPLED:
                others = other_images(self._seed, batch, block, images)
                index = torch.from_numpy(others).to(self._network.device)
                return self._replaced(block, lambda branch, x: branch(x)[index])
            return self._network.step(part, block)

        return step

    def _replaced(self, block: int, instead: Callable[[Call, Tensor], Tensor]) -> Call:
        transition, branch, shortcut, post = self._network.pieces(block)

        def call(x: Tensor) -> Tensor:
            branch_point = transition(x)
            return post(shortcut(branch_point) + instead(branch, branch_point))

        return call


def other_images(seed: int, batch: int, block: int, images: int) -> np.ndarray:
    """For each image of a batch another one of it, uniformly drawn, shape (images,)."""
    others = np.random.default_rng([seed, batch, block]).integers(images - 1, size=images)
    return others + (others >= np.arange(images))


def _means(network: Inference, blocks: Sequence[int], source: BatchSource) -> dict[int, Tensor]:
    """The mean of each block's branch over all images, of shape (1, ...)."""
    if not blocks:
        return {}
    sums: dict[int, Tensor] = {}
    number = 0

    def branches(part: tuple[Tensor, ...]) -> list[Tensor]:
        x = network.stem(network.prepare(part[0]))
        added = []
        for block in range(blocks[-1] + 1):
            if block not in wanted:
                x = network.step(Part.BLOCK, block)(x)
                continue
            transition, branch, shortcut, post = network.pieces(block)
            branch_point = transition(x)
            value = branch(branch_point)
            added.append(value.sum(0, keepdim=True, dtype=torch.float64))
            x = post(shortcut(branch_point) + value)
        return added

    wanted = set(blocks)
    for batch, images, _ in source.batches():
        check_images(network, images, batch)
        number += len(images)
        for added in network.each(branches, network.parts(images)):
            for block, value in zip(blocks, added, strict=True):
                sums[block] = sums[block] + value if block in sums else value
    return {block: (value / number).to(network.dtype) for block, value in sums.items()}
