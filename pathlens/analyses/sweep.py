"""Evaluate many lesions of one network on the same images, sharing what they have in common.

The plans form a trie over the blocks: two lesioned networks that agree up to block i share the activations up to there.
Deleting each of n blocks in turn so costs about half of n evaluations, and one batch is all that is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pathlens.analyses.agreement import check_agreement, check_images
from pathlens.analyses.runner import Runner
from pathlens.errors import UsageError
from pathlens.metrics import ClassificationCounts, count_values, require_labels
from pathlens.plans import Plan, route
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Route
from pathlens.runtime.memory import oom_as_error

PHASE = "sweep"
"""Name of the counts in the journal."""


@dataclass(frozen=True)
class SweepResult:
    """Counts of each plan, and how far the prepared network is from the model's own forward."""

    counts: list[ClassificationCounts]
    largest_logit_difference: float


def routes_of(plans: Sequence[Plan], blocks: int) -> list[Route]:
    """What runs at each position of the chain under each plan.

    Args:
        plans: each by itself.
        blocks: number of blocks.

    Raises:
        UsageError: a plan that changes no forward pass.
    """
    if not all(plan.changes_forward for plan in plans):
        raise UsageError("a restricted backward pass changes no forward pass, so there is no error to measure")
    return [route([plan], blocks) for plan in plans]


def evaluate(network: Inference, routes: Sequence[Route], images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Logits of each lesioned network for one batch, as (index of the route, logits), in no particular order."""
    numbered = sorted((route, index) for index, route in enumerate(routes))
    # no name for the stem's output, so that it lives no longer than it is needed
    yield from _walk(network, numbered, 0, network.stem(network.prepare(images)))


def _walk(network: Inference, routes: list[tuple[Route, int]], depth: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    while depth < len(network):
        groups = [list(group) for _, group in groupby(routes, key=lambda route: route[0][depth])]
        # the largest group goes on in this loop, so that the recursion is only as deep as plans really part
        groups.sort(key=len)
        for group in groups[:-1]:
            yield from _walk(network, group, depth + 1, network.step(*group[0][0][depth])(x))
        routes = groups[-1]
        x = network.step(*routes[0][0][depth])(x)
        depth += 1
    logits = network.head(x)
    for _, index in routes:
        yield index, logits


def sweep(network: Inference, plans: Sequence[Plan], runner: Runner) -> SweepResult:
    """Counts of every plan over all images.

    Args:
        network: the prepared network.
        plans: what to evaluate; the first one is the intact network.
        runner: of the batches; beside each its journal keeps the name of the engine.

    Raises:
        NumericsError: the prepared network disagrees with the model, or the intact network gives NaN.
        ResourceError: a batch does not fit in memory.
        DataError: labels outside the classes, or images that do not fit the network.
        RunError: another process has ended.
    """
    source = runner.source
    with runner.group.agreed(), torch.inference_mode(), oom_as_error(source.batch_size):
        routes = routes_of(plans, len(network))
        difference = check_agreement(network, source.first())

    def count(batch: int, images: Tensor, labels: Tensor) -> list[Any]:
        return [network.engine.name, _count(network, routes, batch, images, labels)]

    with torch.inference_mode():
        found = runner.run(PHASE, count)
    return SweepResult(_add_up([counts for _, counts in found.values()], len(plans)), difference)


def _count(
    network: Inference, routes: Sequence[Route], batch: int, images: Tensor, labels: Tensor
) -> list[list[float]]:
    """Five numbers for each route (see :func:`count_values`), checked as far as the intact network tells."""
    check_images(network, images, batch)
    require_labels(labels, len(images))

    def count(part: tuple[Tensor, ...]) -> Tensor:
        targets = part[1].to(network.device)
        values = {index: count_values(logits, targets) for index, logits in evaluate(network, routes, part[0])}
        return torch.stack([values[index] for index in range(len(routes))])

    parts = network.each(count, network.parts(images, labels))
    found: list[list[float]] = sum(parts[1:], start=parts[0]).tolist()
    ClassificationCounts.from_values(found[0]).require_finite("the intact network")
    return found


def _add_up(batches: Sequence[Sequence[Sequence[float]]], plans: int) -> list[ClassificationCounts]:
    """Sums over the batches in their order, so that the rounding does not depend on who did what."""
    counts = [ClassificationCounts()] * plans
    for batch in batches:
        counts = [total + ClassificationCounts.from_values(values) for total, values in zip(counts, batch, strict=True)]
    return counts
