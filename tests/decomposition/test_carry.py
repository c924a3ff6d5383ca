"""Summands of a tensor against networks that are taken apart by hand, and against the network's own tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.decomposition import CONSTANTS, STEM, Summands, carry, decompose_at, target_of
from pathlens.errors import ModelError, UsageError
from pathlens.models import load_model
from pathlens.residual.modes import in_mode
from tests.helpers.nets import Arithmetic


def broken_up(net: nn.Module, x: Tensor, at: str | int, training: bool = False) -> tuple[Tensor, Summands]:
    net = net.double()
    net.train(training)
    view = pathlens.find_blocks(net, x)
    chain = view.chain(x)
    return decompose_at(chain, x, target_of(chain, at)[0])


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Post(nn.Module):
    """Two blocks with a ReLU behind their sums, the second with a projection, then pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.project = nn.Sequential(nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x)
        x = F.relu(self.second(x) + self.project(x))
        return self.head(x.mean((2, 3)))


def by_hand(net: Post, x: Tensor, training: bool) -> tuple[Summands, Summands]:
    """Summands of the last sum, and of the logits."""
    stem = net.stem(x)
    first = net.first(stem)
    total = first + stem
    gate = (total > 0).double()
    after = F.relu(total)
    conv, norm = net.project
    projected = conv(after)
    if training:
        mean, var = projected.mean((0, 2, 3)), projected.var((0, 2, 3), correction=0)
    else:
        mean, var = norm.running_mean, norm.running_var

    def through(part: Tensor, constant: bool) -> Tensor:
        """Convolution and norm as the affine map that they are; what they add belongs to the constants."""
        part = F.conv2d(part * gate, conv.weight, conv.bias if constant else None, 2)
        here = part.mean((0, 2, 3), keepdim=True) if training else (mean[:, None, None] if constant else 0.0)
        part = (part - here) / (var[:, None, None] + norm.eps).sqrt() * norm.weight[:, None, None]
        return part + norm.bias[:, None, None] if constant else part

    last = net.second(after)
    sums = {
        STEM: through(stem, False),
        CONSTANTS: through(torch.zeros_like(stem), True),
        0: through(first, False),
        1: last,
    }
    gate = (sum(sums.values()) > 0).double()
    logits = {
        key: F.linear((part * gate).mean((2, 3)), net.head.weight, net.head.bias if key == CONSTANTS else None)
        for key, part in sums.items()
    }
    return sums, logits


