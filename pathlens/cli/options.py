"""Options that verbs share, each declared once; verbs take them as one object. And the small grammar of ranges."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from pathlens.cli.initialised import Init, Standardise
from pathlens.errors import UsageError

_LONGEST = 1_000_000


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """What to compute with."""

    float32 = "float32"
    tf32 = "tf32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


_NETWORK = "Network"
_DATA = "Data"
_RUN = "Run"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SPEC",
        help="Reference name, torchvision:NAME, timm:NAME, or FILE.py:CALLABLE. Default: the embedded digits network.",
        rich_help_panel=_NETWORK,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="FILE",
        help="A file of safetensors or torch.save, or 'random' (seeded, untrained), or 'pretrained' (downloads).",
        rich_help_panel=_NETWORK,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="NAME",
        help="Which tensor to study where the network returns several: a key, an attribute or a position, such as "
        "logits or 0. Default: logits or out, or the only one.",
        rich_help_panel=_NETWORK,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        metavar="SPEC",
        help="digits, cifar10, cifar100, parquet:PATH or imagefolder:DIR. Default with the embedded network: digits.",
        rich_help_panel=_DATA,
    ),
]
Split = Annotated[str, typer.Option(help="Which split to read.", rich_help_panel=_DATA)]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.", rich_help_panel=_DATA)]
ImageSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Resize and crop images to this size.", rich_help_panel=_DATA),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of each channel, of pixels in [0, 1].", rich_help_panel=_DATA),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Standard deviation of each channel.", rich_help_panel=_DATA),
]
Download = Annotated[
    bool, typer.Option("--download", help="Allow cifar10 and cifar100 to download.", rich_help_panel=_DATA)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time; bounds the memory.", rich_help_panel=_RUN)]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.", rich_help_panel=_RUN)]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What to compute with.", rich_help_panel=_RUN)]
Seed = Annotated[int, typer.Option(help="Seed of the random draws.", rich_help_panel=_RUN)]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write CSV, Parquet, figures and a manifest there.", rich_help_panel=_RUN),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.", rich_help_panel=_RUN)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.", rich_help_panel=_RUN)]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="auto measures which is fastest; a name from a table's provenance makes it again to the bit.",
        rich_help_panel=_RUN,
    ),
]
PlainForward = Annotated[
    bool,
    typer.Option("--plain-forward", help="Run the model's own operations: --engine plain.", rich_help_panel=_RUN),
]
Samples = Annotated[int, typer.Option(min=1, help="Random draws of each size.")]


@dataclass(frozen=True)
class Network:
    """Which network, and which of its outputs."""

    model: Model = None
    weights: Weights = None
    output: Output = None
    init: Init = None
    standardise: Standardise = False


@dataclass(frozen=True)
class Common(Network):
    """The options of every verb that runs a network on data. A verb without an engine leaves that to the defaults."""

    data: Data = None
    split: Split = "test"
    limit: Limit = None
    image_size: ImageSize = None
    mean: Mean = None
    std: Std = None
    download: Download = False
    batch_size: BatchSize = 128
    device: DeviceOption = Device.auto
    dtype: DtypeOption = Dtype.float32
    seed: Seed = 0
    out: Out = None
    json: Json = False
    quiet: Quiet = False
    engine: str = "auto"
    plain_forward: bool = False


def takes_objects(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb take options as one object, whose annotation is a dataclass that declares them.

    Args:
        verb: a command of Typer. Fields of the dataclass are options where their annotations are as Typer wants them.

    Returns:
        The verb with one argument for each option, as Typer reads it.
    """
    parameters: list[inspect.Parameter] = []
    objects: dict[str, tuple[Any, list[str]]] = {}
    for parameter in _keywords(verb):
        kind: Any = parameter.annotation
        if get_origin(kind) is Annotated:
            parameters.append(parameter)
            continue
        options = [option for option in _keywords(kind) if get_origin(option.annotation) is Annotated]
        objects[parameter.name] = kind, [option.name for option in options]
        parameters += options

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        for name, (kind, names) in objects.items():
            given[name] = kind(**{option: given.pop(option) for option in names})
        verb(**given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _keywords(taker: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a function or class takes, by keyword and with resolved annotations."""
    hints = get_type_hints(taker, include_extras=True)
    parameters = inspect.signature(taker).parameters
    return [one.replace(annotation=hints[name], kind=one.KEYWORD_ONLY) for name, one in parameters.items()]


def parse_range(text: str | None, what: str) -> tuple[int, ...] | None:
    """``7``, ``1:20`` (both ends included), ``0:20:5``, or a list such as ``1,2,5:8``.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        try:
            ends = [int(item) for item in part.split(":")]
        except ValueError:
            ends = []
        step = ends[2] if len(ends) == 3 else 1
        if not 1 <= len(ends) <= 3 or step < 1 or (len(ends) > 1 and ends[1] < ends[0]):
            raise UsageError(
                f"--{what} {text!r} is no range; give a number, FIRST:LAST, FIRST:LAST:STEP or a list of those; "
                "LAST is included, unlike in Python's range"
            )
        if len(ends) > 1 and (ends[1] - ends[0]) // step >= _LONGEST:
            raise UsageError(f"--{what} {text!r} is longer than {_LONGEST:,} numbers; give a larger step")
        numbers += range(ends[0], ends[1] + 1, step) if len(ends) > 1 else [ends[0]]
    return tuple(dict.fromkeys(numbers))


def check_last(text: str | None, count: int) -> None:
    """Refuse a range of blocks that ends after the last one, as Python's ``range`` would be written.

    Raises:
        UsageError: it does.
    """
    numbers = parse_range(text, "blocks")
    if text and ":" in text and numbers and max(numbers) >= count:
        raise UsageError(
            f"block {max(numbers)} does not exist: the network has {count} blocks, numbered 0 to {count - 1}; "
            f"--blocks {text} includes both ends, unlike Python's range"
        )


def parse_channels(text: str | None, what: str) -> tuple[float, ...] | None:
    """Numbers separated by commas, one for each channel.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise UsageError(
            f"--{what} {text!r} is no list of numbers; give one for each channel, such as 0.5,0.5,0.5"
        ) from None
