"""The pre-activation residual unit of wide networks, with projections and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class PreActUnit(nn.Module):
    r"""Convolutions that each follow a batch norm and a ReLU, added to the input or to a projection of it.

    Where stride or channels change, the shortcut is a 1x1 convolution of what comes out of the first ReLU, so that norm
    and ReLU come before the fork of branch and shortcut. Dropout is between the last ReLU and the last convolution.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, channels[-1], ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: channels that come in.
        channels: of each convolution.
        kernels: height and width of each, odd.
        stride: of the first convolution and of the projection.
        dilation: of the first convolution, and of the others.
        dropout: probability of an activation to be 0 in training.

    Source: Zagoruyko, Komodakis 2016, "Wide Residual Networks", figure 1 (d); Wu, Shen, van den Hengel 2019, "Wider or
    Deeper", and the code published with both.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        stride: int = 1,
        dilation: tuple[int, int] = (1, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in (in_channels, *channels[:-1]))
        self.convs = nn.ModuleList(
            nn.Conv2d(
                before,
                after,
                kernel,
                stride=1 if index else stride,
                padding=kernel // 2 * dilation[index > 0],
                dilation=dilation[index > 0],
                bias=False,
            )
            for index, ((before, after), kernel) in enumerate(
                zip(pairwise((in_channels, *channels)), kernels, strict=True)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels[-1]:
            self.shortcut = nn.Conv2d(in_channels, channels[-1], 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + branch(x)``, or ``shortcut(a) + branch(x)`` of ``a = relu(norm(x))`` where shapes change."""
        activated = out = F.relu(self.norms[0](x))
        for index, conv in enumerate(self.convs):
            if index:
                out = F.relu(self.norms[index](out))
            if index == len(self.convs) - 1:
                out = self.dropout(out)
            out = conv(out)
        return (x if self.shortcut is None else self.shortcut(activated)) + out
