"""Weights by scheme: variances, where factors stand, what is refused, and what a trained network keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.__main__ import main
from pathlens.errors import ModelError, PathlensError, UsageError
from pathlens.initialisation import SCHEMES
from pathlens.models import nfresnet, save_weights
from pathlens.models.llama import Llama, Sizes
from tests.helpers.initialised_nets import Net, X, drawn
from tests.helpers.model_helpers import one_line

#: variance times the fan-in of 216 of the convolution behind a ReLU, and of the one behind none
GAINS = {
    "he-fan-in": (2, 1),
    "he-fan-out": (2, 1),
    "glorot-normal": (1, 1),
    "glorot-uniform": (1, 1),
    "he-normal": (2, 2),
    "he-uniform": (2, 2),
    "brock": (2 / (1 - 1 / math.pi), 1),
    "skipinit": (2, 1),
    "stable": (2, 1),
}


@pytest.mark.parametrize("scheme", GAINS)
def test_variances(scheme: str) -> None:
    net, rows = drawn(scheme)
    by_name = {row["parameter"].replace("parametrizations.weight.original", "weight"): row for row in rows}
    for name, gain in zip(("blocks.1.second", "blocks.1.first"), GAINS[scheme], strict=True):
        row = by_name[f"{name}.weight"]
        values = dict(net.named_parameters()).get(f"{name}.weight", None)
        if values is None:
            values = net.get_submodule(name).parametrizations.weight.original
        error = 4 * math.sqrt(2 / values.numel())
        assert float(values.detach().square().mean()) * 216 / gain == pytest.approx(1, abs=error)
        assert row["std_due"] == pytest.approx(math.sqrt(gain / 216))
        assert row["std"] == pytest.approx(float(values.detach().std(correction=0)))
        assert (row["role"], row["block"], row["layer"]) == ("branch", 1, int(name.endswith("second")))
        if "uniform" in scheme:
            assert float(values.detach().abs().max()) <= math.sqrt(3 * gain / 216)
        if row["distribution"] == "truncated normal":  # cut off where Keras does
            assert float(values.detach().abs().max()) <= 2 * math.sqrt(gain / 216) / 0.87962566103423978
    assert {row["role"] for row in rows} == {"stem", "branch", "head", "bias", "other"}
    assert bool((net.unused == 3).all())
    assert all(float(p.detach().abs().max()) == 0 for name, p in net.named_parameters() if name.endswith("bias"))


def test_fixup_by_its_rules() -> None:
    net, rows = drawn("fixup")
    state = {name: value.detach() for name, value in net.named_parameters()}
    first = state["blocks.0.first.weight"]
    # fan-out is 216 too: 2 / fan-out times 1 / L for L = 3 blocks of two weights
    assert float(first.square().mean()) * 216 * 3 / 2 == pytest.approx(1, abs=4 * math.sqrt(2 / first.numel()))
    assert float(state["blocks.0.second.parametrizations.weight.original"].abs().max()) == 0
    assert float(state["head.weight"].abs().max()) == 0
    assert {row["factor"] for row in rows if row["role"] == "branch" and row["layer"] == 1} == {1.0}


@pytest.mark.parametrize("scheme", ["brock", "he-uniform", "glorot-normal"])
def test_standardised_channels_have_the_variance_that_is_due(scheme: str) -> None:
    net, rows = drawn(scheme, standardise=True)
    for row in rows:
        if row["role"] in ("stem", "branch", "head"):
            channels = net.get_parameter(row["parameter"]).detach().flatten(1)
            torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels), dtype=torch.float64))
            assert channels.std(1, correction=0).tolist() == pytest.approx([row["std_due"]] * len(channels))
            assert row["standardised"]


def test_scaled_standardisation_against_its_equation_stays_in_training() -> None:
    net, _ = drawn("scaled-ws")
    conv = net.blocks[0].second
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(3).add_(0.5)
        conv.parametrizations.weight[0].gain.mul_(2)
    raw = conv.parametrizations.weight.original.detach()
    for channel, got in zip(raw, conv.weight.detach(), strict=True):
        due = 2 * math.sqrt(2 / (1 - 1 / math.pi)) * (channel - channel.mean()) / (channel.std(correction=0) * 216**0.5)
        torch.testing.assert_close(got, due)
    assert isinstance(net.head.weight, nn.Parameter)  # convolutions are standardised, the head is not


@pytest.mark.parametrize("scheme", ["skipinit", "rezero", "stable", "fixup"])
def test_a_factor_is_the_one_that_a_forward_pass_would_have(scheme: str) -> None:
    """Outputs and gradients against a network whose blocks say ``x + factor * branch``."""
    net, _ = drawn(scheme)
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bias = module.parametrizations.bias.original if hasattr(module, "parametrizations") else module.bias
                bias.normal_()
        net.head.weight.normal_()
        for block in net.blocks:
            if scheme == "fixup":
                block.second.parametrizations.weight.original.normal_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wanted = {"skipinit": 0.0, "rezero": 0.0, "stable": 3**-0.5, "fixup": 1.0}[scheme]
    factors = [torch.full((), wanted, dtype=torch.float64, requires_grad=True) for _ in net.blocks]
    hidden = net.stem(x)
    for block, factor in zip(net.blocks, factors, strict=True):
        second = block.second.parametrizations
        inner = F.relu(block.first(hidden))
        hidden = hidden + factor * F.conv2d(inner, second.weight.original, second.bias.original, padding=1)
    by_hand = net.head(hidden.mean((2, 3)))
    out = net(x)
    torch.testing.assert_close(out, by_hand)
    if scheme != "stable":
        due = torch.autograd.grad(by_hand.square().sum(), factors)
        out.square().sum().backward()
        got = tuple(block.second.parametrizations.weight[0].factor.grad for block in net.blocks)
        torch.testing.assert_close(got, due)
    else:
        assert not any("factor" in name for name, _ in net.named_parameters())


def test_seeds_are_reproducible_and_leave_the_global_state_alone() -> None:
    one, again, other = (drawn("he-normal", seed)[0].stem.weight for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    half = Net()
    before = torch.get_rng_state()
    pathlens.initialise(half, "he-normal", example=X, generator=torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(half.stem.weight, one.float(), rtol=0, atol=0)  # every type gets the same draws


def test_a_second_scheme_takes_off_what_the_first_attached() -> None:
    net, _ = drawn("skipinit")
    names = [name for name, _ in Net().named_parameters()]
    pathlens.initialise(net, "scaled-ws", example=X.double())
    pathlens.initialise(net, "he-fan-in", example=X.double())
    assert {name for name, _ in net.named_parameters()} == set(names)


class TwoHeads(Net):
    """A second head, computed last, that is not studied."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Linear(24, 5), nn.BatchNorm1d(5))
        self.square = nn.Parameter(torch.eye(5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return {"out": self.head(x), "aux": self.aux(x) @ self.square}


def test_weights_of_an_output_that_is_not_studied_are_kept() -> None:
    model = TwoHeads()
    for value in model.aux[1].state_dict().values():
        value.fill_(3)
    before = {name: value.clone() for name, value in model.aux.state_dict().items()}
    table = pathlens.initialise(model, "fixup", example=X)
    assert not model.head.weight.any()
    assert all(torch.equal(value, before[name]) for name, value in model.aux.state_dict().items())
    kept = {row["parameter"] for row in table.rows if row["distribution"] == "kept"}
    assert kept == {"aux.0.weight", "aux.0.bias", "aux.1.weight", "aux.1.bias", "square", "unused"}


def test_a_view_of_tokens_is_initialised_anew() -> None:
    model = Llama(Sizes(width=8, hidden=12, layers=1, heads=2, groups=1, vocabulary=16, context=8)).eval()
    view = pathlens.find_blocks(model, model.example)
    first = pathlens.initialise(view, "stable")
    assert any(row["factor"] for row in first.rows)
    assert pathlens.initialise(view, "stable").rows == first.rows


def test_branches_that_end_in_a_norm_get_their_factor_on_it() -> None:
    model = pathlens.load_model("resnet20", "random").model
    view = pathlens.find_blocks(model, torch.zeros(2, 3, 16, 16))
    rows = pathlens.initialise(view, "rezero").rows
    first, second, *_ = (row["parameter"] for row in rows if row["factor"] is not None)
    assert (first, second) == ("layer1.0.bn2.weight", "layer1.0.bn2.bias")
    x = torch.randn(4, 3, 16, 16)
    again = pathlens.find_blocks(model, x)  # the factor is a part of what is traced
    assert len(again) == 9
    assert float(again.branch(4, torch.randn(4, 32, 8, 8)).detach().abs().max()) == 0


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.GroupNorm(4, 24)])
def test_a_norm_that_ends_a_branch_is_scaled_with_its_bias(norm: nn.Module) -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(blocks=1)
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            return self.head(x + self.norm(F.relu(x) @ torch.eye(24)))

    model = Normed()
    rows = pathlens.initialise(model, "skipinit", example=X).rows
    assert [row["parameter"] for row in rows if row["factor"] is not None] == ["norm.weight", "norm.bias"]
    gradient = torch.autograd.grad(model(torch.randn(2, 3, 16, 16)).sum(), model.norm.parametrizations.bias.original)[0]
    assert not gradient.any()


