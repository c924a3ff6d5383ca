"""The networks, the treatments, and what is measured of the loss around their weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pathlens
from pathlens import plans
from pathlens.data import ImageData
from pathlens.plans import Plan
from pathlens.residual import ResidualView, view_of
from pathlens.results.surface import basin_share, has_basin
from pathlens.runtime.processes import pick_device
from pathlens.tables import Table
from studies.common import StudySetting, once, say
from studies.subjects import cifar10, published, untrained

Row = Mapping[str, Any]

WITH, WITHOUT, CUT = "with shortcuts", "trained without", "cut into plain"
"""The three networks of one depth."""

TREATMENTS = (
    ("still", "kept"),
    ("moved", "kept"),
    ("copied", "kept"),
    ("still", "re-estimated"),
    ("moved", "re-estimated"),
)
"""What parameters of one dimension and running statistics do; the first is that of the published script's figures."""
PUBLISHED = TREATMENTS[0]

_WHICH = (
    ("network", "", "which"),
    ("kind", "", f"{WITH}, {WITHOUT}, or {CUT} by a plan that deletes all shortcuts of the first"),
    ("seed", "", "of its training; missing for one that others trained"),
    ("one_dimensional", "", "what biases and parameters of norms do: still, moved or copied"),
    ("batch_norm", "", "running statistics: kept or re-estimated"),
    ("draw", "", "number of the random direction"),
)
LINES = (
    *_WHICH,
    ("x", "", "coordinate along the direction"),
    ("loss", "nats", "mean cross-entropy; missing where it is not finite"),
    ("error", "fraction", "share of images classified wrongly"),
)
NUMBERS = (
    *_WHICH,
    ("loss", "nats", "of the network itself"),
    ("mean_loss", "nats", "over the points of the line, each counted as 10 nats at most"),
    ("basin", "fraction", "share of the points within 0.1 nat of the smallest loss"),
    ("has_basin", "", "whether the smallest loss lies inside the line"),
    (
        "concave",
        "fraction",
        "share of the inner points at which the loss curves down, by second differences of the loss itself",
    ),
)
CURVATURE = (
    ("network", "", "which"),
    ("kind", "", "likewise"),
    ("largest", "nats / weight^2", "largest eigenvalue of the Hessian"),
    ("smallest", "nats / weight^2", "smallest eigenvalue"),
    ("trace", "nats / weight^2", "Hutchinson's estimate"),
    ("trace_standard_error", "nats / weight^2", "its standard error"),
    ("images", "images", "whose mean loss it is"),
)
HIGHEST = 10.0
"""Nats that a point counts at most, as in the published figures."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network and how it runs.

    Attributes:
        name: for tables and files.
        kind: with shortcuts, trained without, or cut.
        view: its blocks.
        options: what every analysis of it is told.
        lesion: of the one that is cut, or trained through the plan.
        seed: of its training here.
    """

    name: str
    kind: str
    view: ResidualView
    options: Mapping[str, Any]
    lesion: Sequence[Plan] = ()
    seed: int | None = None


def data_of(study: StudySetting) -> str:
    """What all is measured on.

    Raises:
        DataError: the images are not there.
    """
    return "digits" if study.scale == "smoke" else cifar10()


def images(study: StudySetting, size: int | None = None) -> ImageData:
    """The first training images: the surface is that of the loss that was minimised."""
    return pathlens.open_data(data_of(study), split="train", limit=study.pick(8, 500, 50_000), image_size=size)


def pair(study: StudySetting) -> list[Network]:
    """ResNet-56 and its twin without shortcuts, as others trained them, and the first cut into plain.

    Raises:
        DataError: the weights or the images are not there.
    """
    opened = untrained if study.scale == "smoke" else published
    names = study.pick(("resnet20b", "plain20"), ("resnet56b", "plain56"), ("resnet56b", "plain56"))
    whole, twin = (opened(study, name) for name in names)
    cut = [plans.delete_skips(range(len(whole.view)))]
    return [
        Network(whole.name, WITH, whole.view, whole.options),
        Network(twin.name, WITHOUT, twin.view, twin.options),
        Network(f"{whole.name}-cut", CUT, whole.view, whole.options, cut),
    ]


