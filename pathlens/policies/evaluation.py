"""A policy and networks without choice on the same examples: choices, answers and measured time, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from pathlens.analyses.agreement import check_agreement, check_images
from pathlens.analyses.evaluation import Evaluation
from pathlens.analyses.sweep import PHASE, evaluate
from pathlens.metrics.tasks import CLASSIFICATION, Counts, Pairs
from pathlens.policies.network import logits_of
from pathlens.policies.rewards import most_probable
from pathlens.policies.routing import chosen_logits
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode
from pathlens.residual.routes import Part, Route


@dataclass(frozen=True)
class Answers:
    """What one network answered.

    Attributes:
        counts: over all examples.
        against_intact: how it differs from the intact network on the same examples.
        against_policy: likewise from the policy's network.
        kept: which blocks ran for each example, bool, shape (examples, K).
        right: share of each example that is right, float64, shape (examples,); of intact network and policy alone.
        seconds: measured for all examples, or None.
    """

    counts: Counts
    against_intact: Pairs
    against_policy: Pairs
    kept: Tensor
    right: Tensor | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """What all networks answered on the same examples.

    Attributes:
        labels: class of each example, int64, shape (examples,), or None where one has no class.
        intact: the network that was given, with all blocks.
        tuned: the one that was trained with the policy, with all blocks, or None where there is none.
        policy: with the blocks that were chosen.
        others: with the blocks of each route.
        difference: largest one between a logit of the prepared network and of the model itself, over the largest logit.
    """

    labels: Tensor | None
    intact: Answers
    tuned: Answers | None
    policy: Answers
    others: list[Answers]
    difference: float


def route_of(kept: Sequence[int], blocks: int) -> Route:
    """The route of a network that runs some of its blocks for all examples.

    Args:
        kept: the blocks that run.
        blocks: of the network.
    """
    return tuple((Part.BLOCK if block in kept else Part.SHORTCUT, block) for block in range(blocks))


def choose(policy: nn.Module, examples: Tensor) -> Tensor:
    """The most probable choice for each example, bool, shape (N, K), on the CPU.

    Args:
        policy: in eval mode.
        examples: as the network takes them, shape (N, ...).
    """
    return most_probable(logits_of(policy, examples)).cpu()


def measure(
    evaluation: Evaluation,
    policy: nn.Module,
    routes: Sequence[Route],
    before: Inference | None = None,
    variance: float | None = None,
) -> Measured:
    """Run the whole network, the policy's choices and the routes over all examples.

    The whole networks and the policy take turns, batch by batch, so that their times are of the same machine.

    Args:
        evaluation: the prepared network and its data.
        policy: of the network.
        routes: of networks that run the same blocks for all examples.
        before: the network as it was before it was trained with the policy, prepared; None where it was not trained.
        variance: of the training targets of a regression, to which the share that is right is relative.

    Raises:
        NumericsError: the prepared network disagrees with the model, or the intact network gives NaN.
        DataError: labels outside the classes, or examples that do not fit the network.
        ResourceError: a batch does not fit in memory.
    """
    network, blocks, task = evaluation.network, len(evaluation.network), evaluation.task
    wholes = [network] if before is None else [before, network]
    own = len(wholes)  # position of the policy, after the networks with all blocks
    warm = False

    def count(batch: int, images: Tensor, labels: Tensor) -> list[Any]:
        nonlocal warm
        check_images(network, images, batch)
        task.check_targets(labels, len(images))
        everything = torch.ones(len(images), blocks, dtype=torch.bool)

        def run_whole(whole: Inference) -> Tensor:
            return chosen_logits(whole, images, [everything])[0]

        def choose_and_run() -> tuple[Tensor, Tensor]:
            kept = choose(policy, images)
            return chosen_logits(network, images, [kept])[0], kept

        if not warm:  # pieces are prepared when they are first asked for
            for block in range(blocks):
                network.step(Part.BLOCK, block), network.step(Part.SHORTCUT, block)
            [run_whole(whole) for whole in wholes], choose_and_run()
            warm = True
        targets = labels.to(network.device)
        answers, seconds = [], []
        for whole in wholes:
            logits, taken = _timed(partial(run_whole, whole), network.device)
            answers.append(task.answers(logits, targets))
            seconds.append(taken)
        (logits, kept), taken = _timed(choose_and_run, network.device)
        answers.append(task.answers(logits, targets))
        seconds.append(taken)

        def run_routes(part: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
            given = dict(evaluate(network, routes, part[0]))
            return [task.answers(given[index], part[1]) for index in range(len(routes))]

        if routes:
            parts = network.each(run_routes, network.parts(images, targets))
            for each in zip(*parts, strict=True):
                values, given = zip(*each, strict=True)
                answers.append((torch.stack(values).sum(0), torch.cat(given)))
        stacked = torch.stack([given for _, given in answers])
        result: dict[str, Any] = {
            "values": [values.tolist() for values, _ in answers],
            "against_intact": task.compare(stacked).tolist(),
            "against_policy": task.compare(torch.cat([stacked[own : own + 1], stacked]))[1:].tolist(),
            "right": [task.share_right(stacked[index], variance).tolist() for index in (0, own)],
            "kept": ["".join("1" if keep else "0" for keep in row) for row in kept.tolist()],
            "labels": labels.tolist() if task is CLASSIFICATION else None,
            "seconds": seconds,
        }
        intact = task.measured([*result["values"][0], *result["against_intact"][0]])[0]
        intact.require_finite("the intact network")
        return [network.engine.name, result]

    with in_mode(policy), torch.inference_mode():
        first = evaluation.runner.source.first()
        difference = max(check_agreement(whole, first) for whole in wholes)
        results = [result for _, result in evaluation.runner.run(PHASE, count).values()]

    def summed(key: str, index: int) -> list[float]:
        return [reduce(add, values) for values in zip(*(batch[key][index] for batch in results), strict=True)]

    def joined(key: str, index: int) -> Tensor:
        return torch.tensor([value for batch in results for value in batch[key][index]], dtype=torch.float64)

    chosen = torch.tensor([[digit == "1" for digit in row] for batch in results for row in batch["kept"]])
    fixed = [*([[True] * blocks] * own), None, *([part is Part.BLOCK for part, _ in route] for route in routes)]
    seconds = [sum(each) for each in zip(*(batch["seconds"] for batch in results), strict=True)]
    networks = []
    for index, kept in enumerate(fixed):
        values = summed("values", index)
        counts, against_intact = task.measured([*values, *summed("against_intact", index)])
        _, against_policy = task.measured([*values, *summed("against_policy", index)])
        networks.append(
            Answers(
                counts,
                against_intact,
                against_policy,
                chosen if kept is None else torch.tensor(kept).expand(counts.n, -1),
                joined("right", {0: 0, own: 1}[index]) if index in (0, own) else None,
                seconds[index] if index <= own else None,
            )
        )
    classed = task is CLASSIFICATION
    return Measured(
        torch.tensor([label for batch in results for label in batch["labels"]]) if classed else None,
        networks[0],
        networks[1] if before is not None else None,
        networks[own],
        networks[own + 1 :],
        difference,
    )


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """A result and the seconds until the device has it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    began = time.perf_counter()
    result = call()
    wait(device)
    return result, time.perf_counter() - began
