"""A policy and networks without choice on the same images: choices, answers and measured time, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from pathlens.analyses.agreement import check_agreement, check_images
from pathlens.analyses.evaluation import Evaluation
from pathlens.analyses.sweep import PHASE, evaluate
from pathlens.metrics import ClassificationCounts, task_named
from pathlens.policies.network import PolicyNetwork
from pathlens.policies.rewards import most_probable
from pathlens.policies.routing import chosen_logits
from pathlens.residual.modes import in_mode
from pathlens.residual.routes import Part, Route, intact

_TASK = task_named("classification")


@dataclass(frozen=True)
class Answers:
    """What one network answered.

    Attributes:
        counts: over all images.
        correct: whether each image is classified correctly, bool, shape (images,).
        kept: which blocks ran for it, bool, shape (images, K).
        seconds: measured for all images, or None.
    """

    counts: ClassificationCounts
    correct: Tensor
    kept: Tensor
    seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """What all networks answered on the same images.

    Attributes:
        labels: int64, shape (images,).
        whole: the network with all blocks.
        policy: with the blocks that were chosen.
        others: with the blocks of each route.
        difference: largest one between a logit of the prepared network and of the model itself, over the largest logit.
    """

    labels: Tensor
    whole: Answers
    policy: Answers
    others: list[Answers]
    difference: float


def route_of(kept: Sequence[int], blocks: int) -> Route:
    """The route of a network that runs some of its blocks for all images.

    Args:
        kept: the blocks that run.
        blocks: of the network.
    """
    return tuple((Part.BLOCK if block in kept else Part.SHORTCUT, block) for block in range(blocks))


def choose(policy: PolicyNetwork, images: Tensor) -> Tensor:
    """The most probable choice for each image, bool, shape (N, K), on the CPU.

    Args:
        policy: in eval mode.
        images: normalised, shape (N, C, H, W).
    """
    own = next(policy.parameters())
    return most_probable(policy(images.to(own.device, own.dtype))).cpu()


def measure(evaluation: Evaluation, policy: PolicyNetwork, routes: Sequence[Route]) -> Measured:
    """Run the whole network, the policy's choices and the routes over all images.

    The whole network and the policy take turns, batch by batch, so that their times are of the same machine.

    Args:
        evaluation: the prepared network and its data.
        policy: of the network.
        routes: of networks that run the same blocks for all images.

    Raises:
        NumericsError: the prepared network disagrees with the model, or the intact network gives NaN.
        DataError: labels outside the classes, or images that do not fit the network.
        ResourceError: a batch does not fit in memory.
    """
    network, blocks = evaluation.network, len(evaluation.network)
    warm = False

    def count(batch: int, images: Tensor, labels: Tensor) -> list[Any]:
        nonlocal warm
        check_images(network, images, batch)
        _TASK.check_targets(labels, len(images))
        everything = torch.ones(len(images), blocks, dtype=torch.bool)

        def run_whole() -> Tensor:
            return chosen_logits(network, images, [everything])[0]

        def choose_and_run() -> tuple[Tensor, Tensor]:
            kept = choose(policy, images)
            return chosen_logits(network, images, [kept])[0], kept

        if not warm:  # pieces are prepared when they are first asked for
            for block in range(blocks):
                network.step(Part.BLOCK, block), network.step(Part.SHORTCUT, block)
            run_whole(), choose_and_run()
            warm = True
        logits, seconds = _timed(run_whole, network.device)
        (chosen_one, kept), own_seconds = _timed(choose_and_run, network.device)
        targets = labels.to(network.device)

        def run_routes(part: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
            given = dict(evaluate(network, routes, part[0]))
            return [_TASK.answers(given[index], part[1]) for index in range(len(routes))]

        answers = [_TASK.answers(logits, targets), _TASK.answers(chosen_one, targets)]
        if routes:
            parts = network.each(run_routes, network.parts(images, targets))
            for each in zip(*parts, strict=True):
                values, correct = zip(*each, strict=True)
                answers.append((torch.stack(values).sum(0), torch.cat(correct)))
        ClassificationCounts.from_values(answers[0][0].tolist()).require_finite("the intact network")
        result = {
            "values": [value.tolist() for value, _ in answers],
            "correct": [_digits(correct) for _, correct in answers],
            "kept": [_digits(row) for row in kept],
            "labels": labels.tolist(),
            "seconds": [seconds, own_seconds],
        }
        return [network.engine.name, result]

    with in_mode(policy), torch.inference_mode():
        difference = check_agreement(network, evaluation.runner.source.first())
        results = [result for _, result in evaluation.runner.run(PHASE, count).values()]
    chosen = _bits([row for batch in results for row in batch["kept"]])
    given: list[Answers] = []
    for index, route in enumerate([intact(blocks), intact(blocks), *routes]):
        counted = zip(*(batch["values"][index] for batch in results), strict=True)
        counts = ClassificationCounts.from_values([reduce(add, values) for values in counted])
        fixed = torch.tensor([part is Part.BLOCK for part, _ in route]).expand(counts.n, -1)
        (correct,) = _bits(["".join(batch["correct"][index] for batch in results)])
        given.append(Answers(counts, correct, chosen if index == 1 else fixed))
    whole, own, *others = given
    taken = [sum(each) for each in zip(*(batch["seconds"] for batch in results), strict=True)]
    return Measured(
        torch.tensor([label for batch in results for label in batch["labels"]]),
        replace(whole, seconds=taken[0]),
        replace(own, seconds=taken[1]),
        others,
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


def _digits(bits: Tensor) -> str:
    return "".join("1" if bit else "0" for bit in bits.tolist())


def _bits(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[digit == "1" for digit in text] for text in texts])
