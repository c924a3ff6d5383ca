"""Plain networks: their layers are found, fitted to another shape by hand-checkable rules, and deleted."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pathlens
from pathlens import deleted, find_layers, reordered, skips_deleted
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.residual.plain import match_shape
from tests.helpers.nets_tokens import CASES, ODD

close = torch.testing.assert_close


def plain(seed=0, training=False):
    case = ODD["plain"]
    model = case.model(seed).double().train(training)
    model.classifier[2].p = 0.0
    return model, find_layers(model, case.input().double()), case.input(4).double()


def fitted(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Position by position: the input's nearest one from below, and zeros where it has no channel."""
    out = torch.zeros(x.shape[0], *shape, dtype=x.dtype)
    if len(shape) == 1:
        for c in range(min(shape[0], x.shape[1])):
            out[:, c] = x[:, c]
        return out
    for c in range(min(shape[0], x.shape[1])):
        for i in range(shape[1]):
            for j in range(shape[2]):
                out[:, c, i, j] = x[:, c, i * x.shape[2] // shape[1], j * x.shape[3] // shape[2]]
    return out


sizes = st.integers(1, 9)


@given(before=st.tuples(sizes, sizes, sizes), after=st.tuples(sizes, sizes, sizes))
def test_match_shape_of_images(before, after):
    x = torch.randn(2, *before, dtype=torch.float64)
    close(match_shape(x, after), fitted(x, after), rtol=0, atol=0)


@given(before=sizes, after=sizes)
def test_match_shape_of_vectors(before, after):
    x = torch.randn(2, before)
    close(match_shape(x, (after,)), fitted(x, (after,)), rtol=0, atol=0)


@given(before=st.tuples(sizes, sizes), after=st.tuples(sizes, sizes))
def test_match_shape_of_tokens(before, after):
    x = torch.randn(2, *before, dtype=torch.float64)
    across = fitted(x.transpose(1, 2)[..., None], (after[1], after[0], 1))[..., 0]
    close(match_shape(x, after, -1), across.transpose(1, 2), rtol=0, atol=0)


def test_a_layer_of_tokens_is_deleted_without_mixing_its_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    view = find_layers(net, x)
    assert view.is_plain
    padded = torch.cat([x, torch.zeros(2, 6, 3, dtype=torch.float64)], -1)
    close(view.without_branch(0, view.stem(x)), padded, rtol=0, atol=0)
    with torch.no_grad():
        first = net[:2](x)
    close(view.without_branch(1, first), first[..., :5], rtol=0, atol=0)


def test_match_shape_of_an_equal_shape_is_the_input():
    x = torch.randn(2, 3, 4, 5)
    close(match_shape(x, (3, 4, 5)), x, rtol=0, atol=0)
    # halving keeps every second position, as a strided identity does
    close(match_shape(x, (3, 2, 5)), x[:, :, ::2], rtol=0, atol=0)


def test_the_layers_of_a_plain_network():
    _, view, _ = plain()
    assert [(b.name, b.kind, b.out_shape) for b in view] == [
        ("features.0", "layer-resized", (6, 16, 16)),
        ("features.3", "layer", (6, 16, 16)),
        ("features.7", "layer-resized", (8, 8, 8)),
        ("features.10", "layer", (8, 8, 8)),
        ("features.14", "layer-resized", (5, 4, 4)),
        ("classifier.0", "layer-resized", (7,)),
    ]
    convolution = [3 * 6, 6 * 6, 6 * 8, 8 * 8, 8 * 5]
    assert [b.multiply_adds for b in view] == [
        c * 9 * s * s for c, s in zip(convolution, (16, 16, 8, 8, 4), strict=True)
    ] + [80 * 7]
    assert [b.parameters for b in view][:2] == [3 * 6 * 9 + 6 + 12, 6 * 6 * 9 + 6 + 12]
    assert all(b.shortcut_parameters == b.shortcut_multiply_adds == 0 for b in view)


@pytest.mark.parametrize("name", ["vgg11_bn", "alexnet"])
def test_layers_of_torchvision(name):
    model = torchvision.models.get_model(name, weights=None).eval()
    view = find_layers(model, torch.zeros(2, 3, 64, 64))
    kinds = (nn.Conv2d, nn.Linear)
    assert [b.name for b in view] == [key for key, module in model.named_modules() if isinstance(module, kinds)][:-1]


def by_hand(model: nn.Module, x: torch.Tensor, gone: list[int]) -> torch.Tensor:
    """The network of ``nets_tokens.Plain`` with layers replaced by fitted identities."""
    f, c = model.features, model.classifier
    steps = [
        (lambda x: f[2](f[1](f[0](x))), (6, 16, 16)),
        (lambda x: f[5](f[4](f[3](x))), (6, 16, 16)),
        (lambda x: f[9](f[8](f[7](f[6](x)))), (8, 8, 8)),
        (lambda x: f[12](f[11](f[10](x))), (8, 8, 8)),
        (lambda x: f[16](f[15](f[14](f[13](x)))), (5, 4, 4)),
        (lambda x: c[1](c[0](x.flatten(1))), (7,)),
    ]
    for i, (layer, shape) in enumerate(steps):
        if i not in gone:
            x = layer(x)
            continue
        # what lies between two layers (pooling, flattening) stays
        if i in (2, 4):
            x = f[{2: 6, 4: 13}[i]](x)
        x = fitted(x.flatten(1) if i == 5 else x, shape)
    return c[3](c[2](x))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gone", [[0], [1], [2], [3], [4], [5], [0, 1], [2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_deleted_layers_equal_fitted_identities(gone, training):
    model, view, x = plain(training=training)
    twin = copy.deepcopy(model)
    with deleted(view, gone):
        mine = model(x)
    theirs = by_hand(twin, x, gone)
    close(mine, theirs, rtol=1e-9, atol=1e-11)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), key
        if parameter.grad is not None:
            close(parameter.grad, other.grad, rtol=1e-7, atol=1e-9)
    close(dict(model.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=1e-11)


def test_running_between_layers():
    model, view, x = plain()
    states = [view.stem(x)]
    close(states[0], x)
    for i in range(len(view)):
        states.append(view.run(states[i], i, i + 1))
        close(view.run(x, 0, i + 1), states[-1])
    close(view.head(states[-1]), model(x))
    close(states[1], model.features[:3](x))
    close(view.without_branch(0, x), fitted(x, (6, 16, 16)))


def test_the_model_alone_will_do():
    model, view, x = plain()
    with deleted(view, [1, 3]):
        wanted = model(x)
    with deleted(model, [1, 3]):
        close(model(x), wanted, rtol=0, atol=0)


def test_what_a_plain_network_does_not_have():
    model, view, x = plain()
    with pytest.raises(UsageError, match="has no shortcut to delete"), skips_deleted(view, 1):
        model(x)
    with pytest.raises(UsageError, match="does not exist: the network has 6"), deleted(view, 6):
        model(x)
    # no two layers of one stage keep their shape
    with pytest.raises(UsageError, match="cannot run in the place of"), reordered(view, [1, 0, 2, 3, 4, 5]):
        model(x)


class Forked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Forked(), torch.zeros(2, 4)),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.zeros(2, 4)),
        (nn.Sequential(nn.ReLU()), torch.zeros(2, 4)),
        (CASES["cifar"].model(), CASES["cifar"].input()),
    ],
    ids=["forked", "one layer", "no layer", "residual"],
)
def test_what_is_no_chain_of_layers(model, x):
    with pytest.raises(NoResidualBlocksError, match="is not a plain chain of layers") as caught:
        find_layers(model, x)
    assert "\n" not in str(caught.value)


