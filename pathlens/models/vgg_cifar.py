r"""A plain network without shortcuts, for comparison with residual ones.

Veit, Wilber, Belongie 2016, section 4.1, delete layers from "a VGG network with 15 layers" on CIFAR-10: the public
CIFAR adaptation of configuration D of Simonyan, Zisserman 2015 with 13 convolutional and 2 linear layers.

Exact layout of :func:`vgg15`, ``Ck`` being conv 3x3 (with bias) of k channels, batch norm, ReLU, and ``M`` a 2x2 max
pooling that rounds up (so that images smaller than 32x32 pass too)::

    C64 C64 M  C128 C128 M  C256 C256 C256 M  C512 C512 C512 M  C512 C512 C512 M
    global average pooling, dropout, linear 512, batch norm, ReLU, dropout, linear num_classes

The linear layer in the middle is as wide as the last convolutions. ``vgg15_narrow`` has the channels 32, 48, 96, 176,
176, and weights of under 4 MB in half precision.

At 32x32 the last map is 1x1 and the pooling does nothing. The public code also has dropout between convolutions; it
has no effect on a trained network in eval mode and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)


class CifarVGG(nn.Module):
    """Plain network of 13 convolutional and 2 linear layers.

    Shapes: input ``(N, in_channels, H, W)`` of any size (32x32 for CIFAR), output logits ``(N, num_classes)``.

    Args:
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels between two poolings.
        dropout: probability of the two dropouts in the classifier.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in zip(widths, _CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(in_channels, in_channels),
            nn.BatchNorm1d(in_channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(in_channels, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        return self.classifier(self.pool(self.features(x)).flatten(1))


def vgg15(num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = WIDTHS) -> CifarVGG:
    """Build the 15-layer plain network (see the module's text for the layout).

    Args:
        num_classes: logits.
        in_channels: channels of the images.
        widths: channels between two poolings.
    """
    return CifarVGG(num_classes, in_channels, widths)
