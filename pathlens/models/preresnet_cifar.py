r"""CIFAR residual networks with pre-activation blocks.

He, Zhang, Ren, Sun 2016, "Identity Mappings in Deep Residual Networks" (equations 1, 2 and figure 4e): block i
computes ``x_i = S_i(x_{i-1}) + F_i(x_{i-1})`` with no post-activation; batch norm and ReLU stand before every
convolution of the branch, and once more before the head. Veit, Wilber, Belongie 2016 studied the 110-layer network of
this family (54 blocks).

Choices where published code differs:

* basic blocks (``preresnet20`` ... ``preresnet110``): the shortcut of a shape-changing block is the parameter-free
  option A, taken from the raw input of the block, so nothing but subsampling and padding lies on the trunk.
* bottleneck blocks (``preresnet164``): a shape-changing block has a 1x1 projection, and the pre-activation is *shared*
  by branch and shortcut there (and only there), as in the code published with the paper; the stride sits on the first
  1x1 convolution. In such a block the batch norm and ReLU come before the fork of branch and shortcut.

Batch-norm scales start at 1. Starting the last scale of each branch at 0 (a common trick) would hold branches near
zero and make their deletion harmless by construction, so it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError
from pathlens.models.shortcut import ZeroPadShortcut


class PreActBasicBlock(nn.Module):
    """Two 3x3 convolutions with pre-activation; shortcut identity or option A on the raw input.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = ZeroPadShortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``shortcut(x) + branch(x)``."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return self.shortcut(x) + out


class PreActBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with pre-activation; projection with shared pre-activation where shapes change.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, 4 * width, ceil(H / stride), ceil(W / stride))``.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + branch(x)``, or ``shortcut(a) + branch(a)`` of ``a = relu(bn1(x))`` where shapes change."""
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return (x if self.shortcut is None else self.shortcut(activated)) + out


class PreActResNet(nn.Module):
    r"""Pre-activation residual network with one stage a width, halving the resolution between stages.

    Shapes: input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        block: makes one of (channels that come in, width, stride), such as ``PreActBasicBlock``.
        blocks: blocks of each stage.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the stages (before the expansion of bottlenecks).
        stem: channels of the first convolution; None takes ``widths[0]``.

    Raises:
        ModelError: ``widths`` is empty or holds a width below 1.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        stem: int | None = None,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ModelError(f"widths {tuple(widths)}: give at least one stage, each of at least 1 channel")
        channels = widths[0] if stem is None else stem
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.stages = len(widths)
        for stage, width in enumerate(widths):
            layers: list[nn.Module] = []
            for i in range(blocks):
                layers.append(block(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width * getattr(layers[-1], "expansion", 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        x = self.conv1(x)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = F.relu(self.bn(x))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def preresnet(
    depth: int, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64)
) -> PreActResNet:
    """Build the pre-activation network with ``depth`` layers, by the rules of the papers.

    Depths ``6 n + 2`` below 164 have ``n`` basic blocks a stage; ``164`` (and deeper ``9 n + 2``) have ``n``
    bottleneck blocks a stage.

    Args:
        depth: convolutional and linear layers.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages, before the expansion of bottlenecks.

    Raises:
        ModelError: the depth fits neither rule.
    """
    if depth >= 164 and depth % 9 == 2:
        return PreActResNet(PreActBottleneck, (depth - 2) // 9, num_classes, in_channels, widths)
    if 8 <= depth < 164 and depth % 6 == 2:
        return PreActResNet(PreActBasicBlock, (depth - 2) // 6, num_classes, in_channels, widths)
    raise ModelError(f"no pre-activation network of depth {depth}: give 6n+2 below 164, or 9n+2 from 164 up")


def digits54(num_classes: int = 10, in_channels: int = 1, widths: Sequence[int] = (8, 16, 32)) -> PreActResNet:
    """Build the embedded default: 54 pre-activation basic blocks, 18 a stage, for 8x8 grey digits.

    The block count is that of the 110-layer network which Veit, Wilber, Belongie 2016 took apart; the widths are half
    of it, because the images of scikit-learn's ``load_digits`` have 64 pixels. Input ``(N, 1, 8, 8)``.

    Args:
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages.
    """
    return PreActResNet(PreActBasicBlock, 18, num_classes, in_channels, widths)
