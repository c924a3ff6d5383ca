"""The networks without normalisation: counts of the paper to the last digit, equations, and blocks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.__main__ import main
from pathlens.errors import ModelError
from pathlens.models import nfresnet
from pathlens.models.nfresnet_cifar import VARIANTS
from tests.helpers.model_helpers import batch_norm, one_line, parameters

#: depth -> parameters without norms and multiply-adds: with a projection in every block, and only where shapes change
#: (Civitelli et al. 2021, tables 1 and 2: parameters, and FLOPs as twice the multiply-adds)
COUNTS = {
    18: ((11_516_618, 1.16), (11_164_362, 1.12)),
    50: ((38_016_714, 4.20), (23_467_722, 2.60)),
    101: ((74_782_410, 8.92), (42_407_626, 5.02)),
}


def counted(model: nn.Module) -> int:
    """Multiply-adds of one 32x32 image, layer by layer, from the shapes that go through."""
    total = 0

    def hook(layer: nn.Module, _inputs: object, out: Tensor) -> None:
        nonlocal total
        total += out[0].numel() * layer.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device))
    return total


def printed(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, object]:
    assert main(["blocks", "-m", name, "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


def counts_due(depth: int, variant: str) -> tuple[int, float]:
    """Parameters without norms, and FLOPs in G."""
    parameters, flops = COUNTS[depth][variant not in ("batchnorm", "convshort")]
    identities = {18: 5, 50: 12, 101: 29}[depth]  # each has a scalar in learnscalar
    return parameters + identities * (variant == "learnscalar"), flops


@pytest.mark.parametrize("depth", [18, 50, 101])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_and_multiply_adds_are_those_of_the_paper(depth: int, variant: str) -> None:
    wanted, flops = counts_due(depth, variant)
    with torch.device("meta"):  # shapes are all that counts
        model = nfresnet(depth, variant)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (variant == "batchnorm")
    assert parameters(model) - sum(map(parameters, norms)) == wanted
    # the paper rounds multiply-adds to two places, and doubles them
    assert round(2 * round(counted(model) / 1e9, 2), 2) == flops


@pytest.mark.parametrize(("depth", "variant"), [(18, "batchnorm"), (18, "learnscalar"), (50, "idshort")])
def test_blocks_state_what_is_counted(depth: int, variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"nfresnet{depth}:{variant}"
    facts = printed(capsys, name)
    blocks, found = facts["table"], facts["provenance"]
    assert found["multiply_adds"] == counted(pathlens.load_model(name, "random").model)
    assert found["parameters"] - found["norm_parameters"] == counts_due(depth, variant)[0]
    inside = sum(row["parameters"] + row["shortcut_parameters"] for row in blocks)
    widest = 512 * (4 if depth > 18 else 1)
    ends = 27 * 64 + 10 * widest + 10 + (2 * widest if variant == "batchnorm" else 0)  # stem, head, last norm
    assert found["parameters"] - inside == ends
    identity = {"identity"} if variant == "idshort" else set()
    assert {row["kind"] for row in blocks} == {"projection"} | identity


def test_blocks_print_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blocks", "-m", "nfresnet18:convshort"]) == 0
    assert "11,516,618 parameters (0 of them in norms), 576,394,240 multiply-adds" in capsys.readouterr().out


def by_hand(state: dict[str, Tensor], x: Tensor, depth: int, variant: str) -> Tensor:
    """The equation of the module's first lines, applied to a state dict with no module."""
    normed = variant == "batchnorm"
    scale = 1.0 if variant in ("batchnorm", "plain") else math.sqrt(0.5)
    x = F.conv2d(x, state["stem.weight"], padding=1)
    for index in range(8 if depth == 18 else 16):
        name, out = f"blocks.{index}", x
        convolutions = [key for key in state if key.startswith(f"{name}.branch") and state[key].dim() == 4]
        stride = 2 if index in ((2, 4, 6) if depth == 18 else (3, 7, 13)) else 1
        for key in convolutions:
            if normed:
                out = batch_norm(out, state, f"{name}.branch.{int(key.split('.')[3]) - 2}")
            kernel = state[key].shape[-1]
            first = kernel == 3 and (depth > 18 or key == convolutions[0])
            out = F.conv2d(out.clamp(min=0), state[key], stride=stride if first else 1, padding=kernel // 2)
        if f"{name}.shortcut.weight" in state:
            x = F.conv2d(x, state[f"{name}.shortcut.weight"], stride=stride)
        x = scale * (x * state.get(f"{name}.shortcut.scalar", 1.0) + out)
    x = (batch_norm(x, state, "norm") if normed else x).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("depth", [18, 50])
def test_forward_against_the_equations(depth: int, variant: str) -> None:
    model = nfresnet(depth, variant, widths=(4, 4, 6, 8)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for value in [*model.parameters(), *model.buffers()]:
        if value.dim() < 2 and value.is_floating_point():
            value.data.copy_(0.5 + torch.rand(value.shape, generator=generator, dtype=value.dtype))
    x = torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(model.state_dict(), x, depth, variant))


def test_the_factor_belongs_to_the_block_that_adds() -> None:
    view = pathlens.find_blocks(nfresnet(18, "idshort", widths=(4, 4, 4, 4)).eval(), torch.zeros(2, 3, 16, 16))
    assert [(block.post_activation, block.transition) for block in view] == [("mul", "")] * 8
    x = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(view.without_branch(0, x), x * math.sqrt(0.5))


def test_weights_start_with_the_variance_that_keeps_the_signal() -> None:
    model = nfresnet(18, "convshort")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            gain = 1 if "shortcut" in name or name == "stem" else 2
            spread = math.sqrt(2 / module.weight.numel())
            assert float(module.weight.detach().var()) * fan / gain == pytest.approx(1, abs=6 * spread)
    assert parameters(model) == 11_516_618


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nfresnet(34, "plain"), "depth 34: give one of 18, 50, 101"),
        (lambda: nfresnet(18, "fixup"), "no variant 'fixup': give one of batchnorm, plain"),
        (lambda: nfresnet(18, "plain", widths=(4, 4)), "widths .4, 4.: give one of at least 1 for each of 4 stages"),
        (lambda: pathlens.load_model("nfresnet18", "random"), "did you mean nfresnet18:"),
        (lambda: pathlens.load_model("nfresnet18:skip", "random"), "unknown model .*nfresnet18:idshort"),
    ],
)
def test_what_does_not_exist(build, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build()
    one_line(caught)
