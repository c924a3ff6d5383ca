"""What a trace must hold of a network beside its operations: where gradients end, types, devices, modules, tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.errors import ModelError, NumericsError
from pathlens.models import load_model, preresnet
from pathlens.residual.discover import discover
from pathlens.residual.inference import Inference
from pathlens.residual.routes import intact
from pathlens.residual.trace import trace
from tests.helpers import nets
from tests.helpers.wild_nets import Swish, Wild, without_gradient


class Round(torch.autograd.Function):
    """The straight-through estimator of quantised networks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Classifier(nn.Module):
    """A stem, something of the user's, two blocks and a head."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.stem, self.blocks = nets.conv(3, 6), nn.Sequential(nets.SmallBlock(6), nets.SmallBlock(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.function(self.stem(x))).mean((2, 3)))
        return logits


def images(number: int = 4) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def built(function: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(function).double().eval()


def test_gradients_of_a_function_with_its_own_backward_pass_are_compared() -> None:
    data = [(images(), torch.tensor([0, 1, 2, 3]))]
    rounded = built(Round.apply)
    view = pathlens.find_blocks(rounded, images())
    (note,) = view.notes
    assert "a part of it has a backward pass of its own (autograd.Function)" in note
    with pytest.raises(NumericsError, match=r"differs from Classifier's own.*a backward pass of its own \(autograd"):
        pathlens.path_gradients(view, data)
    assert all(parameter.requires_grad for parameter in rounded.parameters())
    # the one of Swish is that of its operations
    assert len(pathlens.path_gradients(built(Swish.apply), data).rows) == 3


class Hidden(torch.autograd.Function):
    """A forward pass that switches gradients off itself, as checkpoints do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class HiddenAtTheEnd(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = Hidden.apply(super().forward(x))
        return logits


def twice_hidden(x: Tensor) -> Tensor:
    x = Hidden.apply(x)
    with torch.no_grad():
        counted = x.detach().sum()
    return x + 0 * counted


def test_a_function_that_switches_gradients_off_itself_is_no_part_without_gradients() -> None:
    data = [(images(), torch.tensor([0, 1, 2, 3]))]
    torch.manual_seed(0)
    for model in (HiddenAtTheEnd(nn.Identity()).double().eval(), built(twice_hidden)):
        view = pathlens.find_blocks(model, images())
        assert not view.chain().trace.recorded
        # what is written out of it has the same derivative
        assert pathlens.path_gradients(view, data, method="exact").rows[0]["total_norm"] > 0


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


def test_a_backward_pass_that_fails_is_said_in_a_line() -> None:
    with pytest.raises(ModelError, match=r"the backward pass of Classifier fails: .*; run it by hand"):
        pathlens.path_gradients(built(Broken.apply), [(images(), torch.tensor([0, 1, 2, 3]))])


def test_a_part_without_gradients_stays_so_where_blocks_are_deleted() -> None:
    torch.manual_seed(0)
    model = Wild(without_gradient).double().eval()
    view = pathlens.find_blocks(model, images())
    assert view.chain().trace.recorded
    with pathlens.deleted(view, []):
        model(images()).square().sum().backward()
    found = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    model(images()).square().sum().backward()
    for name, value in model.named_parameters():
        assert (found[name] is None) == (value.grad is None) == (not name.startswith("b."))
        if value.grad is not None:
            torch.testing.assert_close(found[name], value.grad)
    # nothing of it stands between what is folded for speed
    targets = {str(node.target) for node in view.chain().branch(0).graph.nodes}
    assert "aten.detach.default" not in targets


def test_second_derivatives_through_paths_are_refused() -> None:
    model, x = built(nn.Identity()), images().requires_grad_()
    with pathlens.restrict_backward(pathlens.find_blocks(model, images()), range(3)):
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.square().sum().backward()


def test_a_trace_made_under_autocast_is_none_of_autocast() -> None:
    model = built(nn.Identity()).float()
    view = pathlens.find_blocks(model, images().float())
    model.train()
    with pathlens.deleted(view, 0):
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images().float()).dtype == torch.bfloat16
        found = model(images().float())
    assert found.dtype == torch.float32
    with pathlens.deleted(pathlens.find_blocks(model, images().float()), 0):
        torch.testing.assert_close(model(images().float()), found, rtol=1e-6, atol=1e-6)


def test_dropout_in_train_mode_is_one_operation() -> None:
    model = load_model("vgg15", "random").model.train()
    view = pathlens.find_layers(model, torch.randn(2, 3, 32, 32))
    targets = [str(node.target) for node in view.chain().trace.graph.nodes]
    assert view.chain().trace.recorded
    assert targets.count("aten.dropout.default") == sum(isinstance(m, nn.Dropout) for m in model.modules()) > 0
    with pathlens.deleted(view, 3):
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_plans_on_a_stage_and_on_the_whole() -> None:
    """A stage is a sequence, which runs no operation itself."""
    torch.manual_seed(0)
    model = preresnet(14, in_channels=3, widths=(4, 6, 8)).double().eval()
    view = pathlens.find_blocks(model, images())
    part = pathlens.find_blocks(model.layer2, torch.zeros(2, 4, 8, 8, dtype=torch.float64))
    assert len(part) == 2
    with pathlens.deleted(part, 1), pathlens.deleted(view, 0):
        found = model(images())
    with pathlens.deleted(view, [0, 3]):
        torch.testing.assert_close(found, model(images()))


class Tokens(nn.Module):
    """Positions that are computed from the tokens, as where padding has none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = tokens.ne(1).int().cumsum(1) * tokens.ne(1)
        x = self.words(tokens) + self.positions(places.long())
        x = x + torch.tanh(self.first(x))
        x = x + torch.tanh(self.second(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_a_sum_of_embeddings_is_no_block() -> None:
    tokens = torch.randint(9, (2, 5))
    view = pathlens.find_blocks(Tokens().eval(), tokens)
    assert [block.kind for block in view] == ["identity"] * 2
    (note,) = view.notes
    assert "1 additions are no residual blocks" in note
    assert "it starts from integers" in note


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.map(x)) + x


def test_a_term_that_is_the_shortcut_too_is_one_edge() -> None:
    (addition,) = discover(trace(Twice(), torch.randn(2, 4))).trunk
    ends = [operand for _, operand in addition.branch_edges]
    assert len(ends) == 2
    assert ends.count(addition.shortcut) == 1


class Counted(nn.Module):
    """Makes numbers of its own, on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.arange(4, device=x.device) / 4
        logits: Tensor = self.head(x + F.relu(self.map(x)))
        return logits


def test_tensors_that_a_network_makes_are_made_where_it_is_computed() -> None:
    view = pathlens.find_blocks(Counted().eval(), torch.randn(2, 4))
    assert view.chain().trace.recorded
    logits = Inference(view, "meta").whole(intact(1))(torch.empty(2, 4, device="meta"))
    assert logits.device.type == "meta"
