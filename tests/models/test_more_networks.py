"""Highway and shake-shake networks: their equations, parameters, blocks, and what a step of training does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import pathlens
from pathlens.errors import ModelError
from pathlens.models import CifarHighway, CifarShakeShake, highway, load_model, save_weights, shakeshake
from pathlens.models.highway_cifar import HighwayBlock
from pathlens.models.shakeshake_cifar import ShiftShortcut
from tests.helpers.model_helpers import assert_ready, batch_norm, one_line, parameters

WIDTHS = (4, 6, 8)


def drawn(model: nn.Module, seed: int = 3) -> nn.Module:
    """Weights, biases and statistics of which none is zero or one; float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            value.data.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            fan = value[0].numel() if value.dim() > 1 else 4
            value.data.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5 + (value.dim() == 1) / 4)
    return model.double().eval()


def images(count: int = 3, channels: int = 1, size: int = 8) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# --- highway networks ------------------------------------------------------------------------------------------------


def plain_by_hand(state: dict[str, Tensor], name: str, x: Tensor, stride: int, norm: str) -> Tensor:
    out = F.conv2d(x, state[f"{name}.conv.weight"], state.get(f"{name}.conv.bias"), stride, 1)
    return (batch_norm(out, state, f"{name}.bn") if norm == "batch" else out).clamp(min=0)


def highway_block_by_hand(state: dict[str, Tensor], name: str, x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """What a block adds up: the gated transform and the gated input."""
    gate = 1 / (1 + torch.exp(-F.conv2d(x, state[f"{name}.gate.weight"], state[f"{name}.gate.bias"], padding=1)))
    return plain_by_hand(state, f"{name}.transform", x, 1, norm) * gate, x - x * gate


def highway_by_hand(state: dict[str, Tensor], x: Tensor, blocks: int, norm: str, without: int = -1) -> Tensor:
    for stage in range(3):
        x = plain_by_hand(state, f"plain{stage + 1}", x, 2 if stage else 1, norm)
        for i in range(blocks):
            if stage * blocks + i != without:
                x = sum(highway_block_by_hand(state, f"layer{stage + 1}.{i}", x, norm), torch.zeros(()))
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", [19, 31, 58])
def test_highway_layers_and_parameters(depth: int) -> None:
    model = load_model(f"highway{depth}", "random").model
    n = (depth - 4) // 3
    assert isinstance(model, CifarHighway)
    assert sum(isinstance(m, HighwayBlock) for m in model.modules()) == 3 * n
    layers = [k for k, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in layers if not name.endswith("gate")]) == depth
    expected, before = 0, 3
    for width in (16, 32, 64):
        expected += 9 * before * width + 2 * width + n * (9 * width * width + 2 * width + 9 * width * width + width)
        before = width
    assert parameters(model) == expected + 650


