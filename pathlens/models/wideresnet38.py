"""ResNet-38 of "Wider or Deeper": 17 wide units for ImageNet, and the same as a dilated network for segmentation.

Wu, Shen, van den Hengel 2019, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition" (arXiv:1611.10080),
model A, and the code published with it. Seven levels, each unit with pre-activation:

===== ===== ===================================== ============= ==========
level units convolutions of a unit                of 224x224    dilation
===== ===== ===================================== ============= ==========
B1    1     3x3, 64 (no unit, no norm)            224           1
B2    3     3x3, 128; 3x3, 128                    112           1
B3    3     3x3, 256; 3x3, 256                    56            1
B4    6     3x3, 512; 3x3, 512                    28            1
B5    3     3x3, 512; 3x3, 1024                   14            2
B6    1     1x1, 512; 3x3, 1024; 1x1, 2048        7             4
B7    1     1x1, 1024; 3x3, 2048; 1x1, 4096       7             4
===== ===== ===================================== ============= ==========

then batch norm, ReLU, and the head. The first unit of each level has a projection. Dropout is before the last
convolution of B6 (0.3) and of B7 (0.5); the published code, which only tests, has rates of 0. The variants differ in
what halves the resolution before B2 to B6, and in the head:

* model A: 3x3 max pooling of stride 2; global average pooling and a linear layer.
* model A1: the first convolution and the projection of the first unit have stride 2; the same head.
* dilated: as A1 up to B4, and from there the resolution stays an eighth of the image's: where model A1 would have a
  stride, all later convolutions of 3x3 have twice the dilation (last column; the first convolution of B5 has still 1).
  The head is two 3x3 convolutions of dilation 12: to 512 channels with batch norm and ReLU, and to the classes ("2
  conv." there). The map of logits is brought to the size of the image by bilinear interpolation.

With 1000 classes models A and A1 have 109,167,912 parameters and take 49.5 G multiply-adds for an image of 224x224, the
dilated network with 21 classes 124,043,093 and 114.6 G. Units, widths, kernels, strides, dilations and projections are
those of the published code (``rna_feat_a``, ``rna_feat_a1`` and ``fcrna_model_a1`` of github.com/itijyou/ademxapp), so
that these totals are what that code amounts to. Neither it nor its page states any; a list of published results that
goes by what papers state has none for this one either, and counts 105,070,912 in that code below the classifier, which
is the number here too.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import ModelError
from pathlens.models.preact_unit import PreActUnit

VARIANTS = ("A", "A1", "dilated")
_DROPOUT = (0.3, 0.5)
#: units of each level from B2 on, and channels of the convolutions of a unit as multiples of those of B1
_LEVELS = (
    (3, (2, 2)),
    (3, (4, 4)),
    (6, (8, 8)),
    (3, (8, 16)),
    (1, (8, 16, 32)),
    (1, (16, 32, 64)),
)
_STRIDED = 5
"""Levels from B2 on before which the resolution is halved."""
_KEPT = 3
"""Of these, those that the dilated variant halves too."""
_HEAD_MULTIPLE, _HEAD_DILATION = 8, 12


class WideResNet38(nn.Module):
    """ResNet-38 of "Wider or Deeper".

    Shapes: images ``(N, in_channels, H, W)`` of any size of at least 32x32 (8x8 for ``dilated``) to logits
    ``(N, num_classes)``, or ``(N, num_classes, H, W)`` for ``dilated``.

    Args:
        variant: one of ``VARIANTS``.
        num_classes: logits.
        in_channels: channels of the images.
        base: channels of B1, 64 in the paper; those of all other levels are multiples of it.
        dropout: probabilities of B6 and B7.

    Raises:
        ModelError: an unknown variant, or a base below 1.
    """

    def __init__(
        self,
        variant: str = "A",
        num_classes: int = 1000,
        in_channels: int = 3,
        base: int = 64,
        dropout: tuple[float, float] = _DROPOUT,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ModelError(f"no variant {variant!r} of ResNet-38: give one of {', '.join(VARIANTS)}")
        if base < 1:
            raise ModelError(f"ResNet-38 with {base} channels in its first convolution: give at least 1")
        self.pools = variant == "A"
        self.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        before, dilation = base, 1
        levels: list[nn.Module] = []
        for level, (units, multiples) in enumerate(_LEVELS):
            widths = [base * multiple for multiple in multiples]
            kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
            halved = level < _STRIDED
            dilated = variant == "dilated" and _KEPT <= level < _STRIDED
            rest = 2 * dilation if dilated else dilation
            layers: list[nn.Module] = [nn.MaxPool2d(3, 2, padding=1)] if halved and self.pools else []
            for unit in range(units):
                first = unit == 0
                layers.append(
                    PreActUnit(
                        before,
                        widths,
                        kernels,
                        2 if first and halved and not self.pools and not dilated else 1,
                        (dilation if first else rest, rest),
                        dropout[level - _STRIDED + 1] if len(widths) == 3 else 0.0,
                    )
                )
                before = widths[-1]
            dilation = rest
            levels.append(nn.Sequential(*layers))
        self.levels = nn.Sequential(*levels)
        self.norm = nn.BatchNorm2d(before)
        self.head: nn.Module = nn.Linear(before, num_classes)
        if variant == "dilated":
            rate, channels = _HEAD_DILATION, _HEAD_MULTIPLE * base
            self.head = nn.Sequential(
                nn.Conv2d(before, channels, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits.

        Args:
            x: images, shape (N, C, H, W).
        """
        features = F.relu(self.norm(self.levels(self.conv1(x))))
        if isinstance(self.head, nn.Linear):
            return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return F.interpolate(self.head(features), size=x.shape[-2:], mode="bilinear", align_corners=False)
