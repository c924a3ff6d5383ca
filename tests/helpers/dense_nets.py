"""Networks that concatenate: one form a class, each with its new channels by number, for lesions by hand.

Every layer's new channels go through :meth:`Layers.new`, where ``instead`` says by number what is to be there in their
place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.graph_nets import layer


class Layers(nn.Module):
    """New channels by the number of their layer; ``instead`` replaces them, ``seen`` is what they were."""

    def __init__(self, widths: list[int], features: int) -> None:
        super().__init__()
        self.stem, self.head = layer(3, 4), nn.Linear(features, 3)
        self.f = nn.ModuleList(layer(width, 2) for width in widths)
        self.instead: dict[int, Callable[[Tensor], Tensor]] = {}
        self.seen: dict[int, Tensor] = {}

    def new(self, number: int, x: Tensor) -> Tensor:
        """The new channels of a layer, as computed by the hands of a test or as they are."""
        self.seen[number] = self.f[number](x)
        return self.instead.get(number, lambda value: value)(self.seen[number])

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.features(self.stem(x))).mean((2, 3)))


class Growing(Layers):
    """``cat([x, f(x)], 1)``, layer by layer."""

    def __init__(self) -> None:
        super().__init__([4, 6, 8], 10)

    def features(self, x: Tensor) -> Tensor:
        for number in range(3):
            x = torch.cat([x, self.new(number, x)], 1)
        return x


class Listed(Layers):
    """Each layer takes a list of all features before it, and so is concatenated many times."""

    def __init__(self) -> None:
        super().__init__([4, 6, 8], 10)

    def features(self, x: Tensor) -> Tensor:
        features = [x]
        for number in range(3):
            features.append(self.new(number, torch.cat(features, 1)))
        return torch.cat(features, 1)


class Aggregated(Layers):
    """Each layer takes what the layer before gave, and all are put together at the end (one-shot aggregation)."""

    def __init__(self) -> None:
        super().__init__([4, 2, 2], 10)

    def features(self, x: Tensor) -> Tensor:
        features = [x]
        for number in range(3):
            value = self.f[number](features[-1])
            self.seen[number] = value
            features.append(value)
        changed = [self.instead.get(number, lambda value: value)(features[number + 1]) for number in range(3)]
        return torch.cat([x, *changed], 1)


class Harmonic(Layers):
    """The third layer takes the first two alone, of which the second is learned from the first (as in HarDNets)."""

    def __init__(self) -> None:
        super().__init__([4, 6, 4], 10)

    def features(self, x: Tensor) -> Tensor:
        first = self.new(0, x)
        second = self.new(1, torch.cat([x, first], 1))
        third = self.new(2, torch.cat([first, second], 1))
        return torch.cat([x, first, second, third], 1)


class Pooled(Layers):
    """The image itself, pooled, beside what is learned from it; tensors are halved and stacked too."""

    def __init__(self) -> None:
        super().__init__([4, 3, 6], 8)

    def features(self, x: Tensor) -> Tensor:
        x = torch.cat([F.max_pool2d(x, 3, 1, 1), self.new(0, x)], 1)
        kept, other = x.split(3, 1)
        x = torch.cat([kept, self.new(1, other), other[:, :1]], 1)
        return torch.cat([x, self.new(2, x)], 1)


class Dual(nn.Module):
    """A residual block between two concatenations, as dual path networks have both."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Growing()
        self.block = layer(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense.features(self.dense.stem(x))
        return self.dense.head((x + self.block(x)).mean((2, 3)))


DENSE: dict[str, Callable[[], Layers]] = {
    "growing": Growing,
    "listed": Listed,
    "aggregated": Aggregated,
    "harmonic": Harmonic,
    "pooled": Pooled,
}
