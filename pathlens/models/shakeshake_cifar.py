r"""Shake-shake networks: residual blocks with two branches that are mixed at random.

Gastaldi 2017, "Shake-Shake regularization" (arXiv:1705.07485), section 2 and the code published with it. Block i
computes

.. math:: x_i = S_i(x_{i-1}) + \alpha_i F_i^{(1)}(x_{i-1}) + (1 - \alpha_i) F_i^{(2)}(x_{i-1})

In train mode alpha is drawn uniformly from [0, 1] for each block and image, and the gradient takes another draw, beta,
in its place ("Shake-Shake-Image", the best of the paper's variants on CIFAR-10). In eval mode both are 0.5.

Exact layout, n blocks a stage and ``6 n + 2`` layers, k the width of the first stage::

    conv 3x3 of 16, batch norm, n blocks of k, n blocks of 2k (the first of stride 2), n blocks of 4k (likewise),
    ReLU, global average pooling, linear

A branch is ReLU, conv 3x3, batch norm, ReLU, conv 3x3, batch norm. The first block of each stage has a projection:
ReLU, then every ``stride``-th pixel through a 1x1 convolution to half of the channels, and those of the image shifted
by one pixel right and down through another to the other half, then batch norm. Branches and projection start with the
same ReLU there, so that it stands before their fork; elsewhere the shortcut is the identity of what came in, and no
ReLU lies on the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError

_STEM = 16


class ShiftShortcut(nn.Module):
    """Projection through two 1x1 convolutions, of which the second sees the image shifted by one pixel.

    Gastaldi 2017, section 2.1. The two are kept as one convolution in two groups.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``, width even.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(2 * in_channels, width, 1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves of the channels, normalised."""
        step = self.stride
        shifted = F.pad(x, (1, -1, 1, -1))
        return self.bn(self.conv(torch.cat([x[:, :, ::step, ::step], shifted[:, :, ::step, ::step]], 1)))


class Branch(nn.Module):
    """Two 3x3 convolutions with batch norm, the ReLU before the first left to the block.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``bn2(conv2(relu(bn1(conv1(x)))))``."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class ShakeShakeBlock(nn.Module):
    """Residual block of two branches that are mixed at random in train mode and evenly in eval mode.

    In train mode a forward pass draws 2 N uniform numbers from torch's global generator of the input's device: the N
    alphas, then the N betas.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch1 = Branch(in_channels, width, stride)
        self.branch2 = Branch(in_channels, width, stride)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.shortcut = ShiftShortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + a * branch1 + (1 - a) * branch2``, with the projection for ``x`` where shapes change."""
        activated = F.relu(x)
        first, second = self.branch1(activated), self.branch2(activated)
        if self.training:
            alpha, beta = torch.rand(2, x.shape[0], 1, 1, 1, dtype=first.dtype, device=x.device)
            first, second = _shaken(first, alpha, beta), _shaken(second, 1 - alpha, 1 - beta)
        else:
            first, second = 0.5 * first, 0.5 * second
        return (x if self.shortcut is None else self.shortcut(activated)) + (first + second)


def _shaken(branch: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """Scale a branch by one factor in the forward pass and by another in the backward pass.

    Ordinary operations, because a custom autograd function would lose its backward in a traced graph.
    """
    return branch * backward + branch.detach() * (forward - backward)


class CifarShakeShake(nn.Module):
    r"""Shake-shake network for small images.

    Shapes: input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        blocks: blocks of each of the three stages.
        width: channels of each branch of the first stage; the next two have twice and four times as many.
        num_classes: logits.
        in_channels: channels of the images.

    Raises:
        ModelError: no block in a stage, or the width is not an even number of at least 2.
    """

    def __init__(self, blocks: int, width: int = 32, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if blocks < 1:
            raise ModelError(f"{blocks} shake-shake blocks a stage: give at least 1")
        if width < 2 or width % 2:
            raise ModelError(f"a shake-shake network of width {width}: give an even width, such as 32")
        self.conv1 = nn.Conv2d(in_channels, _STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = self._stage(_STEM, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = ShakeShakeBlock(in_channels, width, stride)
        return nn.Sequential(first, *(ShakeShakeBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        x = self.bn1(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


def shakeshake(depth: int = 26, width: int = 32, num_classes: int = 10, in_channels: int = 3) -> CifarShakeShake:
    """Build the network with ``depth = 6 n + 2`` layers and branches of ``width`` channels in the first stage.

    The paper's networks are 26 layers deep: ``26 2x32d``, ``2x64d`` and ``2x96d``.

    Args:
        depth: convolutional and linear layers.
        width: channels of each branch of the first stage.
        num_classes: logits.
        in_channels: channels of the images.

    Raises:
        ModelError: the depth is not ``6 n + 2`` with ``n`` at least 1; see also :class:`CifarShakeShake`.
    """
    if depth < 8 or depth % 6 != 2:
        raise ModelError(f"no shake-shake network of depth {depth}: give 6n+2, such as 26")
    return CifarShakeShake((depth - 2) // 6, width, num_classes, in_channels)
