"""``pathlens loss-surface`` on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pathlens.cli import options as o
from pathlens.cli.lesions import LesionOptions
from pathlens.cli.options import parse_range
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import finish, foreign_output, setting

Directions = StrEnum("Directions", "random hessian")
OneDimensional = StrEnum("OneDimensional", "still moved copied")
BatchNorm = StrEnum("BatchNorm", {"kept": "kept", "re_estimated": "re-estimated"})
Curvature = StrEnum("Curvature", "none centre grid")
_LESION = "Of the network without these blocks' "


@dataclass(frozen=True)
class SurfaceOptions(LesionOptions):
    """The shared options, with fewer images."""

    limit: Annotated[int, o.option("Only the first N images.", min=1, metavar="N")] = 1000


@o.takes_objects
def loss_surface(
    dimensions: Annotated[int, o.option("1 for a line, 2 for a grid.", min=1, max=2)] = 2,
    points: Annotated[
        int, o.option("Points along each axis; an odd number, so that the network is in the middle.", metavar="N")
    ] = 51,
    span: Annotated[float, o.option("Coordinates go from -X to X.", metavar="X")] = 1.0,
    directions: Annotated[
        Directions, o.option("random: with the norms of the network's own filters; hessian: leading eigenvectors.")
    ] = Directions.random,
    towards: Annotated[
        list[Path] | None,
        o.option(
            "Weights of another such network, at coordinate 1 of the first axis; again for the second.", metavar="FILE"
        ),
    ] = None,
    one_dimensional: Annotated[
        OneDimensional | None,
        o.option(
            "Biases and parameters of norms: still (as published), moved, or copied: scaled alike. Default: still; "
            "moved with --towards."
        ),
    ] = None,
    batch_norm: Annotated[
        BatchNorm | None,
        o.option(
            "Running statistics: kept (as published), or re-estimated at each point. Default: kept; re-estimated with "
            "--towards."
        ),
    ] = None,
    draws: Annotated[int, o.option("Lines in so many random directions.", metavar="N")] = 1,
    curvature: Annotated[
        Curvature,
        o.option(
            "Eigenvalues and trace of the Hessian at the network; grid: eigenvalues at every point, which is slow."
        ),
    ] = Curvature.centre,
    curvature_images: Annotated[int, o.option("Curvature of the loss of the first N images.", metavar="N")] = 256,
    probes: Annotated[int, o.option("Random vectors for the trace.", metavar="N")] = 16,
    delete_blocks: Annotated[str | None, o.option(f"{_LESION}branches, such as 3,7, or all.", metavar="RANGE")] = None,
    delete_skips: Annotated[str | None, o.option(f"{_LESION}shortcuts, such as 3,7, or all.", metavar="RANGE")] = None,
    *,
    common: SurfaceOptions,
) -> None:
    """Loss and error on a line or grid around the weights, and the curvature (Li et al. 2018; UDL, figure 11.13).

    --delete-skips all is the network cut into a plain one. Work that was killed goes on when the same command is given
    again.
    """
    asked: dict[str, Any] = {
        "dimensions": dimensions,
        "points": points,
        "span": span,
        "directions": directions.value,
        "towards": towards or [],
        "one_dimensional": one_dimensional and one_dimensional.value,
        "batch_norm": batch_norm and batch_norm.value,
        "draws": draws,
        "curvature": curvature.value,
        "curvature_images": curvature_images,
        "probes": probes,
    }
    given = {"delete": (delete_blocks, "delete-blocks"), "delete_skips": (delete_skips, "delete-skips")}
    parsed = {what: text if text == "all" else parse_range(text, name) for what, (text, name) in given.items()}
    with setting("loss-surface", common) as current:
        from pathlens import analyses, plans

        every = range(len(current.view))
        lesion = [
            getattr(plans, what)(every if blocks == "all" else blocks)
            for what, blocks in parsed.items()
            if blocks is not None
        ]
        with progress_bar("loss-surface", current.shows_progress, current.notes) as progress, foreign_output():
            table = analyses.loss_surface(
                current.view,
                current.data,
                **asked,
                lesion=lesion,
                **current.options,
                **common.sweep,
                progress=progress,
            )
        written = {**asked, "towards": [str(path) for path in asked["towards"]]}
        finish(current, table, {**written, "delete_blocks": delete_blocks, "delete_skips": delete_skips})
