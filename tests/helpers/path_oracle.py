"""Gradients through single paths by autograd alone, and small networks written in parts, for the tests of gradients.

The oracle runs the network forward as it is, but stops the gradient (``detach``) in the branch of every block that the
path does not take, and in the shortcut of every block that it takes. What autograd then gives is the gradient through
that one path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.residual import ResidualView
from tests.helpers.nets import conv

Parts = tuple[Callable[[Tensor], Tensor], ...]
Path = tuple[int, ...]


class Block(nn.Module):
    """x -> post(shortcut(t) + branch(t)), t = transition(x); written out, so that the parts are known."""

    def transition(self, x: Tensor) -> Tensor:
        return x

    def shortcut(self, t: Tensor) -> Tensor:
        return t

    def branch(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def post(self, total: Tensor) -> Tensor:
        return total

    def forward(self, x: Tensor) -> Tensor:
        t = self.transition(x)
        return self.post(self.shortcut(t) + self.branch(t))


class Post(Block):
    """He et al. 2016a: identity, projection or padding; ReLU after the sum."""

    def __init__(self, cin: int, cout: int, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        self.a, self.n, self.b, self.m = conv(cin, cout, 3, stride), bn(cout), conv(cout, cout), bn(cout)
        self.changes, self.padded, self.grow = stride != 1 or cin != cout, padded, cout - cin
        self.stride = stride
        if self.changes and not padded:
            self.project = nn.Sequential(conv(cin, cout, 1, stride), bn(cout))

    def branch(self, t: Tensor) -> Tensor:
        return self.m(self.b(F.relu(self.n(self.a(t)))))

    def shortcut(self, t: Tensor) -> Tensor:
        if not self.changes:
            return t
        if self.padded:
            return F.pad(t[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grow))
        return self.project(t)

    def post(self, total: Tensor) -> Tensor:
        return F.relu(total)


class Bottleneck(Post):
    """Three convolutions, the middle one narrow."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__(cin, cout, stride)
        self.a, self.n = conv(cin, 2, 1), bn(2)
        self.c, self.k = conv(2, 2, 3, stride), bn(2)
        self.b = conv(2, cout, 1)

    def branch(self, t: Tensor) -> Tensor:
        return self.m(self.b(F.relu(self.k(self.c(F.relu(self.n(self.a(t))))))))


class Pre(Block):
    """He et al. 2016b: norm and activation first; where shapes change, both sides start after them."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.n, self.a, self.m, self.b = bn(cin), conv(cin, cout, 3, stride), bn(cout), conv(cout, cout)
        self.project = conv(cin, cout, 1, stride) if stride != 1 or cin != cout else None

    def transition(self, x: Tensor) -> Tensor:
        return x if self.project is None else F.relu(self.n(x))

    def shortcut(self, t: Tensor) -> Tensor:
        return t if self.project is None else self.project(t)

    def branch(self, t: Tensor) -> Tensor:
        y = F.relu(self.n(t)) if self.project is None else t
        return self.b(F.relu(self.m(self.a(y))))


class Scaled(Block):
    """Normaliser-free (Brock et al. 2021): a branch times numbers and a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.gain = conv(width, width), conv(width, width), nn.Parameter(torch.tensor(0.7))

    def branch(self, t: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(F.gelu(t) * 0.8))) * self.gain * 0.5


