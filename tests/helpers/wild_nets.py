"""Networks with what is found in strangers' code."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers import nets


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        gate = torch.sigmoid(*ctx.saved_tensors)
        return gradient * gate * (1 + ctx.saved_tensors[0] * (1 - gate))


class Wild(nn.Module):
    """A stem and two blocks, put together by a function."""

    def __init__(self, run):
        super().__init__()
        self.first, self.a, self.b = nets.conv(3, 6), nets.SmallBlock(6), nets.SmallBlock(6)
        self.norm = torch.nn.utils.parametrizations.weight_norm(nets.conv(6, 6))
        self.wide = nets.conv(6, 9)
        self.a.scalar = nn.Parameter(torch.tensor(0.3))
        self.run = run

    def forward(self, *inputs):
        return self.run(self, self.first(*inputs))


def checkpointed(m, x):
    return torch.utils.checkpoint.checkpoint(m.b, m.a(x), use_reentrant=False)


def without_gradient(m, x):
    with torch.no_grad():
        x = m.a(x)
    return m.b(x)


def in_bfloat16(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m.a(x)
    return m.b(x.float())


def added_to_the_first(y, x):
    return torch.cat([y[:, :6] + x, y[:, 6:]], dim=1)


def padded_by_maxpool(m, x):
    short = torch.cat([nn.functional.max_pool2d(x, 2)] * 2, 1)
    wide = torch.cat([m.a.body(x), x], 1)
    return short + nn.functional.avg_pool2d(torch.relu(wide * m.norm.weight.sum()), 2)


WILD = {
    "autograd function": (lambda m, x: m.b(x + m.a.body(Swish.apply(x))), "ii"),
    "checkpoint": (checkpointed, "ii"),
    "no_grad inside": (without_gradient, "ii"),
    "autocast inside": (in_bfloat16, "ii"),
    "weight norm": (lambda m, x: m.a(x) + torch.relu(m.norm(m.a(x) * 1)), "i"),
    "weight norm, shared": (lambda m, x: m.b(x + torch.relu(m.norm(x))), "ii"),
    "lerp": (lambda m, x: torch.lerp(x, m.a.body(x), 0.3), "s"),
    "lerp by a learned tensor": (lambda m, x: torch.lerp(x, m.a.body(x), m.norm.weight[0, 0, 0, 0]), "p"),
    "gate on the difference": (lambda m, x: x + torch.sigmoid(m.b.body(x)) * (torch.tanh(m.a.body(x)) - x), "i"),
    "added to the first channels": (lambda m, x: added_to_the_first(m.wide(torch.relu(x)), x), "d"),
    "max pooling shortcut": (padded_by_maxpool, "d"),
    "written into zeros": (lambda m, x: torch.zeros_like(x).copy_(x) + m.a.body(x), "i"),
    "scaled sum of two branches": (lambda m, x: m.b(0.5 * torch.relu(m.a.body(x)) + 0.5 * torch.relu(m.norm(x))), "i"),
    "learned activations": (lambda m, x: m.b(torch.relu(x) - m.a.scalar * torch.relu(-x)), "i"),
    "snake": (lambda m, x: m.b(x + torch.sin(m.a.scalar * x) ** 2 / m.a.scalar), "i"),
    "branch minus input": (lambda m, x: m.b(torch.relu(m.a.body(x)) - x), "i"),
    "doubling": (lambda m, x: m.b(x + x), "i"),
    "plus own mean": (lambda m, x: m.b(x + x.mean((2, 3), keepdim=True).expand_as(x)), "i"),
}  # fmt: skip
