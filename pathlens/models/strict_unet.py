"""A U-Net of which the main path has nothing but additions: a residual network down and up again."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("each", "end", "block")
"""Where batch norms are on the main path; see :class:`StrictUNet`."""


class StrictUnit(nn.Module):
    """x + branch(x), the branch being batch norm, ReLU and 3x3 convolution, twice.

    Shapes: ``(N, channels, H, W)`` to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.relu(norm(out)))
        return x + out


class StrictUNet(nn.Module):
    """Levels of residual blocks, each half as high and wide as the one before, and the same way up again.

    Between two levels lie two 3x3 convolutions and one of stride 2, on the way up a transposed one of stride 2 and two
    more, all without activations, so that the main path is linear but for batch norms. On the way up what the level had
    on the way down is added. Odd sizes are halved upwards (101, 51, 26, 13) and restored.

    Shapes: ``(N, in_channels, H, W)`` to logits ``(N, num_classes, H, W)``.

    Args:
        blocks: of each level on the way down; all but the last one has as many again on the way up.
        channels: of the first level; each level has twice those of the one above.
        num_classes: of each pixel.
        in_channels: of the images.
        norms: batch norms on the main path: ``each``, behind every convolution between levels; ``end``, only before the
            last ReLU; ``block``, behind every block.

    Source: Youssin, "Training deep resnets", for the blocks, the convolutions between levels and where batch norms are;
    that channels double is ours, as in Ronneberger et al. 2015.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        channels: int,
        num_classes: int = 1,
        in_channels: int = 3,
        norms: str = "each",
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(len(blocks))]
        normed = norms == "block"
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList(_level(count, width, normed) for count, width in zip(blocks, widths, strict=True))
        self.up = nn.ModuleList(
            _level(count, width, normed) for count, width in zip(blocks[:-1], widths[:-1], strict=True)
        )
        pairs = list(pairwise(widths))
        self.shrink = nn.ModuleList(_shrinking(above, below, norms == "each") for above, below in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(below, above, 3, stride=2, padding=1) for above, below in pairs)
        self.after = nn.ModuleList(_growing(above, norms == "each") for above, _ in pairs)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each pixel.

        Args:
            images: shape (N, in_channels, H, W).
        """
        x = self.stem(images)
        passed: list[Tensor] = []
        for level, shrink in zip(self.down, self.shrink, strict=False):
            x = level(x)
            passed.append(x)
            x = shrink(x)
        x = self.down[-1](x)
        for level, grow, after in zip(reversed(self.up), reversed(self.grow), reversed(self.after), strict=True):
            before = passed.pop()
            x = level(after(grow(x, output_size=before.shape[-2:])) + before)
        logits: Tensor = self.head(F.relu(self.norm(x)))
        return logits


def _level(blocks: int, channels: int, normed: bool) -> nn.Sequential:
    units: list[nn.Module] = []
    for _ in range(blocks):
        units += [StrictUnit(channels), nn.BatchNorm2d(channels)] if normed else [StrictUnit(channels)]
    return nn.Sequential(*units)


def _shrinking(above: int, below: int, normed: bool) -> nn.Sequential:
    """Two 3x3 convolutions, and one of stride 2 to the channels of the level below."""
    sizes = ((above, above, 1), (above, above, 1), (above, below, 2))
    return _convolutions(sizes, normed)


def _growing(channels: int, normed: bool) -> nn.Sequential:
    """What is behind the transposed convolution: its norm, and two 3x3 convolutions."""
    rest = _convolutions(((channels, channels, 1), (channels, channels, 1)), normed)
    return nn.Sequential(nn.BatchNorm2d(channels), *rest) if normed else rest


def _convolutions(sizes: tuple[tuple[int, int, int], ...], normed: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, stride in sizes:
        layers.append(nn.Conv2d(before, after, 3, stride=stride, padding=1))
        layers += [nn.BatchNorm2d(after)] if normed else []
    return nn.Sequential(*layers)


def strictunet(
    blocks: tuple[int, ...], channels: int, num_classes: int = 1, in_channels: int = 3, norms: str = "each"
) -> StrictUNet:
    """A strict residual U-Net with torch's initialisation, from the global generator. Arguments as :class:`StrictUNet`.

    Raises:
        ValueError: an unknown place of the norms.
    """
    if norms not in NORMS:
        raise ValueError(f"norms {norms!r}: give {', '.join(NORMS)}")
    return StrictUNet(blocks, channels, num_classes, in_channels, norms)
