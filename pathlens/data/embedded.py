"""The data set that comes with scikit-learn: 1,797 scans of handwritten digits."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from pathlens.data.images import ImageData, Normalisation, computed_normalisation
from pathlens.data.sources import ArraySource

SCALE = 16
"""The pixel value of the scans that stands for 1.0; in files of images that is 255."""

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
    train = computed_normalisation(ArraySource(pixels[rows["train"]], SCALE), len(rows["train"]))
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
        _source=ArraySource(pixels[rows[split]], SCALE),
        _normalisation=normalisation,
    )


def scikit_learn_file(*parts: str) -> Path:
    """A file that comes with scikit-learn, found without importing it, which takes seconds.

    Args:
        *parts: its place in ``sklearn/datasets``.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    (folder,) = spec.submodule_search_locations or ("",)
    return Path(folder, "datasets", *parts)


@lru_cache(maxsize=1)
def _digits() -> tuple[torch.Tensor, np.ndarray]:
    """Pixels and labels from scikit-learn's own file."""
    file = scikit_learn_file("data", "digits.csv.gz")
    with gzip.open(file, "rt") as text:
        rows = np.loadtxt(text, delimiter=",")
    pixels = rows[:, :-1].reshape(-1, 8, 8)
    return torch.from_numpy(pixels.astype(np.uint8)).unsqueeze(1), rows[:, -1].astype(np.int64)


def _rows(targets: np.ndarray) -> dict[str, np.ndarray]:
    rest, test = _stratified(np.arange(len(targets)), targets, _TEST)
    train, validation = _stratified(rest, targets, _VALIDATION)
    return {"train": train, "validation": validation, "test": test}


def _stratified(rows: np.ndarray, targets: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts with the classes in the same shares.

    What scikit-learn's ``train_test_split(rows, test_size=held_out, random_state=0, stratify=targets[rows])`` gives.
    """
    rng = np.random.RandomState(0)
    _, classes, counts = np.unique(targets[rows], return_inverse=True, return_counts=True)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    remaining = _shares(counts, len(rows) - held_out, rng)
    held = _shares(counts - remaining, held_out, rng)
    parts: tuple[list[int], list[int]] = ([], [])
    for inside, first, second in zip(members, remaining, held, strict=True):
        mixed = inside[rng.permutation(len(inside))]
        parts[0].extend(mixed[:first])
        parts[1].extend(mixed[first : first + second])
    first_part, second_part = (rng.permutation(part) for part in parts)
    return rows[first_part], rows[second_part]


def _shares(counts: np.ndarray, total: int, rng: np.random.RandomState) -> np.ndarray:
    """How many to take of each class; what rounding leaves goes to the largest remainders, ties at random."""
    exact = counts / counts.sum() * total
    taken = np.floor(exact)
    missing = int(total - taken.sum())
    for remainder in np.unique(exact - taken)[::-1]:
        if missing == 0:
            break
        (tied,) = np.where(exact - np.floor(exact) == remainder)
        chosen = rng.choice(tied, size=min(len(tied), missing), replace=False)
        taken[chosen] += 1
        missing -= len(chosen)
    return taken.astype(int)
