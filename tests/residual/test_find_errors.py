"""Networks in which there is nothing to find, or that cannot be traced, are told apart in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import Bottleneck

from pathlens import find_blocks
from pathlens.errors import ModelError, NoResidualBlocksError, PathlensError, UsageError
from tests.helpers import nets
from tests.helpers.nets_tokens import CASES, ODD, found


def refused(call, kind=PathlensError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


class Concatenating(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nets.conv(3, 4), nets.conv(7, 4)

    def forward(self, x):
        x = torch.cat([x, torch.relu(self.a(x))], 1)
        return torch.cat([x, torch.relu(self.b(x))], 1).mean((2, 3))


class TwoTrunks(nn.Module):
    """Reversible network (Gomez et al. 2017): two streams that are added to each other's branches."""

    def __init__(self):
        super().__init__()
        self.f, self.g = nets.conv(3, 3), nets.conv(3, 3)

    def forward(self, x):
        a, b = x.chunk(2, 1)
        a = a + torch.relu(self.f(b))
        b = b + torch.relu(self.g(a))
        return torch.cat([a, b], 1)


class TwoActivations(nn.Module):
    """Both sides of the sum are of one form, so that neither is a shortcut."""

    def __init__(self, deep):
        super().__init__()
        first, second = (nn.Sequential(nn.ReLU(), nets.conv(3, 4, 3, 2)) for _ in range(2))
        if deep:
            first.extend([nn.ReLU(), nets.conv(4, 4)])
            second.extend([nn.ReLU(), nets.conv(4, 4)])
        self.first, self.second = first, second

    def forward(self, x):
        return (self.first(x) + self.second(x)).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x):
        while x.norm() > 1:
            x = x + self.cell(x)
        return x


class NoTensor(nn.Module):
    def forward(self, x):
        return {"shape": tuple(x.shape[1:])}


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("first line\nsecond line")


@pytest.mark.parametrize("deep", [False, True])
def test_two_sides_of_one_form_are_no_block(deep):
    message = refused(lambda: find_blocks(TwoActivations(deep), torch.zeros(2, 3, 8, 8)), NoResidualBlocksError)
    assert "both sides are nonlinear" in message


def test_concatenations_are_named():
    message = refused(lambda: find_blocks(Concatenating(), torch.zeros(2, 3, 8, 8)), NoResidualBlocksError)
    assert "Concatenating has no residual addition" in message
    assert "concatenations" in message


def test_densenet_has_concatenations_only():
    model = torchvision.models.DenseNet(block_config=(2, 2, 2, 2)).eval()
    message = refused(lambda: find_blocks(model, torch.zeros(2, 3, 32, 32)), NoResidualBlocksError)
    assert "DenseNet has no residual addition: its skip connections are concatenations" in message


def test_a_weighted_sum_of_branches_is_no_block():
    case = ODD["scaled_pair"]
    message = refused(lambda: find_blocks(case.model(), case.input()), NoResidualBlocksError)
    assert "ScaledPair has no residual addition" in message
    assert "neither is a shortcut" in message


def test_parallel_trunks_are_named():
    message = refused(
        lambda: find_blocks(TwoTrunks(), torch.zeros(2, 6, 8, 8), additions="trunk"), NoResidualBlocksError
    )
    assert "TwoTrunks has 1 residual additions" in message
    assert "parallel trunks" in message


def test_a_plain_network_has_no_addition():
    message = refused(lambda: find_blocks(ODD["plain"].model(), ODD["plain"].input()), NoResidualBlocksError)
    assert message == "Plain has no residual addition: no tensor is added to something computed from it"


@pytest.mark.parametrize("model", [ODD["control_flow"].model(), Recurrent()], ids=["branching", "loop"])
def test_control_flow_on_values_is_one_line_and_nothing_else_is_printed(model, capfd):
    example = ODD["control_flow"].input() if model.__class__.__name__ == "ValueControlFlow" else torch.ones(2, 4)
    message = refused(lambda: find_blocks(model, example), ModelError)
    assert message.startswith(f"{type(model).__name__} cannot be traced with an input of shape")
    assert "control flow" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("make", "example", "word"),
    [
        (nets.CifarResNet, torch.zeros(2, 5, 16, 16), "cannot be traced with an input of shape (2, 5, 16, 16)"),
        (nets.CifarResNet, torch.zeros(2, 3, 16, 16, dtype=torch.int64), "cannot be traced"),
        (nets.CifarResNet, torch.zeros(0, 3, 16, 16), "has no batch"),
        (nets.CifarResNet, torch.zeros(()), "has no batch"),
        (TwoInputs, torch.zeros(2, 3), "cannot be traced"),
        (Raises, torch.zeros(2, 3), "first line second line"),
        (NoTensor, torch.zeros(2, 3), "NoTensor does not turn its input tensor into an output tensor"),
        (lambda: torch.jit.script(nn.Linear(3, 3)), torch.zeros(2, 3), "cannot be traced"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), torch.zeros(2, 3), "uninitialized"),
    ],
)
def test_what_cannot_be_traced(make, example, word, capfd):
    assert word in refused(lambda: find_blocks(make().eval(), example), ModelError)
    assert capfd.readouterr() == ("", "")


