"""``pathlens path-gradients`` on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathlens.cli import options as o
from pathlens.cli.options import parse_range
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import finish, foreign_output, setting
from pathlens.estimators import ALIASES, ALL, METHODS

if TYPE_CHECKING:
    from pathlens.tables import Table


def _method(text: str) -> str:
    name = ALIASES.get(text, text)
    if name not in METHODS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, METHODS))}.")
    return name


class Mode(StrEnum):
    """The mode that the network is differentiated in."""

    eval = "eval"
    train = "train"


MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        parser=_method,
        metavar=f"<{'|'.join(METHODS)}>",
        autocompletion=lambda: list(METHODS),
        help="exact: sums over all paths; sampled: single random paths; signed: root mean squares; or all.",
    ),
]
At = Annotated[str, typer.Option(metavar="PLACE", help="Where the gradient is taken: input, stem or block:I.")]
MaxLength = Annotated[int | None, typer.Option(min=0, metavar="L", help="Leave longer paths out.")]
Delete = Annotated[
    str | None, typer.Option(metavar="RANGE", help="Measure the network without these blocks' branches, such as 3,7.")
]
DeleteSkips = Annotated[
    str | None, typer.Option(metavar="RANGE", help="Measure the network without these blocks' shortcuts.")
]
Tolerance = Annotated[
    float,
    typer.Option(metavar="X", help="Leave lengths out that are below this fraction of the largest, block by block."),
]
RelError = Annotated[
    float, typer.Option(metavar="X", help="Sample until half the 95 % interval is this fraction of the mean.")
]
MaxSamples = Annotated[int, typer.Option(min=1, help="Paths of a length for each batch at most.")]
Draws = Annotated[int, typer.Option(min=1, help="Random sign vectors for each example.")]
Share = Annotated[float, typer.Option(metavar="X", help="What the effective range holds of the contribution.")]
Lattice = Annotated[bool, typer.Option("--lattice", help="With --out, also the norm at every block and length.")]
ModeOption = Annotated[Mode, typer.Option("--mode", help="train: batch norms with the statistics of the batch.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="Only the first N images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time; bounds the memory.")]


@dataclass(frozen=True)
class GradientOptions(o.Common):
    """The shared options, with fewer images."""

    limit: Limit = 128
    batch_size: BatchSize = 32


@o.takes_objects
def path_gradients(
    method: MethodOption = ALL,
    at: At = "input",
    max_length: MaxLength = None,
    delete: Delete = None,
    delete_skips: DeleteSkips = None,
    tolerance: Tolerance = 0.0,
    rel_error: RelError = 0.1,
    max_samples: MaxSamples = 64,
    draws: Draws = 8,
    share: Share = 0.95,
    lattice: Lattice = False,
    mode: ModeOption = Mode.eval,
    *,
    common: GradientOptions,
) -> None:
    """Gradient norm of every path length: sampled as in Veit et al. 2016 (section 5), and exact.

    Norms are of the gradient of an example's own loss, averaged over examples. Work that was killed goes on when the
    same command is given again.
    """
    asked: dict[str, Any] = {"at": at, "max_length": max_length, "tolerance": tolerance}
    lesion = {"delete": parse_range(delete, "delete"), "delete_skips": parse_range(delete_skips, "delete-skips")}
    sampling: dict[str, Any] = {
        "method": method,
        "rel_error": rel_error,
        "max_samples": max_samples,
        "draws": draws,
        "share": share,
    }
    with setting("path-gradients", common) as current:
        from pathlens import analyses, plans
        from pathlens.runtime.memory import oom_as_error

        shared = current.options(None)
        del shared["engine"], shared["fast"], shared["progress"]
        shared["mode"] = mode.value
        shared["lesion"] = [getattr(plans, what)(blocks) for what, blocks in lesion.items() if blocks is not None]
        more: dict[str, Table] = {}
        notes = (
            *current.notes,
            *(("--lattice writes its table and figure with --out",) if lattice and not common.out else ()),
        )
        with (
            progress_bar("path-gradients", current.shows_progress, notes) as progress,
            foreign_output(),
            oom_as_error(common.batch_size),
        ):
            table = analyses.path_gradients(
                current.view, current.data, **asked, **sampling, **shared, progress=progress
            )
            if lattice and common.out is not None:
                del shared["seed"]
                more["lattice"] = analyses.lattice(current.view, current.data, **asked, **shared, progress=progress)
        finish(current, table, {**asked, **lesion, **sampling, "lattice": lattice, "mode": mode.value}, more)
