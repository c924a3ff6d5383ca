"""What the linearisation leaves alone, and what it refuses, in one clear line each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import pathlens
from pathlens.errors import DataError, NumericsError, UsageError
from pathlens.residual import find_blocks
from pathlens.residual.gradients import Linearisation, boundary_of
from pathlens.residual.losses import cross_entropy
from tests.helpers.gradient_cases import LABELS, assert_lengths_equal, linearised, prepared
from tests.helpers.model_helpers import one_line
from tests.helpers.nets_tokens import CASES
from tests.helpers.path_oracle import (
    NETS,
    Minus,
    Net,
    by_length,
    drawn,
    enumerated,
    images,
)


@pytest.mark.parametrize("name", ["post-activation", "norm first"])
def test_the_model_and_the_modes_are_left_alone(name):
    net = drawn(NETS[name]())
    net.last.weight.requires_grad_(False)
    x = images()
    view = find_blocks(net, x)
    net.blocks[0].register_forward_hook(lambda *_: pytest.fail("a hook of the user ran"))
    state = copy.deepcopy(net.state_dict())
    flags = [p.requires_grad for p in net.parameters()]
    random = torch.random.get_rng_state()
    with torch.no_grad():  # the caller's mode does not matter and comes back
        linear = Linearisation(view, x, LABELS)
        linear.exact(signs=torch.ones(len(view), 2))
        linear.along([(0,)])
        assert linear.reference.abs().max() > 0
        assert not torch.is_grad_enabled()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not x.requires_grad
    assert not net.training
    assert sum(len(m._forward_hooks) + len(m._backward_hooks) for m in net.modules()) == 1


def test_losses_of_the_caller():
    _, view = prepared("projection")

    def margin(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.gather(1, labels[:, None])[:, 0]

    each = Linearisation(view, images(), LABELS, loss=margin).exact()
    summed = Linearisation(view, images(), LABELS, loss=lambda z, y: margin(z, y).sum()).exact()
    torch.testing.assert_close(summed.gradients, each.gradients)
    expected = by_length(enumerated(prepared("projection")[0], images(), LABELS, margin))
    assert_lengths_equal(each.gradients, expected)


def test_other_sizes_of_batch_and_image():
    net, view = prepared("post-activation")
    for count, size in ((1, 6), (5, 6), (2, 9)):
        x, labels = images(count, size), torch.arange(count) % 3
        profile = Linearisation(view, x, labels).exact()
        assert_lengths_equal(profile.gradients, by_length(enumerated(net, x, labels, cross_entropy)))


def refused(kind: type[Exception], match: str, call) -> None:
    with pytest.raises(kind, match=match) as caught:
        call()
    one_line(caught)


def test_integers_have_no_gradient_at_the_input():
    case = CASES["gpt"]
    view = find_blocks(case.model(), case.input())
    refused(UsageError, "integers.*--at stem", lambda: Linearisation(view, case.input(), LABELS))


class Cutting(Net):
    """Integers are made of the input, or of the output of block 0."""

    def __init__(self, where: str) -> None:
        super().__init__([Minus(4), Minus(4)])
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.cut(x) if self.where == "input" else x)
        for block in self.blocks:
            x = block(x)
            x = self.cut(x) if self.where == "block" else x
        return self.last(x.mean((2, 3)))

    def cut(self, x: Tensor) -> Tensor:
        return (x * 100).long().to(x.dtype)


@pytest.mark.parametrize("stacked", [True, False])
def test_networks_that_make_integers_on_the_way_have_no_gradient_there(stacked):
    x = images()
    view = find_blocks(drawn(Cutting("input")), x)
    refused(UsageError, "Cutting makes .* at the input; give --at stem", lambda: Linearisation(view, x, LABELS))
    assert Linearisation(view, x, LABELS, at="stem", stacked=stacked).exact().norms().all()
    middle = find_blocks(drawn(Cutting("block")), x)
    for at in ("input", "stem", 1):
        refused(
            UsageError,
            r"no gradient goes through block 1 \(blocks.1\).*--at a later",
            lambda at=at: Linearisation(middle, x, LABELS, at=at, stacked=stacked),
        )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 3], "1 of 2 labels are outside the 3 classes"),
        ([-1, -100], "2 of 2 labels are outside"),
        ([0, 2**62], "1 of 2 labels are outside"),
        ([[0], [1]], r"labels are torch.int64 of shape \(2, 1\)"),
        ([0, 1, 2], r"of shape \(3,\) for logits of shape \(2, 3\)"),
        ([0.0, 1.0], "labels are torch.float32"),
        ([True, False], "labels are torch.bool"),
    ],
)
def test_labels_that_name_no_class(labels, words):
    x = images()
    view = find_blocks(drawn(NETS["projection"]()), x)
    refused(DataError, words, lambda: Linearisation(view, x, torch.tensor(labels)))


def test_labels_of_small_types_and_probabilities_have_a_loss():
    logits = torch.randn(2, 3)
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]), reduction="none")
    for kind in (torch.int32, torch.uint8, torch.uint64):
        assert torch.equal(cross_entropy(logits, torch.tensor([2, 0]).to(kind)), wanted)
    torch.testing.assert_close(cross_entropy(logits, torch.eye(3)[[2, 0]]), wanted)


@pytest.mark.parametrize("at", ["block:4", "block:", "block:-1", "block", -1, 4, "4.0", "Input", "block:²", ""])
def test_places_that_do_not_exist(at):
    refused(UsageError, "input, stem or block:I with I from 0 to 3", lambda: linearised("post-activation", at=at))


def test_places_that_exist():
    found = [boundary_of(at, 4) for at in ("input", "stem", 0, "0", "block:0", "block:3", 3, "3")]
    assert found == [-1, 0, 0, 0, 0, 3, 3, 3]


@pytest.mark.parametrize("paths", [[(0, 4)], [(0, 0)], [(-1,)], [(0,), (9,)]])
def test_paths_that_do_not_exist(paths):
    refused(UsageError, "no subset of the blocks 0 to 3", lambda: linearised("post-activation").along(paths))


def test_no_path_and_paths_before_the_place():
    refused(UsageError, "no path", lambda: linearised("post-activation").along([]))
    late = linearised("post-activation", at=2)
    refused(UsageError, "blocks 2 to 3", lambda: late.along([(1, 3)]))


def test_lengths_and_tolerances_that_cannot_be():
    linear = linearised("post-activation")
    refused(UsageError, "no path has -1 blocks", lambda: linear.exact(max_length=-1))
    for tolerance in (-0.1, 1.0, math.nan):
        refused(UsageError, "tolerance", lambda tolerance=tolerance: linear.exact(tolerance=tolerance))


class Growing(Net):
    """Tiny activations that blocks multiply by huge numbers: the values stay finite and their derivatives do not."""

    def __init__(self, stem: float, *factors: float) -> None:
        super().__init__([Minus(4) for _ in factors])
        with torch.no_grad():
            self.first.weight.fill_(stem)
            self.first.bias.zero_()
            for block, factor in zip(self.blocks, factors, strict=True):
                block.a.weight.zero_()
                block.a.weight[:, 0, 1, 1] = factor
                block.b.weight.fill_(-0.25)
                block.b.bias.zero_()


@pytest.mark.parametrize(
    ("stem", "factors", "where"),
    [
        (1e-37, (1.0, 1e21, 1e21), r"block 1 \(blocks\.1\)"),
        (1e-37, (1e21, 1e21, 1.0), r"block 0 \(blocks\.0\)"),
        (1e21, (1e21, 1.0), "in the stem"),
    ],
)
def test_gradients_that_overflow_name_the_place(stem, factors, where):
    net = Growing(stem, *factors).eval()
    x = images(dtype=torch.float32).abs()
    if where == "in the stem":
        x = x * 1e-37
    linear = Linearisation(find_blocks(net, x), x, LABELS)
    for call in (linear.exact, lambda: linear.along([tuple(range(len(factors)))])):
        refused(NumericsError, f"first .*{where}; check the weights", call)
    in_double = Linearisation(find_blocks(net.double(), x.double()), x.double(), LABELS)
    assert in_double.exact().gradients.isfinite().all()


def test_losses_that_are_not_finite():
    _, view = prepared("projection")
    for loss in (lambda z, y: z[:, 0] * math.nan, lambda z, y: 1 / (z[:, 0] * 0)):
        refused(NumericsError, "loss is NaN or infinite", lambda loss=loss: linearised("projection", loss=loss))
    refused(
        NumericsError,
        "first at the output of the last block",
        Linearisation(view, images(), LABELS, loss=lambda z, y: (z - z.detach()).abs().sqrt().sum(1)).exact,
    )


def test_losses_that_do_not_depend_on_the_input():
    for loss in (
        lambda z, y: torch.ones(2),
        lambda z, y: z.detach().sum(1),
        lambda z, y: z.sum(1) * 0,
        lambda z, y: torch.ones(2, requires_grad=True),
    ):
        refused(NumericsError, "does not depend", lambda loss=loss: linearised("projection", loss=loss))


class SequenceFirst(nn.Module):
    """A transformer whose sequences come before the batch, as torch has them by default: x_i has shape (T, N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x.transpose(0, 1)).mean(0))