def test_arguments_of_the_wrong_kind():
    assert "found function" in refused(lambda: find_blocks(refused, torch.zeros(2, 3)), UsageError)
    assert "found ndarray" in refused(lambda: find_blocks(nn.ReLU(), torch.zeros(2, 3).numpy()), UsageError)
    assert "found tuple" in refused(lambda: find_blocks(nn.ReLU(), (torch.zeros(2), torch.zeros(2))), UsageError)


@pytest.mark.parametrize("index", [5, -6, 99])
def test_a_block_that_does_not_exist(index):
    view, x = found("cifar")[1], torch.zeros(1, 8, 16, 16)
    for call in (lambda: view[index], lambda: view.branch(index, x), lambda: view.without_branch(index, x)):
        assert f"block {index} does not exist: the network has 5" in refused(call, UsageError)


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (1, 3, 16, 16), (2, 3, 8, 8)])
def test_the_batch_and_image_size_of_the_example_do_not_change_the_blocks(shape):
    view = find_blocks(CASES["cifar"].model(), torch.zeros(shape))
    assert [block.name for block in view] == [block.name for block in found("cifar")[1]]
    scale = 4 if shape[-1] == 8 else 1
    assert [b.multiply_adds * scale for b in view] == [b.multiply_adds for b in found("cifar")[1]]


def test_the_view_is_read_only_and_repeatable():
    view = found("cifar")[1]
    with pytest.raises(AttributeError):
        view[0].name = "other"
    with pytest.raises(AttributeError):
        view.blocks = ()
    assert view.rows() == find_blocks(CASES["cifar"].model(), CASES["cifar"].input()).rows()
    assert (view[-1], len(list(view))) == (view.blocks[4], 5)
    assert repr(view) == "ResidualView(CifarResNet: 5 blocks in 2 stages)"


# the networks that are named in the project's brief: classes and blocks as they are, stages shorter where that shows
# the same


SHORT = "pi" + "pii" + "p" + "p"
PER_STAGE = (2, 3, 1, 1)
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...], int]] = {
    "resnet18": (torchvision.models.resnet18, "ii" + "pi" * 3, (2, 2, 2, 2), 64),
    "resnet50": (lambda: torchvision.models.ResNet(Bottleneck, PER_STAGE), SHORT, PER_STAGE, 64),
    "resnext50_32x4d": (
        lambda: torchvision.models.ResNet(Bottleneck, PER_STAGE, groups=32, width_per_group=4),
        SHORT,
        PER_STAGE,
        64,
    ),
    "resnet152": (
        torchvision.models.resnet152,
        "pii" + "p" + "i" * 7 + "p" + "i" * 35 + "pii",
        (3, 8, 36, 3),
        64,
    ),
    "convnext_tiny": (
        lambda: torchvision.models.ConvNeXt(
            [
                CNBlockConfig(96, 192, 1),
                CNBlockConfig(192, 384, 2),
                CNBlockConfig(384, 768, 3),
                CNBlockConfig(768, None, 1),
            ]
        ),
        "i" * 7,
        (1, 2, 3, 1),
        64,
    ),
    "vit_b_16": (lambda: torchvision.models.VisionTransformer(32, 16, 3, 4, 64, 128), "i" * 6, (6,), 32),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "resnet152" else n for n in TORCHVISION]
)
def test_networks_of_torchvision(name):
    make, letters, stages, size = TORCHVISION[name]
    check(make().eval(), letters, stages, size)


@pytest.mark.parametrize(
    ("name", "options", "letters", "stages", "size"),
    [
        ("resnetv2_50", {"layers": PER_STAGE}, SHORT, PER_STAGE, 64),
        ("resnet50d", {"layers": PER_STAGE}, SHORT, PER_STAGE, 64),
        ("wide_resnet50_2", {"layers": PER_STAGE}, SHORT, PER_STAGE, 64),
        ("vit_tiny_patch16_224", {"depth": 3, "img_size": 32}, "i" * 6, (6,), 32),
    ],
)
def test_networks_of_timm(name, options, letters, stages, size):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    check(timm.create_model(name, **options).eval(), letters, stages, size)


def check(model: nn.Module, letters: str, stages: tuple[int, ...], size: int) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    view = find_blocks(model, torch.zeros(2, 3, size, size))
    assert "".join(block.kind[0] for block in view) == letters
    assert tuple(map(len, view.stages)) == stages
    assert len({block.name for block in view}) == len(view)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    if type(model).__name__ == "ResNet":
        modules = [f"layer{stage}.{i}" for stage, count in enumerate(stages, 1) for i in range(count)]
        assert [block.name for block in view] == modules
        wanted = [sum(p.numel() for p in model.get_submodule(name).parameters()) for name in modules]
        assert [block.parameters + block.shortcut_parameters for block in view] == wanted
        assert all(block.post_activation == "relu" for block in view)
