"""Wide networks: counts of the papers, equations, and the dilated network against the strided one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.errors import ModelError
from pathlens.models import WideResNet38, reference_names, wideresnet38, wrn
from pathlens.models.registry import REFERENCES
from tests.helpers.model_helpers import batch_norm, one_line, parameters

#: millions of parameters: Zagoruyko, Komodakis 2016, table 4
PAPER = {
    (16, 8): 11.0, (16, 10): 17.1, (22, 8): 17.2, (22, 10): 26.8, (28, 10): 36.5, (28, 12): 52.5, (40, 1): 0.6,
    (40, 2): 2.2, (40, 4): 8.9, (40, 8): 35.7,
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
    return model.double().eval()


# --- WRN-d-k ---------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_paper_and_some_small_ones() -> None:
    names = {name for name in reference_names() if name.startswith("wrn")}
    assert names == {f"wrn{d}_{k}" for d, k in [*PAPER, (10, 1), (16, 1), (16, 2), (16, 4)]}


@pytest.mark.parametrize(("depth", "widen"), PAPER)
def test_wrn_parameters_are_those_of_the_paper(depth: int, widen: int) -> None:
    with torch.device("meta"):  # shapes are all that counts
        model = REFERENCES[f"wrn{depth}_{widen}"].build()
    assert round(parameters(model) / 1e6, 1) == PAPER[depth, widen]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - (widen == 1)
    n, before, expected = (depth - 4) // 6, 16, 27 * 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        expected += before * width * (9 + (before != width)) + (2 * n - 1) * 9 * width * width
        expected += 2 * before + (2 * n - 1) * 2 * width  # norms
        before = width
    assert parameters(model) == expected + 2 * before + 10 * before + 10


def wrn_by_hand(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            a = batch_norm(x, state, f"{at}.norms.0").relu()
            out = F.conv2d(a, state[f"{at}.convs.0.weight"], stride=stride, padding=1)
            out = F.conv2d(batch_norm(out, state, f"{at}.norms.1").relu(), state[f"{at}.convs.1.weight"], padding=1)
            projection = state.get(f"{at}.shortcut.weight")
            assert (projection is None) == (block > 0)
            x = out + (x if projection is None else F.conv2d(a, projection, stride=stride))
    x = batch_norm(x, state, "bn").relu().mean((2, 3))
    return x @ state["linear.weight"].T + state["linear.bias"]


def test_wrn_computes_its_equations() -> None:
    model = shaken(wrn(16, 2, num_classes=7, in_channels=1, dropout=0.4))
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(model(x), wrn_by_hand(model.state_dict(), x, 2))
    view = pathlens.find_blocks(model, x)
    assert [block.kind for block in view] == ["projection", "identity"] * 3


def test_dropout_is_between_the_convolutions() -> None:
    model = wrn(10, 1, dropout=0.4)
    block = model.layer2[0]
    seen: dict[str, Tensor] = {}
    block.convs[0].register_forward_hook(lambda _m, _i, out: seen.update(first=out))
    block.dropout.register_forward_hook(lambda _m, inputs, out: seen.update(before=inputs[0], after=out))
    block.convs[1].register_forward_pre_hook(lambda _m, inputs: seen.update(second=inputs[0]))
    model.train()(torch.randn(4, 3, 16, 16))
    torch.testing.assert_close(seen["before"], F.batch_norm(seen["first"], None, None, training=True).relu())
    assert seen["second"] is seen["after"]
    alive = seen["before"] > 0
    kept = seen["after"][alive] != 0
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.05)
    torch.testing.assert_close(seen["after"][alive][kept], seen["before"][alive][kept] / 0.6)
    assert {m.p for m in REFERENCES["wrn16_2"].build().modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: wrn(26, 2), "depth 26: give 6n.4, such as 28"),
        (lambda: wrn(4, 2), "depth 4: "),
        (lambda: wrn(16, 0), "widening factor 0: give at least 1"),
        (lambda: WideResNet38("B"), "no variant 'B' of ResNet-38: give one of A, A1, dilated"),
        (lambda: WideResNet38(base=0), "0 channels in its first convolution"),
        (lambda: pathlens.load_model("wrn28_1", "random"), "did you mean wrn28_1"),
        (lambda: pathlens.load_model("wideresnet38:a2", "random"), "did you mean wideresnet38:a1"),
    ],
)
def test_what_cannot_be_built(build, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build()
    one_line(caught)


# --- ResNet-38 -------------------------------------------------------------------------------------------------------

#: units, and (kernel, channels) of their convolutions, as published; the side of the features of a 224x224 image
LEVELS = (
    (3, ((3, 128), (3, 128)), 112),
    (3, ((3, 256), (3, 256)), 56),
    (6, ((3, 512), (3, 512)), 28),
    (3, ((3, 512), (3, 1024)), 14),
    (1, ((1, 512), (3, 1024), (1, 2048)), 7),
    (1, ((1, 1024), (3, 2048), (1, 4096)), 7),
)


def counts_due(classes: int, dilated: bool) -> tuple[int, int]:
    """Parameters and multiply-adds of one 224x224 image, from the published layout."""
    weights, multiply_adds, norms, before = 27 * 64, 27 * 64 * 224**2, 0, 64
    for units, convolutions, side in LEVELS:
        positions = max(side, 28) ** 2 if dilated else side**2
        for unit in range(units):
            own = before * convolutions[-1][1] if unit == 0 else 0  # the projection
            for kernel, channels in convolutions:
                own += kernel**2 * before * channels
                norms += 2 * before
                before = channels
            weights += own
            multiply_adds += own * positions
    head = 9 * before * 512 + 9 * 512 * classes if dilated else before * classes
    norms += 2 * before + (2 * 512 if dilated else 0)
    return weights + head + classes + norms, multiply_adds + head * (28**2 if dilated else 1)


@pytest.mark.parametrize(("name", "classes"), [("", 1000), (":a1", 1000), (":dilated", 21)])
def test_resnet38_has_the_published_layers(name: str, classes: int) -> None:
    reference = REFERENCES[f"wideresnet38{name}"]
    with torch.device("meta"):
        model = reference.build().eval()
        image = torch.zeros(1, reference.in_channels, reference.size, reference.size)
        sides: list[int] = []
        for level in model.levels:
            level.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits = model(image)
    dilated = name == ":dilated"
    due = counts_due(classes, dilated)
    assert (parameters(model), counter.get_total_flops() // 2) == due
    stated = f"{due[0]:,}", f"{due[1] / 1e9:.1f} G"
    assert all(number in (wideresnet38.__doc__ or "") for number in stated)
    if not dilated:
        assert parameters(model) - (4096 + 1) * classes == 105_070_912  # as others count in the published code
    assert logits.shape == ((1, classes, 224, 224) if dilated else (1, classes))
    assert sides == [max(side, 28) if dilated else side for *_, side in LEVELS]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p] == [0.3, 0.5]
    units = [unit for level in model.levels for unit in level if not isinstance(unit, nn.MaxPool2d)]
    assert 1 + sum(len(unit.convs) for unit in units) + (2 if dilated else 1) == (39 if dilated else 38)


def resnet38_by_hand(state: dict[str, Tensor], x: Tensor, pools: bool) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for level, (units, convolutions, _) in enumerate(LEVELS):
        halves = level < 5
        if halves and pools:
            x = F.max_pool2d(x, 3, 2, 1)
        for unit in range(units):
            at = f"levels.{level}.{unit + (halves and pools)}"
            stride = 2 if halves and not pools and unit == 0 else 1
            a = out = batch_norm(x, state, f"{at}.norms.0").relu()
            for index, (kernel, _) in enumerate(convolutions):
                if index:
                    out = batch_norm(out, state, f"{at}.norms.{index}").relu()
                weight = state[f"{at}.convs.{index}.weight"]
                out = F.conv2d(out, weight, stride=stride if index == 0 else 1, padding=kernel // 2)
            x = out + (x if unit else F.conv2d(a, state[f"{at}.shortcut.weight"], stride=stride))
    return batch_norm(x, state, "norm").relu()


@pytest.mark.parametrize("variant", ["A", "A1"])
def test_resnet38_computes_its_equations(variant: str) -> None:
    model = shaken(WideResNet38(variant, 5, in_channels=1, base=1))
    x = torch.randn(2, 1, 64, 32, dtype=torch.float64)
    state = model.state_dict()
    features = resnet38_by_hand(state, x, pools=variant == "A").mean((2, 3))
    torch.testing.assert_close(model(x), features @ state["head.weight"].T + state["head.bias"])
    assert [len(stage) for stage in pathlens.find_blocks(model, x).stages] == [3, 3, 6, 3, 1, 1]


def test_the_dilated_network_is_the_strided_one_between_its_positions() -> None:
    strided = shaken(WideResNet38("A1", 5, in_channels=1, base=1))
    dilated = shaken(WideResNet38("dilated", 5, in_channels=1, base=1))
    state = {name: value for name, value in strided.state_dict().items() if not name.startswith("head")}
    assert {name.partition(".")[0] for name in dilated.load_state_dict(state, strict=False).missing_keys} == {"head"}
    x = torch.randn(2, 1, 64, 96, dtype=torch.float64)
    coarse, fine = (model.levels(model.conv1(x)) for model in (strided, dilated))
    assert fine.shape[-2:] == (8, 12)
    torch.testing.assert_close(fine[:, :, ::4, ::4], coarse)
    head = dilated.state_dict()
    features = batch_norm(fine, head, "norm").relu()
    hidden = F.conv2d(features, head["head.0.weight"], padding=12, dilation=12)
    hidden = batch_norm(hidden, head, "head.1").relu()
    logits = F.conv2d(hidden, head["head.3.weight"], head["head.3.bias"], padding=12, dilation=12)
    expected = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(dilated(x), expected)


def test_blocks_of_the_dilated_network_are_deleted_on_segmentation() -> None:
    model = shaken(WideResNet38("dilated", 3, in_channels=1, base=1)).float()
    images = torch.randn(4, 1, 16, 24)
    targets = torch.randint(3, (4, 16, 24))
    view = pathlens.find_blocks(model, images)
    table = pathlens.delete_blocks(view, [(images, targets)], blocks=[1], task="segmentation")
    intact, lesioned = table.rows
    with torch.no_grad():
        right = model(images).argmax(1) == targets
        with pathlens.deleted(view, [1]):
            without = model(images).argmax(1) == targets
    assert intact["error"] == pytest.approx(1 - right.float().mean().item())
    assert lesioned["error"] == pytest.approx(1 - without.float().mean().item())
