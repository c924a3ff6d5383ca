"""The data set that comes with scikit-learn: 1,797 scans of handwritten digits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from pathlens.data.images import ImageData, Normalisation, computed_normalisation
from pathlens.data.sources import ArraySource

_TEST, _VALIDATION = 360, 180


def open_digits(split: str, limit: int | None) -> ImageData:
    """Digits of 8x8 grey pixels (values 0 to 16, read as 0 to 1) in 10 classes.

    The split is fixed: 360 test rows, 180 validation rows, 1,257 training rows, stratified by class, each in the mixed
    order in which ``train_test_split(..., random_state=0)`` gives them. Source: E. Alpaydin, C. Kaynak, Optical
    Recognition of Handwritten Digits, UCI 1998 (its test part), as ``sklearn.datasets.load_digits`` ships it.
    """
    pixels, targets = _digits()
    rows = _rows(targets)
    labels = torch.from_numpy(targets[rows[split]])
    train = computed_normalisation(ArraySource(pixels[rows["train"]], 16), len(rows["train"]))
    normalisation = Normalisation(train.mean, train.std, "computed from the training split of digits")
    n = len(labels) if limit is None else min(limit, len(labels))
    return ImageData(
        name="digits",
        split=split,
        n=n,
        total=len(labels),
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        labels=labels[:n],
        _source=ArraySource(pixels[rows[split]], 16),
        _normalisation=normalisation,
    )


@lru_cache(maxsize=1)
def _digits() -> tuple[torch.Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1), bunch.target.astype(np.int64)


def _rows(targets: np.ndarray) -> dict[str, np.ndarray]:
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(targets))
    rest, test = train_test_split(everything, test_size=_TEST, random_state=0, stratify=targets)
    train, validation = train_test_split(rest, test_size=_VALIDATION, random_state=0, stratify=targets[rest])
    return {"train": train, "validation": validation, "test": test}
