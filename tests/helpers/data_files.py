"""Files that the tests of the data room write and read."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pathlens.data import ImageData, open_data
from pathlens.errors import DataError


def png(pixels: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(rows: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def write(
    path: Path, items: list[bytes | None], labels: object = None, image: str = "img", label: str = "label"
) -> str:
    """A parquet file in the Hugging Face layout, written by pandas; returns its spec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": item, "path": f"{row}.png"} for row, item in enumerate(items)]
    pd.DataFrame({image: structs, label: list(range(len(items))) if labels is None else labels}).to_parquet(path)
    return f"parquet:{path}"


def raw(data: ImageData, batch_size: int = 3) -> torch.Tensor:
    """Pixels from 0 to 255 as the batches give them, without normalisation."""
    one, zero = [1.0] * data.channels, [0.0] * data.channels
    batches = data.batches(batch_size, mean=zero, std=one, dtype=torch.float64)
    return (torch.cat([batch.images for batch in batches]) * 255).round()


def refused(spec: str, *parts: str, **options: object) -> None:
    """Opening (or reading) must fail with one line that holds all ``parts``, and with nothing on the warnings' side."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            list(open_data(spec, **options).batches(4))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def image_folder(root: Path, classes: dict[str, int] | None = None, seed: int = 0) -> str:
    for name, count in (classes or {"ape": 12, "bat": 12, "cow": 12}).items():
        (root / name).mkdir(parents=True)
        for row, pixels in enumerate(noise(count, 10, 12, 3, seed=seed + len(name))):
            Image.fromarray(pixels).save(root / name / f"{row}.png")
    return f"imagefolder:{root}"
