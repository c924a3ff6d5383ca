"""The U-Net of Ronneberger, Fischer, Brox 2015, whose way up is given the way down by concatenation.

Without additions: its shortcuts are concatenations, which ``--concat`` takes for blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _twice(before: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two 3x3 convolutions a level, down by 2x2 max pooling, and up by transposed 2x2 convolutions of stride 2.

    As published but for three things: convolutions are padded, so that logits have the size of the image, each is
    followed by batch norm, and an odd row or column that pooling leaves out is padded with zeros on the way up.

    Shapes: ``(N, in_channels, H, W)`` to logits ``(N, num_classes, H, W)``; H and W of at least 2 to the power of the
    levels below the first.

    Args:
        channels: of the first level; each level has twice those of the one above. 64 in the paper.
        levels: 5 in the paper.
        num_classes: of each pixel.
        in_channels: of the images.

    Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", section 2 and
    figure 1.
    """

    def __init__(self, channels: int = 64, levels: int = 5, num_classes: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            _twice(before, width) for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        upwards = widths[-2::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in upwards)
        self.up = nn.ModuleList(_twice(2 * width, width) for width in upwards)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the logits of their pixels.

        Args:
            x: images, shape (N, C, H, W).
        """
        beside: list[Tensor] = []
        for level, layers in enumerate(self.down):
            x = layers(F.max_pool2d(x, 2) if level else x)
            beside.append(x)
        beside.pop()
        for grow, layers in zip(self.grow, self.up, strict=True):
            aside, grown = beside.pop(), grow(x)
            missing = [aside.shape[axis] - grown.shape[axis] for axis in (3, 2)]
            if any(missing):
                grown = F.pad(grown, (0, missing[0], 0, missing[1]))
            x = layers(torch.cat([aside, grown], 1))
        logits: Tensor = self.head(x)
        return logits
