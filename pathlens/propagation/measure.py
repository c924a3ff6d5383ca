"""One pass forward and one backward, with every tensor reduced to its moments where it is computed.

The traced graph has no operation in place, so that a named value is what the block computed; a hook on a module of the
network itself would read what an in-place ReLU or ``+=`` left there. Nothing is kept but what autograd needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.propagation.moments import Moments, moments
from pathlens.residual.chain import Chain
from pathlens.residual.losses import Loss
from pathlens.residual.segments import cut
from pathlens.runtime.randomness import seeded

PLACES = ("stem", "branch", "shortcut", "sum", "output")
"""Where a block is read: ends of its branch and shortcut, their sum, and what leaves it; before them all, the stem."""

Place = tuple[int, str]
"""Index of a block (-1 for the stem), and which of :data:`PLACES`."""


@dataclass
class Reading:
    """Moments at one place.

    Attributes:
        forward: of the activations; None where one is NaN or infinite.
        backward: of the gradients of the summed losses, likewise, or where no gradient arrives.
    """

    forward: Moments | None = None
    backward: Moments | None = None


def places(chain: Chain) -> dict[Place, fx.Node]:
    """Where the blocks of a chain are read, in order; layers of a plain network have an output alone."""
    nodes: dict[Place, fx.Node] = {(-1, "stem"): chain.boundaries[0]}
    for index, link in enumerate(chain.links):
        if not link.addition.is_layer:
            nodes |= {(index, "branch"): link.branch, (index, "shortcut"): link.shortcut, (index, "sum"): link.total}
        nodes[index, "output"] = link.end
    return nodes


def measure(chain: Chain, images: Tensor, labels: Tensor, loss: Loss) -> dict[Place, Reading]:
    """Moments of activations and gradients at every block, for one batch.

    The gradient is that of the sum of the losses of the examples. At the ends of branch and shortcut it is that at
    their sum, since an addition hands it on as it is.

    Args:
        chain: the traced network, in its mode; batch norms in train mode use the statistics of the batch.
        images: shape (N, ...), N at least 2 in train mode.
        labels: shape (N,).
        loss: (logits, labels) -> loss of each example.

    Raises:
        ModelError, DataError: as of the loss.
    """
    nodes = places(chain)
    readings = {place: Reading() for place in nodes}
    at: dict[str, list[Place]] = {}
    for place, node in nodes.items():
        at.setdefault(node.name, []).append(place)
    axes = {place: chain.links[max(0, place[0])].channel_axis for place in nodes}

    root: list[Tensor] = []  # of the gradients: the input, or where that is of integers, the stem's output

    def tap(name: str, value: Tensor) -> None:
        if not root and any(place[1] == "stem" for place in at[name]):
            root.append(value.requires_grad_())
        for place in at[name]:
            readings[place].forward = moments(value.detach(), axes[place])
        hooked = [place for place in at[name] if place[1] in ("stem", "sum", "output")]
        if hooked and value.requires_grad:

            def arrived(gradient: Tensor) -> None:
                for place in hooked:
                    readings[place].backward = moments(gradient, axes[place])

            value.register_hook(arrived)

    segment = cut(chain.trace, chain.trace.source, [*nodes.values(), chain.trace.main])
    reader = _Tapped(segment.graph_module, at, tap)
    # a network may draw at random in train mode (stochastic depth); the user's random state stays as it is
    with torch.enable_grad(), seeded(0, images.device):
        source = images.detach().clone()
        if source.is_floating_point():
            root.append(source.requires_grad_())
        outputs = reader.run(source, *chain.trace.fetch(segment.tensor_names))
        total = loss(outputs[-1], labels).sum()
        if total.isfinite() and total.requires_grad:
            torch.autograd.grad(total, root, allow_unused=True)
    for index, link in enumerate(chain.links):
        if not link.addition.is_layer:
            for end in ("branch", "shortcut"):
                readings[index, end].backward = readings[index, "sum"].backward
    return readings


class _Tapped(fx.Interpreter):
    """Runs a graph and shows some of its values at the moment when they are computed."""

    def __init__(
        self, module: fx.GraphModule, names: dict[str, list[Place]], tap: Callable[[str, Tensor], None]
    ) -> None:
        # values go as soon as no operation needs them, which is why the graph returns the last one alone
        (output,) = [node for node in module.graph.nodes if node.op == "output"]
        output.args = ((output.args[0][-1],),)
        super().__init__(module)
        self._names, self._tap = names, tap

    def run_node(self, n: fx.Node) -> Any:
        """Run, and show."""
        value = super().run_node(n)
        if n.name in self._names:
            self._tap(n.name, value)
        return value
