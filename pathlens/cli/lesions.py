"""The lesion verbs on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathlens.cli import options as o
from pathlens.cli.options import parse_range
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import Common, finish, foreign_output, setting

if TYPE_CHECKING:
    from pathlens.tables import Table

_BATCH = 128

Blocks = Annotated[str | None, typer.Option(metavar="RANGE", help="Which blocks to delete one at a time, such as 0:8.")]
Count = Annotated[
    str | None,
    typer.Option(metavar="RANGE", help="Delete random sets of these sizes instead, such as 1:20 (both ends included)."),
]
Swaps = Annotated[str, typer.Option(metavar="RANGE", help="How many random pairs of blocks to exchange, such as 1:20.")]


def delete_blocks(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = 10,
    model: o.Model = None,
    weights: o.Weights = None,
    output: o.Output = None,
    data: o.Data = None,
    split: o.Split = "test",
    limit: o.Limit = None,
    image_size: o.ImageSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    download: o.Download = False,
    batch_size: o.BatchSize = _BATCH,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.float32,
    seed: o.Seed = 0,
    out: o.Out = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    engine: o.EngineOption = "auto",
    plain_forward: o.PlainForward = False,
) -> None:
    """Error and loss with each residual block deleted, or random sets of blocks (Veit et al. 2016, 4.1 and 4.2).

    In a plain network layers are deleted. A sweep that was killed goes on when the same command is given again.
    """
    common = _common(locals())
    arguments = {"blocks": parse_range(blocks, "blocks"), "count": parse_range(count, "count"), "samples": samples}
    _run("delete-blocks", common, arguments)


def delete_skips(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = 10,
    model: o.Model = None,
    weights: o.Weights = None,
    output: o.Output = None,
    data: o.Data = None,
    split: o.Split = "test",
    limit: o.Limit = None,
    image_size: o.ImageSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    download: o.Download = False,
    batch_size: o.BatchSize = _BATCH,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.float32,
    seed: o.Seed = 0,
    out: o.Out = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    engine: o.EngineOption = "auto",
    plain_forward: o.PlainForward = False,
) -> None:
    """The control experiment: each block's shortcut deleted and its branch kept."""
    common = _common(locals())
    arguments = {"blocks": parse_range(blocks, "blocks"), "count": parse_range(count, "count"), "samples": samples}
    _run("delete-skips", common, arguments)


def reorder_blocks(
    swaps: Swaps = "1:20",
    samples: o.Samples = 10,
    model: o.Model = None,
    weights: o.Weights = None,
    output: o.Output = None,
    data: o.Data = None,
    split: o.Split = "test",
    limit: o.Limit = None,
    image_size: o.ImageSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    download: o.Download = False,
    batch_size: o.BatchSize = _BATCH,
    device: o.DeviceOption = o.Device.auto,
    dtype: o.DtypeOption = o.Dtype.float32,
    seed: o.Seed = 0,
    out: o.Out = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    engine: o.EngineOption = "auto",
    plain_forward: o.PlainForward = False,
) -> None:
    """Error against Kendall's tau of a random order of the blocks (Veit et al. 2016, section 4.3)."""
    common = _common(locals())
    _run("reorder-blocks", common, {"swaps": parse_range(swaps, "swaps"), "samples": samples})


def _common(given: dict[str, Any]) -> Common:
    return Common(**{name: given[name] for name in Common.__dataclass_fields__})


def _run(verb: str, common: Common, arguments: dict[str, Any]) -> None:
    with setting(verb, common) as current:
        from pathlens import analyses

        call: Callable[..., Table] = getattr(analyses, verb.replace("-", "_"))
        with progress_bar(verb, current.shows_progress, current.notes) as progress, foreign_output():
            table = call(current.view, current.data, **arguments, **current.options(progress))
        finish(current, table, arguments)
