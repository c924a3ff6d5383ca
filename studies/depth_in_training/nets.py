"""The network of the smoke scale."""

from __future__ import annotations

from pathlens.models import PreActResNet, preresnet


def tiny() -> PreActResNet:
    """3 blocks for 8x8 grey digits."""
    return preresnet(8, in_channels=1, widths=(4, 8, 16))
