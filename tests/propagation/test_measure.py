"""Moments at the blocks of a network against autograd's own tensors, on networks that overwrite what they computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.propagation import Moments, measure, moments
from pathlens.residual.losses import cross_entropy
from pathlens.residual.modes import in_mode
from pathlens.runtime.randomness import seeded


def by_definition(x: Tensor) -> Moments:
    """Channels on axis 1, one after the other."""
    channels = [x[:, c].double().flatten() for c in range(x.shape[1])]
    squared = sum(float(c.mean()) ** 2 for c in channels) / len(channels)
    variance = sum(float(((c - c.mean()) ** 2).mean()) for c in channels) / len(channels)
    everything = x.double().flatten()
    whole = float(((everything - everything.mean()) ** 2).mean())
    return Moments(squared, variance, whole, float((everything**2).mean()))


def assert_same(got: Moments | None, due: Moments, rel: float = 1e-9) -> None:
    assert got is not None
    scale = due.second_moment
    assert got == pytest.approx(due, rel=rel, abs=rel * scale)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 6), (2, 7, 3)])
def test_moments_by_definition(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    assert_same(moments(x, 1), by_definition(x))
    assert_same(moments(x.movedim(1, -1), -1), by_definition(x))


def test_moments_of_what_float32_cannot_square() -> None:
    x = torch.full((2, 3), 1e30)
    assert moments(x, 1) == pytest.approx((1e60, 0, 0, 1e60), rel=1e-6, abs=1e46)
    x[0, 0] = float("inf")
    assert moments(x, 1) is None


class Rough(nn.Module):
    """Blocks whose ReLU and addition overwrite their operands."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.second = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) if norm else nn.Identity() for _ in range(3)])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, norm in zip(self.first, self.second, self.norms, strict=True):
            out = norm(second(F.relu(first(x), inplace=True)))
            out += x
            x = F.relu_(out)
        return self.head(x.mean((2, 3)))

    def by_hand(self, x: Tensor) -> tuple[dict[tuple[int, str], Tensor], Tensor]:
        """The same without anything in place, and every tensor that is read."""
        x = self.stem(x)
        found = {(-1, "stem"): x}
        for i, (first, second, norm) in enumerate(zip(self.first, self.second, self.norms, strict=True)):
            branch = norm(second(F.relu(first(x))))
            found |= {(i, "branch"): branch * 1, (i, "shortcut"): x * 1}
            found[i, "sum"] = found[i, "branch"] + found[i, "shortcut"]
            x = found[i, "output"] = F.relu(found[i, "sum"])
        return found, self.head(x.mean((2, 3)))


