r"""CIFAR residual networks without normalisation, and their batch-normalised twin, for studies of initialisation.

Block l computes :math:`x_l = c\,(h(x_{l-1}) + f_l(x_{l-1}))` with pre-activation branches f: ReLU before every
convolution, and a last ReLU before the head. Variants (Civitelli et al. 2021, "A Robust Initialization of Residual
Blocks for Effective ResNet Training without Batch Normalization", section 4):

=============== ================================================== =============== ==========================
variant         shortcut h, where the shape stays                  c               batch norm
=============== ================================================== =============== ==========================
``batchnorm``   1x1 convolution                                    1               before every ReLU
``plain``       identity                                           1               none
``idshort``     identity                                           :math:`\sqrt{1/2}`   none
``learnscalar`` a learned number times the input, 1 at the start   :math:`\sqrt{1/2}`   none
``convshort``   1x1 convolution                                    :math:`\sqrt{1/2}`   none
=============== ================================================== =============== ==========================

Where the shape changes, h is a 1x1 convolution with the stride of the block in all of them. It takes the input of the
block as it is, not its ReLU. Convolutions have no bias; a bottleneck has its stride on the 3x3 convolution. Weights
start as He et al. 2015 derive them from the fan-in: variance 2 / n behind a ReLU, and 1 / n in a shortcut, where there
is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError

#: variant -> (whether every shortcut is a convolution, whether sums are scaled by the root of 1/2)
_VARIANTS = {
    "batchnorm": (True, False),
    "plain": (False, False),
    "idshort": (False, True),
    "learnscalar": (False, True),
    "convshort": (True, True),
}
VARIANTS = tuple(_VARIANTS)
"""How the blocks add up, by name."""

#: depth -> (whether blocks are bottlenecks, blocks of each stage)
_DEPTHS = {18: (False, (2, 2, 2, 2)), 50: (True, (3, 4, 6, 3)), 101: (True, (3, 4, 23, 3))}
_EXPANSION = 4


class LearnedScalar(nn.Module):
    """The input times one learned number, which starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return self.scalar * x


class NFBlock(nn.Module):
    """One block; shapes ``(N, in_channels, H, W)`` to ``(N, channels[-1], ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: channels that come in.
        channels: of each convolution of the branch: two of 3x3, or three of 1x1, 3x3 and 1x1.
        stride: of the block.
        variant: one of ``VARIANTS``.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, variant: str) -> None:
        super().__init__()
        always, scaled = _VARIANTS[variant]
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        strided = kernels.index(3)
        layers: list[nn.Module] = []
        before = in_channels
        for index, (kernel, width) in enumerate(zip(kernels, channels, strict=True)):
            layers += [nn.BatchNorm2d(before)] if variant == "batchnorm" else []
            step = stride if index == strided else 1
            layers += [nn.ReLU(), nn.Conv2d(before, width, kernel, step, kernel // 2, bias=False)]
            before = width
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if always or stride != 1 or in_channels != before:
            self.shortcut = nn.Conv2d(in_channels, before, 1, stride, bias=False)
        elif variant == "learnscalar":
            self.shortcut = LearnedScalar()
        self.scale = math.sqrt(0.5) if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``c (h(x) + f(x))``."""
        total = self.shortcut(x) + self.branch(x)
        return total if self.scale == 1 else total * self.scale


class NFResNet(nn.Module):
    """Input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        bottleneck: blocks of three convolutions, of which the last has four times the width.
        blocks: of each stage; the second and later stages halve the resolution.
        variant: one of ``VARIANTS``.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the stages; the stem has ``widths[0]``.

    Raises:
        ModelError: an unknown variant, or widths that do not go with the stages.
    """

    def __init__(
        self,
        bottleneck: bool,
        blocks: Sequence[int],
        variant: str,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ModelError(f"no variant {variant!r}: give one of {', '.join(VARIANTS)}")
        if len(widths) != len(blocks) or min(widths, default=0) < 1:
            raise ModelError(f"widths {tuple(widths)}: give one of at least 1 for each of {len(blocks)} stages")
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        before = widths[0]
        layers: list[nn.Module] = []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            channels = (width, width, _EXPANSION * width) if bottleneck else (width, width)
            for index in range(count):
                layers.append(NFBlock(before, channels, 2 if stage and not index else 1, variant))
                before = channels[-1]
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(before) if variant == "batchnorm" else nn.Identity()
        self.linear = nn.Linear(before, num_classes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                straight = name == "stem" or name.endswith("shortcut")
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if straight else "relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def nfresnet(
    depth: int,
    variant: str,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> NFResNet:
    """Build the network of 18, 50 or 101 layers.

    Args:
        depth: convolutional and linear layers on the longest path: 18 of basic blocks, 50 and 101 of bottlenecks.
        variant: one of ``VARIANTS``.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the four stages, before the expansion of bottlenecks.

    Raises:
        ModelError: another depth, an unknown variant, or widths that do not fit.
    """
    if depth not in _DEPTHS:
        raise ModelError(f"no such network of depth {depth}: give one of {', '.join(map(str, _DEPTHS))}")
    bottleneck, blocks = _DEPTHS[depth]
    return NFResNet(bottleneck, blocks, variant, num_classes, in_channels, widths)
