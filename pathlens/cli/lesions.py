"""The lesion verbs on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathlens.cli import options as o
from pathlens.cli.options import parse_range
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import finish, foreign_output, setting

if TYPE_CHECKING:
    from pathlens.tables import Table

Blocks = Annotated[
    str | None,
    typer.Option(
        metavar="RANGE",
        help="Which blocks to delete one at a time, such as 0:8 (both ends included, unlike Python's range).",
    ),
]
Count = Annotated[
    str | None,
    typer.Option(metavar="RANGE", help="Delete random sets of these sizes instead, such as 1:20 (both ends included)."),
]
Swaps = Annotated[str, typer.Option(metavar="RANGE", help="How many random pairs of blocks to exchange, such as 1:20.")]


@dataclass(frozen=True)
class LesionOptions(o.Common):
    """The shared options, and how to run the network."""

    engine: o.EngineOption = "auto"
    plain_forward: o.PlainForward = False


@o.takes_objects
def delete_blocks(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = 10,
    *,
    common: LesionOptions,
) -> None:
    """Error and loss with each residual block deleted, or random sets of blocks (Veit et al. 2016, 4.1 and 4.2).

    In a plain network layers are deleted. A sweep that was killed goes on when the same command is given again.
    """
    arguments = {"blocks": parse_range(blocks, "blocks"), "count": parse_range(count, "count"), "samples": samples}
    run("delete-blocks", common, arguments, blocks)


@o.takes_objects
def delete_skips(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = 10,
    *,
    common: LesionOptions,
) -> None:
    """The control experiment: each block's shortcut deleted and its branch kept."""
    arguments = {"blocks": parse_range(blocks, "blocks"), "count": parse_range(count, "count"), "samples": samples}
    run("delete-skips", common, arguments, blocks)


@o.takes_objects
def reorder_blocks(
    swaps: Swaps = "1:20",
    samples: o.Samples = 10,
    *,
    common: LesionOptions,
) -> None:
    """Error against Kendall's tau of a random order of the blocks (Veit et al. 2016, section 4.3)."""
    run("reorder-blocks", common, {"swaps": parse_range(swaps, "swaps"), "samples": samples})


def run(verb: str, common: LesionOptions, arguments: dict[str, Any], blocks: str | None = None) -> None:
    """Carry out a verb of :mod:`pathlens.analyses` on what the options say, and show and write its table.

    Args:
        verb: its name.
        common: the shared options.
        arguments: its own.
        blocks: the range of blocks that was asked for, as it was written.
    """
    with setting(verb, common) as current:
        o.check_last(blocks, len(current.view))
        from pathlens import analyses

        call: Callable[..., Table] = getattr(analyses, verb.replace("-", "_"))
        with progress_bar(verb, current.shows_progress, current.notes) as progress, foreign_output():
            table = call(current.view, current.data, **arguments, **current.options(progress))
        finish(current, table, arguments)