class Normed(nn.Module):
    """A block that begins with a layer norm of the channels; ``first`` says whether these stand before the places."""

    def __init__(self, normed: Callable[[nn.Module, Tensor], Tensor], first: bool) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.LayerNorm(4), nn.Linear(4, 5)
        self.map = nn.Conv2d(4, 4, 1) if first else nn.Linear(4, 4)
        self.normed, self.first = normed, first

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shortcut and branch."""
        x = self.stem(x) if self.first else self.stem(x).permute(0, 2, 3, 1)
        return x, self.map(F.gelu(self.normed(self.norm, x)))

    def forward(self, x: Tensor) -> Tensor:
        x, branch = self.by_hand(x)
        return self.head((x + branch).mean((2, 3) if self.first else (1, 2)))


@pytest.mark.parametrize(
    ("first", "normed"),
    [
        (True, lambda norm, x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        (True, lambda norm, x: norm(x.transpose(1, -1)).transpose(1, -1)),
        (True, lambda norm, x: norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 7))),
        (True, lambda norm, x: F.layer_norm(x, x.shape[1:])),
        (True, lambda norm, x: F.linear(x.permute(0, 2, 3, 1), norm.weight.diag()).permute(0, 3, 1, 2)),
        (False, lambda norm, x: F.linear(x, norm.weight.diag())),
        (False, lambda norm, x: norm(x)),
        (False, lambda norm, x: norm(x.permute(0, 3, 1, 2).permute(0, 2, 3, 1))),
        (False, lambda norm, x: norm(x.permute(0, 2, 1, 3)).transpose(1, 2)),
    ],
)
def test_channels_are_what_the_layer_norm_or_map_that_begins_a_branch_takes(
    first: bool, normed: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    net, x = Normed(normed, first).double(), torch.randn(3, 2, 6, 7, dtype=torch.float64)
    readings = measure(pathlens.find_blocks(net, x).chain(x), x, torch.arange(3), cross_entropy)
    with torch.no_grad():
        shortcut, branch = net.by_hand(x)
    for end, tensor in (("shortcut", shortcut), ("branch", branch), ("sum", shortcut + branch)):
        assert_same(readings[0, end].forward, by_definition(tensor if first else tensor.movedim(-1, 1)))


def test_generators_of_gpus_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(0)
    assert seeds == [0]  # which is what is not called below
    net, x = Rough(True).double(), torch.randn(6, 2, 5, 5, dtype=torch.float64)
    seeds.clear()
    measure(pathlens.find_blocks(net, x).chain(x), x, torch.arange(6) % 5, cross_entropy)
    with seeded(3, x.device):
        first = torch.rand(4)
    assert seeds == []
    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_against_autograd_on_a_network_that_overwrites(norm: bool, training: bool) -> None:
    torch.manual_seed(0)
    net = Rough(norm).double()
    x, y = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.arange(6) % 5
    view = pathlens.find_blocks(net, x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    with in_mode(net, training):
        readings = measure(view.chain(x), x, y, cross_entropy)
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in net.state_dict().items():  # running statistics too
            assert torch.equal(value, before[name])
        found, logits = net.by_hand(x)
    for tensor in found.values():
        tensor.retain_grad()
    F.cross_entropy(logits, y, reduction="sum").backward()
    assert readings.keys() == found.keys()
    for place, tensor in found.items():
        assert_same(readings[place].forward, by_definition(tensor.detach()))
        assert tensor.grad is not None
        assert_same(readings[place].backward, by_definition(tensor.grad))


def test_against_hooks_on_a_network_of_timm() -> None:
    """Branches end in the last norm of a block, and a block's output is the module's; hooks reduce at once."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10).train()
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    blocks = [model.layer1[0], model.layer2[0], model.layer3[0], model.layer4[0]]
    ends = [(i, "branch", getattr(block, "bn3", None) or block.bn2) for i, block in enumerate(blocks)]
    outputs = [(i, "output", block) for i, block in enumerate(blocks)]
    due: dict[tuple[int, str], Moments] = {}
    gradients: dict[int, Moments] = {}

    def hook(index: int, place: str):
        def reduce(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            due[index, place] = by_definition(out.detach())
            if place == "output":
                out.register_hook(lambda g: gradients.__setitem__(index, by_definition(g)))

        return reduce

    view = pathlens.find_blocks(model, x)
    with in_mode(model, training=True):
        readings = measure(view.chain(x), x, y, cross_entropy)
    handles = [module.register_forward_hook(hook(index, place)) for index, place, module in (*ends, *outputs)]
    F.cross_entropy(model(x), y, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    assert len(due) == 8
    for place, wanted in due.items():
        assert_same(readings[place].forward, wanted, rel=1e-4)
    for index, wanted in gradients.items():
        assert_same(readings[index, "output"].backward, wanted, rel=1e-3)


def test_what_overflows_has_no_moments_and_no_gradients() -> None:
    net = Rough(False)
    with torch.no_grad():
        net.second[1].weight.mul_(1e38)
        net.second[1].bias.fill_(3e38)
    x = torch.full((2, 2, 5, 5), 100.0)
    readings = measure(pathlens.find_blocks(net, x).chain(x), x, torch.zeros(2).long(), cross_entropy)
    assert readings[0, "output"].forward is not None
    assert readings[1, "branch"].forward is None
    assert all(reading.backward is None for reading in readings.values())


class Embedded(nn.Module):
    """Tokens in, of which one is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.stem(tokens)
        return self.head((x + self.branch(x))[:, -1])


def test_integers_have_no_gradient_and_are_followed_from_the_stem() -> None:
    net, tokens, labels = Embedded().double(), torch.tensor([[1, 4, 6], [0, 2, 5]]), torch.tensor([3, 1])
    readings = measure(pathlens.find_blocks(net, tokens).chain(), tokens, labels, cross_entropy)
    x = net.stem(tokens).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net.head((x + net.branch(x))[:, -1]), labels, reduction="sum"), x)
    assert_same(readings[-1, "stem"].forward, moments(x.detach(), -1))
    assert_same(readings[-1, "stem"].backward, moments(gradient, -1))
