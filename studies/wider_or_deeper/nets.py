"""The networks of the study: deep ones, and shallower ones as wide as the same multiply-adds allow.

``pathlens train --model studies/wider_or_deeper/nets.py:deep27``. All are pre-activation networks of three stages; the
number in a name is that of its blocks.
"""

from __future__ import annotations

from pathlens.models import PreActResNet, preresnet


def deep27() -> PreActResNet:
    """27 blocks for 8x8 grey digits."""
    return preresnet(56, in_channels=1, widths=(8, 16, 32))


def wide9() -> PreActResNet:
    """9 wider blocks with the multiply-adds of ``deep27``."""
    return preresnet(20, in_channels=1, widths=(14, 28, 56))


def wide3() -> PreActResNet:
    """3 wide blocks with the multiply-adds of ``deep27``."""
    return preresnet(8, in_channels=1, widths=(26, 52, 104))


def deep27_rgb() -> PreActResNet:
    """27 narrow blocks for 16x16 colour images."""
    return preresnet(56, widths=(8, 16, 32))


def wide9_rgb() -> PreActResNet:
    """9 wider blocks with the multiply-adds of ``deep27_rgb``."""
    return preresnet(20, widths=(14, 28, 56))


def wide3_rgb() -> PreActResNet:
    """3 wide blocks with the multiply-adds of ``deep27_rgb``."""
    return preresnet(8, widths=(26, 52, 104))


def deep9() -> PreActResNet:
    """9 blocks for 8x8 grey digits, for tests."""
    return preresnet(20, in_channels=1, widths=(4, 8, 16))


def wide3_small() -> PreActResNet:
    """3 blocks with the multiply-adds of ``deep9``."""
    return preresnet(8, in_channels=1, widths=(7, 15, 30))


def deep54_cifar() -> PreActResNet:
    """The 110-layer network: 54 blocks for 32x32 colour images."""
    return preresnet(110)


def wide9_cifar() -> PreActResNet:
    """9 wider blocks with the multiply-adds of ``deep54_cifar``."""
    return preresnet(20, widths=(40, 80, 160))


def wide3_cifar() -> PreActResNet:
    """3 wide blocks with the multiply-adds of ``deep54_cifar``."""
    return preresnet(8, widths=(74, 148, 296))
