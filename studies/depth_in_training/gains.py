"""What a branch gives beside its shortcut, forward and backward: the scale that is to drive the ensemble's depth."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pathlens import ResidualView


def gains(view: ResidualView, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Scales of the batch norms, and ratios of branch to shortcut, with the statistics of this batch.

    With lambda_i the norm of the gradient that block i passes on through its branch over that through its shortcut,
    and gradients of all paths of equal direction at every block, a path p would carry the product of lambda_i over its
    blocks, and the mean length weighted by contribution would be the sum of lambda_i / (1 + lambda_i). With one
    lambda for all blocks this is the weight lambda^length of Littwin and Wolf 2016.

    Args:
        view: of the network, whose mode and running statistics stay as they are.
        images: shape (N, C, H, W), normalised.
        labels: shape (N,).

    Returns:
        ``gamma``, ``response_ratio``, ``gradient_ratio`` (means over the blocks), and ``predicted_length``.
    """
    model = view.model
    prefixes = tuple(f"{block.name}." for block in view)
    scales = [
        module.weight.abs().mean().item()
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and name.startswith(prefixes)
    ]
    was_training = model.training
    model.train()
    try:
        parts = []
        x = view.stem(images)
        for index in range(len(view)):
            branch_point = view.transition(index, x)
            branch, shortcut = view.branch(index, branch_point), view.shortcut(index, branch_point)
            total = branch + shortcut
            x = view.post(index, total)
            parts.append((branch_point, branch, shortcut, total))
        loss = cross_entropy(view.head(x), labels, reduction="sum")
        arriving = torch.autograd.grad(loss, [part[-1] for part in parts], retain_graph=True)
        responses, ratios = [], []
        for (branch_point, branch, shortcut, _), gradient in zip(parts, arriving, strict=True):
            through_branch, through_shortcut = (
                torch.autograd.grad(side, branch_point, gradient, retain_graph=True)[0] for side in (branch, shortcut)
            )
            responses.append((branch.std() / shortcut.std()).item())
            ratios.append(_mean_norm(through_branch) / _mean_norm(through_shortcut))
    finally:
        model.train(was_training)
    return {
        "gamma": statistics.fmean(scales),
        "response_ratio": statistics.fmean(responses),
        "gradient_ratio": statistics.fmean(ratios),
        "predicted_length": sum(ratio / (1 + ratio) for ratio in ratios),
    }


def _mean_norm(gradient: Tensor) -> Any:
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1).mean().item()
