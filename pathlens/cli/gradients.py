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


Mode = StrEnum("Mode", "eval train")


@dataclass(frozen=True)
class GradientOptions(o.Common):
    """The shared options, with fewer images."""

    limit: Annotated[int, o.option("Only the first N images.", min=1, metavar="N")] = 128
    batch_size: Annotated[int, o.option("Images at a time; bounds the memory.", min=1)] = 32
    loss: o.Loss = None


@o.takes_objects
def path_gradients(
    method: Annotated[
        str,
        o.option(
            "exact: sums over all paths; sampled: single random paths; signed: root mean squares; or all.",
            "--method",
            parser=_method,
            metavar=f"<{'|'.join(METHODS)}>",
            autocompletion=lambda: list(METHODS),
        ),
    ] = ALL,
    at: Annotated[
        str | None,
        o.option(
            "Where the gradient is taken: input, stem or block:I. Default: input; stem where that is of integers.",
            metavar="PLACE",
        ),
    ] = None,
    max_length: Annotated[int | None, o.option("Leave longer paths out.", min=0, metavar="L")] = None,
    delete: Annotated[
        str | None, o.option("Measure the network without these blocks' branches, such as 3,7.", metavar="RANGE")
    ] = None,
    delete_skips: Annotated[
        str | None, o.option("Measure the network without these blocks' shortcuts.", metavar="RANGE")
    ] = None,
    tolerance: Annotated[
        float,
        o.option("Leave lengths out that are below this fraction of the largest, block by block.", metavar="X"),
    ] = 0.0,
    rel_error: Annotated[
        float, o.option("Sample until half the 95 % interval is this fraction of the mean.", metavar="X")
    ] = 0.1,
    max_samples: Annotated[int, o.option("Paths of a length for each batch at most.", min=1)] = 64,
    draws: Annotated[int, o.option("Random sign vectors for each example.", min=1)] = 8,
    share: Annotated[float, o.option("What the effective range holds of the contribution.", metavar="X")] = 0.95,
    additions: o.Additions = None,
    concat: Annotated[bool, o.option("Paths choose at concatenations too (DenseNets, U-Nets).", "--concat")] = False,
    lattice: Annotated[bool, o.option("With --out, also the norm at every block and length.", "--lattice")] = False,
    mode: Annotated[Mode, o.option("train: batch norms with the statistics of the batch.", "--mode")] = Mode.eval,
    *,
    common: GradientOptions,
) -> None:
    """Gradient norm of every path length: sampled as in Veit et al. 2016 (section 5), and exact.

    Norms are of the gradient of an example's own loss, averaged over examples. Work that was killed goes on when the
    same command is given again.
    """
    paths: dict[str, Any] = {"at": at, "max_length": max_length, "tolerance": tolerance}
    lesion = {"delete": parse_range(delete, "delete"), "delete_skips": parse_range(delete_skips, "delete-skips")}
    sampling: dict[str, Any] = {
        "method": method,
        "rel_error": rel_error,
        "max_samples": max_samples,
        "draws": draws,
        "share": share,
    }
    with setting("path-gradients", common, additions, concat) as current:
        from pathlens import analyses, plans
        from pathlens.runtime.memory import oom_as_error

        plan = [getattr(plans, what)(blocks) for what, blocks in lesion.items() if blocks is not None]
        choices = {"additions": current.view.additions, "concat": concat}
        options: dict[str, Any] = {**paths, **current.options, "dtype": common.dtype.value, "mode": mode.value}
        options["loss"] = None if common.loss is None else common.loss.value
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
                current.view,
                current.data,
                **options,
                **sampling,
                lesion=plan,
                seed=common.seed,
                concat=concat,
                progress=progress,
            )
            if lattice and common.out is not None:
                more["lattice"] = analyses.lattice(
                    current.view, current.data, **options, lesion=plan, concat=concat, progress=progress
                )
        finish(current, table, {**paths, **lesion, **sampling, **choices, "lattice": lattice, "mode": mode.value}, more)
