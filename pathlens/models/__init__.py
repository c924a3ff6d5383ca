"""Reference networks by name, and checkpoints in and out.

Names are imported on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pathlens.models.registry import reference_names

if TYPE_CHECKING:
    from pathlens.models.checkpoints import load_into, load_state_dict_file, save_weights, state_sha256
    from pathlens.models.highway_cifar import CifarHighway, highway
    from pathlens.models.load import LoadedModel, load_model
    from pathlens.models.nfresnet_cifar import NFResNet, nfresnet
    from pathlens.models.preresnet_cifar import PreActResNet, digits54, preresnet
    from pathlens.models.resnet_cifar import CifarResNet, resnet
    from pathlens.models.shakeshake_cifar import CifarShakeShake, shakeshake
    from pathlens.models.strict_unet import StrictUNet, strictunet
    from pathlens.models.vgg_cifar import CifarVGG, vgg15
    from pathlens.models.wideresnet38 import WideResNet38
    from pathlens.models.wrn_cifar import wrn

__all__ = [
    "CifarHighway",
    "CifarResNet",
    "CifarShakeShake",
    "CifarVGG",
    "LoadedModel",
    "NFResNet",
    "PreActResNet",
    "StrictUNet",
    "WideResNet38",
    "digits54",
    "highway",
    "load_into",
    "load_model",
    "load_state_dict_file",
    "nfresnet",
    "preresnet",
    "reference_names",
    "resnet",
    "save_weights",
    "shakeshake",
    "state_sha256",
    "strictunet",
    "vgg15",
    "wrn",
]

_HOMES = {
    "load": ("LoadedModel", "load_model"),
    "checkpoints": ("load_into", "load_state_dict_file", "save_weights", "state_sha256"),
    "highway_cifar": ("CifarHighway", "highway"),
    "nfresnet_cifar": ("NFResNet", "nfresnet"),
    "preresnet_cifar": ("PreActResNet", "digits54", "preresnet"),
    "resnet_cifar": ("CifarResNet", "resnet"),
    "shakeshake_cifar": ("CifarShakeShake", "shakeshake"),
    "strict_unet": ("StrictUNet", "strictunet"),
    "vgg_cifar": ("CifarVGG", "vgg15"),
    "wideresnet38": ("WideResNet38",),
    "wrn_cifar": ("wrn",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