def test_gates_start_by_carrying() -> None:
    for bias in (-1.0, -4.0):
        model = highway(13, gate_bias=bias)
        gates = [m.gate for m in model.modules() if isinstance(m, HighwayBlock)]
        assert len(gates) == 9
        assert all(bool((gate.bias == bias).all()) for gate in gates)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_highway_forward_is_the_papers_equation(norm: str) -> None:
    model = drawn(highway(13, 5, 1, WIDTHS, norm=norm))
    expected = highway_by_hand(dict(model.state_dict()), images(), 3, norm)
    torch.testing.assert_close(model(images()), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_highway_blocks_are_found_and_a_deleted_one_carries() -> None:
    norm = "batch"
    model = drawn(highway(10, 5, 1, WIDTHS))
    state, x = dict(model.state_dict()), images()
    view = pathlens.find_blocks(model, x)
    assert [(b.name, b.kind, b.post_activation) for b in view] == [
        (f"layer{stage}.{i}", "gated", "") for stage in (1, 2, 3) for i in (0, 1)
    ]
    assert view.stages == ((0, 1), (2, 3), (4, 5))
    assert view.notes == ()
    t = view.run(view.stem(x), 0, 3)
    branch, shortcut = highway_block_by_hand(state, "layer2.1", t, norm)
    torch.testing.assert_close(view.branch(3, t), branch, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(view.shortcut(3, t), shortcut, rtol=1e-10, atol=1e-10)
    assert torch.equal(view.without_branch(3, t), t)
    for block in (0, 2, 5):
        with pathlens.deleted(view, block):
            expected = highway_by_hand(state, x, 2, norm, without=block)
            torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    model.train()
    assert [link.addition.kind for link in view.chain().links] == ["gated"] * 6


# --- shake-shake networks --------------------------------------------------------------------------------------------


class Shake(torch.autograd.Function):
    """The paper's definition as published code has it: one factor forward, another backward."""

    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(beta)
        return alpha * first + (1 - alpha) * second

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (beta,) = ctx.saved_tensors
        return beta * grad, (1 - beta) * grad, None, None


Norm = Callable[[Tensor, dict[str, Tensor], str], Tensor]
Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


def batch_statistics(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)


def even(x: Tensor) -> tuple[Tensor, Tensor]:
    half = torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype)
    return half, half


def shortcut_by_hand(state: dict[str, Tensor], name: str, x: Tensor, stride: int, norm: Norm) -> Tensor:
    """Two paths of 1x1 average pooling and 1x1 convolution, the second of the image moved right and down."""
    moved = torch.zeros_like(x)
    moved[:, :, 1:, 1:] = x[:, :, :-1, :-1]
    kernels = state[f"{name}.conv.weight"].chunk(2)
    paths = [F.conv2d(F.avg_pool2d(y, 1, stride), k) for y, k in zip((x, moved), kernels, strict=True)]
    return norm(torch.cat(paths, 1), state, f"{name}.bn")


def shake_parts(
    state: dict[str, Tensor], name: str, x: Tensor, norm: Norm, draw: Draw, stride: int
) -> tuple[Tensor, Tensor]:
    """Shortcut and mixed branches of one block."""
    activated, ends = F.relu(x), []
    for which in ("branch1", "branch2"):
        out = F.conv2d(activated, state[f"{name}.{which}.conv1.weight"], stride=stride, padding=1)
        out = F.relu(norm(out, state, f"{name}.{which}.bn1"))
        out = F.conv2d(out, state[f"{name}.{which}.conv2.weight"], padding=1)
        ends.append(norm(out, state, f"{name}.{which}.bn2"))
    projected = f"{name}.shortcut.conv.weight" in state
    side = shortcut_by_hand(state, f"{name}.shortcut", activated, stride, norm) if projected else x
    return side, Shake.apply(*ends, *draw(x))


def shake_by_hand(
    state: dict[str, Tensor], x: Tensor, blocks: int, norm: Norm = batch_norm, draw: Draw = even, without: int = -1
) -> Tensor:
    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1")
    for stage in range(3):
        for i in range(blocks):
            stride = 2 if stage and not i else 1
            side, mixed = shake_parts(state, f"layer{stage + 1}.{i}", x, norm, draw, stride)
            x = side if stage * blocks + i == without else side + mixed
    return F.relu(x).mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("width", "millions"), [(32, 2.9), (64, 11.7), (96, 26.2)])