class Minus(Block):
    """x - f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, width), nn.Conv2d(width, width, 1)

    def branch(self, t: Tensor) -> Tensor:
        return -self.b(F.silu(self.a(t)))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.b(F.silu(self.a(x)))


class Gated(Block):
    """Highway (Srivastava et al. 2015, equation 2): h(x) t(x) + x (1 - t(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.h, self.t = conv(width, width), nn.Conv2d(width, width, 1)

    def branch(self, t: Tensor) -> Tensor:
        return F.relu(self.h(t)) * torch.sigmoid(self.t(t))

    def shortcut(self, t: Tensor) -> Tensor:
        return t * (1 - torch.sigmoid(self.t(t)))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.t(x))
        return F.relu(self.h(x)) * gate + x * (1 - gate)


class Attend(Block):
    """Self-attention over the places of an image, norm first or after."""

    def __init__(self, width: int, after: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.after = after

    def branch(self, t: Tensor) -> Tensor:
        q, k, v = self.qkv(t if self.after else self.norm(t)).chunk(3, -1)
        return self.out((q @ k.transpose(-2, -1)).softmax(-1) @ v)

    def post(self, total: Tensor) -> Tensor:
        return self.norm(total) if self.after else total


class Feed(Block):
    """The MLP of a transformer, norm first or after."""

    def __init__(self, width: int, after: bool = False) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.after = after

    def branch(self, t: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(t if self.after else self.norm(t))))

    def post(self, total: Tensor) -> Tensor:
        return self.norm(total) if self.after else total


def bn(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


class Net(nn.Module):
    """Stem, blocks and a linear classifier; images, or tokens made of them."""

    def __init__(self, blocks: Iterable[Block], width: int = 4, last: int | None = None, tokens: bool = False) -> None:
        super().__init__()
        self.tokens = tokens
        self.first = nn.Conv2d(3, width, 3 if not tokens else 2, 1 if not tokens else 2, padding=int(not tokens))
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(last or width, 3)

    def stem(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x.flatten(2).transpose(1, 2) if self.tokens else F.relu(x)

    def head(self, x: Tensor) -> Tensor:
        return self.last(x.mean(1) if self.tokens else x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def parts(self) -> list[Parts]:
        return [(block.transition, block.shortcut, block.branch, block.post) for block in self.blocks]


class Viewed:
    """Any network, in the parts in which the view gives it."""

    def __init__(self, view: ResidualView) -> None:
        self.view, self.stem, self.head = view, view.stem, view.head

    def __call__(self, x: Tensor) -> Tensor:
        return self.view.head(self.view.run(self.view.stem(x)))

    def parts(self) -> list[Parts]:
        def bound(what: str, index: int) -> Callable[[Tensor], Tensor]:
            return lambda x: getattr(self.view, what)(index, x)

        return [
            tuple(bound(what, index) for what in ("transition", "shortcut", "branch", "post"))
            for index in range(len(self.view))
        ]


NETS: dict[str, Callable[[], Net]] = {
    "post-activation": lambda: Net([Post(4, 4), Post(4, 6, 2, padded=True), Post(6, 6), Post(6, 6)], last=6),
    "projection": lambda: Net([Post(4, 4), Post(4, 6, 2), Post(6, 6)], last=6),
    "bottleneck": lambda: Net([Bottleneck(4, 8), Bottleneck(8, 8), Bottleneck(8, 8, 2)], last=8),
    "pre-activation": lambda: Net([Pre(4, 4), Pre(4, 6, 2), Pre(6, 6), Pre(6, 6)], last=6),
    "scaled branch": lambda: Net([Scaled(4), Scaled(4), Scaled(4)]),
    "minus": lambda: Net([Minus(4), Minus(4), Minus(4)]),
    "gated": lambda: Net([Gated(4), Gated(4), Gated(4)]),
    "norm first": lambda: Net([Attend(6), Feed(6), Attend(6), Feed(6)], 6, tokens=True),
    "norm after": lambda: Net([Attend(6, True), Feed(6, True), Attend(6, True), Feed(6, True)], 6, tokens=True),
    "all sorts": lambda: Net([Pre(4, 4), Post(4, 4), Scaled(4), Minus(4), Gated(4), Post(4, 4)]),
    "one block": lambda: Net([Post(4, 4)]),
}
KINDS: tuple[Callable[[int], Block], ...] = (
    lambda width: Post(width, width),
    lambda width: Pre(width, width),
    Scaled,
    Minus,
    Gated,
    lambda width: Bottleneck(width, width),
)


def drawn(net: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Weights and batch-norm statistics from a seed; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.3
        centre = 1.0 if parameter.dim() <= 1 and name.endswith("weight") else 0.0
        parameter.data.normal_(centre, 2 * scale if parameter.dim() > 1 else scale, generator=generator)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net.to(dtype).eval()


def images(count: int = 2, size: int = 6, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def every_path(blocks: Iterable[int]) -> list[Path]:
    blocks = list(blocks)
    return [path for length in range(len(blocks) + 1) for path in combinations(blocks, length)]


def through_path(
    net: Net | Viewed,
    x: Tensor,
    labels: Tensor,
    path: Path,
    loss: Callable[[Tensor, Tensor], Tensor],
    boundary: int = -1,
) -> Tensor:
    """Gradient of the summed losses at the input (-1) or at x_i, through one path."""
    with torch.enable_grad():
        if boundary < 0:
            start = x = x.detach().requires_grad_()
        x = net.stem(x)
        if boundary == 0:
            start = x = x.detach().requires_grad_()
        for index, (transition, shortcut, branch, post) in enumerate(net.parts()):
            t = transition(x)
            kept, through = shortcut(t), branch(t)
            if index in path:
                kept = kept.detach()
            else:
                through = through.detach()
            x = post(kept + through)
            if boundary == index + 1:
                start = x = x.detach().requires_grad_()
        total = loss(net.head(x), labels).sum()
        (found,) = torch.autograd.grad(total, start, allow_unused=True, materialize_grads=True)
    return found


def enumerated(
    net: Net | Viewed,
    x: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    boundary: int = -1,
) -> dict[Path, Tensor]:
    """The gradient through each path, one autograd pass for each."""
    blocks = range(max(0, boundary), len(net.parts()))
    return {path: through_path(net, x, labels, path, loss, boundary) for path in every_path(blocks)}


def by_length(paths: dict[Path, Tensor]) -> Tensor:
    """Sums over all paths of each length, shape (K, N, ...)."""
    longest = max(map(len, paths))
    sums = torch.zeros(longest + 1, *next(iter(paths.values())).shape, dtype=torch.float64)
    for path, gradient in paths.items():
        sums[len(path)] += gradient.double()
    return sums
