"""What modules keep (buffers, numbers, features) stays the user's, and a trace follows what they are set to."""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.data import ImageData, open_data
from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.residual import find_blocks
from pathlens.residual.modes import in_mode
from pathlens.training import Recipe, StochasticDepth


class Block(nn.Module):
    def __init__(self, inside: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.inside = inside
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inside(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(module) for module in inside))
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data("digits", limit=8)


def net(*inside: nn.Module) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(*(inside or [nn.Identity() for _ in range(3)]))


def options() -> dict[str, Any]:
    return {"batch_size": 4, "method": "exact"}


class Assigns(nn.Module):
    """Puts a tensor in the place of its buffer, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3)).detach()
        return x - self.mean.reshape(1, -1, 1, 1)


def test_a_buffer_that_is_assigned_cannot_be_followed(data: ImageData) -> None:
    model = net(Assigns(), nn.Identity(), nn.Identity())
    before = model.blocks[0].inside.mean
    recipe = Recipe(epochs=1, batch_size=4, warmup=0.0)
    with pytest.raises(ModelError, match=r"assigns its buffer blocks\.0\.inside\.mean in a forward pass; write it in"):
        pathlens.train(model, data, rule=StochasticDepth(), recipe=recipe, rescale="none")
    assert model.blocks[0].inside.mean is before
    assert len(find_blocks(model.eval(), torch.zeros(2, 1, 8, 8))) == 3  # in eval mode it is none of its business


class Counts(nn.Module):
    """Writes to a buffer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_buffers_are_as_they_were(mode: str, data: ImageData) -> None:
    model = net(Counts(), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.named_buffers()}
    pathlens.path_gradients(model, data, mode=mode, **options())
    pathlens.signal_propagation(model, data, batch_size=4)
    pathlens.delete_blocks(model, data, batch_size=4)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_statistics_of_instance_norms_are_those_of_the_own_forward() -> None:
    model = net(*(nn.InstanceNorm2d(4, affine=True, track_running_stats=True) for _ in range(3)))
    own, x = copy.deepcopy(model), torch.randn(5, 1, 8, 8)
    view = find_blocks(model, x[:2])
    assert {name.rpartition(".")[2] for name in view.chain().trace.mutations} == {"running_mean", "running_var"}
    with pathlens.restrict_backward(view, lengths=range(4)):
        out = model(x)
    torch.testing.assert_close(out, own(x))
    for name, value in own.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value)


def test_a_view_follows_what_modules_are_set_to() -> None:
    model, x = net().eval(), torch.randn(3, 1, 8, 8)
    view = find_blocks(model, x[:2])
    for scale in (1.0, 0.25, 3.0, 1.0):
        for block in model.blocks:
            block.scale = scale
        with torch.no_grad():
            torch.testing.assert_close(view.head(view.run(view.stem(x))), model(x))
        with pathlens.restrict_backward(view, lengths=range(4)):
            torch.testing.assert_close(model(x), copy.deepcopy(model)(x))
    for scale in range(50):
        model.blocks[0].scale = float(scale)
        view.chain()
    assert len(view._chains) <= 16


