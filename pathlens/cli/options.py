"""Options that all verbs share, and the small grammar of ranges."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.", rich_help_panel=_RUN)]
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
                f"--{what} {text!r} is no range; give a number, FIRST:LAST, FIRST:LAST:STEP or a list of those"
            )
        if len(ends) > 1 and (ends[1] - ends[0]) // step >= _LONGEST:
            raise UsageError(f"--{what} {text!r} is longer than {_LONGEST:,} numbers; give a larger step")
        numbers += range(ends[0], ends[1] + 1, step) if len(ends) > 1 else [ends[0]]
    return tuple(dict.fromkeys(numbers))


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
