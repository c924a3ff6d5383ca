"""Training examples in batches; images are decoded once, kept on the device, and augmented there a batch at a time.

The random numbers of a step depend only on the seed and the number of the step, not on earlier steps. So a run that is
resumed, or divided among processes, sees the same examples in the same order with the same augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pathlens.data import DataSet, ImageData
from pathlens.data.images import NOT_COUNTED
from pathlens.errors import UsageError

# purposes of random generators, each a part of the generator's seed
ORDER, CROP, BLOCKS, NETWORK, POLICY = range(5)


def generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    """The random generator for one purpose at one step or epoch."""
    return np.random.default_rng([seed % 2**64, purpose, number])


@dataclass(frozen=True)
class Augmentation:
    """Crops and mirrorings of a batch, and random operations on each image.

    Attributes:
        crop: pixels of zeros around each image before it is cropped.
        flip: mirror every other image, at random.
        policy: ``none`` or ``randaugment``.
    """

    crop: int
    flip: bool
    policy: str = "none"

    def check(self, data: ImageData) -> None:
        """Refuse images that the policy is not made for.

        Raises:
            UsageError: naming what they are.
        """
        if self.policy != "none" and data.scale != 255:
            raise UsageError(
                f"{self.policy} is for images with pixels from 0 to 255, and those of {data.name} go to {data.scale}; "
                "give other images, or leave --augment out"
            )
        if self.policy != "none" and data.labels.dim() > 1:
            raise UsageError(f"{self.policy} moves pixels without their masks; leave --augment out for {data.name}")

    def draw(self, images: int, rng: np.random.Generator) -> np.ndarray:
        """Row offset, column offset and mirroring of each image, shape (images, 3)."""
        offsets = rng.integers(0, 2 * self.crop + 1, size=(images, 2))
        mirrored = rng.integers(0, 2 if self.flip else 1, size=(images, 1))
        return np.concatenate([offsets, mirrored], axis=1)

    def apply(self, pixels: Tensor, offsets: Tensor, border: int = 0) -> Tensor:
        """Cropped and mirrored images of the same size and type, channels-last in memory.

        Args:
            pixels: shape (N, C, H, W).
            offsets: of :meth:`draw`, on the same device.
            border: value of what is around the image.
        """
        number, _, height, width = pixels.shape
        padded = F.pad(pixels, (self.crop,) * 4, value=border).permute(0, 2, 3, 1)
        rows = torch.arange(height, device=pixels.device) + offsets[:, :1]
        columns = torch.arange(width, device=pixels.device).expand(number, -1)
        columns = torch.where(offsets[:, 2:] > 0, width - 1 - columns, columns) + offsets[:, 1:2]
        batch = torch.arange(number, device=pixels.device)
        picked = padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2)

    def operate(self, pixels: Tensor, seeds: np.ndarray) -> Tensor:
        """Images after the operations of the policy, each drawn with a seed of its own.

        Args:
            pixels: uint8, shape (N, C, H, W).
            seeds: shape (N,).
        """
        from torchvision.transforms.v2 import RandAugment

        policy = RandAugment()
        with torch.random.fork_rng(devices=[]):
            operated = []
            for image, seed in zip(pixels, seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)  # which torchvision draws from; that of a GPU is left alone
                operated.append(policy(image))
        return torch.stack(operated)


class Batches:
    """Batches of one training run, by number of step: examples and targets as they are.

    Args:
        data: the training examples.
        batch_size: examples in a batch, over all processes.
        device: where batches are put.
        dtype: of examples and targets that are no whole numbers.
        seed: of their order.
        rank: of this process.
        world: number of processes; each takes every ``world``-th example of a batch.

    Raises:
        UsageError: more processes than examples in a batch.
    """

    def __init__(
        self,
        data: DataSet,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        least = 2 * world  # batch norm needs two examples in every process
        batch_size = min(batch_size, data.n)
        if batch_size < least:
            raise UsageError(
                f"a batch of {batch_size} {data.rows_are} cannot be divided among {world} processes so that each has "
                f"two; give a larger batch or more {data.rows_are}"
            )
        self._data, self._batch_size = data, batch_size
        self._device, self._dtype = device, dtype
        self._seed, self._rank, self._world = seed, rank, world
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        whole, rest = divmod(data.n, batch_size)
        #: batches in an epoch; a last one of too few examples for all processes is left out
        self.per_epoch = whole + (rest >= least)
        #: whether one process alone would have that last batch
        self.drops_last = 2 <= rest < least
        self._threads = None if data.in_memory else ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor, int]:
        """This process's part of a batch: examples, targets, and examples of the whole batch."""
        examples, targets = (
            tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in self._fetched(step)
        )
        return examples, targets, len(self._indices(step))

    def _fetched(self, step: int) -> tuple[Tensor, Tensor]:
        if self._threads is None:
            return self._rows(self._indices(step))
        ready = self._ahead[1] if self._ahead is not None and self._ahead[0] == step else None
        rows = self._rows(self._indices(step)) if ready is None else ready.result()
        self._ahead = (step + 1, self._threads.submit(self._rows, self._indices(step + 1)))
        return rows

    def _rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._data.rows(torch.from_numpy(indices[self._rank :: self._world].copy()), self._device)

    def _indices(self, step: int) -> np.ndarray:
        epoch, number = divmod(step, self.per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, generator(self._seed, ORDER, epoch).permutation(self._data.n))
        return self._order[1][number * self._batch_size : (number + 1) * self._batch_size]


class TrainingBatches(Batches):
    """Batches of images, augmented and normalised.

    Args:
        data: the training images.
        batch_size: images in a batch, over all processes.
        augmentation: of the images.
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
        device: where batches are put.
        dtype: of the images.
        seed: of order and augmentation.
        rank: of this process.
        world: number of processes; each takes every ``world``-th image of a batch.
        memory_format: order of the images in memory.

    Raises:
        UsageError: more processes than images in a batch, or images that the augmentation is not made for.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        augmentation: Augmentation,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        rank: int = 0,
        world: int = 1,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        augmentation.check(data)
        super().__init__(data, batch_size, device, dtype, seed, rank, world)
        self._augmentation, self._scale = augmentation, data.scale
        working = torch.float64 if dtype == torch.float64 else torch.float32
        self._mean = torch.tensor(mean, dtype=working, device=device).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=working, device=device).view(-1, 1, 1)
        self._memory_format = memory_format

    def __call__(self, step: int) -> tuple[Tensor, Tensor, int]:
        """This process's part of a batch.

        Returns:
            Normalised images, shape (N, C, H, W); labels, shape (N,), or masks, shape (N, H, W), which are cropped and
            mirrored as their images; images of the whole batch.
        """
        indices = self._indices(step)
        pixels, labels = self._fetched(step)
        offsets = self._augmentation.draw(len(indices), generator(self._seed, CROP, step))
        if self._augmentation.crop or self._augmentation.flip:
            own = torch.from_numpy(offsets[self._rank :: self._world]).to(self._device)
            pixels = self._augmentation.apply(pixels, own)
            if labels.dim() > 1:
                labels = self._augmentation.apply(labels[:, None], own, NOT_COUNTED)[:, 0]
        if self._augmentation.policy != "none":
            seeds = generator(self._seed, POLICY, step).integers(2**63, size=len(indices))
            pixels = self._augmentation.operate(pixels, seeds[self._rank :: self._world])
        images = pixels.to(self._mean.dtype).div_(self._scale).sub_(self._mean).div_(self._std)
        # a clone, because images of one channel count as contiguous in either order, whatever their strides
        return images.clone(memory_format=self._memory_format), labels, len(indices)
