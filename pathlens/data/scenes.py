"""A segmentation set that comes with scikit-learn: scans of digits on pieces of photographs, with exact truth."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from pathlens.data.decode import to_pixels
from pathlens.data.embedded import open_digits, scikit_learn_file
from pathlens.data.images import ImageData, Normalisation, computed_normalisation
from pathlens.data.sources import ArraySource

SIZE = 48
"""Height and width of a scene in pixels."""
CLASSES = ("background", *map(str, range(10)))

_ROWS = {"train": 2000, "validation": 250, "test": 500}
_SEEDS = {"train": 0, "validation": 1, "test": 2}
#: which part of each photograph's width a split takes its backgrounds from, so that none is seen twice
_COLUMNS = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "test": (0.75, 1.0)}
_INK = 16
_SCALES = (2, 3)
_MOST = 3


def open_scenes(split: str, limit: int | None) -> ImageData:
    """Scenes of 48x48 RGB pixels: none to three digits on a piece of a photograph, in 11 classes with the background.

    A digit is a scan of the same split of ``digits``, 2 or 3 times as large, in one colour; it covers by its ink what
    is behind it, and what is inked by half or more belongs to it. Backgrounds are cut from the two photographs of
    ``sklearn.datasets.load_sample_images``, other parts for each split. Everything is drawn from a fixed seed, so that
    the truth is exact. An eighth of the scenes has no digit.

    Args:
        split: ``train``, ``validation`` or ``test``.
        limit: use the first scenes only.

    Returns:
        The scenes; ``labels`` are the masks, int64 of shape (n, 48, 48), 0 for background and d + 1 for the digit d.
    """
    pixels, masks = _scenes(split)
    train = computed_normalisation(ArraySource(_scenes("train")[0], 255), _ROWS["train"])
    n = len(pixels) if limit is None else min(limit, len(pixels))
    return ImageData(
        name="digit-scenes",
        split=split,
        n=n,
        total=len(pixels),
        num_classes=len(CLASSES),
        class_names=CLASSES,
        labels=masks[:n].long(),
        _source=ArraySource(pixels, 255),
        _normalisation=Normalisation(train.mean, train.std, "computed from the training split of digit-scenes"),
    )


@lru_cache(maxsize=3)
def _scenes(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, uint8 of shape (rows, 3, 48, 48), and masks, uint8 of shape (rows, 48, 48)."""
    # RandomState, not default_rng: its stream is frozen over versions of numpy
    random = np.random.RandomState(_SEEDS[split])
    digits = open_digits(split, None)
    scans, labels = (tensor.numpy() for tensor in digits.rows(torch.arange(digits.n, device="cpu")))
    photographs = _photographs()
    pixels = np.empty((_ROWS[split], 3, SIZE, SIZE), dtype=np.uint8)
    masks = np.zeros((_ROWS[split], SIZE, SIZE), dtype=np.uint8)
    for row in range(_ROWS[split]):
        photograph = photographs[random.randint(len(photographs))]
        first, last = (int(share * photograph.shape[2]) for share in _COLUMNS[split])
        top, left = random.randint(photograph.shape[1] - SIZE + 1), random.randint(first, last - SIZE + 1)
        scene = photograph[:, top : top + SIZE, left : left + SIZE].astype(np.int64)
        for _ in range(random.randint(1, _MOST + 1) if random.randint(8) else 0):
            number, scale = random.randint(len(scans)), _SCALES[random.randint(len(_SCALES))]
            ink = np.kron(scans[number, 0].astype(np.int64), np.ones((scale, scale), dtype=np.int64))
            y, x = (random.randint(SIZE - side + 1) for side in ink.shape)
            at = (slice(y, y + ink.shape[0]), slice(x, x + ink.shape[1]))
            colour = random.randint(256, size=3)[:, None, None]
            scene[(slice(None), *at)] = (scene[(slice(None), *at)] * (_INK - ink) + colour * ink) // _INK
            masks[row][at][ink >= _INK // 2] = labels[number] + 1
        pixels[row] = scene
    return torch.from_numpy(pixels), torch.from_numpy(masks)


def _photographs() -> list[np.ndarray]:
    """The two photographs, uint8 of shape (3, 427, 640)."""
    files = [scikit_learn_file("images", name) for name in ("china.jpg", "flower.jpg")]
    return [to_pixels(file, file.name, 3, None) for file in files]
