"""Numbers of paths of random nested, dense and chained networks, against a count from their description."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.graph import unravel
from pathlens.graph.counting import add_lengths

WIDTH = 3
Shape = Any  # "layer", or a pair of ("add" | "concat") and a list of shapes


class Built(nn.Module):
    """A sequence of layers, of residual blocks and of concatenating skips, as described."""

    def __init__(self, shapes: list[Shape]) -> None:
        super().__init__()
        self.kinds = ["layer" if shape == "layer" else shape[0] for shape in shapes]
        self.bodies = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH) if shape == "layer" else Built(["layer", *shape[1]]) for shape in shapes
        )
        self.joins = nn.ModuleList(
            nn.Linear(2 * WIDTH, WIDTH) if kind == "concat" else nn.Identity() for kind in self.kinds
        )

    def forward(self, x: Tensor) -> Tensor:
        for kind, body, join in zip(self.kinds, self.bodies, self.joins, strict=True):
            y = torch.relu(body(x)) if kind == "layer" else body(x)
            x = y if kind == "layer" else x + y if kind == "add" else join(torch.cat([x, y], -1))
        return x


def times(one: list[int], other: list[int]) -> list[int]:
    return add_lengths([[0] * i + [a * b for b in other] for i, a in enumerate(one)])


def expected(shapes: list[Shape], aside: bool = False) -> list[int]:
    """Paths by length; ``aside`` where not every path passes. Layers without a merge between them are one branch."""
    total, in_layers = [1], False
    for shape in shapes:
        if shape != "layer":
            total = times(total, add_lengths([[1], expected(["layer", *shape[1]], aside=True)]))
        layers = shape == "layer" or shape[0] == "concat"
        if aside and layers and not (shape == "layer" and in_layers):
            total = [0, *total]
        in_layers = layers
    return total


shapes = st.recursive(
    st.just("layer"),
    lambda inner: st.tuples(st.sampled_from(["add", "concat"]), st.lists(inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(shapes, min_size=1, max_size=4))
def test_random_networks(described):
    model = nn.Sequential(nn.Linear(2, WIDTH), Built(described)).eval()
    graph = unravel(model, torch.zeros(2, 2))
    assert graph.graph["n_paths_by_length"] == expected(described)
    parameters = sum(data["parameters"] for _, data in graph.nodes(data=True))
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
