"""The reference networks by name. Importing this does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

DEFAULT_NAME = "digits54"


@dataclass(frozen=True)
class Reference:
    """How to build one reference network, and what it is made for.

    Attributes:
        module: module of ``pathlens.models`` that builds it.
        function: the building function there.
        kwargs: what distinguishes this name.
        in_channels: channels of the images it is made for.
        size: height and width of these images.
        num_classes: classes of the data it is made for.
        packaged: file in ``pathlens/models/weights``, where trained weights come with the package.
        reader: function there that reads a weights file of a format of its own, with the sizes of the network.
    """

    module: str
    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    size: int = 32
    num_classes: int = 10
    packaged: str | None = None
    reader: str | None = None

    def build(self, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
        """Build the network with fresh weights from the global generator; None takes what it is made for."""
        network: nn.Module = self._function(self.function)(
            num_classes=self.num_classes if num_classes is None else num_classes,
            in_channels=self.in_channels if in_channels is None else in_channels,
            **self.kwargs,
        )
        return network

    def read(self, path: Path) -> nn.Module:
        """The network of a weights file in a format of its own."""
        assert self.reader is not None
        network: nn.Module = self._function(self.reader)(path)
        return network

    def _function(self, name: str) -> Any:
        return getattr(importlib.import_module(f"pathlens.models.{self.module}"), name)


#: depth -> widening factors of the wide residual networks that have a name: those of the paper, and some small ones
_WIDE = {10: (1,), 16: (1, 2, 4, 8, 10), 22: (8, 10), 28: (10, 12), 40: (1, 2, 4, 8)}

#: layers and width of the language models that have a name
_LLAMAS = ((6, 96), (12, 64), (12, 96), (12, 128), (24, 128), (24, 256))

_STRICT_UNETS = (
    ("16", (18,) * 4, 16),
    ("12", (28,) * 4, 12),
    *((f"13x13-{count}", (0, 0, 0, count), 16) for count in (100, 200, 300)),
)

REFERENCES: Mapping[str, Reference] = {
    **{f"resnet{d}": Reference("resnet_cifar", "resnet", {"depth": d}) for d in (20, 32, 44, 56, 110, 1202)},
    **{
        f"resnet{d}b": Reference("resnet_cifar", "resnet", {"depth": d, "shortcut": "projection"})
        for d in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"plain{d}": Reference("resnet_cifar", "resnet", {"depth": d, "shortcut": "none"})
        for d in (20, 32, 44, 56, 110)
    },
    **{f"preresnet{d}": Reference("preresnet_cifar", "preresnet", {"depth": d}) for d in (20, 32, 44, 56, 110, 164)},
    **{f"highway{d}": Reference("highway_cifar", "highway", {"depth": d}) for d in (19, 31, 58)},
    **{
        f"shakeshake26_2x{w}d": Reference("shakeshake_cifar", "shakeshake", {"depth": 26, "width": w})
        for w in (32, 64, 96)
    },
    **{
        f"wrn{d}_{k}": Reference("wrn_cifar", "wrn", {"depth": d, "widen": k})
        for d, widths in _WIDE.items()
        for k in widths
    },
    "vgg15": Reference("vgg_cifar", "vgg15"),
    "vgg15_narrow": Reference("vgg_cifar", "vgg15", {"widths": (32, 48, 96, 176, 176)}),
    "wideresnet38": Reference("wideresnet38", "WideResNet38", {"variant": "A"}, size=224, num_classes=1000),
    "wideresnet38:a1": Reference("wideresnet38", "WideResNet38", {"variant": "A1"}, size=224, num_classes=1000),
    "wideresnet38:dilated": Reference("wideresnet38", "WideResNet38", {"variant": "dilated"}, size=224, num_classes=21),
    **{
        f"nfresnet{d}:{variant}": Reference("nfresnet_cifar", "nfresnet", {"depth": d, "variant": variant})
        for d in (18, 50, 101)
        for variant in ("batchnorm", "plain", "idshort", "learnscalar", "convshort")
    },
    **{
        f"strictunet{name}:{norms}": Reference(
            "strict_unet",
            "strictunet",
            {"blocks": blocks, "channels": channels, "norms": norms},
            size=101,
            num_classes=2,
        )
        for name, blocks, channels in _STRICT_UNETS
        for norms in ("each", "end", "block")
    },
    **{
        f"unet{channels}": Reference("unet", "UNet", {"channels": channels}, size=256, num_classes=2)
        for channels in (16, 32, 64)
    },
    **{
        f"llama{layers}_{width}": Reference(
            "llama", "llama", {"layers": layers, "width": width}, in_channels=0, num_classes=256
        )
        for layers, width in _LLAMAS
    },
    "llama2": Reference("llama", "llama2", in_channels=0, num_classes=512, reader="read_llama2c"),
    DEFAULT_NAME: Reference("preresnet_cifar", "digits54", in_channels=1, size=8, packaged="digits54.safetensors"),
}


def reference_names() -> tuple[str, ...]:
    """The names of the reference networks, in the order of the documentation."""
    return tuple(REFERENCES)


def packaged_file(name: str) -> Traversable:
    """Where a weights file that comes with the package lies."""
    return resources.files("pathlens.models") / "weights" / name
