"""Wide residual networks for CIFAR: few pre-activation blocks of many channels.

Zagoruyko, Komodakis 2016, "Wide Residual Networks" (arXiv:1605.07146), section 2 and table 1. WRN-d-k has d = 6 n + 4
convolutions: one of 3x3 to 16 channels, three stages of n blocks of two 3x3 with 16 k, 32 k and 64 k channels, and a
1x1 projection in the first block of each stage (WRN-d-1 has none in its first stage, which changes nothing). Dropout
may stand between the two convolutions of a block.
"""

from __future__ import annotations

from functools import partial

from pathlens.errors import ModelError
from pathlens.models.preact_unit import PreActUnit
from pathlens.models.preresnet_cifar import PreActResNet


class WideBlock(PreActUnit):
    """Two 3x3 convolutions with pre-activation; projection with shared pre-activation where shapes change.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, width: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__(in_channels, (width, width), (3, 3), stride, dropout=dropout)


def wrn(depth: int, widen: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> PreActResNet:
    """Build WRN-``depth``-``widen``.

    Args:
        depth: convolutions, ``6 n + 4``.
        widen: by how much the stages are wider than 16, 32 and 64 channels.
        num_classes: logits.
        in_channels: channels of the images.
        dropout: probability of an activation between the two convolutions of a block to be 0 in training. The paper
            has 0.3 on CIFAR where it uses any.

    Raises:
        ModelError: the depth is not ``6 n + 4`` with ``n`` at least 1, or ``widen`` is below 1.
    """
    if depth < 10 or depth % 6 != 4:
        raise ModelError(f"no wide residual network of depth {depth}: give 6n+4, such as 28")
    if widen < 1:
        raise ModelError(f"a wide residual network of widening factor {widen}: give at least 1")
    widths = tuple(widen * width for width in (16, 32, 64))
    block = partial(WideBlock, dropout=dropout)
    return PreActResNet(block, (depth - 4) // 6, num_classes, in_channels, widths, stem=16)