def test_concatenating_networks_are_told_so_by_deletion():
    model = torchvision.models.densenet.DenseNet(4, (2, 2), 8, 2, num_classes=3).eval()
    with pytest.raises(NoResidualBlocksError, match="its skip connections are concatenations"), deleted(model, 0):
        model(torch.zeros(2, 3, 32, 32))


def test_a_plain_network_has_no_path_lengths() -> None:
    model, view, images = plain()
    with (
        pytest.raises(UsageError, match="plain network: it has a single path"),
        pathlens.restrict_backward(view, lengths=[1]),
    ):
        model(images)
    with pytest.raises(NoResidualBlocksError, match="plain network: it has a single path"):
        pathlens.path_gradients(view, [(images, torch.zeros(len(images), dtype=torch.long))])


@pytest.mark.parametrize(
    ("convolution", "transposed", "shape"),
    [
        (nn.Conv1d, nn.ConvTranspose1d, (8,)),
        (nn.Conv2d, nn.ConvTranspose2d, (8, 8)),
        (nn.Conv3d, nn.ConvTranspose3d, (4, 4, 4)),
    ],
)
def test_layers_are_alike_in_any_number_of_dimensions(convolution, transposed, shape):
    up = transposed(4, 4, 2, stride=2)
    net = nn.Sequential(convolution(2, 4, 3, padding=1), nn.ReLU(), up, nn.ReLU(), convolution(4, 4, 2, stride=2))
    view = pathlens.residual.find_layers(net.eval(), torch.randn(2, 2, *shape))
    assert [layer.name for layer in view] == ["0", "2"]
