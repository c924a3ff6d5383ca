"""The prepared network against the model's own forward, piece by piece."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pathlens.analyses import view_of
from pathlens.errors import ModelError
from pathlens.models import load_model
from pathlens.residual import ResidualView, engines
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part, intact
from tests.helpers.odd_nets import ODD, Net, PaddedShortcut, drawn, random_images

PLAIN = Engine("plain")


def plain_network() -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in ((3, 8), (8, 8), (8, 16)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 12), nn.ReLU(), nn.Linear(12, 4))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (build, (3, 8, 8)) for name, build in ODD.items()},
    "digits54": (lambda: load_model().model, (1, 8, 8)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), (3, 64, 64)),
    "vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5), (3, 32, 32)),
    "vgg15": (lambda: load_model("vgg15", "random", num_classes=10).model, (3, 32, 32)),
    "plain": (plain_network, (3, 16, 16)),
}
#: small enough to be tried in every way
SMALL = [*ODD, "vit", "plain"]

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10, torch.bfloat16: 6e-2}


@functools.cache
def opened(name: str) -> tuple[nn.Module, ResidualView, Tensor]:
    build, shape = NETS[name]
    model = drawn(build) if name != "digits54" else build().eval()
    if isinstance(model, torchvision.models.VisionTransformer):
        nn.init.normal_(model.heads.head.weight, 0, 0.1)  # torchvision starts with zeros
    images = random_images(5, *shape)
    return model, view_of(model, images), images


def composed(network: Inference, images: Tensor) -> Tensor:
    with torch.inference_mode():
        x = network.stem(network.prepare(images))
        for block in range(len(network)):
            x = network.step(Part.BLOCK, block)(x)
        return network.head(x)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest number."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in (*SMALL, "resnet18") for dtype in TOLERANCE]
    + [(name, torch.float32) for name in ("digits54", "vgg15")],
    ids=str,
)
def test_all_pieces_together_are_the_model(name: str, dtype: torch.dtype) -> None:
    model, view, images = opened(name)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(images.double())
    found = composed(Inference(view, dtype=dtype), images)
    assert found.dtype == dtype
    assert distance(found, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", NETS)
def test_unprepared_pieces_are_the_model_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, view, images = opened(name)
    # torch's transformer layers have a second implementation for inference, which rounds otherwise
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    with torch.no_grad():
        wanted = model(images)
    assert torch.equal(composed(Inference(view, engine=PLAIN), images), wanted)


@pytest.mark.parametrize("name", ["padded shortcut", "broadcast sums", "casts", "plain", "vit"])
def test_each_piece_is_the_model_s_own(name: str) -> None:
    """Each with the input that the model's own operations in float64 give it, so that errors do not add up."""
    model, _, images = opened(name)
    exact = view_of(copy.deepcopy(model).double(), images.double())
    network = Inference(exact, dtype=torch.float64)
    with torch.no_grad():
        x = exact.stem(images.double())
        assert distance(network.stem(images.double()), x) < 1e-10
        for block in range(len(exact)):
            after = exact.run(x, block, block + 1)
            assert distance(network.step(Part.BLOCK, block)(x), after) < 1e-10
            assert distance(network.step(Part.SHORTCUT, block)(x), exact.without_branch(block, x)) < 1e-10
            if not exact[block].is_layer:
                assert distance(network.step(Part.BRANCH, block)(x), exact.without_shortcut(block, x)) < 1e-10
            x = after
        assert distance(network.head(x), exact.head(x)) < 1e-10


@pytest.mark.parametrize("file", ["resnet20-12fca82f.th"])
def test_a_published_network(file: str, shared_models: Path) -> None:
    model = load_model("resnet20", shared_models / "pytorch_resnet_cifar10" / file).model
    images = random_images(8, 3, 32, 32)
    view = view_of(model, images)
    with torch.no_grad():
        wanted = model(images)
        exact = copy.deepcopy(model).double()(images.double())
    assert torch.equal(composed(Inference(view, engine=PLAIN), images), wanted)
    assert distance(composed(Inference(view), images), exact) < 1e-5
    assert distance(composed(Inference(view, dtype=torch.float64), images), exact) < 1e-12
    assert distance(composed(Inference(view, dtype=torch.bfloat16), images), exact) < 0.1


