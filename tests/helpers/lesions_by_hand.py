"""The networks of the tests with blocks deleted, skips deleted or in another order, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens import deleted, reordered, skips_deleted
from tests.helpers import nets, nets_tokens


def _squeeze_branch(b: nets.SqueezeBlock, x: Tensor) -> Tensor:
    out = b.depthwise(b.gelu(b.bn(b.expand(x))))
    out = out * torch.sigmoid(b.fc2(F.relu(b.fc1(out.mean((2, 3), keepdim=True)))))
    return b.drop(b.project(out))


def _preact_branch(b: nets.PreActBlock, x: Tensor) -> Tensor:
    return b.conv2(F.relu(b.bn2(b.conv1(F.relu(b.bn1(x))))))


def _normfree_branch(b: nets.NormFreeBlock, x: Tensor) -> Tensor:
    return b.conv2(F.gelu(b.conv1(F.gelu(x) * b.beta))) * b.gain * b.alpha


#: class of block -> (what remains without the branch, what remains without the shortcut)
REMAINS = {
    nets.CifarBlock: (
        lambda b, x: F.relu(b.shortcut(x)),
        lambda b, x: F.relu(b.bn2(b.conv2(F.relu(b.bn1(b.conv1(x)))))),
    ),
    nets.PreActBlock: (
        lambda b, x: b.shortcut(F.relu(b.bn1(x))) if hasattr(b, "shortcut") else x,
        _preact_branch,
    ),
    nets.NormFreeBlock: (
        lambda b, x: x if b.downsample is None else b.downsample(F.gelu(x) * b.beta),
        _normfree_branch,
    ),
    nets.HighwayBlock: (lambda b, x: x, lambda b, x: torch.relu(b.h(x)) * torch.sigmoid(b.t(x))),
    nets.ThreeBranch: (lambda b, x: F.relu(b.identity(x)), lambda b, x: F.relu(b.dense(x) + b.one(x))),
    nets.PostNormBlock: (lambda b, x: F.relu(b.norm(x)), lambda b, x: F.relu(b.norm(b.body(x)))),
    nets.SharedBlock: (lambda b, x: x, lambda b, x: b.body(x)),
    nets.SqueezeBlock: (lambda b, x: x, _squeeze_branch),
    nets.SmallBlock: (lambda b, x: x, lambda b, x: b.body(x) * b.scale),
    nets_tokens.ParallelBlock: (lambda b, x: x, lambda b, x: b.a(b.norm(x)) + b.m(b.norm(x))),
}

#: networks whose forward pass is a row of modules: which of them are blocks
ROWS = {
    "mobile": (lambda m: m.features, {1: 0, 3: 1, 4: 2}, lambda m, x: m.classifier(x.mean([2, 3]))),
    "repvgg": (lambda m: m.stages, {1: 0, 2: 1, 4: 2}, lambda m, x: x.mean((2, 3))),
}


def forward(
    name: str,
    model: nn.Module,
    x: Tensor,
    no_branch: Sequence[int] = (),
    no_skip: Sequence[int] = (),
    order: Sequence[int] | None = None,
) -> Tensor:
    """What the lesioned network returns."""
    if name in ROWS:
        rows, index, head = ROWS[name]
        steps = [(index.get(place), module) for place, module in enumerate(rows(model))]
    else:
        x = model.stem(x)
        steps, head = list(enumerate(model.blocks)), None
    if order is not None:
        blocks = dict(steps)
        ordered = iter(order)
        steps = [(None, m) if i is None else (j := next(ordered), blocks[j]) for i, m in steps]
    for i, module in steps:
        if i in no_branch:
            x = REMAINS[type(module)][0](module, x)
        elif i in no_skip:
            x = REMAINS[type(module)][1](module, x)
        else:
            x = module(x)
    return head(model, x) if head else model.head(x)


def intervened(target, no_branch: Sequence[int] = (), no_skip: Sequence[int] = (), order: Sequence[int] | None = None):
    """The same on the user's model, as nested contexts."""
    stack = ExitStack()
    if no_branch:
        stack.enter_context(deleted(target, no_branch))
    if order is not None:
        stack.enter_context(reordered(target, order))
    if no_skip:
        stack.enter_context(skips_deleted(target, no_skip))
    return stack
