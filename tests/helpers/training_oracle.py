"""The training loop that everybody writes, and small networks for it, with nothing from the room that is tested.

Only what is drawn comes from there: the order of the images, crops and sub-networks of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.data import ImageData, open_data
from pathlens.models import preresnet
from pathlens.training import Recipe
from pathlens.training.batches import CROP, ORDER, generator
from tests.helpers.odd_nets import PaddedShortcut

Forward = Callable[[nn.Module, Tensor, int], Tensor]

USER_FILE = """
from torch import nn
from tests.helpers.training_oracle import network

def build():
    net = network().float()
    net.linear = nn.Sequential(nn.Dropout(0.2), net.linear)
    return net
"""


def digits(rows: int = 100) -> ImageData:
    return open_data("digits", split="train", limit=rows)


def network(depth: int = 8) -> nn.Module:
    """Pre-activation blocks with widths that differ; float64."""
    torch.manual_seed(3)
    return preresnet(depth, in_channels=1, widths=(4, 4, 6)).double()


class ByHand(nn.Module):
    """Post-activation blocks with a ``branch`` and a ``shortcut`` to call by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(6, 10)
        self.blocks = nn.ModuleList([PaddedShortcut(4, 4), PaddedShortcut(4, 6, 2), PaddedShortcut(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))

    def weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        """With the branches times numbers, shape (blocks,) or (blocks, N); a branch of zeros is not computed."""
        x = self.stem(x)
        for block, weight in zip(self.blocks, weights, strict=True):
            total = block.shortcut(x)
            if weight.any():
                total = total + block.branch(x) * weight.reshape(-1, 1, 1, 1)
            x = F.relu(total)
        return self.fc(x.mean((2, 3)))


def by_hand() -> ByHand:
    torch.manual_seed(4)
    return ByHand().double()


def cropped(pixels: Tensor, pad: int, drawn: np.ndarray) -> Tensor:
    """One image after the other: zeros around it, a window of it, mirrored where drawn."""
    height, width = pixels.shape[2:]
    found = []
    for image, (row, column, mirror) in zip(pixels, drawn.tolist(), strict=True):
        canvas = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad, dtype=image.dtype)
        canvas[:, pad : pad + height, pad : pad + width] = image
        window = canvas[:, row : row + height, column : column + width]
        found.append(torch.stack(list(window.unbind(2))[::-1], 2) if mirror else window)
    return torch.stack(found)


def drawn_crops(recipe: Recipe, count: int, seed: int, step: int) -> np.ndarray:
    rng = generator(seed, CROP, step)
    offsets = rng.integers(0, 2 * recipe.crop + 1, size=(count, 2))
    return np.concatenate([offsets, rng.integers(0, 1 + recipe.flip, size=(count, 1))], 1)


def plain_loop(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    seed: int,
    forward: Forward = lambda model, images, step: model(images),
    zeros: bool = False,
) -> list[float]:
    """Train in place; mean loss of each epoch.

    ``zeros``: parameters that a step does not reach have a gradient of zero, and not none.
    """
    kind: Any = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.AdamW
    more: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "adamw":
        more = {"betas": (recipe.momentum, 0.999)}
    optimizer = kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, foreach=False, **more)
    pixels, labels = data.rows(torch.arange(data.n))
    mean, std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (data.mean, data.std))
    model.train()
    losses, step = [], 0
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(generator(seed, ORDER, epoch).permutation(data.n))
        parts = order.split(recipe.batch_size)
        total = 0.0
        for indices in parts:
            images = pixels[indices]
            images = cropped(images, recipe.crop, drawn_crops(recipe, len(indices), seed, step))
            images = (images.double() / data.scale - mean) / std
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, len(parts))
            logits = forward(model, images, step)
            loss = F.cross_entropy(logits, labels[indices], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            for parameter in model.parameters():
                if zeros and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            total += float(loss.detach()) * len(indices)
            step += 1
        losses.append(total / data.n)
    return losses


def assert_same_weights(found: nn.Module, wanted: nn.Module, tolerance: float = 1e-11) -> None:
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)
