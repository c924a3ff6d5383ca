"""Options that several verbs share, each declared once, and how ranges and lists of numbers are parsed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from pathlens.errors import UsageError

_LONGEST = 1_000_000


Device = StrEnum("Device", "auto cpu cuda")
Dtype = StrEnum("Dtype", "float32 tf32 bfloat16 float16 float64")


def option(text: str, *names: str, **more: Any) -> Any:
    """An option with its help.

    Args:
        text: the help.
        *names: on the command line; by default that of the parameter.
        **more: as :func:`typer.Option` takes it.
    """
    return typer.Option(*names, help=text, **more)


Model = Annotated[
    str | None,
    option(
        "Reference name, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (a language model of transformers), or "
        "FILE.py:CALLABLE. Default: the embedded digits network.",
        "--model",
        "-m",
        metavar="SPEC",
    ),
]
Init = Annotated[
    str | None,
    option(
        "How --weights random are drawn: he-fan-in, he-fan-out, glorot-normal, glorot-uniform, he-normal, he-uniform, "
        "brock, scaled-ws, fixup, skipinit, rezero or stable. Default: as the network is built.",
        "--init",
        metavar="SCHEME",
    ),
]
Standardise = Annotated[
    bool,
    option(
        "With --init: bring each channel of the weights to the mean and variance that are due, exactly.",
        "--standardise",
    ),
]
Data = Annotated[
    str | None,
    option(
        "digits, cifar10, cifar100, parquet:PATH, imagefolder:DIR; for segmentation digit-scenes or masks:DIR; for a "
        "language model text:FILE; for a regression arrays:FILE. Default with the embedded network: digits.",
        "--data",
        "-d",
        metavar="SPEC",
    ),
]
Limit = Annotated[int | None, option("Only the first N images.", min=1, metavar="N")]
ImageSize = Annotated[int | None, option("Resize and crop images to this size.", min=1, metavar="PIXELS")]
Mean = Annotated[str | None, option("Mean of each channel, of pixels in [0, 1].", metavar="R,G,B")]
Std = Annotated[str | None, option("Standard deviation of each channel.", metavar="R,G,B")]
Download = Annotated[bool, option("Allow cifar10 and cifar100 to download.", "--download")]
Tokenizer = Annotated[
    str | None,
    option(
        "How a text is cut into tokens: tokenizer.json or its folder, hf:NAME, a vocabulary of llama2.c, or bytes. "
        "Default: the tokenizer of an hf: model, else bytes.",
        metavar="FILE",
    ),
]
SequenceLength = Annotated[int | None, option("Tokens of a sequence. Default: 256.", min=1, metavar="N")]
Stride = Annotated[int | None, option("Tokens from one sequence to the next. Default: its length.", min=1, metavar="N")]
DeviceOption = Annotated[Device, option("Where to compute.", "--device")]
DtypeOption = Annotated[Dtype, option("What to compute with.", "--dtype")]
Seed = Annotated[int, option("Seed of the random draws.")]


def folder(text: str) -> Path:
    """The folder of ``--out``: an empty name, of a shell variable that is not set, is no folder."""
    if not text:
        raise typer.BadParameter("the name is empty; give a folder, or . for this one")
    return Path(text)


Out = Annotated[Path | None, option("Write CSV, Parquet, figures and a manifest there.", parser=folder, metavar="DIR")]
Json = Annotated[bool, option("Print one JSON object instead of the table.", "--json")]
Quiet = Annotated[bool, option("No progress and no notes on stderr.", "--quiet", "-q")]
Where = StrEnum("Where", {"trunk": "trunk", "all": "all", "nested": "nested", "off_trunk": "off-trunk"})
Additions = Annotated[
    Where | None,
    option(
        "Which residual additions are blocks: those of the trunk, all, those inside of others, or those beside the "
        "trunk (U-Nets, parallel trunks). Default: the trunk, and all where there is none.",
        "--additions",
    ),
]
Concat = Annotated[
    bool, option("Concatenations are blocks too, of which the branch is the new channels (DenseNets).", "--concat")
]
Losses = StrEnum("Losses", "cross-entropy soft-iou batch-iou dice lovasz-hinge squared-error")
Loss = Annotated[
    Losses | None,
    option(
        "The loss: cross-entropy; of masks soft-iou, dice, lovasz-hinge, and to train with batch-iou, over all pixels "
        "of a batch; of a regression squared-error. Default: cross-entropy.",
        "--loss",
    ),
]
Samples = Annotated[
    int | None,
    option("Random draws of each size, all different; where no more exist, each one. Default: 10.", min=1, metavar="N"),
]


def drawn(samples: int | None, possible: bool, instead: str) -> int:
    """How many random draws are made of each size.

    Args:
        samples: that were asked for.
        possible: whether any are made.
        instead: what to do about it where none are.

    Raises:
        UsageError: some were asked for, and none are made.
    """
    if samples is not None and not possible:
        raise UsageError(f"--samples {samples}: nothing is drawn at random here; {instead}")
    return 10 if samples is None else samples


@dataclass(frozen=True)
class Network:
    """Which network, and which of its outputs."""

    model: Model = None
    weights: Annotated[
        str | None,
        option(
            "A file of safetensors or torch.save, or 'random' (seeded, untrained), or 'pretrained' (downloads).",
            "--weights",
            "-w",
            metavar="FILE",
        ),
    ] = None
    output: Annotated[
        str | None,
        option(
            "Which tensor to study where the network returns several: a key, an attribute or a position, such as "
            "logits or 0. Default: logits or out, or the only one.",
            "--output",
            metavar="NAME",
        ),
    ] = None
    init: Init = None
    standardise: Standardise = False


@dataclass(frozen=True)
class Common(Network):
    """The options of every verb that runs a network on data.

    The last two are fields without an option, for verbs that have no choice of engine; others declare them again.
    """

    data: Data = None
    split: Annotated[str, option("Which split to read.")] = "test"
    limit: Limit = None
    image_size: ImageSize = None
    mean: Mean = None
    std: Std = None
    download: Download = False
    tokenizer: Tokenizer = None
    sequence_length: SequenceLength = None
    stride: Stride = None
    batch_size: Annotated[int, option("Images at a time; bounds the memory.", min=1)] = 128
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


def parse_numbers(text: str | None, what: str, remedy: str) -> tuple[float, ...] | None:
    """Numbers separated by commas.

    Args:
        text: as given, or None.
        what: the option is called.
        remedy: what to give, with an example.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise UsageError(f"--{what} {text!r} is no list of numbers; give {remedy}") from None