def trainings(study: StudySetting) -> dict[str, list[str]]:
    """ResNet-20 and the same trained through the plan that deletes its shortcuts, from the same weights."""
    data = ["--data", data_of(study)]
    recipe: list[str] = study.pick(
        ["--epochs", "1", "--limit", "60", "--validation", "10", "--no-test"],
        ["--limit", "10000", "--image-size", "16", "--epochs", "12", "--schedule", "cosine"],
        [],
    )
    return {
        f"resnet20-{name}-seed{seed}": ["--model", "resnet20", *data, *recipe, "--seed", str(seed), *more]
        for seed in range(study.pick(1, 3, 3))
        for name, more in (("skips", []), ("plain", ["--without-skips"]))
    }


def own(study: StudySetting, done: Mapping[str, Path]) -> Iterator[Network]:
    """The networks that were trained here."""
    for name, folder in done.items():
        loaded = pathlens.load_model("resnet20", folder / "weights.safetensors")
        first = images(study, own_size(study)).batch(0, 2, mean=loaded.mean, std=loaded.std).images
        view = view_of(loaded.model, first)
        stated = {"model": "resnet20", "weights": loaded.sha256, "trained": True}
        options = {
            "mean": loaded.mean,
            "std": loaded.std,
            "provenance": stated,
            "device": str(pick_device(study.device)),
        }
        plain = "-plain-" in name
        lesion = [plans.delete_skips(range(len(view)))] if plain else []
        yield Network(name, WITHOUT if plain else WITH, view, options, lesion, int(name.rpartition("seed")[2]))


def own_size(study: StudySetting) -> int | None:
    """Height and width that own networks are trained with."""
    size: int | None = study.pick(None, 16, None)
    return size


def grid(study: StudySetting, network: Network) -> Table:
    """The surface in two random directions by the published treatment, and the curvature."""
    points, curved = study.pick(3, 11, 51), study.pick(4, 64, 1000)
    more = {"curvature": "centre", "curvature_images": curved, "probes": study.pick(2, 8, 50)}
    return _surface(
        study, network, images(study), f"surface-{network.name}", points=points, treatment=PUBLISHED, **more
    )


def line(study: StudySetting, network: Network, treatment: tuple[str, str], data: ImageData) -> Table:
    """Lines in several random directions."""
    more = {"dimensions": 1, "draws": study.pick(2, 5, 10), "curvature": "none", "points": study.pick(3, 9, 51)}
    stem = "-".join(("line", network.name, *treatment))
    return _surface(study, network, data, stem, treatment=treatment, **more)


def _surface(
    study: StudySetting, network: Network, data: ImageData, stem: str, *, treatment: tuple[str, str], **more: Any
) -> Table:
    say(stem)
    one_dimensional, batch_norm = treatment
    measure = partial(
        pathlens.loss_surface, network.view, data, one_dimensional=one_dimensional, batch_norm=batch_norm,
        lesion=network.lesion, journal=study.runs / "journal", **network.options, **more,
    )  # fmt: skip
    return once(study, stem, measure)


def line_rows(network: Network, treatment: tuple[str, str], table: Table) -> list[Row]:
    """The rows of ``LINES``."""
    which = dict(
        zip((name for name, _, _ in _WHICH), (network.name, network.kind, network.seed, *treatment), strict=False)
    )
    return [{**which, **{name: row[name] for name in ("draw", "x", "loss", "error")}} for row in table.rows]


def number_rows(lines: Sequence[Row]) -> list[Row]:
    """The rows of ``NUMBERS``, one for each line.

    Args:
        lines: rows of ``LINES``, those of a line one after the other.
    """
    names = [name for name, _, _ in _WHICH]
    by_line: dict[tuple[Any, ...], list[Row]] = {}
    for row in lines:
        by_line.setdefault(tuple(row[name] for name in names), []).append(row)
    return [{**dict(zip(names, which, strict=True)), **numbers_of(rows)} for which, rows in by_line.items()]


def numbers_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What is judged of one line.

    Args:
        rows: in the order of their coordinates.
    """
    losses = [math.inf if row["loss"] is None else row["loss"] for row in rows]
    bends = [before - 2 * here + behind for before, here, behind in zip(losses, losses[1:], losses[2:], strict=False)]
    return {
        "loss": rows[len(rows) // 2]["loss"],
        "mean_loss": statistics.fmean(min(loss, HIGHEST) for loss in losses),
        "basin": basin_share(rows),
        "has_basin": has_basin(rows),
        "concave": statistics.fmean(bend < 0 for bend in bends),
    }


def curvature_row(network: Network, table: Table) -> Row:
    """The row of ``CURVATURE``."""
    known = table.provenance["curvature"]
    names = ("largest", "smallest", "trace", "trace_standard_error")
    return {
        "network": network.name,
        "kind": network.kind,
        **{name: known[name] for name in names},
        "images": known["images"],
    }
