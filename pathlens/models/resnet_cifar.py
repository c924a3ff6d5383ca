r"""CIFAR residual networks v1, post-activation basic blocks, and their twins without shortcuts.

He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", section 4.2: a 3x3 stem, three stages of n
blocks with 16, 32 and 64 channels at resolutions 32, 16 and 8, global average pooling and one linear layer;
``6 n + 2`` layers. Block i computes ``x_i = relu(S_i(x_{i-1}) + F_i(x_{i-1}))``. S_i is the identity but in the first
block of the second and third stage, where shapes change: there it is zero padding without parameters (option A of the
paper: ``resnet56``) or a 1x1 convolution of stride 2 with batch norm (option B: ``resnet56b``). In the plain twin
(``plain56``) it is not there at all: ``x_i = relu(F_i(x_{i-1}))``.

The names in the state dict (``conv1``, ``bn1``, ``layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}``, ``linear``, and
``layer{2,3}.0.shortcut.{0,1}`` of option B) are those of the published weights of
github.com/akamaster/pytorch_resnet_cifar10 (option A) and github.com/tomgoldstein/loss-landscape (option B and plain),
so that these files load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError
from pathlens.models.shortcut import ZeroPadShortcut

Shortcut = Literal["padding", "projection", "none"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm; ReLU between them and as post-activation.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut = "padding") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module | None = None if shortcut == "none" else nn.Identity()
        if self.shortcut is not None and (stride != 1 or in_channels != width):
            self.shortcut = (
                nn.Sequential(nn.Conv2d(in_channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
                if shortcut == "projection"
                else ZeroPadShortcut(in_channels, width, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(shortcut(x) + branch(x))``, or ``relu(branch(x))`` where there is no shortcut."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out if self.shortcut is None else self.shortcut(x) + out)


class CifarResNet(nn.Module):
    r"""Residual network v1 for small images.

    Shapes: input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        blocks: blocks of each of the three stages.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages; the stem has ``widths[0]``.
        shortcut: ``"padding"`` (option A), ``"projection"`` (option B: 1x1 convolution and batch norm where shapes
            change), or ``"none"`` (the plain network: no block has a shortcut).

    Raises:
        ModelError: there are not three widths, or the widths decrease where channels are padded.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Shortcut = "padding",
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(widths) < 1:
            raise ModelError(f"widths {tuple(widths)}: give three stages, each of at least 1 channel")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, 1, shortcut)
        self.layer2 = self._stage(widths[0], widths[1], blocks, 2, shortcut)
        self.layer3 = self._stage(widths[1], widths[2], blocks, 2, shortcut)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        first = BasicBlock(in_channels, width, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    shortcut: Shortcut = "padding",
) -> CifarResNet:
    """Build the network with ``depth = 6 n + 2`` layers (20, 32, 44, 56, 110, 1202 in the paper).

    Args:
        depth: convolutional and linear layers.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages.
        shortcut: see :class:`CifarResNet`.

    Raises:
        ModelError: the depth is not ``6 n + 2`` with ``n`` at least 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ModelError(f"no CIFAR residual network of depth {depth}: give 6n+2, such as 20 or 56")
    return CifarResNet((depth - 2) // 6, num_classes, in_channels, widths, shortcut)
