"""The network of one training step against deleted blocks, hand-written forward passes and enumerated paths."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pathlens import deleted
from pathlens.models import highway, preresnet, resnet, shakeshake
from pathlens.models.preresnet_cifar import PreActBottleneck, PreActResNet
from pathlens.residual import find_blocks, view_of
from pathlens.training.network import Partial, Restricted, Whole
from tests.helpers import nets
from tests.helpers.lesion_oracle import small_net
from tests.helpers.odd_nets import Net, PaddedShortcut
from tests.helpers.restricted_oracle import assert_equal, batch, gradients, make, paths_oracle


class Plain(nn.Module):
    """Three layers without shortcuts, of which the second makes more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nets.conv(3, 4), nets.conv(4, 4), nets.conv(4, 6)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (4, 4, 6))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return self.fc(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "post-activation": lambda: resnet(8, in_channels=3, widths=(4, 4, 6)),
    "projection": lambda: PreActResNet(PreActBottleneck, 1, 10, 3, (2, 3)),
    "gated": lambda: highway(7, in_channels=3, widths=(4, 4, 6)),
    "shake-shake": lambda: shakeshake(8, 2, in_channels=3),
    "stranger": nets.PreAct,
    "plain layers": Plain,
}


def double(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.train()


def images(count: int = 6, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def step(net: nn.Module, forward: Callable[[], Tensor]) -> Tensor:
    """Forward and backward of a loss in which every logit counts; random numbers as after seed 1."""
    net.zero_grad()
    torch.manual_seed(1)
    logits = forward()
    (logits * torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach()


def same_buffers(found: nn.Module, wanted: nn.Module) -> None:
    for name, buffer in wanted.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", NETWORKS)
def test_sub_networks_are_those_with_blocks_deleted(name: str) -> None:
    net, x = double(NETWORKS[name]), images()
    start = copy.deepcopy(net.state_dict())
    count = len(view := view_of(net, x))
    partial = Partial(view)

    def same(wanted_of: Callable[[], Tensor], *masks: Tensor | None) -> None:
        net.load_state_dict(start)
        wanted = step(net, wanted_of)
        wanted_gradients, wanted_buffers = copy.deepcopy(gradients(net)), copy.deepcopy(dict(net.named_buffers()))
        net.load_state_dict(start)
        torch.testing.assert_close(step(net, lambda: partial(x, *masks)), wanted, rtol=1e-12, atol=1e-12)
        assert_equal(gradients(net), wanted_gradients, 1e-12)
        for buffer, value in net.named_buffers():
            torch.testing.assert_close(value, wanted_buffers[buffer], rtol=1e-12, atol=1e-12, msg=buffer)

    # all blocks: the model itself
    every, ones = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.float64)
    for masks in ((None, None), (every, None), (None, ones), (every[:, None].expand(-1, 6), ones)):
        same(lambda: Whole(net)(x), *masks)

    def lesioned(mask: Tensor) -> Tensor:
        with deleted(view, [index for index in range(count) if not mask[index]]):
            return net(x)

    for mask in (~every, torch.arange(count) % 2 == 0):
        same(lambda mask=mask: lesioned(mask), mask)
        same(lambda mask=mask: lesioned(mask), mask[:, None].expand(-1, 6))


def test_eval_mode_and_another_batch_size() -> None:
    net = double(nets.PreAct)
    view = find_blocks(net, images())
    partial, kept = Partial(view), torch.tensor([True, False, True, False])
    for count in (6, 3):
        with deleted(view, [1, 3]):
            wanted = step(net, lambda count=count: net(images(count)))
        torch.testing.assert_close(step(net, lambda count=count: partial(images(count), kept)), wanted)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad(), deleted(view, [1, 3]):
        wanted = net(images())
    torch.testing.assert_close(partial(images(), kept), wanted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def drawn(blocks: int, count: int) -> Tensor:
    kept = torch.rand(blocks, count, generator=torch.Generator().manual_seed(3)) < 0.5
    kept[1] = False  # no image keeps it
    kept[2] = True
    return kept


FACTORS = torch.tensor([1.5, 2.0, 0.75, 1.0, 1.25, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("factors", [None, FACTORS])
def test_masks_and_factors_of_single_images(factors: Tensor | None) -> None:
    net, x = small_net().train(), images()
    twin, kept = copy.deepcopy(net), drawn(6, 6)

    def by_hand() -> Tensor:
        state = twin.stem(x)
        for index, block in enumerate(twin.blocks):
            total = block.shortcut(state)
            if kept[index].any():  # else its batch norms do not see the batch
                weight = kept[index].double() * (1.0 if factors is None else factors[index])
                total = total + weight[:, None, None, None] * block.branch(state)
            state = F.relu(total)
        return twin.fc(state.mean((2, 3)))

    partial = Partial(find_blocks(net, x))
    logits, wanted = step(net, lambda: partial(x, kept, factors)), step(twin, by_hand)
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-12)
    assert_equal(gradients(net), gradients(twin), 1e-12)
    same_buffers(net, twin)


def test_images_that_skip_a_gated_block_carry_their_input() -> None:
    net, x = double(nets.Highway), torch.randn(6, 12, dtype=torch.float64)
    twin, kept, factors = copy.deepcopy(net), drawn(3, 6), FACTORS[:3]

    def by_hand() -> Tensor:
        state = twin.plain(x)
        for index, block in enumerate(twin.blocks):
            gate = torch.sigmoid(block.t(state))
            mixed = factors[index] * torch.relu(block.h(state)) * gate + state * (1 - gate)
            state = torch.where(kept[index][:, None], mixed, state)
        return twin.out(state)

    partial = Partial(find_blocks(net, x))
    torch.testing.assert_close(step(net, lambda: partial(x, kept, factors)), step(twin, by_hand))
    assert_equal(gradients(net), gradients(twin), 1e-12)


def test_images_that_skip_a_plain_layer() -> None:
    net, x = double(Plain), images()
    twin, kept = copy.deepcopy(net), torch.tensor([[True] * 6, [False, True, True, False, False, True]])

    def by_hand() -> Tensor:
        state = F.relu(twin.norms[0](twin.layers[0](x)))
        layer = 2.0 * F.relu(twin.norms[1](twin.layers[1](state)))
        state = torch.where(kept[1][:, None, None, None], layer, state)
        return twin.fc(F.relu(twin.norms[2](twin.layers[2](state))).mean((2, 3)))

    view = view_of(net, x)
    kept = torch.cat([kept, torch.ones(len(view) - 2, 6, dtype=torch.bool)])
    factors = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)[: len(view)]
    torch.testing.assert_close(step(net, lambda: Partial(view)(x, kept, factors)), step(twin, by_hand))
    assert_equal(gradients(net), gradients(twin), 1e-12)


def test_a_block_that_runs_for_images_elsewhere() -> None:
    """It sees the batch in its batch norms and adds nothing to it."""
    net, x = small_net().train(), images()
    twin = copy.deepcopy(net)
    kept = torch.ones(6, 6, dtype=torch.bool)
    kept[4] = False

    def by_hand() -> Tensor:
        state = twin.stem(x)
        for index, block in enumerate(twin.blocks):
            total, branch = block.shortcut(state), block.branch(state)
            state = F.relu(total if index == 4 else total + branch)
        return twin.fc(state.mean((2, 3)))

    logits = step(net, lambda: Partial(find_blocks(net, x))(x, kept, None, torch.ones(6, dtype=torch.bool)))
    torch.testing.assert_close(logits, step(twin, by_hand))
    assert_equal(gradients(net), gradients(twin), 1e-12)
    same_buffers(net, twin)
    assert not torch.equal(net.blocks[4].bn1.running_mean, small_net().blocks[4].bn1.running_mean)


def flops(run: Callable[[], Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        logits = run()
        forward = counter.get_total_flops()
        logits.sum().backward()
    return forward, counter.get_total_flops() - forward


def test_a_deleted_branch_costs_nothing() -> None:
    net, x = double(lambda: preresnet(14, in_channels=3, widths=(4, 4, 6))), images()
    partial = Partial(find_blocks(net, x))

    def conv(cin: int, cout: int, side: int) -> int:
        return 2 * 6 * side**2 * 9 * cin * cout

    branches = [2 * conv(4, 4, 8)] * 2 + [2 * conv(4, 4, 4)] * 2 + [conv(4, 6, 2) + conv(6, 6, 2), 2 * conv(6, 6, 2)]
    stem, head = conv(3, 4, 8), 2 * 6 * 6 * 10
    for mask in ([False] * 6, [True, False, False, True, True, False], [True] * 6):
        inside = sum(cost for cost, keep in zip(branches, mask, strict=True) if keep)
        forward, backward = flops(lambda mask=mask: partial(x, torch.tensor(mask)))
        assert forward == stem + head + inside
        # twice as much on the way back, but for the gradient at the images
        assert backward == stem + 2 * head + 2 * inside
    once = torch.zeros(6, 6, dtype=torch.bool)
    once[1, 0] = True  # a single image keeps one block
    assert flops(lambda: partial(x, once))[0] == stem + head + branches[1]


@pytest.mark.parametrize(("post", "first", "last"), [(False, 0, 0), (True, 1, 2), (True, 0, 3)])
def test_restricted_backward_passes_equal_enumerated_paths(post: bool, first: int, last: int) -> None:
    net, (x, labels) = make(post, True), batch()
    wanted = paths_oracle(copy.deepcopy(net), x, labels, lambda taken, index, part: first <= len(taken) <= last)
    twin = copy.deepcopy(net)
    twin(x)
    network = Restricted(find_blocks(net, x), first, last)
    start = copy.deepcopy(net.state_dict())
    for _ in range(2):  # the network is cut once
        net.load_state_dict(start)
        net.zero_grad()
        F.cross_entropy(network(x), labels).backward()
        assert_equal(gradients(net), wanted)
        same_buffers(net, twin)


def compiled_pieces(depth: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How often ``torch.compile`` is asked, and pieces that ask."""
    with monkeypatch.context() as patch:
        asked: list[nn.Module] = []
        patch.setattr(torch, "compile", lambda module: (asked.append(module), module)[1])
        net = double(lambda: preresnet(depth, in_channels=3, widths=(4, 4, 6)))
        x, view = images(), find_blocks(net, images())
        partial, plain = Partial(view, compiled=True), Partial(view)
        start = copy.deepcopy(net.state_dict())
        for kept in (None, drawn(len(view), 6)):
            net.load_state_dict(start)
            wanted = step(net, lambda kept=kept: plain(x, kept))
            net.load_state_dict(start)
            torch.testing.assert_close(step(net, lambda kept=kept: partial(x, kept)), wanted)
    assert partial._compiled is not None
    assert len(asked) == len(partial._compiled)
    return len(asked), len(view)


def test_compiled_pieces_do_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    (shallow, few), (deep, many) = compiled_pieces(14, monkeypatch), compiled_pieces(20, monkeypatch)
    assert (few, many) == (6, 9)
    assert shallow == deep


def compiled_is_plain(net: nn.Module, masks: list[list[bool]]) -> None:
    twin, x = copy.deepcopy(net), images()
    partial, plain = Partial(find_blocks(net, x), compiled=True), Partial(find_blocks(twin, x))
    for kept in (None, *map(torch.tensor, masks)):
        logits = step(net, lambda kept=kept: partial(x, kept))
        wanted = step(twin, lambda kept=kept: plain(x, kept))
        torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)
        assert_equal(gradients(net), gradients(twin), 1e-9)
        same_buffers(net, twin)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same() -> None:
    """Compiling takes seconds for each structure: one kind of block, with its branch and without it."""
    net = double(lambda: Net(PaddedShortcut(8, 8), PaddedShortcut(8, 8), out=8))
    with torch._inductor.config.patch(compile_threads=1):
        compiled_is_plain(net, [[True, False]])


def test_compiled_pieces_serve_blocks_of_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling up to the machine code: what is captured, for which shapes it holds, what it mutates."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    net = double(lambda: preresnet(14, in_channels=3, widths=(4, 4, 4)))
    compiled_is_plain(net, [[True, False, True, True, False, True]])