class Rectified(nn.Module):
    """Maps behind rectifiers of other kinds, and behind several that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Conv2d(3, 4, 1), *(nn.Conv2d(4, 4, 1) for _ in range(3)), nn.Conv2d(8, 4, 1)])
        self.mixed, self.block, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth, joined = self.maps
        x = first(x)
        x = second(F.hardtanh(x, 0.0, 6.0))
        x = third(F.hardtanh(x))
        x = fourth(x.clamp(min=0))
        x = joined(torch.cat([F.relu(x), F.relu6(-x)], 1))
        x = self.mixed(torch.cat([F.relu(x), x], 1))
        return self.head((x + self.block(F.relu(x))).mean((2, 3)))


def test_rectifiers_by_other_names_and_side_by_side() -> None:
    rows = pathlens.initialise(Rectified(), "he-fan-in", example=X).rows
    gains = {row["parameter"]: row["gain"] for row in rows}
    assert [gains[f"maps.{index}.weight"] for index in range(5)] == [1, 2, 1, 2, 2]
    assert gains["mixed.weight"] == 1


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.weight, self.offset))


def test_a_bias_of_another_name_becomes_zero() -> None:
    model = Packed()
    rows = pathlens.initialise(model, "he-fan-in", example=torch.zeros(2, 3)).rows
    assert {row["parameter"]: row["role"] for row in rows}["offset"] == "bias"
    assert not model.offset.any()


class Made(Net):
    """A weight that is made of the input, and a bias that is added by itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        x = x + F.linear(x, x.t() @ x)
        return F.linear(x, self.head.weight) + self.head.bias


