"""Stacked vector-Jacobian products against autograd, one cotangent after the other, through the module itself."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.residual.segments import Segment, cut
from pathlens.residual.trace import trace
from pathlens.residual.vjp import BatchedVJP, Identity, SequentialVJP, is_stackable, linearise
from tests.helpers.nets import Lambda

SHAPE = (6, 9, 8)


def segment_of(module: nn.Module, x: Tensor) -> Segment:
    """The whole module as one piece."""
    traced = trace(module, x)
    return cut(traced, traced.source, [traced.main])


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with weights and batch-norm statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.2, 3, generator=generator)
    return module.eval()


def batch(shape: tuple[int, ...] = SHAPE, count: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(module: nn.Module, x: Tensor, cotangents: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    y = copy.deepcopy(module)(x)
    rows = [torch.autograd.grad(y, x, v, retain_graph=True, materialize_grads=True)[0] for v in cotangents]
    return torch.stack(rows)


def compare(
    module: nn.Module,
    x: Tensor,
    *,
    kind: type = BatchedVJP,
    stack: int = 5,
    tolerance: float = 1e-12,
    segment: Segment | None = None,
) -> None:
    with torch.no_grad():
        y = copy.deepcopy(module)(x)
    adjoint = linearise(segment or segment_of(module, x), x)
    assert type(adjoint) is kind
    assert not adjoint.output.requires_grad
    torch.testing.assert_close(adjoint.output, y, rtol=tolerance, atol=tolerance * float(y.abs().max()))
    cotangents = batch(tuple(y.shape[1:]), stack * y.shape[0], y.dtype, seed=2).unflatten(0, (stack, -1))
    before = cotangents.clone()
    back = adjoint(cotangents)
    expected = oracle(module, x, cotangents)
    assert expected.abs().max() > 0
    assert back.shape == (stack, *x.shape)
    assert back.dtype == x.dtype
    assert not back.requires_grad
    torch.testing.assert_close(back, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert torch.equal(cotangents, before)
    assert torch.equal(adjoint(cotangents), back)  # a second call finds everything as it was


def bn(channels: int = 6, **options: object) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


class Wired(nn.Module):
    """Modules by name, and a function that wires them."""

    def __init__(self, function, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019): the kernel itself is computed."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * torch.rsqrt(var + 1e-5), self.bias, padding=1)


def conv(cin: int = 6, cout: int = 4, size: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, size, **options)


def option_a(x: Tensor) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3), "constant", 0)


PIECES = {
    "conv": conv,
    "conv without bias": lambda: conv(bias=False),
    "conv same": lambda: conv(padding=1),
    "conv padding beyond kernel": lambda: conv(padding=4),
    "conv 1x1": lambda: conv(size=1),
    "conv 1x1 padded": lambda: conv(size=1, padding=1),
    "conv 1x1 stride": lambda: conv(size=1, stride=2),
    "conv stride": lambda: conv(stride=2, padding=1),
    "conv stride that leaves a rest": lambda: conv(stride=3),
    "conv even kernel": lambda: conv(size=2),
    "conv dilation": lambda: conv(dilation=2, padding=2),
    "conv dilation and stride": lambda: conv(dilation=2, stride=2, padding=1),
    "conv rectangular": lambda: conv(size=(5, 2), padding=(2, 0)),
    "conv rectangular everything": lambda: conv(size=(3, 2), stride=(1, 2), padding=(2, 1), dilation=(1, 2)),
    "conv groups": lambda: conv(cout=4, groups=2, padding=1),
    "conv depthwise": lambda: conv(cout=12, groups=6, padding=1),
    "conv depthwise stride": lambda: conv(cout=6, groups=6, stride=2, padding=1),
    "conv reflect": lambda: conv(padding=2, padding_mode="reflect"),
    "conv circular": lambda: conv(padding=1, padding_mode="circular"),
    "conv of the whole image": lambda: conv(size=(9, 8)),
    "weight standardised": lambda: Standardised(6, 4, 3),
    "conv bn": lambda: nn.Sequential(conv(padding=1), bn(4)),
    "conv bn stride groups": lambda: nn.Sequential(conv(cout=4, stride=2, groups=2), bn(4)),
    "conv bn without affine": lambda: nn.Sequential(conv(padding=1), bn(4, affine=False, eps=0.1)),
    "bn": bn,
    "bn without affine": lambda: bn(affine=False, eps=0.3),
    "bn relu": lambda: nn.Sequential(bn(), nn.ReLU()),
    "bn gelu": lambda: nn.Sequential(bn(), nn.GELU()),
    "bn bn relu": lambda: nn.Sequential(bn(), bn(), nn.ReLU()),
    "conv bn bn relu": lambda: nn.Sequential(conv(), bn(4), bn(4), nn.ReLU()),
    "post-activation": lambda: nn.Sequential(
        conv(6, 5, padding=1, bias=False), bn(5), nn.ReLU(inplace=True), conv(5, 6, padding=1, bias=False), bn()
    ),
    "pre-activation": lambda: nn.Sequential(
        bn(), nn.ReLU(inplace=True), conv(6, 5, padding=1), bn(5), nn.ReLU(inplace=True), conv(5, 6, padding=1)
    ),
    "bottleneck": lambda: nn.Sequential(
        conv(6, 3, 1), bn(3), nn.ReLU(), conv(3, 3, stride=2, padding=1), bn(3), nn.ReLU(), conv(3, 8, 1), bn(8)
    ),
    "mobile": lambda: nn.Sequential(
        conv(6, 12, 1), bn(12), nn.Hardswish(), conv(12, 12, padding=1, groups=12), bn(12), nn.SiLU(), conv(12, 6, 1)
    ),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "leaky relu": nn.LeakyReLU,
    "leaky relu 0.2": lambda: nn.LeakyReLU(0.2),
    "elu": lambda: nn.ELU(0.7),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(1.3),
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.4),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": lambda: nn.Softplus(2.0),
    "clamp": lambda: Lambda(lambda x: x.clamp(-0.5, 0.25)),
    "clamp from below": lambda: Lambda(lambda x: x.clamp(min=0.1)),
    "threshold": lambda: nn.Threshold(0.1, 0.0),
    "three convs, two additions": lambda: Wired(
        lambda m, x: m.a(x) + torch.relu(m.b(x)) - m.c(torch.tanh(x)),
        a=conv(padding=1), b=conv(padding=1), c=conv(size=1),
    ),
    "nested residual": lambda: Wired(
        lambda m, x: torch.relu(m.n(m.a(x)) + x), a=conv(6, 6, padding=1), n=bn()
    ),
    "the same twice": lambda: Wired(lambda m, x: m.a(x) + m.a(torch.relu(x)) + x + x, a=conv(6, 6, padding=1)),
    "x + x": lambda: Lambda(lambda x: x + x),
    "x - 3 relu(x)": lambda: Lambda(lambda x: x - 3 * torch.relu(x)),
    "relu(x) - x": lambda: Lambda(lambda x: torch.relu(x) - x),
    "shifted and scaled": lambda: Lambda(lambda x: 0.3 * (x + 2) - 0.25),
    "conv with two takers": lambda: Wired(lambda m, x: m.n(m.a(x)) + m.a(x), a=conv(), n=bn(4)),
    "one conv, two norms": lambda: nn.Sequential(conv(), Wired(lambda m, y: m.n(y) + m.o(y), n=bn(4), o=bn(4))),
    "norm with two takers": lambda: nn.Sequential(bn(), Lambda(lambda y: torch.relu(y) + y)),
    "option A": lambda: Lambda(option_a),
    "option A, a third": lambda: Lambda(lambda x: F.pad(x[:, 1:5, 1::3, :7:2], (1, 0, 0, 2, 0, 1))),
    "crop": lambda: Wired(lambda m, x: x[:, :4, 1:-1, 1:-1] + m.a(x), a=conv()),
    "pad with a number": lambda: Lambda(lambda x: F.pad(x, (1, 2), value=3.0)),
    "pad reflect": lambda: nn.ReflectionPad2d(2),
    "pad replicate": lambda: nn.ReplicationPad2d((1, 0, 2, 1)),
    "average pool": lambda: nn.AvgPool2d(2),
    "average pool conv bn": lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv(size=1), bn(4)),
    "average pool without padding": lambda: nn.AvgPool2d((3, 2), 1, (1, 0), count_include_pad=False),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), conv(), nn.Dropout2d(0.5)),
    "clone": lambda: Lambda(lambda x: torch.relu(x.clone()).contiguous()),
    "plus parameter": lambda: Wired(lambda m, x: m.a.bias.view(-1, 1, 1) + m.a(x) - m.a.bias[:, None, None], a=conv()),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_stacked_pieces(name):
    compare(seeded(PIECES[name]().double()), batch())


class Times(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


OTHERS = {
    "slice of the batch": lambda: Lambda(lambda x: x[:2] + x[1:]),
    "slice of the batch from behind": lambda: Lambda(lambda x: torch.ops.aten.slice.Tensor(x, -4, 0, 2)),
    "product of two values": lambda: Lambda(lambda x: x * torch.sigmoid(x)),
    "square": lambda: Lambda(lambda x: x * x),
    "gate": lambda: Wired(lambda m, x: x * torch.sigmoid(m.a(x)), a=conv(6, 6, 1)),
    "product with a parameter": lambda: Times(6, 1, 1),
    "layer norm": lambda: nn.LayerNorm(8),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "instance norm": lambda: nn.InstanceNorm2d(6),
    "batch norm without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "prelu": lambda: nn.PReLU(6),
    "softmax": lambda: nn.Softmax(1),
    "max pool": lambda: nn.MaxPool2d(2),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(1),
    "linear": lambda: nn.Linear(8, 3),
    "transposed conv": lambda: nn.ConvTranspose2d(6, 4, 2, 2),
    "sum over a grown dimension": lambda: Lambda(lambda x: F.avg_pool2d(x, (9, 8)) + x),
    "sum over grown channels": lambda: Wired(lambda m, x: x - m.a(x), a=conv(6, 1, 1)),
    "grown by a parameter": lambda: Wired(lambda m, x: m.a.weight[0] + F.avg_pool2d(x, (9, 8)), a=conv()),
    "conv padding same": lambda: conv(padding="same"),
    "scaled sum": lambda: Lambda(lambda x: torch.add(x, torch.relu(x), alpha=0.5)),
    "clamp by a tensor": lambda: Lambda(lambda x: x.clamp(max=x.new_ones(8))),
    "kernel from the input": lambda: Wired(
        lambda m, x: F.conv2d(m.a.weight, x[:1, :, :3, :3]) + x.sum(), a=conv(6, 6)
    ),
    "size of the batch": lambda: Lambda(lambda x: x + x.shape[0]),
    "reshape": lambda: Lambda(lambda x: x.flatten(1)),
    "mean over the batch": lambda: Lambda(lambda x: x - x.mean(0, keepdim=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_pieces_are_refused_and_go_through_autograd(name):
    module, x = seeded(OTHERS[name]().double()), batch()
    assert not is_stackable(segment_of(module, x).graph)
    compare(module, x, kind=SequentialVJP)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Dropout(0.5),
        lambda: nn.Sequential(conv(), nn.Dropout(0.5)),
        nn.RReLU,
        lambda: nn.Dropout2d(0.5),
    ],
    ids=["dropout", "conv dropout", "rrelu", "dropout of channels"],
)
def test_pieces_that_draw_numbers_are_refused(make):
    module, x = make().double().train(), batch()
    assert not is_stackable(segment_of(module, x).graph)


@pytest.mark.parametrize("name", ["bn", "bn without affine", "bn relu", "conv bn", "post-activation", "pre-activation"])
def test_batch_statistics(name):
    module, x = seeded(PIECES[name]().double()).train(), batch(count=4)
    adjoint = linearise(segment_of(module, x), x)
    cotangents = batch(tuple(adjoint.output.shape[1:]), 12, seed=2).unflatten(0, (3, -1))
    before = copy.deepcopy(module.state_dict())
    back = adjoint(cotangents)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    expected = oracle(module, x, cotangents)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    lone = torch.zeros_like(cotangents)
    lone[:, 0] = cotangents[:, 0]
    assert adjoint(lone)[:, 1:].abs().max() > 0  # one example's loss reaches the others through the statistics


def test_no_operation_is_no_work():
    x = batch()
    found = linearise(segment_of(nn.Identity(), x), x)
    assert type(found) is Identity
    assert found.output is x
    cotangents = torch.ones(2, *x.shape)
    assert found(cotangents) is cotangents


def test_asked_for_autograd():
    module, x = seeded(PIECES["post-activation"]().double()), batch()
    segment = segment_of(module, x)
    one, two = linearise(segment, x), linearise(segment, x, stacked=False)
    assert (type(one), type(two)) == (BatchedVJP, SequentialVJP)
    cotangents = torch.randn(4, *one.output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(cotangents), two(cotangents), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ["conv same", "post-activation", "pre-activation", "mobile", "option A", "bottleneck"])
def test_lower_precision(name, dtype, tolerance):
    module, x = seeded(PIECES[name]()).to(dtype), batch(dtype=dtype)
    segment = segment_of(module, x)
    for form in (torch.contiguous_format, torch.channels_last):
        compare(module, x.contiguous(memory_format=form), tolerance=tolerance, segment=segment)


@pytest.mark.parametrize("name", ["conv same", "conv stride", "post-activation", "pre-activation", "option A"])
def test_memory_layout_of_the_cotangents_does_not_matter(name):
    x = batch(dtype=torch.float32)
    adjoint = linearise(segment_of(seeded(PIECES[name]()), x), x)
    cotangents = batch(tuple(adjoint.output.shape[1:]), 12, torch.float32, seed=2).unflatten(0, (4, -1))
    expected = adjoint(cotangents)
    last = cotangents.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, -1))
    wide = torch.stack([cotangents, -cotangents], -1)[..., 0]
    turned = cotangents.transpose(0, 1).contiguous().transpose(0, 1)
    for other in (last, wide, turned):
        assert other.stride() != cotangents.stride()
        torch.testing.assert_close(adjoint(other), expected)
    torch.testing.assert_close(adjoint(cotangents[:1].expand_as(cotangents))[3], expected[0])


@pytest.mark.parametrize("name", ["conv same", "post-activation", "bn relu"])
def test_any_height_of_the_stack(name):
    module, x = seeded(PIECES[name]().double()), batch(count=2)
    segment = segment_of(module, x)
    for stack in (1, 2, 65):
        compare(module, x, stack=stack, segment=segment)
    compare(module, batch(count=1), stack=7, segment=segment)


def test_parameters_are_read_when_a_piece_is_linearised():
    module, x = seeded(PIECES["post-activation"]().double()), batch()
    segment = segment_of(module, x)
    cotangents = torch.ones(1, 3, 6, 9, 8, dtype=torch.float64)
    first = linearise(segment, x)
    before = first(cotangents)
    with torch.no_grad():
        module[0].weight.mul_(2)
    torch.testing.assert_close(first(cotangents), before, rtol=0, atol=0)
    expected = oracle(module, x, cotangents)
    torch.testing.assert_close(linearise(segment, x)(cotangents), expected, rtol=1e-12, atol=1e-12)


def test_nothing_is_left_on_the_module():
    module, x = seeded(PIECES["pre-activation"]().double()), batch()
    before = copy.deepcopy(module.state_dict())
    linearise(segment_of(module, x), x)(torch.ones(2, 3, 6, 9, 8, dtype=torch.float64))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert x.grad is None
    assert not x.requires_grad


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[nn.Module], int, tuple[int, int]]:
    """A few layers that fit each other, and the shape of their input."""
    channels = first = draw(st.sampled_from([1, 2, 4]))
    height, width = size = (draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    layers: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from(["conv", "bn", "act", "pool", "pad"]), min_size=1, max_size=5)):
        if kind == "conv":
            kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
            stride, dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))), draw(st.integers(1, 2))
            padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
            out = groups * draw(st.integers(1, 2))
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, draw(st.booleans())))
            channels = out
            height, width = (
                (n + 2 * p - dilation * (k - 1) - 1) // s + 1
                for n, p, k, s in zip((height, width), padding, kernel, stride, strict=True)
            )
        elif kind == "bn":
            layers.append(bn(channels, affine=draw(st.booleans())))
        elif kind == "act":
            layers.append(draw(st.sampled_from([nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh]))())
        elif kind == "pool":
            layers.append(nn.AvgPool2d(2, 1))
            height, width = height - 1, width - 1
        else:
            left, top = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            layers.append(nn.ZeroPad2d((left, 0, top, 1)))
            height, width = height + top + 1, width + left
        assume(height >= 1 and width >= 1)
    return layers, first, size


@settings(max_examples=12)
@given(chains(), st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 4))
def test_random_chains(chain, seed, count, stack):
    layers, channels, size = chain
    module = seeded(nn.Sequential(*layers).double(), seed)
    x = batch((channels, *size), count, seed=seed)
    adjoint = linearise(segment_of(module, x), x)
    assert isinstance(adjoint, BatchedVJP)
    cotangents = batch(tuple(adjoint.output.shape[1:]), stack * count, seed=seed + 1).unflatten(0, (stack, -1))
    expected = oracle(module, x, cotangents)
    scale = max(1e-6, float(expected.abs().max()))
    torch.testing.assert_close(adjoint(cotangents), expected, rtol=0, atol=1e-12 * scale)
