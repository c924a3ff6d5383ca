"""Which test images trained networks get right, and differences of their errors over seeds and images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pathlens.data import ImageData
from pathlens.metrics import count_answers, count_pairs
from pathlens.models import LoadedModel
from studies.rules.claims import welch

Row = Mapping[str, Any]

PAIRED = (
    "Difference paired by seed and by image. Student's 95 % interval over seeds, whose standard error has the sampling "
    "of the test images in it (Satterthwaite's degrees of freedom) and which is never narrower than by the seeds alone"
)
"""What :func:`both_interval` is, for the pages."""
COLUMNS = (
    ("lost", "images", "test images that the network it is compared with, of the same seed, alone gets right"),
    ("gained", "images", "test images that this network alone gets right"),
)
BOTH = (
    (
        "both_low",
        "fraction",
        "lower end of the 95 % interval of that difference over seeds and test images (Student); missing where "
        "the images were not there",
    ),
    ("both_high", "fraction", "upper end"),
)


def is_right(loaded: LoadedModel, data: ImageData, device: torch.device) -> torch.Tensor:
    """Whether a network classifies each image correctly, bool, shape (n,), on the CPU."""
    model = loaded.model.float().eval().to(device)
    batches = data.batches(250, mean=loaded.mean, std=loaded.std, device=device)
    with torch.no_grad():
        return torch.cat([count_answers(model(batch.images), batch.labels)[1] for batch in batches]).cpu()


def compare(
    rows: Sequence[dict[str, Any]], answers: Mapping[str, torch.Tensor], beside: Callable[[Row], str | None]
) -> None:
    """Write into the rows of runs which images they lose and gain.

    Args:
        rows: with the name of their ``run``.
        answers: by name of the run, of :func:`is_right`; a run without is compared with none.
        beside: name of the run that a row is compared with; None for none.
    """
    for row in rows:
        other = beside(row)
        row |= {"lost": None, "gained": None}
        if other in answers and row["run"] in answers:
            _, (lost, gained) = count_pairs(torch.stack([answers[other], answers[row["run"]]])).long().tolist()
            row |= {"lost": lost, "gained": gained}


def gaps(own: Mapping[int, Row], whole: Mapping[int, Row], name: str = "error") -> list[float]:
    """Differences of test error or loss, one for each seed.

    Args:
        own: seed -> row of the run.
        whole: of the network that it is compared with, of at least these seeds.
        name: ``error`` or ``loss``.
    """
    return [run[f"test_{name}"] - whole[seed][f"test_{name}"] for seed, run in own.items()]


def both_interval(own: Mapping[int, Row], whole: Mapping[int, Row]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean difference of error over seeds, with the sampling of test images in it.

    All seeds are read on the same images, so that their part of the variance is not divided by the number of seeds. It
    is that of the difference on an image, which is 1 where the network has lost it, -1 where it has gained it, 0
    elsewhere. What a seed does to single images is in both parts, so that the interval is too wide rather than too
    narrow. Degrees of freedom are Satterthwaite's, with those of the images without end; never narrower than the
    interval over seeds alone.

    Args:
        own: seed -> row of the run, with its error and what it lost and gained.
        whole: of the network that it is compared with, of at least these seeds.

    Returns:
        None for both ends of a single seed, or where which images were lost is not known.
    """
    if len(own) < 2 or any(run["lost"] is None for run in own.values()):
        return None, None
    found = gaps(own, whole)
    middle, seeds = statistics.fmean(found), (statistics.variance(found) / len(found), len(found) - 1)
    images = statistics.fmean(
        (run["lost"] + run["gained"] - (run["lost"] - run["gained"]) ** 2 / run["test_images"])
        / run["test_images"] ** 2
        for run in own.values()
    )
    intervals = welch(middle, [seeds]), welch(middle, [seeds, (images, math.inf)])
    ends = [end for interval in intervals for end in interval if end is not None]
    return min(ends, default=middle), max(ends, default=middle)