def test_weights_of_the_input_are_none_and_biases_may_be_added_by_themselves() -> None:
    model = Made()
    rows = pathlens.initialise(model, "he-fan-in", example=X).rows
    assert {row["parameter"]: row["role"] for row in rows}["head.bias"] == "bias"
    assert not model.head.bias.any()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Gated(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + F.relu(self.blocks[0].first(x))).mean((2, 3)))


class Product(Net):
    """A branch whose weight is no linear map's."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + F.relu(x @ self.square.t())).mean((2, 3)))


def weight_normed() -> nn.Module:
    model = Net()
    nn.utils.parametrizations.weight_norm(model.blocks[0].first)
    return model


@pytest.mark.parametrize(
    ("model", "scheme", "error", "words"),
    [
        (weight_normed, "he-fan-in", ModelError, "first.parametrizations.weight.original.* would stay as it is"),
        (Net, "he", UsageError, "unknown initialisation 'he': give one of he-fan-in"),
        (Net, "skip-init", UsageError, "did you mean skipinit"),
        (Product, "he-fan-in", ModelError, "square would stay as it is.*write it as nn.Linear"),
        (Plain, "fixup", ModelError, "no residual branches"),
        (Gated, "fixup", ModelError, "branch of block 0 .* ends in relu and not in a weight layer"),
        (Gated, "stable", ModelError, "ends in relu and not in a weight layer or a norm"),
        (lambda: pathlens.load_model("resnet20", "random").model, "fixup", ModelError, "block 0 .* ends in norm"),
    ],
)
def test_a_scheme_that_does_not_fit(model, scheme: str, error: type[PathlensError], words: str) -> None:
    built = model()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(error, match=words) as caught:
        pathlens.initialise(built, scheme, example=X)
    one_line(caught)
    for name, value in built.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_embedding_that_would_become_zero() -> None:
    model = pathlens.load_model("llama2", "random").model
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ModelError, match="its last weight, which becomes 0, is also its embedding") as caught:
        pathlens.initialise(model, "fixup", example=tokens)
    one_line(caught)


def test_groups_of_a_convolution_divide_what_an_input_adds_to() -> None:
    net = Net().double()
    net.blocks[1].second = nn.Conv2d(24, 24, 3, padding=1, groups=4).double()
    for scheme, fan in (("he-fan-out", 6 * 9), ("he-fan-in", 6 * 9), ("glorot-normal", (6 * 9 + 24 * 9) / 2)):
        table = pathlens.initialise(net, scheme, example=X.double())
        (row,) = [one for one in table.rows if one["parameter"] == "blocks.1.second.weight"]
        gain = 1 if scheme == "glorot-normal" else 2
        assert row["std_due"] == pytest.approx(math.sqrt(gain / fan)), scheme


def test_no_example() -> None:
    with pytest.raises(UsageError, match="give example="):
        pathlens.initialise(Net(), "brock")


def test_every_scheme_has_a_source() -> None:
    assert all(scheme.draw.__doc__ for scheme in SCHEMES.values())


# --- on the command line ---------------------------------------------------------------------------------------------


def test_weights_with_factors_are_saved_as_plain_ones(tmp_path: Path) -> None:
    model = nfresnet(18, "plain", widths=(4, 4, 4, 4)).eval()
    pathlens.initialise(model, "stable", example=X)
    save_weights(tmp_path / "w.safetensors", model, {})
    plain = nfresnet(18, "plain", widths=(4, 4, 4, 4)).eval()
    plain.load_state_dict(pathlens.models.load_state_dict_file(tmp_path / "w.safetensors")[0])
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain(x), model(x))


def test_init_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "delete-blocks",
        "-m",
        "preresnet20",
        "-w",
        "random",
        "--init",
        "skipinit",
        "-d",
        "digits",
        "-q",
        "--json",
    ]
    assert main([*command, "--limit", "10", "--blocks", "3", "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"]["weights"] == "random (skipinit, seed 0): untrained"
    assert "all gradients inside the branches are exactly zero" in " ".join(found["provenance"]["notes"])
    intact, deleted = found["table"]
    assert intact["loss"] == pytest.approx(deleted["loss"], rel=1e-6)  # a branch times zero
    assert (tmp_path / "run" / "initialisation.csv").read_text().count("branch") == 18
    assert main(["blocks", "-m", "resnet20", "--init", "fixup"]) == 3
    assert "ends in norm" in capsys.readouterr().err
    for wrong in (["--init", "brock"], ["--standardise", "-w", "random"]):
        assert main(["delete-blocks", *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
