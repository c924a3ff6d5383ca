"""A recorded pass is the pass: the same operations as the exporter's, the same numbers as the network's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pathlens import find_blocks
from pathlens.residual import trace as tracing
from pathlens.residual.sizes import STAND_IN
from pathlens.residual.trace import Trace, trace
from tests.helpers import odd_nets
from tests.helpers.nets_tokens import CASES
from tests.helpers.wild_nets import WILD, Wild


def by_export(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any] = trace) -> Any:
    """The oracle: ``torch.export`` and its decompositions."""
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "_record", lambda *_: None)
        return make(model, x)


def run(traced: Trace, x: Tensor, seed: int = 0) -> tuple[list[Any], dict[str, Tensor]]:
    """Outputs, and new values of buffers."""
    tensors = dict(zip(traced.tensors, traced.fetch(tuple(traced.tensors)), strict=True))
    module = fx.GraphModule(nn.Module(), traced.graph)
    given = [x if n is traced.source else tensors[n.name] for n in traced.graph.nodes if n.op == "placeholder"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        found = list(module.forward(*given))
    count = len(traced.mutations)
    return found[count:], dict(zip(traced.mutations, found[:count], strict=True))


def assert_equal(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


# against the exporter

BOTH = ["cifar", "inplace", "tuple_out"]
TRAIN = ["repvgg", "mobile_drop", "gpt", "encoder_post", "shake_shake"]
EVAL = ["windows", "folded_windows", "denoiser", "highway", "encoder_pre"]
ODDITIES = ["padded shortcut", "casts", "computed weights", "weight norm"]
STRANGE = ["written into zeros", "added to the first channels", "lerp by a learned tensor", "max pooling shortcut"]


def subject(name: str) -> tuple[nn.Module, Tensor]:
    if name in odd_nets.ODD:
        return odd_nets.drawn(odd_nets.ODD[name]), odd_nets.random_images(3, 3, 8, 8)
    if name in WILD:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Wild(WILD[name][0]).eval(), torch.randn(3, 3, 8, 8)
    return CASES[name].model(), CASES[name].input()


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in BOTH for training in (False, True)]
    + [(name, True) for name in TRAIN + ODDITIES[:1]]
    + [(name, False) for name in EVAL + ODDITIES[1:] + STRANGE],
)
def test_blocks_outputs_and_statistics_are_those_of_the_exporter(name, training, monkeypatch):
    model, x = subject(name)
    model.train(training)
    found, wanted = find_blocks(model, x), by_export(model, x, monkeypatch, find_blocks)
    mine, exported = found.chain().trace, wanted.chain().trace
    assert (mine.recorded, exported.recorded) == (True, False)
    assert found.rows() == wanted.rows()
    assert mine.static_batch is exported.static_batch is None
    for images in (x, torch.cat([x, x])[:5].contiguous()):
        outputs, statistics = run(mine, images)
        wanted_outputs, wanted_statistics = run(exported, images)
        assert_equal(outputs, wanted_outputs)
        assert_equal(statistics, {key: wanted_statistics[key] for key in statistics})
        assert set(statistics) == set(wanted_statistics)
        assert bool(statistics) == (training and any("running" in key for key, _ in model.named_buffers()))


# writes in place, against the network's own forward pass


class Function(nn.Module):
    """A function as a network, with a few tensors to work with."""

    def __init__(self, function: Callable[[Function, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.arange(1.0, 5.0))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4))
        self.constant = torch.tensor([1.0, -1.0, 2.0, 0.5])

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def views_of_a_written_base(m, x):
    y = x * 2
    left, flat = y[:, :2], y.view(-1)
    y.add_(1)
    return left.sum(), flat, y


def base_of_a_written_view(m, x):
    y = x * 2
    part = y[:, 1:3]
    part.mul_(3).add_(m.weight[:2, None])
    return y, part


def view_of_a_view(m, x):
    y = x + 1
    inner = y.transpose(1, 2)[:, 1].unsqueeze(1)
    beside = y[:, :, 1]
    inner.relu_().sub_(7)
    return y, beside, inner


def rearranged(m, x):
    y = x * 1
    z = y.permute(2, 0, 1).select(0, 2)
    z += 5
    y.view(x.shape[0], -1)[:, 3:5] = 9
    y.squeeze(-1)[0] *= 2
    return y, z


def one_write_between_two_reads(m, x):
    y = x.clone()
    part = y[:, 0]
    before = part + 1
    y.zero_()
    return before, part + 1, y


def slices_assigned(m, x):
    y = torch.zeros_like(x)
    y[:, ::2] = x[:, 1::2]
    y[:, 1] += x[:, 0] * m.weight[0]
    y[..., -1].copy_(x[..., 0])
    return y


def an_input_overwritten(m, x):
    y = x
    y += 1
    return x * y


def maybe_a_copy(m, x):
    y = x * 3
    same, copied = y.contiguous(), y.transpose(1, 2).contiguous()
    same.add_(1)
    copied.add_(100)
    flat = y.reshape(x.shape[0], -1)
    flat *= 2
    return y, copied, flat


def masks_and_indices(m, x):
    y = x * 1
    y.masked_fill_(x > 0.5, -1.0)
    y[:, torch.tensor([0, 2])] = 4.0
    y.clamp_(min=-0.25)
    y.index_fill_(1, torch.tensor([1]), 0.125)
    return y


def a_buffer_counts(m, x):
    m.count.add_(1)
    first = x * m.count
    m.count += 2
    m.table[0].mul_(m.count)
    return first, x + m.count, m.table * 1


def fresh_tensors(m, x):
    y = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y[1] = 7
    zeros = torch.zeros(x.shape[0], 4)
    zeros[:, 2] = y[1]
    return x.flatten(1)[:, :4] * y + zeros + m.constant


def pieces_read(m, x):
    one, two = (x * 1).chunk(2, 1)
    a, b = torch.unbind(one, 1)
    return a * b, two, torch.split(x, [1, 3], dim=1)[1]


def a_type_kept(m, x):
    y = x.double()
    z = y.to(torch.float64)
    z += 1
    return y, z.float()


def sizes_in_the_graph(m, x):
    n, c, _ = x.shape
    y = x.reshape(n * c, -1) / n + torch.arange(n * c).reshape(-1, 1)
    return y.reshape(2 * n, -1).repeat(1, 2), x.new_zeros(n, 3)


def dropped(m, x):
    return F.dropout(x * 2, 0.5, m.training, inplace=True), F.relu(x, inplace=True)


def a_part_without_gradients(m, x):
    with torch.no_grad():
        y = x * 2
    return y + 1


def writes_without_gradients(m, x):
    with torch.no_grad():
        y = torch.relu_(x * m.weight)
        y.view(len(x), -1).add_(1)
        z = (y.flatten(1) * 2).view_as(y)
    return z * m.weight + y + x.detach() * m.weight + x


def gradients_again(m, x):
    with torch.no_grad():
        y = x * m.weight
        with torch.enable_grad():
            z = (y + x) * m.weight
        w = z * m.weight
    return y + z + w


ENDED = [a_part_without_gradients, writes_without_gradients, gradients_again]

CERTAIN = [
    views_of_a_written_base, base_of_a_written_view, view_of_a_view, rearranged, one_write_between_two_reads,
    slices_assigned, an_input_overwritten, maybe_a_copy, masks_and_indices, a_buffer_counts, fresh_tensors, pieces_read,
    a_type_kept, sizes_in_the_graph, dropped, *ENDED,
]  # fmt: skip


def squeezed_in_place(m, x):
    y = x.clone()
    y.unsqueeze_(0)
    return y[0] * 2


def a_piece_written(m, x):
    y = x * 2
    one, _ = y.chunk(2, 1)
    one.add_(5)
    return y, one


def written_past_autograd(m, x):
    y = x * m.weight
    y.detach().mul_(2)
    return y


def a_gradient_stopped_in_place(m, x):
    y = x * m.weight
    y.detach_()
    return y


def a_wider_operand(m, x):
    y = x * 1
    y += torch.ones(1, dtype=torch.float64)
    return y


def a_share_of_the_batch(m, x):
    return x * (1 / x.shape[0])


def a_batch_of_another_kind(m, x):
    return x * 2 if x.shape[0] < 100 else x * 3


def at_most_a_hundred(m, x):
    return x * min(x.shape[0], 100)


def the_size_of_the_stand_in(m, x):
    return x[:, :1].expand(x.shape[0], STAND_IN, 4) * 2


def a_buffer_replaced(m, x):
    m.count = m.count + 1
    return x * m.count


def a_number_from_a_value(m, x):
    return x * float(m.constant[0])


UNCERTAIN = [
    squeezed_in_place, written_past_autograd, a_gradient_stopped_in_place, a_wider_operand, a_share_of_the_batch, at_most_a_hundred,  # noqa: E501
    the_size_of_the_stand_in, a_buffer_replaced, a_piece_written, a_batch_of_another_kind, a_number_from_a_value,
]  # fmt: skip


def assert_as_the_network(function: Callable[..., Any], model: nn.Module, traced: Trace, batch: int) -> None:
    x = torch.randn(batch, 4, 4, generator=torch.Generator().manual_seed(batch))
    outputs, buffers = run(traced, x)
    wanted = dict(model.named_buffers())
    before = {name: value.clone() for name, value in wanted.items()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        result = model(x.clone())
    flat = torch.utils._pytree.tree_leaves(result)
    assert_equal(outputs, flat)
    written = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert set(buffers) == written
    assert_equal(buffers, {name: model.get_buffer(name) for name in buffers})
    with torch.no_grad():
        for name, value in before.items():
            model.get_buffer(name).copy_(value)


@pytest.mark.parametrize("function", CERTAIN, ids=lambda function: function.__name__)
@pytest.mark.parametrize("training", [False, True])
def test_writes_in_place_give_what_the_network_gives(function, training):
    model = Function(function).train(training)
    traced = trace(model, torch.randn(2, 4, 4), "0" if function is not slices_assigned else None)
    assert traced.recorded
    for batch in (1, 2, 5):
        assert_as_the_network(function, model, traced, batch)


@pytest.mark.parametrize("function", ENDED, ids=lambda function: function.__name__)
def test_gradients_end_where_those_of_the_network_end(function):
    model, x = Function(function).double(), torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    traced = trace(model, x.detach())
    assert traced.recorded
    tensors = dict(zip(traced.tensors, traced.fetch(tuple(traced.tensors)), strict=True))
    given = [x if n is traced.source else tensors[n.name] for n in traced.graph.nodes if n.op == "placeholder"]
    found, wanted = fx.GraphModule(nn.Module(), traced.graph).forward(*given)[-1], model(x)
    torch.testing.assert_close(found, wanted)
    seed = torch.randn_like(wanted)
    for mine, own in zip(
        *(torch.autograd.grad(out, (x, model.weight), seed, allow_unused=True) if out.requires_grad else (None, None)
          for out in (found, wanted)), strict=True,
    ):  # fmt: skip
        assert (mine is None) == (own is None)
        if own is not None:
            torch.testing.assert_close(mine, own)


@pytest.mark.parametrize("function", UNCERTAIN, ids=lambda function: function.__name__)
def test_what_is_not_surely_right_is_left_to_the_exporter(function, monkeypatch):
    model, x = Function(function), torch.randn(3, 4, 4)
    try:
        wanted = by_export(model, x, monkeypatch, lambda *given: trace(*given, "0"))
    except Exception as error:
        with pytest.raises(type(error)) as caught:
            trace(model, x, "0")
        assert str(caught.value) == str(error)  # noqa: PT017 - of both ways
        return
    traced = trace(model, x, "0")
    assert not traced.recorded
    assert str(traced.graph) == str(wanted.graph)
    assert traced.static_batch == wanted.static_batch
