"""Networks whose sums and concatenations can be told apart, for lesions and paths by hand.

Every place where tensors meet goes through a method of :class:`Joined` and has a number, in the order of execution.
What remains of a residual addition can be set (``rest``), which is its lesion written by hand. Or one operand of each
place can be chosen (``chosen``) and the others be detached, so that what autograd gives is the gradient along one path.
Or the gradients of some operands are multiplied by a number z (``counted``, ``z``), so that what autograd gives is the
sum over lengths k of z^k times the gradient along all paths that pass k of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.graph_nets import layer


class Times(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by z."""

    @staticmethod
    def forward(ctx, x, z):
        ctx.z = z
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.z * gradient, None


class Joined(nn.Module):
    """What meets where; ``rest`` and ``chosen`` are by number, ``places`` tells what each place is."""

    def __init__(self) -> None:
        super().__init__()
        self.rest: dict[int, str] = {}
        self.chosen: dict[int, int] | None = None
        self.places: list[tuple[str, int]] = []
        self.passed: set[int] = set()
        self.counted: dict[int, set[int]] = {}
        self.z = 1.0

    def _kept(self, kind: str, operands: tuple[Tensor, ...], join: Callable[..., Tensor]) -> Tensor:
        number = len(self.places)
        self.places.append((kind, len(operands)))
        counted = self.counted.get(number, ())
        operands = tuple(Times.apply(o, self.z) if place in counted else o for place, o in enumerate(operands))
        if self.chosen is None:
            return join(*operands)
        one = self.chosen.get(number, 0)
        result = join(*(operand if place == one else operand.detach() for place, operand in enumerate(operands)))
        if result.requires_grad:
            result.register_hook(lambda _: self.passed.add(number))
        return result

    def add(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """A residual addition, or what remains of it."""
        rest = self.rest.get(len(self.places))
        if rest is None:
            return self._kept("residual", (shortcut, branch), torch.add)
        return self._kept("residual", (shortcut if rest == "shortcut" else branch,), torch.clone)

    def mix(self, *tensors: Tensor) -> Tensor:
        """A sum of which no operand is a shortcut."""
        return self._kept("sum", tensors, lambda *all_of: sum(all_of[1:], start=all_of[0]))

    def cat(self, *tensors: Tensor) -> Tensor:
        return self._kept("concat", tensors, lambda *all_of: torch.cat(all_of, 1))

    def times(self, *tensors: Tensor) -> Tensor:
        return self._kept("product", tensors, torch.mul)

    def forward(self, x: Tensor) -> Tensor:
        self.places = []
        self.passed = set()
        return self.joined(x)

    def joined(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Block(nn.Module):
    """Convolution, batch norm, ReLU, convolution."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.n(self.a(x))))


class Levels(Joined):
    """A U-Net of two levels with residual blocks: levels are concatenated, or added."""

    def __init__(self, concatenated: bool, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 4, 3, 1, 1), layer(4, 4, 2), nn.ConvTranspose2d(4, 4, 2, 2)
        self.f = nn.ModuleList(Block() for _ in range(4))
        self.join = layer(8, 4) if concatenated else None
        self.head = nn.Linear(4, classes)

    def joined(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.add(x, self.f[0](x))
        y = self.down(x)
        y = self.add(y, self.f[1](y))
        y = torch.relu(self.add(y, self.f[2](y)))
        x = self.add(x, self.up(y)) if self.join is None else self.join(self.cat(x, self.up(y)))
        x = self.add(x, self.f[3](x))
        return self.head(x.mean((2, 3)))


class Nested(Joined):
    """Blocks inside of blocks, as in Res2Net and RIR."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 3)
        self.before, self.after = layer(4, 4), nn.Conv2d(4, 4, 1)
        self.f = nn.ModuleList(Block() for _ in range(3))

    def joined(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.before(x)
        y = self.add(y, self.f[0](y))
        y = self.add(y, self.f[1](y))
        x = torch.relu(self.add(x, self.after(y)))
        x = self.add(x, self.f[2](x))
        return self.head(x.mean((2, 3)))


class Resolutions(Joined):
    """Two resolutions side by side that exchange what they have, as in HRNet, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = nn.Conv2d(3, 4, 3, 1, 1), layer(3, 4, 2)
        self.f = nn.ModuleList(Block() for _ in range(4))
        self.down, self.up = layer(4, 4, 2), nn.Sequential(layer(4, 4), nn.Upsample(scale_factor=2))
        self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def joined(self, x: Tensor) -> Tensor:
        high, low = torch.relu(self.high(x)), self.low(x)
        high, low = self.add(high, self.f[0](high)), self.add(low, self.f[1](low))
        high, low = self.mix(high, self.up(low)), self.mix(low, self.down(high))
        high, low = self.add(high, self.f[2](high)), self.add(low, self.f[3](low))
        high = self.times(high, torch.sigmoid(self.gate(high)))
        return self.head(self.mix(high.mean((2, 3)), low.mean((2, 3))))


class Dense(Joined):
    """Each layer sees the results of all layers before it (Huang et al. 2017)."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4 + 2 * layers, 3)
        self.f = nn.ModuleList(layer(4 + 2 * i, 2) for i in range(layers))

    def joined(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for f in self.f:
            features.append(f(self.cat(*features) if len(features) > 1 else features[0]))
        return self.head(self.cat(*features).mean((2, 3)))


JOINED: dict[str, Callable[[], Joined]] = {
    "U-Net": lambda: Levels(True),
    "added levels": lambda: Levels(False),
    "nested": Nested,
    "resolutions": Resolutions,
    "dense": Dense,
}


def additions(net: Joined, x: Tensor) -> list[int]:
    """Numbers of the residual additions."""
    net(x)
    return [number for number, (kind, _) in enumerate(net.places) if kind == "residual"]


def branches(net: Joined, x: Tensor, concat: bool = False) -> dict[int, set[int]]:
    """Which operands of which places are branches."""
    net(x)
    counted = {"residual", "concat"} if concat else {"residual"}
    return {place: set(range(1, count)) for place, (kind, count) in enumerate(net.places) if kind in counted}


def by_paths(
    net: Joined, x: Tensor, labels: Tensor, taken: dict[int, set[int]]
) -> tuple[dict[int, Tensor], dict[int, int]]:
    """The sum over the gradients of all paths of each length, and how many there are, one autograd pass for each.

    A path is one operand of each place that it passes, and its length the number of those that are branches. Ways
    through the two sides of a product within one layer are one path.
    """
    sums: dict[int, Tensor] = {}
    numbers: dict[int, int] = {}
    for path, gradient in _walked(net, x, labels):
        length = sum(operand in taken.get(place, ()) for place, operand in path.items())
        sums[length] = sums.get(length, 0) + gradient
        other_side = any(operand for place, operand in path.items() if net.places[place][0] == "product")
        numbers[length] = numbers.get(length, 0) + (not other_side)
    return sums, numbers


def each_path(net: Joined, x: Tensor, labels: Tensor, taken: dict[int, set[int]]) -> dict[int, list[Tensor]]:
    """The gradients of the single paths of each length; see :func:`by_paths`."""
    gradients: dict[tuple[tuple[int, int], ...], Tensor] = {}
    for path, gradient in _walked(net, x, labels):
        key = tuple(sorted(step for step in path.items() if net.places[step[0]][0] != "product"))
        gradients[key] = gradients.get(key, 0) + gradient
    lengths: dict[int, list[Tensor]] = {}
    for key, gradient in gradients.items():
        lengths.setdefault(sum(operand in taken.get(place, ()) for place, operand in key), []).append(gradient)
    return lengths


def _walked(net: Joined, x: Tensor, labels: Tensor) -> Iterator[tuple[dict[int, int], Tensor]]:
    """All paths, as the operand of each place that one passes, with their gradients."""
    waiting: list[dict[int, int]] = [{}]
    while waiting:
        chosen = net.chosen = waiting.pop()
        try:
            start = x.clone().requires_grad_()
            loss = F.cross_entropy(net(start), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, start, allow_unused=True, materialize_grads=True)
        finally:
            net.chosen = None
        path = {place: chosen.get(place, 0) for place in sorted(net.passed, reverse=True)}
        yield path, gradient
        # paths that part from this one at a place where nothing was chosen yet, from the output back
        for index, place in enumerate(path):
            if place not in chosen:
                before = dict(list(path.items())[:index])
                waiting += [before | {place: operand} for operand in range(1, net.places[place][1])]


def by_lengths(
    net: Joined,
    x: Tensor,
    labels: Tensor,
    taken: dict[int, set[int]],
    longest: int,
    at: Sequence[nn.Module] = (),
) -> dict[str, dict[int, Tensor]]:
    """Gradients of the summed losses along the paths of each length, of the parameters by name and the input (empty).

    Of the tensor that enters a module of ``at`` too, by the number of the module. They are the coefficients of a
    polynomial in z (``counted``), which is known at as many places as it has.
    """
    places = torch.linspace(-1, 1, longest + 1, dtype=torch.float64)
    powers = places[:, None] ** torch.arange(longest + 1)
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    names = ["", *map(str, range(len(at))), *trained]
    known: list[tuple[Tensor, ...]] = []
    net.counted = taken
    entered: dict[nn.Module, Tensor] = {}
    hooks = [module.register_forward_pre_hook(lambda m, given: entered.update({m: given[0]})) for module in at]
    try:
        for net.z in places.tolist():
            start = x.clone().requires_grad_()
            loss = F.cross_entropy(net(start), labels, reduction="sum")
            tensors = [start, *map(entered.__getitem__, at), *trained.values()]
            known.append(torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True))
    finally:
        net.counted = {}
        for hook in hooks:
            hook.remove()
    result = {}
    for name, values in zip(names, zip(*known, strict=True), strict=True):
        flat = torch.linalg.solve(powers, torch.stack(values).flatten(1))
        result[name] = dict(enumerate(flat.unflatten(1, values[0].shape)))
    return result