class Set(nn.Module):
    """Multiplies by a tensor beside the parameters, by tensors and numbers in lists, and calls a function."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Any = torch.linspace(0.5, 1, 4).reshape(4, 1, 1)
        self.masks = [torch.ones(4, 1, 1), torch.full((4, 1, 1), 2.0)]
        self.gates: list[Any] = [1.0, (0.5, {"last": 2.0})]
        self.act: Any = torch.tanh
        self.scales, self.places = {0: 0.25}, [[0.5], []]
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, (second, others) = self.gates
        x = self.conv(x) * self.scales.get(0, 1.0) * (0.5 if self.places[0] else 1.0)
        x = self.act(x) * self.masks[0] * self.masks[1] * first * second * others["last"]
        return x if self.mask is None else x * self.mask


SETTINGS: dict[str, Callable[[Set], object]] = {
    "a tensor": lambda part: setattr(part, "mask", torch.full((4, 1, 1), 0.1)),
    "a tensor that is written to": lambda part: part.mask.mul_(0.5),
    "a tensor of another shape": lambda part: setattr(part, "mask", torch.tensor([0.2])),
    "no tensor": lambda part: setattr(part, "mask", None),
    "a tensor in a list": lambda part: part.masks.__setitem__(0, torch.full((4, 1, 1), 3.0)),
    "another list of tensors": lambda part: setattr(part, "masks", [torch.zeros(4, 1, 1), torch.ones(4, 1, 1)]),
    "a number in a list": lambda part: part.gates.__setitem__(0, 0.0),
    "a number in a dict": lambda part: part.gates[1][1].update(last=5.0),
    "a function": lambda part: setattr(part, "act", torch.sigmoid),
    "a number under another key": lambda part: setattr(part, "scales", {1: 0.25}),
    "a number in another place": lambda part: setattr(part, "places", [[], [0.5]]),
    "the dilation of a convolution": lambda part: part.conv.__dict__.update(dilation=(2, 2), padding=(2, 2)),
}


@pytest.mark.parametrize("change", SETTINGS)
@torch.no_grad()
def test_a_view_follows_what_modules_hold_beside_their_parameters(change: str) -> None:
    model, x = net(nn.Identity(), Set(), nn.Identity()).eval(), torch.randn(3, 1, 8, 8)
    view, before = find_blocks(model, x[:2]), model(x)
    SETTINGS[change](model.blocks[1].inside)
    wanted = model(x)
    assert not torch.allclose(wanted, before)
    torch.testing.assert_close(view.head(view.run(view.stem(x))), wanted)
    by_hand = model.head(model.blocks[1:](model.stem(x)).mean((2, 3)))
    with pathlens.deleted(view, 0):
        torch.testing.assert_close(model(x), by_hand)


def test_a_module_that_cannot_be_trained_is_left_as_it_was() -> None:
    class Frozen(nn.Module):
        def train(self, mode: bool = True) -> Frozen:
            if mode:
                raise RuntimeError("weights are folded")
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(), Frozen(), nn.Dropout())
    with pytest.raises(RuntimeError, match="folded"), in_mode(model):
        assert not any(part.training for part in model.modules())
    assert all(part.training for part in model.modules())


@torch.no_grad()
def test_a_view_follows_a_module_in_the_place_of_another() -> None:
    model, x = net().eval(), torch.randn(3, 1, 8, 8)
    view, first = find_blocks(model, x[:2]), weakref.ref(model.blocks[0].inside)
    for kind in (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Tanh, nn.ELU):
        model.blocks[0].inside = kind()
        torch.testing.assert_close(view.head(view.run(view.stem(x))), model(x))
    # while there is a trace of it, no other module can take its place in memory
    assert first() is not None


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x * 2


def test_features_that_are_kept_are_no_reason_to_trace_again() -> None:
    model = net(Remembers(), Remembers(), Remembers()).eval()
    view = find_blocks(model, torch.zeros(2, 1, 8, 8))
    chain = view.chain()
    for batch in (2, 5):
        model(torch.randn(batch, 1, 8, 8))
        assert view.chain() is chain


class Merges(nn.Module):
    """Adds an update to its weights in eval mode and takes it off in train mode, as layers of low-rank updates do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))
        self.merged = False

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -2.0 if mode else 2.0
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight if self.merged else self.weight + 2.0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_modules_change_their_mode_themselves(whole: bool, training: bool) -> None:
    parts = [Merges(), Merges(), Merges()]
    model = net(*parts).train(whole)
    parts[1].train(not whole)

    def state() -> list[tuple[bool, bool, float]]:
        return [(part.training, part.merged, part.weight.mean().item()) for part in parts]

    before = state()
    with in_mode(model, training):
        assert state() == [(training, not training, 1.0 if training else 3.0)] * 3
    assert state() == before
    assert {part.merged for part in parts} == {True, False}


