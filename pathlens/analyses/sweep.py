"""Evaluate many lesions of one network on the same images, sharing what they have in common.

The plans form a trie over the blocks: two lesioned networks that agree up to block i share the activations up to there.
Deleting each of n blocks in turn so costs about half of n evaluations, and one batch is all that is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import groupby
from operator import add
from typing import Any

import torch
from torch import Tensor

from pathlens.analyses.agreement import check_agreement, check_images
from pathlens.analyses.replacing import Network, Replacing
from pathlens.analyses.runner import Runner
from pathlens.errors import UsageError
from pathlens.metrics import Task, holm
from pathlens.metrics.tasks import Counts, Pairs
from pathlens.plans import Plan, schedule
from pathlens.residual.inference import Call, Inference
from pathlens.residual.routes import Part, Route, Schedule
from pathlens.runtime.memory import oom_as_error

PHASE = "sweep"
"""Name of the counts in the journal."""


@dataclass(frozen=True)
class SweepResult:
    """What was counted of each network.

    Attributes:
        task: what was counted.
        routes: what ran at each position, of each network.
        counts: of each network.
        pairs: of each network against the first one, on the same images.
        largest_logit_difference: between the prepared network and the model's own forward.
    """

    task: Task
    routes: list[Route | Schedule]
    counts: list[Counts]
    pairs: list[Pairs]
    largest_logit_difference: float

    @cached_property
    def tests(self) -> dict[Route | Schedule, tuple[float, float]]:
        """The task's test of every other network against the first one: p, and p after Holm's correction.

        The family of the correction is all networks that are not the first one; one that was asked for twice is tested
        once.
        """
        single = {route: pair.p for route, pair in zip(self.routes, self.pairs, strict=True) if route != self.routes[0]}
        return dict(zip(single, zip(single.values(), holm(list(single.values())), strict=True), strict=True))


def routes_of(plans: Sequence[Plan], blocks: int) -> list[Route | Schedule]:
    """What runs under each plan: at each position of the chain, or side by side.

    Args:
        plans: each by itself.
        blocks: number of blocks.

    Raises:
        UsageError: a plan that changes no forward pass.
    """
    if not all(plan.changes_forward for plan in plans):
        raise UsageError("a restricted backward pass changes no forward pass, so there is no error to measure")
    return [schedule([plan], blocks) for plan in plans]


def evaluate(
    network: Inference, routes: Sequence[Route | Schedule], images: Tensor, lesioned: Network | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Logits of each lesioned network for one batch, as (index of the route, logits), in no particular order.

    Args:
        network: the prepared network.
        routes: of the lesioned networks.
        images: the batch.
        lesioned: how blocks run (default: as the network says, which replaces no branches).
    """
    lesioned = lesioned or network
    numbered = [(route, index) for index, route in enumerate(routes) if not isinstance(route, Schedule)]
    if not network.chain.in_series:
        x = network.prepare(images)
        yield from ((index, lesioned.whole(route)(x)) for route, index in numbered)
        return
    for index, steps in enumerate(routes):
        if isinstance(steps, Schedule):
            yield index, network.head(steps.run(lesioned.step, network.stem(network.prepare(images))))
    if not numbered:
        return
    numbered.sort()
    # no name for the stem's output, so that it lives no longer than it is needed
    yield from _walk(network, lesioned.step, numbered, 0, network.stem(network.prepare(images)))


def _walk(
    network: Inference, step: Callable[[Part, int], Call], routes: list[tuple[Route, int]], depth: int, x: Tensor
) -> Iterator[tuple[int, Tensor]]:
    while depth < len(network):
        groups = [list(group) for _, group in groupby(routes, key=lambda route: route[0][depth])]
        # the largest group goes on in this loop, so that the recursion is only as deep as plans really part
        groups.sort(key=len)
        for group in groups[:-1]:
            yield from _walk(network, step, group, depth + 1, step(*group[0][0][depth])(x))
        routes = groups[-1]
        x = step(*routes[0][0][depth])(x)
        depth += 1
    logits = network.head(x)
    for _, index in routes:
        yield index, logits


def sweep(
    network: Inference, task: Task, plans: Sequence[Plan], runner: Runner, phase: str = PHASE, seed: int = 0
) -> SweepResult:
    """Counts of every plan over all images.

    Args:
        network: the prepared network.
        task: what to count.
        plans: what to evaluate; the first one is the intact network.
        runner: of the batches; beside each its journal keeps the name of the engine.
        phase: names the journal.
        seed: of the images whose branches stand in the place of deleted ones.

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
        alone = [route for route in routes if not isinstance(route, Schedule)]
        replacing = Replacing(network, alone, source, seed)

    def count(batch: int, images: Tensor, labels: Tensor) -> list[Any]:
        return [network.engine.name, _count(network, task, routes, replacing, batch, images, labels)]

    with torch.inference_mode():
        results = runner.run(phase, count)
    counts, pairs = _add_up(task, [batch for _, batch in results.values()])
    return SweepResult(task, routes, counts, pairs, difference)


def _count(
    network: Inference,
    task: Task,
    routes: Sequence[Route | Schedule],
    replacing: Replacing,
    batch: int,
    images: Tensor,
    labels: Tensor,
) -> list[list[float]]:
    """The task's numbers for each route, checked as far as the intact network tells."""
    check_images(network, images, batch)
    task.check_targets(labels, len(images))
    lesioned = replacing.at(batch, len(images))

    def count(part: tuple[Tensor, ...]) -> Tensor:
        targets = part[1].to(network.device)
        answers = {
            index: task.answers(logits, targets) for index, logits in evaluate(network, routes, part[0], lesioned)
        }
        # a byte for each answer and network, because the intact one may come last
        ordered = [answers[index] for index in range(len(routes))]
        values, given = (torch.stack(items) for items in zip(*ordered, strict=True))
        return torch.cat([values, task.compare(given)], dim=1)

    shares = [(images, labels)] if replacing.whole_batches else network.parts(images, labels)
    parts = network.each(count, shares)
    counts: list[list[float]] = sum(parts[1:], start=parts[0]).tolist()
    task.measured(counts[0])[0].require_finite("the intact network")
    return counts


def _add_up(task: Task, batches: Sequence[Sequence[Sequence[float]]]) -> tuple[list[Counts], list[Pairs]]:
    """Sums over the batches in their order, so that the rounding does not depend on who did what."""
    networks = zip(*batches, strict=True)
    # not sum(), which rounds otherwise in later Pythons
    measured = [task.measured([reduce(add, values) for values in zip(*network, strict=True)]) for network in networks]
    return [counts for counts, _ in measured], [pairs for _, pairs in measured]
