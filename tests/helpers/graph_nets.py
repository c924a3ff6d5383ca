"""Small networks whose paths are counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def layer(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1), nn.ReLU())


class DenseNet(nn.Module):
    """Huang et al. 2017: each layer sees the results of all layers before it."""

    def __init__(self, layers: int, growth: int = 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4 + layers * growth, 2, 1)
        self.layers = nn.ModuleList(layer(4 + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for each in self.layers:
            features.append(each(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1))


class UNet(nn.Module):
    """Ronneberger et al. 2015: at each level the result is kept for the way up."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.first = layer(3, 4)
        self.downs = nn.ModuleList(layer(4, 4, 2) for _ in range(levels))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(4, 4, 2, 2) for _ in range(levels))
        self.joins = nn.ModuleList(layer(8, 4) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        kept = []
        for down in self.downs:
            kept.append(x)
            x = down(x)
        for up, join in zip(self.ups, self.joins, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return x


class NestedResiduals(nn.Module):
    """Blocks whose branch is a layer, a block, and a layer."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner, self.after = layer(4, 4), layer(4, 4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            return x + self.after(y + self.inner(y))

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(*(self.Outer() for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class Inception(nn.Module):
    """Szegedy et al. 2015: towers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.towers = nn.ModuleList([layer(4, 2), nn.Sequential(layer(4, 3), layer(3, 2)), layer(4, 2), layer(4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([tower(x) for tower in self.towers], 1).mean((2, 3))


class Gated(nn.Module):
    """A block with squeeze and excitation, a GELU by hand, and a skip that is stretched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y = 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.04 * y**3)))
        y = y - y.mean((2, 3), keepdim=True)
        return x + y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))


class Rotary(nn.Module):
    """Halves that are turned and concatenated, and an attention, in one branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        q = q * 0.8 + torch.cat([-q[..., 2:], q[..., :2]], -1) * 0.6
        attention = torch.softmax(q @ k.transpose(1, 2), -1)
        return x + self.out(attention @ v)


class SharedLayer(nn.Module):
    """The result of one layer enters two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = nn.Conv2d(3, 4, 3), layer(4, 4), layer(4, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.a(x)
        return self.c(torch.relu(x + self.b(a)) + a)


class Weightless(nn.Module):
    """Branches without convolution or product (Yu et al. 2022: pooling; a norm and an activation), then one with."""

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.pool = nn.GroupNorm(1, 4), nn.AvgPool2d(3, 1, 1)
            self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.scale * (self.pool(y) - y)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        bodies = (self.Pooling(), nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU()), layer(4, 4))
        self.blocks = nn.Sequential(*(WithOdd.Plus(body) for body in bodies))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class Projected(nn.Module):
    """A block whose shortcut is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.body = nn.Conv2d(4, 4, 1), nn.Sequential(layer(4, 4), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Beside(nn.Module):
    """Such a block and a layer, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 2, 1)
        self.block, self.tower = Projected(), layer(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.block(x), self.tower(x)], 1))


class WithOdd(nn.Module):
    """A block under a name of one's choice."""

    class Plus(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.add_module(name, self.Plus(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self._modules[self.name](self.stem(x))