def test_shake_shake_parameters_are_the_published_ones(width: int, millions: float) -> None:
    with torch.device("meta"):
        model = shakeshake(26, width)
    assert isinstance(model, CifarShakeShake)
    assert round(parameters(model) / 1e6, 1) == millions
    assert sum(type(m).__name__ == "ShakeShakeBlock" for m in model.modules()) == 12
    on_one_path = [k for k, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([k for k in on_one_path if "branch2" not in k and "shortcut" not in k]) == 26


@torch.no_grad()
@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 4), (2, 5), (2, 1)])
def test_shift_shortcut_against_loops(stride: int, size: int) -> None:
    shortcut = drawn(ShiftShortcut(3, 4, stride))
    assert isinstance(shortcut, ShiftShortcut)
    x, weight = images(2, 3, size), shortcut.conv.weight
    out = -(-size // stride)
    expected = torch.zeros(2, 4, out, out, dtype=torch.float64)
    for channel in range(4):
        shift = 0 if channel < 2 else 1
        for i in range(out):
            for j in range(out):
                row, column = i * stride - shift, j * stride - shift
                if row >= 0 and column >= 0:
                    expected[:, channel, i, j] = x[:, :, row, column] @ weight[channel, :, 0, 0]
    expected = batch_norm(expected, {f"bn.{k}": v for k, v in shortcut.bn.state_dict().items()}, "bn")
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_shake_shake_forward_in_eval_mode_is_even() -> None:
    model = drawn(shakeshake(14, 4, 5, 1))
    expected = shake_by_hand(dict(model.state_dict()), images(), 2)
    torch.testing.assert_close(model(images()), expected, rtol=1e-10, atol=1e-10)


def draw_both(x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, beta = torch.rand(2, x.shape[0], dtype=x.dtype).view(2, -1, 1, 1, 1)
    return alpha, beta


def test_shake_shake_trains_with_alpha_forward_and_beta_backward() -> None:
    """Value and all gradients against the custom autograd function; drawn for each image from torch's generator."""
    model = drawn(shakeshake(14, 4, 5, 1)).train()
    x = images()[:1].repeat(3, 1, 1, 1)
    own = dict(model.named_parameters())
    torch.manual_seed(7)
    out = model(x)
    found = torch.autograd.grad(out.square().sum(), list(own.values()))
    torch.manual_seed(7)
    expected = shake_by_hand(own, x, 2, batch_statistics, draw_both)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    by_hand = torch.autograd.grad(expected.square().sum(), list(own.values()))
    for name, a, b in zip(own, found, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=name)
    assert (out[0] - out[1]).abs().max() > 1e-3  # equal images, different draws
    assert (model(x) - out).abs().max() > 1e-3
    torch.manual_seed(7)
    with_alpha = shake_by_hand(own, x, 2, batch_statistics, lambda y: (draw_both(y)[0],) * 2)
    other = torch.autograd.grad(with_alpha.square().sum(), list(own.values()))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(found, other, strict=True))


def test_twelve_blocks_of_two_branches_in_both_modes() -> None:
    model = shakeshake(26, 2, in_channels=1)
    expected = ["projection", "identity", "identity", "identity"] * 3
    view = pathlens.find_blocks(model.eval(), torch.zeros(2, 1, 8, 8))
    assert [(b.name, b.kind) for b in view] == [(f"layer{1 + i // 4}.{i % 4}", kind) for i, kind in enumerate(expected)]
    assert view.notes == ()
    assert view.stages == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    for training in (False, True):
        model.train(training)
        chain = view.chain()
        assert [link.addition.kind for link in chain.links] == expected
        assert all({"branch1", "branch2"} <= parts_of(link.addition.branch_nodes) for link in chain.links)
        assert (chain.discovery.nested, chain.discovery.off_trunk, chain.discovery.refused) == ((), (), {})
        assert chain.trace.static_batch is None


def parts_of(nodes: Iterable[fx.Node]) -> set[str]:
    """Names of the modules in which nodes were computed, without those around them."""
    stacks = (node.meta.get("nn_module_stack", {}) for node in nodes)
    return {path.split(".")[2] for stack in stacks for path, _ in stack.values() if path.count(".") >= 2}


@torch.no_grad()
def test_shake_shake_pieces_and_deletions() -> None:
    model = drawn(shakeshake(14, 4, 5, 1))
    state, x = dict(model.state_dict()), images()
    view = pathlens.find_blocks(model, x)
    for block, name, stride in ((2, "layer2.0", 2), (5, "layer3.1", 1)):
        before = view.run(view.stem(x), 0, block)
        t = view.transition(block, before)
        side, mixed = shake_parts(state, name, before, batch_norm, even, stride)
        torch.testing.assert_close(view.shortcut(block, t), side, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(view.branch(block, t), mixed, rtol=1e-10, atol=1e-10)
    for block in (0, 1, 4):
        with pathlens.deleted(view, block):
            expected = shake_by_hand(state, x, 2, without=block)
            torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "build",
    [lambda: shakeshake(14, 4, 5, 1), lambda: highway(7, 5, 1, WIDTHS, norm="none")],
    ids=["shake-shake", "highway-without-norm"],
)
def test_traced_training_step_is_the_models_own(build: Callable[[], nn.Module]) -> None:
    """An intervention trains the traced network: same draws, same gradients, also where they are restricted."""
    model = drawn(build()).train()
    x = images()
    view = pathlens.find_blocks(model, x)

    def step() -> list[Tensor]:
        torch.manual_seed(11)
        out = model(x)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    expected = step()
    with pathlens.deleted(view, []):
        traced = step()
    for a, b in zip(traced, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with pathlens.restrict_backward(view, range(len(view) + 1)):
        restricted = step()
    for a, b in zip(restricted, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# --- both ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["highway19", "shakeshake26_2x32d"])
def test_saved_weights_load_by_name(name: str, tmp_path: Path) -> None:
    first = load_model(name, "random", num_classes=7, in_channels=1, seed=5)
    assert_ready(first)
    assert first.input_shape == (1, 32, 32)
    save_weights(tmp_path / "w.safetensors", first.model, {})
    second = load_model(name, tmp_path / "w.safetensors")
    assert second.num_classes == 7
    assert second.sha256 == first.sha256
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.model(x), second.model(x))


@pytest.mark.parametrize(
    ("build", "lr"),
    [
        (lambda: highway(13, 10, 1, WIDTHS), 0.1),
        (lambda: highway(13, 10, 1, WIDTHS, norm="none"), 0.05),
        (lambda: shakeshake(8, 4, 10, 1), 0.05),
    ],
    ids=["highway", "highway-without-norm", "shake-shake"],
)
def test_a_few_steps_on_digits_reduce_the_loss(build: Callable[[], nn.Module], lr: float) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits(n_class=2)
    x = torch.tensor(digits.images[:128], dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target[:128])
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    for _ in range(16):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: highway(20), "depth 20: give 3n\\+4"),
        (lambda: highway(4), "depth 4"),
        (lambda: highway(-2), "depth -2"),
        (lambda: highway(19, widths=(16, 32)), "three stages"),
        (lambda: highway(19, widths=(16, 0, 8)), "at least 1 channel"),
        (lambda: highway(19, norm="layer"), "norm 'layer'.*'batch' or 'none'"),
        (lambda: highway(19, gate_bias=float("nan")), "gate bias nan"),
        (lambda: CifarHighway(0), "0 highway blocks"),
        (lambda: shakeshake(25), "depth 25: give 6n\\+2"),
        (lambda: shakeshake(2), "depth 2"),
        (lambda: shakeshake(26, 33), "width 33: give an even width"),
        (lambda: shakeshake(26, 0), "width 0"),
        (lambda: CifarShakeShake(0), "0 shake-shake blocks"),
        (lambda: load_model("highway32", "random"), "did you mean highway3?1"),
    ],
)
def test_networks_that_do_not_exist(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build()
    one_line(caught)


class TwoConvolutionShortcut(nn.Module):
    """Downsampling as it is often written for shake-shake: two convolutions side by side, as many as in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, stride=1, bias=False)
        self.second = nn.Conv2d(4, 4, 1, stride=1, bias=False)
        self.branch = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x, (1, -1, 1, -1))
        pooled = [F.avg_pool2d(part, 1, 2) for part in (x, moved)]
        shortcut = torch.cat([self.first(pooled[0]), self.second(pooled[1])], 1)
        return self.head((self.branch(x) + shortcut).mean((2, 3)))


@pytest.mark.parametrize("training", [False, True])
def test_a_linear_side_with_as_many_weights_is_the_shortcut(training: bool) -> None:
    (block,) = pathlens.find_blocks(TwoConvolutionShortcut().train(training), torch.zeros(2, 4, 8, 8))
    assert block.kind == "projection"
    assert block.shortcut_parameters == 32