def test_sequences_before_the_batch() -> None:
    torch.manual_seed(0)
    net = SequenceFirst().double().eval()
    x = torch.randn(5, 7, 8, dtype=torch.float64)
    labels = torch.arange(5) % 3
    view = find_blocks(net, x[:2])
    assert [block.in_shape for block in view] == [(7, 8)] * 4
    torch.testing.assert_close(view.head(view.run(view.stem(x))), net(x))
    with pytest.raises(UsageError, match=r"x_0 has shape \(7, N, 8\); found \(5, 7, 8\)"):
        view.run(x)
    profile = Linearisation(view, x, labels).exact()
    given = x.clone().requires_grad_()
    (whole,) = torch.autograd.grad(cross_entropy(net(given), labels).sum(), given)
    torch.testing.assert_close(profile.total(), whole)
    signs = torch.ones(4, 5, dtype=torch.float64)
    for length in (7, 5):  # and as many tokens as sequences
        data = x[:, :length]

        def linear(data: Tensor = data, **more: Any) -> Linearisation:
            return Linearisation(find_blocks(net, data[:2]), data, labels, **more)

        refused(UsageError, "no random sign", lambda linear=linear: linear().exact(signs=signs))
        refused(UsageError, "give --at input", lambda linear=linear: linear(at="stem"))
        refused(UsageError, "sequences come first", lambda data=data: pathlens.lattice(net, [(data, labels)]))


