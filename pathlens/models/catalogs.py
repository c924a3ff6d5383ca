"""Where networks with a name come from: this package, torchvision, timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from pathlens.errors import CheckpointError, ModelError, one_line
from pathlens.models.registry import REFERENCES


@dataclass(frozen=True)
class InputSpec:
    """What a network states about its input.

    Attributes:
        input_shape: of images, ``(C, H, W)``.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        source: where these two are stated.
        example: an input, shape (N, ...), where it is no image.
        vocabulary: tokens that a language model knows.
        context: tokens of the longest sequence that it takes.
    """

    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str | None = None
    example: Tensor | None = None
    vocabulary: int | None = None
    context: int | None = None


@dataclass(frozen=True)
class Entry:
    """One network of a catalogue.

    Attributes:
        spec: its name on the command line.
        build: (num_classes, in_channels) -> the network with fresh weights; None takes its own number.
        input_spec: (network, description of its trained weights or None) -> what it states about its input.
        pretrained: builds it with published weights and returns a description of them, or None if there are none.
        packaged: name of a weights file that comes with this package, or None.
        takes_channels: whether ``build`` heeds ``in_channels``.
        read: the network of a weights file that says its sizes itself, or None.
        names_weights: whether the name is that of weights, which are taken where none are given.
    """

    spec: str
    build: Callable[[int | None, int | None], nn.Module]
    input_spec: Callable[[nn.Module, str | None], InputSpec]
    pretrained: Callable[[], tuple[nn.Module, str]] | None = None
    packaged: str | None = None
    takes_channels: bool = True
    read: Callable[[Path], nn.Module] | None = None
    names_weights: bool = False


def reference_entry(name: str) -> Entry:
    """A reference network of this package, which must exist."""
    reference = REFERENCES[name]

    def input_spec(model: nn.Module, weights: str | None) -> InputSpec:
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        return InputSpec(None if first is None else (first.in_channels, reference.size, reference.size))

    read = reference.read if reference.reader else None
    return Entry(name, reference.build, input_spec, packaged=reference.packaged, read=read)


def torchvision_entry(name: str) -> Entry:
    """An image classifier of torchvision, or one of its networks for segmentation.

    Raises:
        ModelError: torchvision has no such network of that name.
    """
    from torchvision import models

    of_pixels = models.list_models(module=models.segmentation)
    names = [*models.list_models(module=models), *of_pixels]
    if name not in names:
        if name in models.list_models():
            raise ModelError(
                f"torchvision:{name} is not an image classifier, nor for segmentation: give one, such as "
                "torchvision:resnet18"
            )
        _unknown("torchvision", name, names)
    spec = f"torchvision:{name}"

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True  # the future default; torchvision warns where it is not set
        if name in of_pixels:
            options["weights_backbone"] = None  # which would be downloaded
        return models.get_model(name, weights=None, **options)

    def pretrained() -> tuple[nn.Module, str]:
        published = models.get_model_weights(name).DEFAULT
        return _download(spec, lambda: models.get_model(name, weights=published)), f"torchvision {published}"

    def input_spec(model: nn.Module, weights: str | None) -> InputSpec:
        published = models.get_model_weights(name).DEFAULT
        if weights == f"torchvision {published}":
            preset = published.transforms()
            side = (preset.resize_size if name in of_pixels else preset.crop_size)[0]
            return InputSpec((3, side, side), tuple(preset.mean), tuple(preset.std), f"torchvision weights {published}")
        side = getattr(model, "image_size", 224)
        return InputSpec((3, side, side) if isinstance(side, int) else None)

    return Entry(spec, build, input_spec, pretrained, takes_channels=False)


def in_torchvision(name: str) -> bool:
    """Whether torchvision has an image classifier of that name."""
    from torchvision import models

    return name in models.list_models(module=models)


def timm_entry(name: str) -> Entry:
    """A network of timm.

    Raises:
        ModelError: timm is not installed, or has no network of that name.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f'timm:{name} needs timm, which is not installed: pip install "pathlens[timm]"') from error

    spec = f"timm:{name}"
    if not timm.is_model(name):
        _unknown("timm", name, timm.list_models())
    tag = name.partition(".")[2]
    if tag and name not in timm.list_pretrained(f"{name.partition('.')[0]}.*"):
        _unknown("timm", name, timm.list_pretrained(f"{name.partition('.')[0]}.*"))

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        given = {"num_classes": num_classes, "in_chans": in_channels}
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        try:
            return timm.create_model(name, pretrained=False, **options)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            how = f"with {options} " if options else ""
            raise ModelError(f"{spec} cannot be built {how}({one_line(error, 200)}): give another network") from error

    def pretrained() -> tuple[nn.Module, str]:
        model = _download(spec, lambda: timm.create_model(name, pretrained=True))
        tag = getattr(model, "pretrained_cfg", {}).get("tag")
        return model, f"timm pretrained {name}" + (f" ({tag})" if tag and "." not in name else "")

    def input_spec(model: nn.Module, weights: str | None) -> InputSpec:
        config = getattr(model, "pretrained_cfg", None) or {}
        shape = config.get("input_size")
        mean, std = config.get("mean"), config.get("std")
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if shape is not None and first is not None and first.groups == 1 and first.in_channels != shape[0]:
            shape, mean, std = (first.in_channels, *shape[1:]), None, None
        shape = tuple(shape) if shape is not None and len(shape) == 3 else None
        if mean is None or std is None:
            return InputSpec(shape)
        return InputSpec(shape, tuple(map(float, mean)), tuple(map(float, std)), f"timm pretrained_cfg of {name}")

    return Entry(spec, build, input_spec, pretrained)


def _download(spec: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # downloads fail with the exceptions of several network libraries
        raise CheckpointError(
            f"{spec}: published weights could not be had ({type(error).__name__}: {one_line(error, 200)}): "
            "check the connection, or give --weights FILE"
        ) from error


def _unknown(library: str, name: str, names: Iterable[str]) -> NoReturn:
    close = difflib.get_close_matches(name, list(names), n=3)
    hint = f"did you mean {', '.join(f'{library}:{c}' for c in close)}?" if close else f"see the models of {library}"
    raise ModelError(f"{library} has no network {name!r}: {hint}")
