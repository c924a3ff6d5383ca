"""Lesions of the small networks written in parts, by hand: their forward pass, and the gradient through each path.

As in :mod:`path_oracle`, autograd differentiates the forward pass with the sides that a path does not take detached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from tests.helpers.path_oracle import Gated, Net, Path


def lesioned_forward(
    net: Net,
    x: Tensor,
    no_branch: Sequence[int] = (),
    no_skip: Sequence[int] = (),
    order: Sequence[int] | None = None,
    path: Path | None = None,
) -> Tensor:
    """The lesioned network's output; with a path, only this path carries gradients."""
    x = net.stem(x)
    for index in order or range(len(net.blocks)):
        block = net.blocks[index]
        t = block.transition(x)
        if index in no_branch:
            # a gated block without its branch is the identity: the gate is of both sides
            total = t if isinstance(block, Gated) else block.shortcut(t)
        elif index in no_skip:
            total = block.branch(t)
        else:
            kept, through = block.shortcut(t), block.branch(t)
            if path is not None:
                kept, through = (kept.detach(), through) if index in path else (kept, through.detach())
            total = kept + through
        x = block.post(total)
    return net.head(x)


def lesioned_paths(
    net: Net, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], **lesion: Sequence[int]
) -> dict[Path, Tensor]:
    """Gradient of the summed losses at the input through each path; a path names every block whose branch it takes."""
    forced = tuple(lesion.get("no_skip", ()))
    free = [i for i in range(len(net.blocks)) if i not in forced and i not in lesion.get("no_branch", ())]
    found = {}
    for chosen in (chosen for length in range(len(free) + 1) for chosen in combinations(free, length)):
        path = tuple(sorted((*chosen, *forced)))
        start = x.detach().requires_grad_()
        total = loss(lesioned_forward(net, start, path=path, **lesion), labels).sum()
        (found[path],) = torch.autograd.grad(total, start, allow_unused=True, materialize_grads=True)
    return found
