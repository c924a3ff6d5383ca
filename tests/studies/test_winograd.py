"""Convolutions by F(4x4, 3x3) against torch's own in float64, alone and in networks, and where torch computes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.models import preresnet
from pathlens.residual import find_blocks
from pathlens.training.network import Partial, Whole
from studies.veit2016 import winograd as kernel
from studies.veit2016.winograd import winograd

needs_kernel = pytest.mark.skipif(
    kernel.kernel() is None,
    reason="the kernel needs AVX2 or AVX-512, a C++ compiler (c++) and torch with its own libgomp",
)


def gradients(x: Tensor, weight: Tensor, cotangent: Tensor) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = F.conv2d(x, weight, padding=1)
    return [out.detach(), *torch.autograd.grad(out, (x, weight), cotangent)]


def relative(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: Any) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(kernel, "_call", called)


@pytest.fixture(params=sorted(kernel._INSTRUCTIONS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every set of instructions that this CPU has; one that has AVX-512 has AVX2."""
    found = torch.backends.cpu.get_cpu_capability()
    if request.param > found:  # AVX2 < AVX512
        pytest.skip(f"this CPU has {found}, not {request.param}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    kernel.kernel.cache_clear()
    yield request.param
    kernel.kernel.cache_clear()


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width"),
    [(128, 16, 16, 32, 32), (9, 32, 32, 16, 16), (8, 64, 64, 8, 8), (3, 16, 48, 4, 12), (1, 48, 32, 4, 4)],
)
def test_it_is_the_convolution(
    images: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    threads: int,
    instructions: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(images, inputs, height, width, generator=rng)
    weight = torch.randn(outputs, inputs, 3, 3, generator=rng)
    cotangent = torch.randn(images, outputs, height, width, generator=rng)
    right = gradients(x.double(), weight.double(), cotangent.double())
    calls: list[str] = []
    call = kernel._call
    monkeypatch.setattr(kernel, "_call", lambda name, *rest: (calls.append(name), call(name, *rest)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with winograd() as there:
            found = gradients(x, weight, cotangent)
    finally:
        torch.set_num_threads(before)
    assert there
    assert calls == ["forward", "backward"]
    assert [value.shape for value in found] == [value.shape for value in right]
    assert max(map(relative, found, right)) < 5e-5


@needs_kernel
def test_the_gradient_of_the_weights_alone() -> None:
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3, requires_grad=True)
    with winograd():
        (found,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), weight)
    wide = weight.detach().double().requires_grad_()
    (right,) = torch.autograd.grad(F.conv2d(x.double(), wide, padding=1).square().sum(), wide)
    assert relative(found, right) < 5e-5


@needs_kernel
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(16, 16, 3, padding=2, bias=False),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(16, 16, 1, padding=1, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, bias=False, groups=2),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.Conv2d(16, 80, 3, padding=1, bias=False),
        nn.ConvTranspose2d(16, 16, 3, padding=1, bias=False),
    ],
    ids=str,
)
def test_others_are_torchs(convolution: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 16, 8, 8)
    right = convolution(x)
    forbid(monkeypatch)
    with winograd():
        assert torch.equal(convolution(x), right)


@needs_kernel
def test_it_stands_back_outside_of_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, x = nn.Conv2d(16, 16, 3, padding=1, bias=False), torch.randn(2, 16, 8, 8)
    right = convolution(x)
    with winograd(), torch.no_grad():
        taken = torch.enable_grad()(convolution)(x)
        assert not torch.equal(taken, right), "rounded alike: the kernel was not called"
    forbid(monkeypatch)
    assert torch.equal(convolution(x), right)  # when it is over
    with winograd():
        with torch.no_grad():
            assert torch.equal(convolution(x), right)
        assert torch.equal(F.conv2d(x, convolution.weight.detach(), padding=1), right)
        odd = x[..., :6]
        assert convolution(odd).shape == odd.shape
        wide = convolution.double()
        assert wide(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert convolution.float()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("lacking", ["compiler", "openmp", "avx2", "kernel"])
def test_without_what_it_needs_torch_computes(lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if lacking == "compiler":
        monkeypatch.setattr("shutil.which", lambda _: None)
    elif lacking == "openmp":
        monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    elif lacking == "avx2":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    else:
        monkeypatch.setattr(kernel, "_SOURCE", tmp_path / "none.cpp")
    kernel.kernel.cache_clear()
    convolution, x = nn.Conv2d(16, 16, 3, padding=1, bias=False), torch.randn(2, 16, 8, 8)
    right = convolution(x)
    try:
        with winograd() as there:
            assert not there
            assert torch.equal(convolution(x), right)
    finally:
        kernel.kernel.cache_clear()


def step(form: nn.Module, images: Tensor, *arguments: Any) -> dict[str, Tensor]:
    """Gradients of a loss, by name; statistics of batch norm as they are afterwards."""
    form.train()
    logits = form(images, *arguments)
    F.cross_entropy(logits, torch.arange(len(images)) % 10).backward()
    model = form.get_submodule("model")
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {**found, **{name: value for name, value in model.named_buffers() if value.is_floating_point()}}


def assert_as_near(found: dict[str, Tensor], torchs: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Float32 rounds: the kernel may be 20 times as far from float64 as torch's own, in the median of the tensors.

    One ReLU that rounding switches moves some of them by far more, with either kernel.
    """
    assert found.keys() == torchs.keys() == right.keys()
    ours, theirs = (statistics.median(relative(some[name], right[name]) for name in right) for some in (found, torchs))
    assert 0 < ours < 20 * theirs < 1e-3


@needs_kernel
@pytest.mark.parametrize("kept", [None, [True, False, True, True, False, True, False, True, True]])
def test_a_step_of_a_network(kept: list[bool] | None) -> None:
    torch.manual_seed(2)
    model, images = preresnet(20), torch.randn(8, 3, 32, 32)

    def gradient(dtype: torch.dtype, model: nn.Module) -> dict[str, Tensor]:
        model, x = copy.deepcopy(model).to(dtype), images.to(dtype)
        if kept is None:
            return step(Whole(model), x)
        return step(Partial(find_blocks(model, x[:2])), x, torch.tensor(kept))

    right, torchs = gradient(torch.float64, model), gradient(torch.float32, model)
    with winograd():
        found = gradient(torch.float32, model)
    assert_as_near(found, torchs, right)


@needs_kernel
def test_a_step_of_a_trained_network() -> None:
    # its blocks of 16 channels at 4x4 are the kernel's
    model = pathlens.load_model("digits54").model
    images = pathlens.open_data("digits", limit=32).batch(0, 32).images
    right = step(Whole(copy.deepcopy(model).double()), images.double())
    torchs = step(Whole(copy.deepcopy(model)), images)
    with winograd():
        found = step(Whole(model), images)
    assert_as_near(found, torchs, right)
