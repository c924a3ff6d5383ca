"""Small networks with everything that a forward pass prepared for speed may get wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Convolution, blocks, pooling, linear layer; weights and batch-norm statistics drawn from a seed."""

    def __init__(self, *blocks: nn.Module, width: int = 8, out: int | None = None, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(out or width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class PaddedShortcut(nn.Module):
    """The CIFAR ResNet block found everywhere: functional ReLUs, in-place addition, zeros made on the way."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.stride, self.missing = stride, outer - inner

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def shortcut(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        if self.missing:
            zeros = torch.zeros(x.shape[0], self.missing, x.shape[2], x.shape[3], device=x.device)
            x = torch.cat([x, zeros], 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += self.shortcut(x)
        return F.relu(out)


class BroadcastSums(nn.Module):
    """Sums in which a convolution's result is stretched, before a batch norm, a ReLU, and as the branch itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.context = nn.Conv2d(width, width, 1)
        self.channel = nn.Parameter(torch.randn(1, width, 1, 1))
        self.place = nn.Parameter(torch.randn(1, width, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.bn(self.conv(x) + self.channel)
        x = x + self.context(x.mean((2, 3), keepdim=True))
        x = x + F.relu(self.conv(x) + self.place)
        return x + self.conv(x) + self.context(x)


class ComputedWeights(nn.Module):
    """A convolution whose weights come from the input, before a batch norm that could not be folded into them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.make, self.bn, self.width = nn.Linear(width, width * width), nn.BatchNorm2d(width), width

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x.mean((0, 2, 3))).reshape(self.width, self.width, 1, 1)
        return x + self.bn(F.conv2d(x, weight))


class Casts(nn.Module):
    """Tensors of a stated type made on the way, and a detour through float64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding="same", groups=width, dilation=2)
        self.norm = nn.GroupNorm(2, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).double().mul(1.5).to(x.dtype)
        ramp = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) + torch.ones(1, dtype=torch.float32)
        return x + h * ramp


class ManyConvolutions(nn.Module):
    """Depthwise, dilated, strided back, without and with bias, batch norms without parameters, and a ReLU6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width, affine=False),
            nn.ReLU6(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2, groups=2 * width),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, (3, 1), stride=(2, 1), padding=(1, 0)),
            nn.Upsample(scale_factor=(2, 1)),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class WeightNormed(nn.Module):
    """Weights that are computed from parameters, and a buffer that is no part of the state dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(width, width, 3, padding=1))
        self.register_buffer("scale", torch.full((1,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * F.gelu(self.conv(x))


def drawn(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in eval mode whose every parameter and batch-norm statistic differs from what it starts with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.weight is not None:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def random_images(count: int, *shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


ODD: dict[str, Callable[[], nn.Module]] = {
    "padded shortcut": lambda: Net(PaddedShortcut(8, 16, 2), PaddedShortcut(16, 16), out=16),
    "broadcast sums": lambda: Net(BroadcastSums(8)),
    "computed weights": lambda: Net(ComputedWeights(8), ComputedWeights(8)),
    "casts": lambda: Net(Casts(8)),
    "many convolutions": lambda: Net(ManyConvolutions(8), ManyConvolutions(8)),
    "weight norm": lambda: Net(WeightNormed(8)),
}
