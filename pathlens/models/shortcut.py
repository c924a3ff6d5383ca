"""The parameter-free shortcut of CIFAR residual networks ("option A")."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError


class ZeroPadShortcut(nn.Module):
    r"""Shape change without parameters: spatial subsampling and zero-padded channels.

    Option A of He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", sections 3.3 and 4.2:
    every ``stride``-th row and column is kept, and the new channels are zero, half of them on each side (the odd
    one behind).

    Shapes: input ``(N, in_channels, H, W)``, output
    ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out, at least ``in_channels``.
        stride: subsampling step of both spatial axes.

    Raises:
        ModelError: ``out_channels < in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        new = out_channels - in_channels
        if new < 0:
            raise ModelError(
                f"a zero-padding shortcut cannot go from {in_channels} to {out_channels} channels: "
                "give widths that do not decrease"
            )
        self.stride = stride
        self.before = new // 2
        self.behind = new - new // 2

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, then pad the channel axis with zeros."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        """Describe the padding in ``repr(model)``."""
        return f"stride={self.stride}, zero_channels=({self.before}, {self.behind})"