def test_batch_norms_are_folded_and_sums_are_fused_where_torch_can() -> None:
    """What makes it fast is there: otherwise the comparisons above would show nothing."""
    if not engines.packs(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no oneDNN")
    _, view, _ = opened("padded shortcut")
    call = Inference(view).step(Part.BLOCK, 1)
    module = next(cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, nn.Module))
    targets = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert targets == ["mkldnn._convolution_pointwise.default", "mkldnn._convolution_pointwise.binary"]
    # the packed weights and the biases, and no second copy of the weights
    assert len(list(module.buffers())) == 4


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(training: bool) -> None:
    model = drawn(ODD["padded shortcut"]).train(training)
    model.blocks[0].bn1.eval()
    images = random_images(4, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    kept = {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()}
    view = view_of(model, images)
    found = [composed(Inference(view, dtype=torch.bfloat16, engine=each), images) for each in (None, PLAIN)]
    assert [module.training for module in model.modules()] == modes
    assert {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()} == kept
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    # a model in train mode is evaluated in eval mode
    with torch.no_grad():
        wanted = copy.deepcopy(model).eval()(images)
    assert max(distance(each, wanted) for each in found) < 0.05


@pytest.mark.parametrize("name", ["padded shortcut", "weight norm"])
def test_later_changes_of_the_model_do_not_get_in(name: str) -> None:
    model = drawn(ODD[name])
    images = random_images(3, 3, 8, 8)
    view = view_of(model, images)
    networks = [Inference(view), Inference(view, engine=PLAIN)]
    before = [composed(network, images) for network in networks]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    for network, output in zip(networks, before, strict=True):
        assert torch.equal(composed(network, images), output)


def test_pieces_do_not_write_into_their_input() -> None:
    _, view, images = opened("padded shortcut")
    network = Inference(view)
    with torch.inference_mode():
        x = network.stem(network.prepare(images))
        kept = x.clone()
        for part in (Part.BLOCK, Part.SHORTCUT, Part.BRANCH):
            for _ in range(2):
                network.step(part, 0)(x)
            assert torch.equal(x, kept)


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_any_number_of_images(count: int) -> None:
    model, view, _ = opened("many convolutions")
    images = random_images(count, 3, 8, 8, seed=count)
    with torch.no_grad():
        assert distance(composed(Inference(view), images), model(images)) < 2e-5


def test_a_network_that_counts_its_images_while_it_is_traced() -> None:
    class Loop(PaddedShortcut):
        def branch(self, x: Tensor) -> Tensor:
            return torch.cat([super(Loop, self).branch(x[i : i + 1]) for i in range(x.shape[0])])

    view = view_of(drawn(lambda: Net(Loop(8, 8))), random_images(2, 3, 8, 8))
    with pytest.raises(ModelError, match="batches of 2 images alone"):
        Inference(view)


def test_float16() -> None:
    model, view, images = opened("padded shortcut")
    with torch.no_grad():
        assert distance(composed(Inference(view, dtype=torch.float16), images), model(images)) < 5e-3


class Masked(nn.Module):
    """Attention whose mask is filled with the lowest number of its type, or comes as such."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (way(x) for way in self.ways)
        scores = q @ k.transpose(1, 2)
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=x.device).triu(1)
        lowest = torch.finfo(scores.dtype).min
        if self.constant:
            return (scores + torch.zeros(scores.shape[1:], dtype=x.dtype).masked_fill(later, lowest)).softmax(-1) @ v
        return scores.masked_fill(later, lowest).softmax(-1) @ v


class Attending(nn.Module):
    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Masked(constant) for _ in range(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_masks_of_the_lowest_number_of_a_type(dtype: torch.dtype, constant: bool) -> None:
    torch.manual_seed(0)
    model, x = Attending(constant).eval(), torch.randn(4, 6, 8)
    view = view_of(model, x[:2])
    for engine in (PLAIN, None):
        network = Inference(view, dtype=dtype, engine=engine)
        found = network.whole(intact(3))(network.prepare(x))
        torch.testing.assert_close(found.float(), model(x), rtol=0.1, atol=0.1)
