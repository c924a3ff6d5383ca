r"""Highway networks for small images.

Srivastava, Greff, Schmidhuber 2015, "Highway Networks" (arXiv:1505.00387, equation 3) and "Training Very Deep
Networks" (arXiv:1507.06228): block i computes

.. math:: x_i = H_i(x_{i-1})\, T_i(x_{i-1}) + x_{i-1}\, (1 - T_i(x_{i-1}))

with one 3x3 convolution and ReLU as the transform H, and a sigmoid of another 3x3 convolution as the transform gate T,
one gate for every channel and place. Deleting a block leaves the carried input x_{i-1}. Where the shape changes stands
a plain layer without a gate, as in section 2.1 of the second paper ("Constructing Highway Networks"); it is part of no
block. Veit, Wilber, Belongie 2016 compare lesions in these networks with lesions in residual ones.

Exact layout, n blocks a stage and ``3 n + 4`` layers (the gates not counted)::

    plain 3x3, n highway blocks, plain 3x3 of stride 2, n highway blocks, plain 3x3 of stride 2, n highway blocks,
    global average pooling, linear

The paper's networks of 11 to 32 layers have other widths, max pooling and dropout. ``highway19`` has the depth of one
of them; ``highway31`` and ``highway58`` have the 27 and 54 blocks of ``resnet56`` and ``resnet110``.

The paper has no batch norm. Here ``norm="batch"`` is the default, between convolution and ReLU of every transform and
plain layer but not in the gates: with it 58 layers train at the rates of the other networks. ``norm="none"`` is the
paper's form, with biases instead; the deeper it is, the more negative the gates' first bias has to be (58 layers did
not learn the digits in six epochs from -3, and did from -4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError

NORMS = ("batch", "none")


class PlainLayer(nn.Module):
    """3x3 convolution, batch norm where there is one, ReLU; no gate and no shortcut.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, width, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1, norm: str = "batch") -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=norm == "none")
        self.bn: nn.Module = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(bn(conv(x)))``."""
        return F.relu(self.bn(self.conv(x)))


class HighwayBlock(nn.Module):
    """Gated mixture of a plain layer's output and its input.

    Shapes: ``(N, width, H, W)`` to the same.
    """

    def __init__(self, width: int, gate_bias: float, norm: str = "batch") -> None:
        super().__init__()
        self.transform = PlainLayer(width, width, norm=norm)
        self.gate = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.gate.weight, nonlinearity="sigmoid")
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``transform(x) * t + x * (1 - t)`` with ``t = sigmoid(gate(x))``."""
        gate = torch.sigmoid(self.gate(x))
        return self.transform(x) * gate + x * (1 - gate)


class CifarHighway(nn.Module):
    r"""Highway network with three stages, halving the resolution between them.

    Shapes: input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        blocks: highway blocks of each stage.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages.
        gate_bias: first value of the bias of every gate. Negative, so that blocks carry their input at first; the
            papers take -1 to -4, lower for deeper networks.
        norm: ``"batch"`` or ``"none"`` (see the module's text).

    Raises:
        ModelError: no block in a stage, not three widths of at least 1, a gate bias that is not finite, or an unknown
            norm.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        gate_bias: float = -3.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if blocks < 1:
            raise ModelError(f"{blocks} highway blocks a stage: give at least 1")
        if len(widths) != 3 or min(widths) < 1:
            raise ModelError(f"widths {tuple(widths)}: give three stages, each of at least 1 channel")
        if not math.isfinite(gate_bias):
            raise ModelError(f"gate bias {gate_bias} of a highway network: give a number, such as -3")
        if norm not in NORMS:
            raise ModelError(f"norm {norm!r} of a highway network: give {' or '.join(map(repr, NORMS))}")
        channels = in_channels
        for stage, width in enumerate(widths, start=1):
            self.add_module(f"plain{stage}", PlainLayer(channels, width, 1 if stage == 1 else 2, norm))
            layers = (HighwayBlock(width, gate_bias, norm) for _ in range(blocks))
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            channels = width
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        for stage in (1, 2, 3):
            x = self.get_submodule(f"plain{stage}")(x)
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def highway(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 32, 64),
    gate_bias: float = -3.0,
    norm: str = "batch",
) -> CifarHighway:
    """Build the network with ``depth = 3 n + 4`` layers (19, 31, 58 by name).

    Args:
        depth: convolutional and linear layers, the gates not counted.
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels of the three stages.
        gate_bias: first value of the gates' biases.
        norm: ``"batch"`` or ``"none"``.

    Raises:
        ModelError: the depth is not ``3 n + 4`` with ``n`` at least 1; see also :class:`CifarHighway`.
    """
    if depth < 7 or depth % 3 != 1:
        raise ModelError(f"no highway network of depth {depth}: give 3n+4, such as 19 or 31")
    return CifarHighway((depth - 4) // 3, num_classes, in_channels, widths, gate_bias, norm)