@pytest.mark.parametrize("training", [False, True])
def test_a_network_taken_apart_by_hand(training: bool) -> None:
    torch.manual_seed(0)
    net = Post().double()
    for norm in (net.first[1], net.project[1]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    x = images(6, 3, 7, 7)
    with torch.no_grad():
        net.train(training)
        due = by_hand(net, x, training)
    for at, summands in zip(("sum", "output"), due, strict=True):
        whole, found = broken_up(net, x, at, training)
        assert found.keys() == summands.keys()
        for key, part in summands.items():
            torch.testing.assert_close(found[key], part, rtol=1e-10, atol=1e-12, msg=f"{at}, summand {key}")
        torch.testing.assert_close(sum(found.values()), whole)
    with torch.no_grad(), in_mode(net, training=training):
        torch.testing.assert_close(broken_up(net, x, "output", training)[0], net(x))


def test_summands_of_identity_shortcuts_are_what_the_branches_gave() -> None:
    torch.manual_seed(0)
    net = load_model("preresnet20", "random").model.double().eval()
    seen: dict[str, Tensor] = {}
    blocks = {name: net.get_submodule(name) for name in ("layer3.1", "layer3.2")}
    hooks = [
        block.register_forward_hook(lambda module, given, out, name=name: seen.update({name: out - given[0]}))
        for name, block in blocks.items()
    ]
    x = images(3, 3, 16, 16)
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    whole, summands = broken_up(net, x, "sum")
    for index, name in ((7, "layer3.1"), (8, "layer3.2")):
        torch.testing.assert_close(summands[index], seen[name], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(sum(summands.values()), whole)


def test_the_last_block_is_what_deleting_it_takes_from_a_linear_head() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)])
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.maps[0](x)
            for layer in self.maps[1:]:
                x = x + torch.tanh(layer(x))
            return self.head(x)

    torch.manual_seed(0)
    net, x = Linear().double(), images(4, 5)
    whole, summands = broken_up(net, x, "output")
    with pathlens.deleted(net, 1):
        torch.testing.assert_close(whole - net(x), summands[1])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "projections": (lambda: load_model("resnet20b", "random").model, (2, 3, 16, 16)),
    "padding": (lambda: load_model("resnet20", "random").model, (2, 3, 16, 16)),
    "gates": (lambda: load_model("highway19", "random").model, (2, 3, 16, 16)),
    "scaled": (lambda: load_model("nfresnet18:plain", "random").model, (2, 3, 16, 16)),
    "two branches": (lambda: load_model("shakeshake26_2x32d", "random").model, (2, 3, 16, 16)),
    "layer norms": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32), (2, 3, 32, 32)),
    "group norms": (lambda: timm.create_model("resnet18", norm_layer=timm.layers.GroupNorm), (2, 3, 32, 32)),
    "merging and layer norms": (
        lambda: torchvision.models.SwinTransformer([2, 2], 16, [1, 1], [1, 1], [4, 4], num_classes=7),
        (2, 3, 32, 32),
    ),
    "kinds of sums": (Arithmetic, (2, 6, 5, 5)),
    "squeeze and excitation between blocks": (torchvision.models.mobilenet_v3_small, (2, 3, 64, 64)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_summands_add_up_and_the_model_stays_as_it_was(name: str, training: bool) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = make().double()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    for at in (0, "sum", "output"):
        whole, summands = broken_up(net, images(*shape), at, training)
        size = max(float(part.abs().max()) for part in (whole, *summands.values()))
        assert sorted(summands)[:2] == [CONSTANTS, STEM]
        assert size > 0
        torch.testing.assert_close(sum(summands.values()), whole, rtol=0, atol=1e-9 * size)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_tokens_and_root_mean_square_norms() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    whole, summands = broken_up(load_model("llama2", "random").model, tokens, "output")
    assert len(summands) == 12
    assert not summands[CONSTANTS].any()
    torch.testing.assert_close(sum(summands.values()), whole)


class Odd(nn.Module):
    """Between its blocks stands something that is not linear, nor a gate or a norm."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps[0](x)
        x = x + F.relu(self.maps[1](x))
        x = self.between(x)
        return x + F.relu(self.maps[2](x))


@pytest.mark.parametrize(
    ("between", "line"),
    [
        (lambda x: x.softmax(-1), "behind softmax the summands do not add up .*decompose at a block before"),
        (lambda x: x.flip(-1) * x.roll(1, -1), "mul takes two tensors .*decompose at a block before"),
    ],
)
def test_what_is_not_linear_is_named(between: Callable[[Tensor], Tensor], line: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=line):
        broken_up(Odd(between), images(3, 4), "sum")
    whole, summands = broken_up(Odd(between), images(3, 4), 0)
    torch.testing.assert_close(sum(summands.values()), whole)


def largest(value: Tensor, of: Tensor) -> Tensor:
    """What a value has where another is largest of three neighbours."""
    places = F.max_pool1d(of, 3, 1, 1, return_indices=True)[1]
    return value.gather(-1, places)


@pytest.mark.parametrize(
    ("between", "by_hand", "constant"),
    [
        (torch.sigmoid, lambda part, whole: part * (whole.sigmoid() - 0.5) / whole, 0.5),
        (F.gelu, lambda part, whole: part * F.gelu(whole) / whole, 0.0),
        (lambda x: F.max_pool1d(x, 3, 1, 1), largest, 0.0),
        (lambda x: x * x.flip(-1) - x / 3 + 2, lambda part, whole: part * whole.flip(-1) - part / 3, 2.0),
    ],
)
def test_activations_and_maxima(
    between: Callable[[Tensor], Tensor], by_hand: Callable[[Tensor, Tensor], Tensor], constant: float
) -> None:
    torch.manual_seed(0)
    net, x = Odd(between).double(), images(3, 4)
    whole, summands = broken_up(net, x, "sum")
    torch.testing.assert_close(sum(summands.values()), whole)
    with torch.no_grad():
        stem = net.maps[0](x)
        block = F.relu(net.maps[1](stem))
        total = stem + block
        torch.testing.assert_close(summands[STEM], by_hand(stem, total))
        torch.testing.assert_close(summands[0], by_hand(block, total))
        torch.testing.assert_close(summands[CONSTANTS], torch.full_like(total, constant))
        torch.testing.assert_close(summands[1], F.relu(net.maps[2](between(total))))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_without_running_statistics(training: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=False).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    net, x = Odd(norm).double(), images(5, 4)
    whole, summands = broken_up(net, x, "sum", training)
    torch.testing.assert_close(sum(summands.values()), whole)
    with torch.no_grad():
        stem = net.maps[0](x)
        block = F.relu(net.maps[1](stem))
        scale = norm.weight / ((stem + block).var(0, correction=0) + norm.eps).sqrt()
        for key, part in ((STEM, stem), (0, block)):
            torch.testing.assert_close(summands[key], (part - part.mean(0)) * scale)
        torch.testing.assert_close(summands[CONSTANTS], norm.bias.expand(5, 4))
        torch.testing.assert_close(summands[1], F.relu(net.maps[2](norm(stem + block))))


def test_batch_norms_of_the_batch_that_are_one_operation() -> None:
    x, weight, bias = images(5, 4, 3), images(4), images(4) + 1
    settings = (None, None, True, 0.1, 1e-5, False)
    node = torch.fx.Graph().call_function(torch.ops.aten.batch_norm.default, (None, None, None, *settings))
    parts = {STEM: 3 * x, CONSTANTS: torch.ones_like(x), 0: -2 * x - 1}
    carried = carry._norm(node, (x, weight, bias, *settings), x)
    assert carried is not None
    torch.testing.assert_close(sum(carried(parts).values()), F.batch_norm(x, None, None, weight, bias, training=True))


def test_places() -> None:
    net = load_model("resnet20", "random").model
    view = pathlens.find_blocks(net, torch.zeros(2, 3, 8, 8))
    chain = view.chain()
    assert target_of(chain, "sum") == target_of(chain, 8) == target_of(chain, "-1") == (chain.links[8].total, 8)
    assert target_of(chain, "output") == (chain.trace.main, None)
    for wrong in ("nowhere", 9, "1.5"):
        with pytest.raises(UsageError):
            target_of(chain, wrong)
    plain = pathlens.find_layers(load_model("vgg15", "random").model, torch.zeros(2, 3, 32, 32))
    with pytest.raises(UsageError, match="no sum to decompose"):
        target_of(plain.chain(), "sum")
