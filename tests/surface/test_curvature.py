"""Products with the Hessian, its spectrum and trace, against torch.func and numpy on a dense Hessian."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jvp
from torch.func import grad as gradient

from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.models import load_model
from pathlens.surface import Hessian, Weights, moving

# products with Hessians of small networks are many small operations, in which threads wait for each other
pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(nn.Module):
    """One residual block with a batch norm and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.norm = nn.Linear(6, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.head(x + F.softplus(self.norm(self.inner(x))))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Tiny().double().eval()
    net.norm.running_var.uniform_(0.5, 2.0)
    return net


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    # two batches of different sizes, because the loss is the mean over images
    return [(torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 5, (n,))) for n in (4, 3)]


def whole(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def dense(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    images, labels = whole(net, batches)
    parameters = {name: value.detach().clone() for name, value in net.named_parameters()}
    shapes = {name: value.shape for name, value in parameters.items()}

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        state = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(functional_call(net, state, (images,)), labels)

    return hessian(loss, torch.cat([value.reshape(-1) for value in parameters.values()]))


def of(net: nn.Module, weights: Weights, batches: list[tuple[Tensor, Tensor]], dimensions: int) -> Hessian:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(net(images), labels, reduction="sum")

    return Hessian(loss, weights, weights.at_least(dimensions), batches)


@pytest.mark.parametrize("dimensions", [0, 2])
def test_products_spectrum_and_trace(net: nn.Module, batches: list[tuple[Tensor, Tensor]], dimensions: int) -> None:
    matrix = dense(net, batches)
    kept = torch.cat([torch.full((p.numel(),), p.dim() >= dimensions) for p in net.parameters()])
    matrix = matrix[kept][:, kept]
    eigenvalues, eigenvectors = np.linalg.eigh(matrix.numpy())
    assert eigenvalues[0] < -1e-3 < 1e-3 < eigenvalues[-1]
    with moving(net) as weights:
        own = of(net, weights, batches, dimensions)
        vector = torch.randn(len(matrix), dtype=torch.float64)
        torch.testing.assert_close(own.product(vector), matrix @ vector, rtol=1e-10, atol=1e-12)
        spectrum = own.spectrum(seed=3, leading=2)
        probes = [own.probe((0, number)) for number in range(100)]
        signs = np.random.default_rng((0, 0)).choice((-1.0, 1.0), len(matrix))
    np.testing.assert_allclose(spectrum.largest, eigenvalues[:-3:-1], rtol=1e-4)
    np.testing.assert_allclose(spectrum.smallest, eigenvalues[0], atol=1e-4 * eigenvalues[-1])
    assert spectrum.products == own.products - 1 - len(probes)
    for row, column in zip(spectrum.vectors[:, kept].numpy(), eigenvectors.T[::-1], strict=False):
        assert abs(row @ column) > 1 - 1e-4
        assert row[np.abs(row).argmax()] > 0
    assert not spectrum.vectors[:, ~kept].any()
    assert probes[0] == pytest.approx(signs @ matrix.numpy() @ signs)
    error = np.std(probes, ddof=1) / np.sqrt(len(probes))
    assert abs(np.mean(probes) - matrix.trace()) < 4 * error


def test_products_of_a_trained_network(shared_models: Path) -> None:
    net = load_model("resnet20", shared_models / "pytorch_resnet_cifar10" / "resnet20-12fca82f.th").model.double()
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 7])
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    directions = {name: torch.randn_like(value) for name, value in parameters.items()}

    def loss(state: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(net, state, (images,)), labels)

    _, expected = jvp(gradient(loss), (parameters,), (directions,))
    with moving(net) as weights:
        own = of(net, weights, [(images, labels)], 0)
        products = own.product(torch.cat([value.reshape(-1) for value in directions.values()]))
    torch.testing.assert_close(products, torch.cat([value.reshape(-1) for value in expected.values()]))


def test_weights_are_put_back_to_the_bit(net: nn.Module) -> None:
    net.head.bias.requires_grad_(False)
    before = [(p, p.data_ptr(), p.detach().clone(), p.requires_grad) for p in net.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    for error in (None, ValueError("in the body")):
        with contextlib.ExitStack() as stack:
            if error:
                stack.enter_context(pytest.raises(ValueError, match="in the body"))
            with moving(net) as weights:
                direction = torch.randn_like(weights.flat)
                weights.move([direction], [0.3])
                torch.testing.assert_close(net.head.bias, before[-1][2] + 0.3 * weights.parts(direction)[-1])
                assert all(p.requires_grad for p in net.parameters())
                net.train()(torch.randn(4, 6, dtype=torch.float64))
                assert not torch.equal(net.norm.running_mean, buffers[0][1])
                if error:
                    raise error
        for (own, pointer, value, required), now in zip(before, net.parameters(), strict=True):
            assert own is now
            assert (now.data_ptr(), now.requires_grad) == (pointer, required)
            assert torch.equal(now, value)
        assert all(torch.equal(buffer, value) for buffer, value in buffers)


def test_what_cannot_be_moved_or_curved(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with moving(net) as weights, pytest.raises(UsageError, match="2 weights are too few for 1 leading"):
        Hessian(lambda *_: torch.zeros(()), weights, torch.arange(2), batches).spectrum(0)
    with moving(net) as weights:
        weights.move([torch.ones_like(weights.flat)], [1e200])
        for what in (lambda own: own.spectrum(0), lambda own: own.probe((0, 1))):
            with pytest.raises(NumericsError, match="NaN or infinite"):
                what(of(net, weights, batches, 0))
    net.stem.bias.data[0] = float("nan")
    with pytest.raises(NumericsError, match=r"parameter stem\.bias of Tiny is NaN"), moving(net):
        pass
    net.head.float()
    with pytest.raises(ModelError, match="parameters of 2 types or devices"), moving(net):
        pass
    with pytest.raises(ModelError, match="none"), moving(nn.ReLU()):
        pass
