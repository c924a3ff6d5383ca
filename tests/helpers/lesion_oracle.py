"""Lesioned networks written out by hand, and the plain loop over images that the sweeps are compared with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.helpers.odd_nets import Net, PaddedShortcut, drawn

Batches = list[tuple[Tensor, Tensor]]


def small_net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Net:
    """Six residual blocks in two stages, each with a ``branch`` and a ``shortcut`` to call by hand."""
    blocks = [(8, 8, 1), (8, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1)]
    net = drawn(lambda: Net(*(PaddedShortcut(*block) for block in blocks), out=16), seed)
    assert isinstance(net, Net)
    return net.to(dtype)


def small_forward(
    net: Net, x: Tensor, deleted: Sequence[int] = (), no_skip: Sequence[int] = (), order: Sequence[int] | None = None
) -> Tensor:
    """The forward pass of :func:`small_net` with blocks deleted, shortcuts deleted, or in another order."""
    x = net.stem(x)
    for index in order or range(len(net.blocks)):
        block = net.blocks[index]
        total: Tensor | float = 0.0
        if index not in deleted:
            total = total + block.branch(x)
        if index not in no_skip:
            total = total + block.shortcut(x)
        x = F.relu(total)
    return net.fc(x.mean((2, 3)))


def small_batches(count: int = 40, size: int = 16, dtype: torch.dtype = torch.float64) -> Batches:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 8, 8, generator=generator, dtype=dtype)
    labels = torch.randint(5, (count,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def indices(text: str | None) -> list[int]:
    """Blocks of a column of a table."""
    return [] if text is None else [int(part) for part in text.split(",")]


def plain_loop(forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Error and mean cross-entropy over all images, one network, one batch after the other."""
    wrong = seen = 0
    loss = 0.0
    with torch.no_grad():
        for images, labels in batches:
            logits = forward(images).double()
            wrong += int((logits.argmax(1) != labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            seen += len(labels)
    return wrong / seen, loss / seen


def near(row: dict[str, Any], wanted: tuple[float, float], tolerance: float = 1e-10) -> None:
    assert row["error"] == wanted[0]
    assert row["loss"] == pytest.approx(wanted[1], rel=tolerance, abs=tolerance)


class Cancels(nn.Module):
    """A block that subtracts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1, bias=False)
        self.conv.weight = nn.Parameter(-torch.eye(8).reshape(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class CifarLoop:
    """A CIFAR ResNet of He et al. 2016 from its state dict, with functions alone, and the states between its blocks.

    Deleting block i starts from the state before it, because what comes before does not change.
    """

    def __init__(self, weights: Path, blocks_a_stage: int, batches: Batches) -> None:
        kept = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        self.weights = {name.removeprefix("module."): value for name, value in kept.items()}
        self.names = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(blocks_a_stage)]
        self.labels = torch.cat([labels for _, labels in batches])
        with torch.no_grad():
            start = [F.relu(self._bn(self._conv(images, "conv1"), "bn1")) for images, _ in batches]
            self.states = [start]
            for block in range(len(self.names)):
                self.states.append([self.block(x, block) for x in self.states[-1]])

    def _conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], stride=stride, padding=1)

    def _bn(self, x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            self.weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift)

    def block(self, x: Tensor, index: int, branch: bool = True, skip: bool = True) -> Tensor:
        name = self.names[index]
        width = self.weights[f"{name}.conv2.weight"].shape[0]
        stride = 2 if width != x.shape[1] else 1
        total: Tensor | float = 0.0
        if branch:
            out = F.relu(self._bn(self._conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            total = total + self._bn(self._conv(out, f"{name}.conv2"), f"{name}.bn2")
        if skip:
            missing = (width - x.shape[1]) // 2
            total = total + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing, missing))
        return F.relu(total)

    def result(self, lesion: int | None = None, branch: bool = False, skip: bool = True) -> tuple[float, float]:
        """Error and loss, intact or with one block changed."""
        count = len(self.names)
        first = count if lesion is None else lesion
        logits = []
        with torch.no_grad():
            for state in self.states[first]:
                x = state
                for block in range(first, count):
                    x = self.block(x, block) if block != lesion else self.block(x, block, branch, skip)
                logits.append(x.mean((2, 3)) @ self.weights["linear.weight"].T + self.weights["linear.bias"])
        scores = torch.cat(logits).double()
        wrong = int((scores.argmax(1) != self.labels).sum())
        return wrong / len(self.labels), float(F.cross_entropy(scores, self.labels))


def decoded(path: Path, rows: int, size: int = 125) -> Batches:
    """The first rows of a parquet file of images, decoded by PIL, normalised as the published networks want it."""
    frame = pd.read_parquet(path).head(rows)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(item["bytes"])).convert("RGB")) for item in frame["img"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    labels = torch.from_numpy(frame["label"].to_numpy().copy())
    return list(zip(images.split(size), labels.split(size), strict=True))
