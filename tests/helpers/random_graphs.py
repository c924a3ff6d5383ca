"""Small random graphs of additions and concatenations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from pathlens.residual.flow import concatenation_edges
from tests.helpers.graph_nets import layer
from tests.helpers.joined import Joined

PLANS = st.lists(st.tuples(st.sampled_from(["residual", "sum", "concat"]), st.integers(0, 4)), min_size=2, max_size=4)
"""What :class:`Random` takes."""


class Random(Joined):
    """Additions and concatenations as drawn: each takes the last tensor and an earlier one."""

    def __init__(self, plan: list[tuple[str, int]]) -> None:
        super().__init__()
        self.plan = plan
        self.stem, self.head = layer(3, 2), nn.Linear(2, 3)
        self.f = nn.ModuleList(layer(4 if kind == "concat" else 2, 2) for kind, _ in plan)

    def joined(self, x):
        tensors = [self.stem(x)]
        for f, (kind, earlier) in zip(self.f, self.plan, strict=True):
            a, b = tensors[-1], tensors[earlier % len(tensors)]
            if kind == "residual":
                tensors.append(torch.tanh(self.add(a, f(a))))
            elif kind == "sum":
                tensors.append(f(a) if a is b else f(torch.tanh(self.mix(a, b))))
            else:
                tensors.append(f(torch.cat([a, a], 1) if a is b else self.cat(a, b)))
        return self.head(torch.tanh(self.mix(tensors[-1], tensors[len(tensors) // 2 - 1])).mean((2, 3)))


def told(view, net, x, concat):
    """Branches of the places as discovery has them: it may find a sum residual that was not drawn as such."""
    net(x)
    chain = view.chain()
    edges = {edge for link in chain.links for edge in link.addition.branch_edges}
    edges |= concatenation_edges(chain) if concat else set()
    meets = [n for n in chain.discovery.order if n.name.startswith(("add", "cat")) and len(n.all_input_nodes) > 1]
    assert [kind == "concat" for kind, _ in net.places] == [node.name.startswith("cat") for node in meets]
    return {
        place: {operand for operand, before in enumerate(node.all_input_nodes) if (node, before) in edges}
        for place, node in enumerate(meets)
    }