class Crossed(nn.Module):
    """Two trunks that feed each other, one of them through the frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)
        self.one, self.two = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = g = self.stem(x)
        for _ in range(2):
            both = torch.cat((a, g), 1)
            a = a + self.one(both)
            g = g + torch.fft.irfft2(torch.fft.rfft2(self.two(both)) * 0.5, s=g.shape[2:])
        return self.head((a + g).mean((2, 3)))


def test_complex_numbers_are_refused_where_blocks_are_no_chain(data: ImageData) -> None:
    with pytest.raises(ModelError, match="is complex, and where blocks are no chain"):
        pathlens.path_gradients(Crossed(), data, additions="all", **options())


def test_restricted_gradients_under_autocast() -> None:
    model, x = net(*(nn.BatchNorm2d(4) for _ in range(6))), torch.randn(6, 1, 8, 8)
    own = copy.deepcopy(model)
    labels = torch.arange(6)
    view = find_blocks(model, x[:2])
    for network in (own, model):
        with pathlens.restrict_backward(view, lengths=range(7)) if network is model else torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(network(x), labels)
            loss.backward()
    for name, parameter in own.named_parameters():
        found = model.get_parameter(name).grad
        assert found is not None
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, rtol=0.1, atol=0.02)


def test_a_journal_does_not_know_one_function_from_another(data: ImageData, tmp_path: Any) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    own = pathlens.path_gradients(net(), data, loss=loss, **options())
    assert own.provenance["loss"] == "given by the caller"
    with pytest.raises(UsageError, match="a journal does not know one function for the loss from another"):
        pathlens.path_gradients(net(), data, loss=loss, journal=tmp_path, **options())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_that_draws_has_no_one_gradient(dtype: torch.dtype, data: ImageData) -> None:
    model = net(*(nn.Dropout(0.5) for _ in range(3))).to(dtype)
    with pytest.raises(NumericsError, match="draws at random in this mode"):
        pathlens.path_gradients(model, data, mode="train", **options())


class Levels(nn.Module):
    """How many thresholds a value is above, counted by Python's sum."""

    def forward(self, x: Tensor) -> Tensor:
        level: Any = sum(x > threshold for threshold in (-0.2, 0.0, 0.2))
        return x * level.float()


class Narrowed(nn.Module):
    """Adds to a part of its input, which it counts from the end."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.dim = nn.Conv2d(4, 4, 3, padding=1), dim

    def forward(self, x: Tensor) -> Tensor:
        out, more = x.clone(), self.conv(x)
        out.narrow(self.dim, 0, 2).add_(more.narrow(self.dim, 0, 2))
        return out


@pytest.mark.parametrize("dim", [-3, -1, 1])
def test_sums_into_a_part_that_is_counted_from_the_end(dim: int) -> None:
    model, x = net(*(Narrowed(dim) for _ in range(3))).eval(), torch.randn(3, 1, 8, 8)
    view = find_blocks(model, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(view.head(view.run(view.stem(x))), model(x))


def test_a_sum_of_comparisons_counts_them() -> None:
    model, x = net(Levels(), Levels(), Levels()).eval(), torch.randn(3, 1, 8, 8)
    view = find_blocks(model, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(view.head(view.run(view.stem(x))), model(x))


def test_modules_that_keep_what_they_computed_can_be_copied(data: ImageData) -> None:
    model = net()
    nn.utils.weight_norm(model.blocks[1].conv)
    model.features = model(torch.zeros(1, 1, 8, 8))
    single, double = (pathlens.path_gradients(model, data, dtype=dtype, **options()) for dtype in (None, "float64"))
    assert single.values("total_norm") == pytest.approx(double.values("total_norm"), rel=1e-4)
    assert model.features.grad_fn is not None


class Keeps(nn.Module):
    """Keeps features wherever there is place."""

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, list[Any]] = defaultdict(list, norm=[1.0])
        self.recent: deque[Any] = deque([1.0], maxlen=3)
        self.names = {"first"}
        self.cache = SimpleNamespace(last=1.0, all=[])

    def forward(self, x: Tensor) -> Tensor:
        self.stats["norm"].append(x.norm())
        self.recent.append(x)
        self.names.add(str(x.shape))
        self.cache.last = x
        self.cache.all.append(x)
        return x


def test_what_modules_keep_is_theirs() -> None:
    inside = Keeps()
    find_blocks(net(inside, nn.Identity(), nn.Identity()).eval(), torch.zeros(2, 1, 8, 8))
    assert inside.stats == {"norm": [1.0]}
    assert (list(inside.recent), inside.names) == ([1.0], {"first"})
    assert (inside.cache.last, inside.cache.all) == (1.0, [])
