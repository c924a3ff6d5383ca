"""Parameters of two networks and two residual blocks, as modules have them and as arithmetic has it."""

from __future__ import annotations

from typing import Any

from torch import nn

from studies.udl11.nets import convolutions, ten_layers

PARAMETERS = (
    ("network", "", "what is counted"),
    ("problem", "", "of the chapter"),
    ("by_hand", "", "parameters by arithmetic"),
    ("counted", "", "parameters of the torch modules"),
)

#: (what, problem, by arithmetic: weights, biases, scales and offsets; the modules)
CASES = (
    ("ten hidden layers of twenty units", "11.8", (1 + 9 * 20 + 1) * 20 + 10 * 20 + 1, lambda: ten_layers(False)),
    (
        "the same with batch norms",
        "11.8",
        (1 + 9 * 20 + 1) * 20 + 10 * 20 + 1 + 2 * 10 * 20,
        lambda: ten_layers(True),
    ),
    ("block of one 3x3 convolution", "11.10", 2 * 512 + 9 * 512**2 + 512, lambda: convolutions((512, 512), (3,))),
    (
        "bottleneck block",
        "11.10",
        (2 * 512 + 512 * 128 + 128) + (2 * 128 + 9 * 128**2 + 128) + (2 * 128 + 128 * 512 + 512),
        lambda: convolutions((512, 128, 128, 512), (1, 3, 1)),
    ),
)


def count(model: nn.Module) -> int:
    """Learned numbers of a module."""
    return sum(parameter.numel() for parameter in model.parameters())


def rows() -> list[dict[str, Any]]:
    """Rows of ``parameters``."""
    return [
        {"network": name, "problem": problem, "by_hand": by_hand, "counted": count(build())}
        for name, problem, by_hand, build in CASES
    ]
