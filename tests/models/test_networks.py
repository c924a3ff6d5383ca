"""Reference networks: their layers, parameters and equations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pathlens.errors import ModelError
from pathlens.models import (
    CifarResNet,
    digits54,
    load_model,
    preresnet,
    reference_names,
    resnet,
    vgg15,
)
from pathlens.models.registry import REFERENCES
from pathlens.models.shortcut import ZeroPadShortcut
from tests.helpers.model_helpers import assert_ready, batch_norm, parameters, preact_forward, v1_forward, v1_parameters

# --- reference networks ----------------------------------------------------------------------------------------------


# In millions, from table 6 of He et al. 2016 ("Deep Residual Learning").
PAPER = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


@pytest.mark.parametrize("depth", PAPER)
def test_v1_parameters_are_those_of_the_paper(depth: int) -> None:
    with torch.device("meta"):
        model = resnet(depth)
    n = (depth - 2) // 6
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3)] == [n, n, n]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    assert parameters(model) == v1_parameters(n)
    digits = 2 if PAPER[depth] < 1 else 1
    assert round(parameters(model) / 1e6, digits) == PAPER[depth]


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_projections_and_the_plain_twin_differ_by_their_shortcuts_alone(depth: int) -> None:
    with torch.device("meta"):
        names = (f"resnet{depth}", f"resnet{depth}b", f"plain{depth}")
        padded, projected, plain = (REFERENCES[name].build() for name in names)
    own = {f"layer{stage}.0.shortcut.{part}" for stage in (2, 3) for part in ("0.weight", "1.weight", "1.bias")}
    assert {k for k, _ in projected.named_parameters()} - {k for k, _ in padded.named_parameters()} == own
    assert parameters(projected) == parameters(padded) + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert list(plain.state_dict()) == list(padded.state_dict())


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_preactivation_layers_and_parameters(depth: int) -> None:
    model = preresnet(depth)
    n = (depth - 2) // 6
    blocks = [m for m in model.modules() if type(m).__name__ == "PreActBasicBlock"]
    assert len(blocks) == 3 * n
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth
    # Norms stand before the convolutions: the first block of a stage normalises the width before it.
    moved = -2 * 16 + 2 * 64 + 2 * (16 + 16 + 32) - 2 * (16 + 32 + 64)
    assert parameters(model) == v1_parameters(n) + moved


def test_preresnet164_is_the_bottleneck_network() -> None:
    model = preresnet(164)
    blocks = [m for m in model.modules() if type(m).__name__ == "PreActBottleneck"]
    assert len(blocks) == 54
    assert sum(block.shortcut is not None for block in blocks) == 3
    projections = 3
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 164 + projections
    assert round(parameters(model) / 1e6, 1) == 1.7  # table 4 of He et al. 2016 ("Identity Mappings"): 1.7M


def test_vgg15_layout() -> None:
    model = vgg15()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 2
    assert len(convolutions) + 2 == 15
    channels = [3, *(m.out_channels for m in convolutions)]
    expected = sum(9 * a * b + 3 * b for a, b in pairwise(channels))
    assert parameters(model) == expected + 512 * 512 + 3 * 512 + 512 * 10 + 10
    assert model.eval().features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 1, 1)


def test_vgg15_narrow_fits_a_repository() -> None:
    model = REFERENCES["vgg15_narrow"].build()
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [32] * 2 + [48] * 2 + [96] * 3 + [176] * 6
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [176, 10]
    assert 2 * parameters(model) < 4e6
    assert model.eval()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_digits54_has_54_blocks_and_fits_the_package() -> None:
    model = digits54()
    assert [len(model.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [18, 18, 18]
    assert parameters(model) * 4 < 4e6
    assert model.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("build", [digits54, lambda: preresnet(20), lambda: preresnet(164), lambda: resnet(20)])
def test_no_branch_starts_at_zero(build: Callable[[], nn.Module]) -> None:
    norms = [m for m in build().modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(bool((m.weight == 1).all()) for m in norms)


# these have their own tests
OTHERS = ("nfresnet", "llama", "wrn2", "wrn4", "wrn16_8", "wrn16_10", "wideresnet", "strictunet", "unet")
SMALL = [n for n in reference_names() if not n.endswith(("1202", "110")) and not n.startswith(OTHERS)]


# of the twins the smallest: they differ from the networks of the same depth by their shortcuts alone
@pytest.mark.parametrize(
    "name", [n for n in SMALL if n in ("resnet20b", "plain20") or not (n.endswith("b") or n.startswith("plain"))]
)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_every_reference_takes_small_grey_and_cifar_images(name: str, shape: tuple[int, int, int]) -> None:
    loaded = load_model(name, "random", num_classes=7, in_channels=shape[0])
    assert_ready(loaded)
    with torch.inference_mode():
        assert loaded.model(torch.randn(2, *shape)).shape == (2, 7)
    assert loaded.num_classes == 7
    assert loaded.input_shape is not None
    assert loaded.input_shape[0] == shape[0]


def test_resnet1202_builds_by_name() -> None:
    loaded = load_model("resnet1202", "random")
    assert parameters(loaded.model) == v1_parameters(200)
    assert isinstance(loaded.model, CifarResNet)


@pytest.mark.parametrize(("before", "after", "stride"), [(16, 32, 2), (3, 8, 1), (4, 4, 2), (5, 5, 1), (2, 7, 3)])
def test_zero_pad_shortcut_against_loops(before: int, after: int, stride: int) -> None:
    x = torch.randn(2, before, 5, 6)
    y = ZeroPadShortcut(before, after, stride)(x)
    first = (after - before) // 2
    assert y.shape == (2, after, -(-5 // stride), -(-6 // stride))
    for channel in range(after):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                inside = first <= channel < first + before
                expected = x[:, channel - first, i * stride, j * stride] if inside else torch.zeros(2)
                assert torch.equal(y[:, channel, i, j], expected)


def _random_statistics(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 4)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.double().eval()


@torch.no_grad()
def test_forward_is_the_papers_equations() -> None:
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v1 = _random_statistics(resnet(20))
    torch.testing.assert_close(v1(x), v1_forward(dict(v1.state_dict()), x, 3), rtol=1e-10, atol=1e-10)
    projected = _random_statistics(resnet(20, shortcut="projection"))
    plain = _random_statistics(resnet(20, shortcut="none"))
    torch.testing.assert_close(projected(x), v1_forward(dict(projected.state_dict()), x, 3), rtol=1e-10, atol=1e-10)
    expected = v1_forward(dict(plain.state_dict()), x, 3, shortcuts=False)
    torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10)
    pre = _random_statistics(preresnet(20))
    torch.testing.assert_close(pre(x), preact_forward(dict(pre.state_dict()), x, 3, 16), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_bottleneck_shares_the_preactivation_only_where_shapes_change() -> None:
    model = _random_statistics(preresnet(164))
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, shared in (("layer2.0", True), ("layer1.1", False)):
        block = model.get_submodule(name)
        state = dict(block.state_dict())
        a = F.relu(batch_norm(x, state, "bn1"))
        stride = 2 if shared else 1
        out = F.conv2d(a, state["conv1.weight"], stride=stride)
        out = F.conv2d(F.relu(batch_norm(out, state, "bn2")), state["conv2.weight"], padding=1)
        out = F.conv2d(F.relu(batch_norm(out, state, "bn3")), state["conv3.weight"])
        side = F.conv2d(a, state["shortcut.weight"], stride=stride) if shared else x
        torch.testing.assert_close(block(x), side + out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [0, 7, 21, -4])
def test_depths_outside_the_rules(depth: int) -> None:
    with pytest.raises(ModelError, match=f"depth {depth}"):
        resnet(depth)
    with pytest.raises(ModelError, match=f"depth {depth}"):
        preresnet(depth)


def test_bad_widths() -> None:
    with pytest.raises(ModelError, match="32 to 16 channels"):
        preresnet(20, widths=(32, 16))
    with pytest.raises(ModelError, match="three stages"):
        resnet(20, widths=(16, 32))
    with pytest.raises(ModelError, match="at least one stage"):
        preresnet(20, widths=())
