"""What stands in the place of a deleted branch: its mean over the data, or the branch of another image.

Zero is an odd value for a branch. With its mean the layers after it see what they see on average, with another image's
branch what they see in the wrong place (resample ablation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pathlens.analyses.agreement import check_images
from pathlens.analyses.sources import BatchSource
from pathlens.errors import DataError, UsageError
from pathlens.residual.discover import same_size
from pathlens.residual.inference import Call, Inference
from pathlens.residual.routes import Part, Route

_REPLACED = (Part.MEAN, Part.RESAMPLED)


class Network(Protocol):
    """A prepared network whose blocks run as a route says."""

    def step(self, part: Part, block: int) -> Call:
        """All or a part of a block of a chain, from x_{i-1} to x_i."""

    def whole(self, route: Route) -> Call:
        """From a prepared batch to the logits."""


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
        UsageError: a branch to replace that does not have one entry for each image.
    """

    def __init__(self, network: Inference, routes: Iterable[Route], source: BatchSource, seed: int) -> None:
        steps = {step for route in routes for step in route}
        _check_images_stay_apart(network, sorted(block for part, block in steps if part in _REPLACED))
        self._network, self._seed = network, seed
        self.whole_batches = any(part is Part.RESAMPLED for part, _ in steps)
        images, size = source.provenance.images, source.batch_size
        if images is not None and size is not None:  # else the last batch is seen when it comes
            self._check_others((images - 1) // size, (images - 1) % size + 1)
        self._means = _means(network, sorted(block for part, block in steps if part is Part.MEAN), source)

    def at(self, batch: int, images: int) -> Network:
        """The network as it runs in a batch.

        Args:
            batch: its number.
            images: how many it has.

        Raises:
            DataError: a batch of one image, where another one is asked for.
        """
        self._check_others(batch, images)
        return _InBatch(self._network, self._means, partial(other_images, self._seed, batch, images=images))

    def _check_others(self, batch: int, images: int) -> None:
        if self.whole_batches and images < 2:
            raise DataError(
                f"batch {batch} has one image, so there is no other whose branch could be taken; give another "
                "batch size (--batch-size)"
            )


@dataclass(frozen=True)
class _InBatch:
    """A network in a batch: the means of its branches, and block -> the image whose branch each image gets."""

    network: Inference
    means: dict[int, Tensor]
    others: Callable[[int], np.ndarray]

    def step(self, part: Part, block: int) -> Call:
        if part not in _REPLACED:
            return self.network.step(part, block)
        transition, branch, shortcut, post = self.network.pieces(block)
        given = self._given(part, block)

        def call(x: Tensor) -> Tensor:
            branch_point = transition(x)
            return post(shortcut(branch_point) + (given if part is Part.MEAN else branch(branch_point)[given]))

        return call

    def whole(self, route: Route) -> Call:
        return self.network.whole(route, self._given)

    def _given(self, part: Part, block: int) -> Tensor:
        if part is Part.MEAN:
            return self.means[block]
        return torch.from_numpy(self.others(block)).to(self.network.device)


def other_images(seed: int, batch: int, block: int, images: int) -> np.ndarray:
    """For each image of a batch another one of it, uniformly drawn, shape (images,)."""
    others = np.random.default_rng([seed % 2**64, batch, block]).integers(images - 1, size=images)
    return others + (others >= np.arange(images))


def _check_images_stay_apart(network: Inference, blocks: Sequence[int]) -> None:
    trace = network.chain.trace
    images = trace.value(trace.source).shape[0]
    for block in blocks:
        rows = trace.value(network.chain.links[block].branch).shape[0]
        if not same_size(rows, images):
            raise UsageError(
                f"block {block} ({network.view[block].name}) cuts images into pieces (windows), so that its branch is "
                "not one for each image; give replace 'zero' for it"
            )


def _means(network: Inference, blocks: Sequence[int], source: BatchSource) -> dict[int, Tensor]:
    """The mean of each block's branch over all images, of shape (1, ...)."""
    if not blocks:
        return {}
    sums: dict[int, Tensor] = {}
    number = 0
    added = network.branches(blocks, lambda branch: branch.sum(0, keepdim=True, dtype=torch.float64))
    for batch, images, _ in source.batches():
        check_images(network, images, batch)
        number += len(images)
        for part in network.each(lambda part: added(network.prepare(part[0])), network.parts(images)):
            for block, value in zip(blocks, part, strict=True):
                sums[block] = sums[block] + value if block in sums else value
    return {block: (value / number).to(network.dtype) for block, value in sums.items()}
