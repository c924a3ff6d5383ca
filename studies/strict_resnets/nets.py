"""The networks of the study, by name: ``pathlens train --model studies/strict_resnets/nets.py:bottom20x4_each``.

``bottomNxC_NORMS`` has all its N blocks at the lowest of three levels, 12x12 for images of 48x48 as the 13x13 of the
post is for 101x101, and C channels at the first; ``rowNxC_NORMS`` has them all at its only level, of 12x12.
``up_WAY`` and ``down_WAY`` have two levels, between which one way of up- or downsampling was exchanged for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from pathlens.models import StrictUNet, strictunet

CLASSES = 11
TRANSPOSED, STRIDED = "transposed3", "strided3"
"""The ways of the strict U-Net itself."""
WIDTH = 8
"""Channels of the first level of the networks for up- and downsampling; the second has twice as many."""


def bottom(blocks: int, channels: int, norms: str) -> StrictUNet:
    """Two levels without blocks, and all blocks below them."""
    return strictunet((0, 0, blocks), channels, CLASSES, norms=norms)


def row(blocks: int, channels: int, norms: str) -> nn.Module:
    """One level of 12x12, so that nothing passes the blocks by but their own shortcuts."""
    resize = nn.Upsample(scale_factor=4, mode="bilinear")
    return nn.Sequential(nn.AvgPool2d(4), strictunet((blocks,), channels, CLASSES, norms=norms), resize)


class Layers(nn.Sequential):
    """Layers that upsample by two; called as a transposed convolution is."""

    def forward(self, x: Tensor, output_size: object = None) -> Tensor:
        """Twice as high and wide; shapes ``(N, C, H, W)`` to ``(N, D, 2H, 2W)``."""
        del output_size
        out: Tensor = super().forward(x)
        return out


def _transposed(below: int, above: int, kernel: int) -> nn.Module:
    return nn.ConvTranspose2d(below, above, kernel, stride=2, padding=(kernel - 1) // 2)


def _resized(below: int, above: int, mode: str) -> nn.Module:
    return Layers(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(below, above, 3, padding=1))


def _shuffled(below: int, above: int) -> nn.Module:
    return Layers(nn.Conv2d(below, 4 * above, 3, padding=1), nn.PixelShuffle(2))


def _pooled(above: int, below: int, pool: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(pool(2), nn.Conv2d(above, below, 3, padding=1))


#: from (channels below, channels above)
UPS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "transposed3": partial(_transposed, kernel=3),
    "transposed4": partial(_transposed, kernel=4),
    "transposed5": partial(_transposed, kernel=5),
    "nearest": partial(_resized, mode="nearest"),
    "bilinear": partial(_resized, mode="bilinear"),
    "shuffle": _shuffled,
}
#: from (channels above, channels below)
DOWNS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "strided3": lambda above, below: nn.Conv2d(above, below, 3, stride=2, padding=1),
    "strided2": lambda above, below: nn.Conv2d(above, below, 2, stride=2),
    "maximum": partial(_pooled, pool=nn.MaxPool2d),
    "average": partial(_pooled, pool=nn.AvgPool2d),
}


def sampled(up: str = TRANSPOSED, down: str = STRIDED) -> StrictUNet:
    """Two levels of one block, with these ways between them."""
    net = strictunet((1, 1), WIDTH, CLASSES, norms="end")
    net.shrink[0][-1] = DOWNS[down](WIDTH, 2 * WIDTH)
    net.grow[0] = UPS[up](2 * WIDTH, WIDTH)
    return net


def sampled_name(measured: str, way: str) -> str:
    """Name of the network in which a way of sampling, ``up`` or ``down``, is looked at."""
    return f"up_{TRANSPOSED}" if (measured, way) == ("down", STRIDED) else f"{measured}_{way}"


_ROWS = ((5, 8), (20, 16), (100, 64))
_BOTTOMS = (
    *((blocks, 2) for blocks in (5, 10, 20)), (1, 4),
    *((blocks, 4) for blocks in (20, 40, 60)), (6, 8),
    *((blocks, 16) for blocks in (100, 200, 300)), (21, 32),
)  # fmt: skip
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    **{
        f"bottom{blocks}x{channels}_{norms}": partial(bottom, blocks, channels, norms)
        for blocks, channels in _BOTTOMS
        for norms in ("each", "end", "block")
    },
    **{
        f"row{blocks}x{channels}_{norms}": partial(row, blocks, channels, norms)
        for blocks, channels in _ROWS
        for norms in ("end", "block")
    },
    **{f"up_{way}": partial(sampled, up=way) for way in UPS},
    **{f"down_{way}": partial(sampled, down=way) for way in DOWNS if way != STRIDED},
}
globals().update(NETWORKS)