def test_pieces_in_the_batch_have_no_sign_of_their_own() -> None:
    case = CASES["folded_windows"]
    net, x = case.model(0).double().eval(), case.input(3).double()
    data = [(x, torch.arange(3))]
    table = pathlens.path_gradients(net, data, method="exact")
    assert table.rows[0]["total_norm"] > 0
    refused(UsageError, "no row for each of 3 examples; no random sign", lambda: pathlens.path_gradients(net, data))
    refused(UsageError, "give --at input", lambda: pathlens.path_gradients(net, data, method="exact", at="stem"))
    refused(UsageError, "pieces of them are in the batch", lambda: pathlens.lattice(net, data))


class Nested(nn.Module):
    """Sequences come first, and an addition lies inside of a branch, so that all of them are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        y = torch.tanh(self.map(x))
        x = x + self.map(y + torch.tanh(self.inner(y)))
        logits: Tensor = self.head(x.mean(0))
        return logits


def test_sequences_that_come_first_have_no_gradient_of_their_own_where_blocks_are_no_chain() -> None:
    torch.manual_seed(0)
    net, data = Nested().double().eval(), [(torch.randn(3, 5, 4, dtype=torch.float64), torch.arange(3))]
    options: dict[str, Any] = {"additions": "all", "method": "exact"}
    assert pathlens.path_gradients(net, data, **options).rows[0]["total_norm"] > 0
    refused(UsageError, "no row for each of 3", lambda: pathlens.path_gradients(net, data, at="block:0", **options))


def test_as_many_tokens_as_sequences_are_no_examples_where_blocks_are_no_chain() -> None:
    torch.manual_seed(0)
    net, data = Nested().double().eval(), [(torch.randn(3, 3, 4, dtype=torch.float64), torch.arange(3))]
    signed: dict[str, Any] = {"additions": "all", "method": "signed"}
    refused(UsageError, "no row for each of 3 images", lambda: pathlens.path_gradients(net, data, **signed))
    refused(UsageError, "sequences come first", lambda: pathlens.lattice(net, data, additions="all"))


SHUFFLED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "shuffle": lambda _: {"batch_size": 2, "shuffle": True},
    "subset": lambda _: {"batch_size": 2, "sampler": SubsetRandomSampler(range(4))},
    "weighted": lambda _: {"batch_size": 2, "sampler": WeightedRandomSampler([1.0] * 4, 4)},
    "batches": lambda data: {"batch_sampler": BatchSampler(RandomSampler(data), 2, False)},
}


@pytest.mark.parametrize("name", SHUFFLED)
def test_a_loader_that_shuffles_is_refused(name: str) -> None:
    net, _ = prepared("post-activation")
    data = TensorDataset(images(4), torch.arange(4) % 3)
    loader = DataLoader(data, **SHUFFLED[name](data))
    refused(UsageError, "give shuffle=False", lambda: pathlens.path_gradients(net, loader))
