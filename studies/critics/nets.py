"""Small networks that are no ResNets, for 8x8 grey images of digits. ``pathlens train --model nets.py:vit``."""

from __future__ import annotations

from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def vit(depth: int = 12, embed_dim: int = 48) -> nn.Module:
    """A vision transformer on 16 patches of 2x2 pixels, averaged for the head; attention and MLP are a block each."""
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        depth=depth,
        embed_dim=embed_dim,
        num_heads=3,
        num_classes=10,
        global_pool="avg",
        class_token=False,
    )


def convnext(depths: tuple[int, ...] = (3, 3, 4, 2), dims: tuple[int, ...] = (16, 24, 32, 48)) -> nn.Module:
    """A ConvNeXt: four stages of 8x8 to 1x1 positions, 3x3 kernels, and branches that begin scaled by 0.1.

    The published networks begin at 1e-6 and are trained for far longer.
    """
    return ConvNeXt(
        in_chans=1, num_classes=10, depths=depths, dims=dims, patch_size=1, kernel_sizes=3, ls_init_value=0.1
    )


def tiny_vit() -> nn.Module:
    """For tests."""
    return vit(depth=2, embed_dim=12)


def tiny_convnext() -> nn.Module:
    """For tests."""
    return convnext(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
