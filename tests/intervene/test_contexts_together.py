"""Interventions that meet: on a model and its parts, in threads, in pickles, and with what the user does inside."""

from __future__ import annotations

import _thread
import contextlib
import copy
import io
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pathlens
from pathlens import deleted, find_blocks, plans, reordered, restrict_backward, skips_deleted
from pathlens.errors import NumericsError, UsageError
from tests.helpers.path_oracle import Minus, Net, Post, Pre, drawn, images

close = torch.testing.assert_close


class Wrapped(nn.Module):
    """A network with a normalisation before it and something after it."""

    def __init__(self, net: nn.Module, times: int = 1):
        super().__init__()
        self.net, self.times = net, times

    def forward(self, x):
        x = x * 2 - 0.1
        for _ in range(self.times - 1):
            x = x * self.net(x).mean()
        return self.net(x).tanh()


class Followed(nn.Module):
    """A network with a residual block of its own before another network's blocks."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.own, self.net = Minus(3), net

    def forward(self, x):
        return self.net(self.own(x))


class Around(nn.Module):
    """A network in the branch of a block."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.out = net, nn.Linear(3, 3)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.out(x + self.net(x[:, :, None, None] * x.new_ones(6, 6)))


def small() -> Net:
    return drawn(Net([Post(4, 4), Pre(4, 4), Minus(4), Post(4, 4)]))


@pytest.fixture(scope="module")
def wrapped():
    outer = Wrapped(small())
    return outer, find_blocks(outer, images()), find_blocks(outer.net, images())


@pytest.fixture(scope="module")
def model():
    net = small()
    return net, find_blocks(net, images())


# a model and a part of it


@pytest.mark.parametrize("part_first", [True, False])
@pytest.mark.parametrize("by_view", [True, False])
@torch.no_grad()
def test_plans_on_a_part_add_up_with_those_on_the_whole(wrapped, part_first, by_view):
    outer, view, inner = wrapped
    whole, part = (view, inner) if by_view else (outer, outer.net)
    with deleted(view, [0, 1]):
        wanted = outer(images())
    pair = [lambda: deleted(part, -4), lambda: deleted(whole, 1)]
    first, second = pair if part_first else pair[::-1]
    with first(), second():
        close(outer(images()), wanted, rtol=0, atol=0)
    with skips_deleted(view, 2), reordered(view, [3, 1, 2, 0]):
        wanted = outer(images())
    with reordered(part, [3, 1, 2, 0]), skips_deleted(whole, 2):
        close(outer(images()), wanted, rtol=0, atol=0)
    assert "forward" not in {*outer.__dict__, *outer.net.__dict__}


@pytest.mark.parametrize("part_first", [True, False])
@torch.no_grad()
def test_orders_on_a_part_and_on_the_whole_act_as_they_were_entered(wrapped, part_first):
    outer, view, inner = wrapped
    orders = [1, 2, 0, 3], [0, 2, 3, 1]
    with reordered(view, orders[0]), reordered(view, orders[1]):
        wanted = outer(images())
    with reordered(view, orders[1]), reordered(view, orders[0]):
        assert not torch.allclose(outer(images()), wanted)
    first, second = (inner, view) if part_first else (view, inner)
    with reordered(first, orders[0]), reordered(second, orders[1]):
        close(outer(images()), wanted, rtol=0, atol=0)


@torch.no_grad()
def test_a_part_has_its_own_numbers():
    outer = Followed(small()).double().eval()
    view = find_blocks(outer, images())
    assert len(view) == 5
    with deleted(view, [0, 2]):
        wanted = outer(images())
    with deleted(outer.net, 1), deleted(outer, 0):
        close(outer(images()), wanted, rtol=0, atol=0)


@torch.no_grad()
def test_orders_of_a_part_are_those_of_its_own_numbers():
    """Orders that are not their own inverse, on a part whose blocks are not the first."""
    outer = Followed(small()).double().eval()
    blocks, inner = find_blocks(outer, images()), find_blocks(outer.net, images())

    def by_hand(order):
        x = inner.stem(outer.own(images()))
        for block in order:
            x = inner.run(x, block, block + 1)
        return inner.head(x)

    for order in ([0, 2, 3, 1], [0, 3, 1, 2]):
        wanted = by_hand(order)
        for part in (outer.net, inner):
            with reordered(part, order):
                close(outer(images()), wanted)
        with reordered(blocks, [0, *(block + 1 for block in order)]):
            close(outer(images()), wanted)


@torch.no_grad()
def test_orders_in_each_other(model):
    """The inner one moves what the outer one has put there; they do not commute."""
    net, view = model
    first, second = [1, 2, 0, 3], [0, 2, 3, 1]

    def by_hand(order):
        x = view.stem(images())
        for block in order:
            x = view.run(x, block, block + 1)
        return view.head(x)

    both = [first[position] for position in second], [second[position] for position in first]
    assert both[0] != both[1]
    with reordered(net, first), reordered(net, second):
        found = net(images())
    close(found, by_hand(both[0]))
    assert not torch.allclose(found, by_hand(both[1]))


def test_a_restriction_on_a_part(wrapped):
    outer, view, inner = wrapped

    def gradient(*contexts):
        x = images().requires_grad_()
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            outer(x).square().sum().backward()
        return x.grad

    wanted = gradient(deleted(view, 1), restrict_backward(view, [1, 3]))
    close(gradient(restrict_backward(inner, [1, 3]), deleted(view, 1)), wanted, rtol=0, atol=0)
    close(gradient(deleted(inner, 1), restrict_backward(view, [1, 3])), wanted, rtol=0, atol=0)
    with pytest.raises(UsageError, match="active on this model and on a part of it"):
        gradient(restrict_backward(inner, [1]), restrict_backward(view, [1]))
    followed = Followed(small()).double().eval()
    with (
        pytest.raises(UsageError, match="net, which has 4 of the 5 blocks"),
        restrict_backward(followed.net, [1]),
        deleted(followed, 0),
    ):
        followed(images())


@pytest.mark.parametrize("make", [lambda: Wrapped(small(), times=2), lambda: Around(small())], ids=["twice", "nested"])
def test_parts_that_are_not_of_the_trunk_are_refused(make):
    outer = make().double().eval()
    words = f"on {type(outer).__name__} and on its part net \\(Net\\), whose blocks are not blocks of the whole"
    with pytest.raises(UsageError, match=words) as caught, deleted(outer.net, 0), deleted(outer, 0):
        outer(images())
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="block 4 does not exist: net has 4 blocks"):
        plans.delete(4).lift(range(1, 5), 6, "net")


def test_the_studies_know_of_the_interventions_around_them(wrapped):
    outer, view, inner = wrapped
    data = [(images(), torch.tensor([0, 2]))]
    with deleted(view, [1, 2]):
        wanted = pathlens.path_gradients(view, data, method="exact").rows
    with deleted(inner, 1):
        found = pathlens.path_gradients(outer, data, method="exact", lesion=plans.delete(2), dtype="float64")
        assert found.rows == wanted
        with pytest.raises(UsageError, match=r"an intervention is active on Wrapped.*outside the with block"):
            pathlens.delete_blocks(view, data)


# threads


@torch.no_grad()
def test_each_thread_has_its_own_plans(model):
    net, view = model
    x = images()
    wanted = {None: net(x)}
    for block in range(4):
        with deleted(view, block):
            wanted[block] = net(x)
    start = threading.Barrier(5)

    def work(block):
        found = []
        start.wait(60)
        for _ in range(25):
            with torch.no_grad(), contextlib.nullcontext() if block is None else deleted(view, block):
                found += [net(x), net(x)]
        return found

    with ThreadPoolExecutor(5) as pool:
        for block, found in zip([None, *range(4)], pool.map(work, [None, *range(4)]), strict=True):
            for one in found:
                close(one, wanted[block], rtol=0, atol=0)
    assert "forward" not in net.__dict__


@torch.no_grad()
def test_threads_may_trace_while_others_compute():
    net, x = small(), images()
    view = find_blocks(net, x)
    with deleted(view, 1):
        wanted = net(x)
    done = threading.Event()

    def compute():
        found = []
        with torch.no_grad(), deleted(view, 1):
            while not done.is_set() or not found:
                found.append(net(x))
        return found

    def trace(_):
        with torch.no_grad(), deleted(net, 1):  # a model, which is traced in every block
            return net(x)

    with ThreadPoolExecutor(4) as pool:
        computing = pool.submit(compute)
        try:
            traced = list(pool.map(trace, range(3)))
        finally:
            done.set()
        for found in (*computing.result(), *traced):
            close(found, wanted, rtol=0, atol=0)
    assert "forward" not in net.__dict__


def test_a_plan_that_begins_while_the_last_one_ends_acts(model):
    net, view = model

    def enter(_):
        acting = 0
        for _ in range(3000):
            with deleted(view, 1):
                forward = net.__dict__.get("forward")
                acting += forward is not None and bool(forward.active())
        return acting

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(enter, range(4))) == [3000] * 4
    finally:
        sys.setswitchinterval(before)
    assert "forward" not in net.__dict__


def test_a_forward_pass_of_another_thread_is_none_of_this_one(model):
    net, view = model
    with (
        pytest.raises(UsageError, match="no forward pass ran inside"),
        restrict_backward(view, 1),
        ThreadPoolExecutor(1) as pool,
    ):
        close(pool.submit(net, images()).result(), net.head(run(net, images())))


def run(net, x):
    x = net.stem(x)
    for block in net.blocks:
        x = block(x)
    return x


def test_checkpointing_on_a_thread_of_autograd_repeats_the_lesion():
    """On a GPU autograd has threads of its own, on which nobody entered a ``with`` block."""
    net = small()
    view = find_blocks(net, images())
    x = images().requires_grad_()
    with deleted(view, [0, 2]):
        (wanted,) = torch.autograd.grad(net(x).square().sum(), x)
        loss = checkpoint(net, x, use_reentrant=False).square().sum()
        failed, ended = [], threading.Event()

        def backward():
            try:
                loss.backward()
            except BaseException as error:
                failed.append(error)
            ended.set()

        _thread.start_new_thread(backward, ())
        assert ended.wait(60)
    assert not failed
    close(x.grad, wanted)


# what the user does inside


@pytest.mark.parametrize("nested", [False, True])
def test_a_forward_that_the_user_assigns_inside_is_kept(model, nested):
    net, view = model

    def own(x):
        return 7 * x

    try:
        with deleted(view, 0):
            net.forward = own
            if nested:
                with deleted(net, 1):
                    assert net.forward is not own
                assert net.forward is own
            assert torch.equal(net(images()), 7 * images())
        assert net.__dict__["forward"] is own
    finally:
        del net.forward
    with deleted(view, 0):
        del net.forward
    assert "forward" not in net.__dict__


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("keep", [pickled, saved, copy.deepcopy])
@torch.no_grad()
def test_what_is_saved_inside_is_the_network_itself(wrapped, keep):
    outer, view, inner = wrapped
    with deleted(view, 0), restrict_backward(inner, [1]):
        twin = keep(outer)
        lesioned = outer(images())
    close(twin(images()), outer(images()), rtol=0, atol=0)
    assert not torch.allclose(lesioned, outer(images()))
    again = keep(twin)
    again.net.last.bias.zero_()
    assert not torch.allclose(again(images()), twin(images()))
    with deleted(again, 0):
        assert not torch.allclose(again(images()), twin(images()))


@pytest.mark.parametrize("keep", [pickled, saved, copy.deepcopy])
@pytest.mark.parametrize("layers", [False, True])
@torch.no_grad()
def test_views_are_saved_with_their_model(model, keep, layers):
    net, view = model
    if layers:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        net = net.double().eval()
        view = pathlens.find_layers(net, images())
    twin, its_model = keep((view, view.model))
    assert twin.model is its_model
    assert twin.model is not net
    assert list(twin) == list(view)
    close(twin.stem(images()), view.stem(images()), rtol=0, atol=0)
    with deleted(view, 1):
        wanted = net(images())
    with deleted(twin, 1):
        close(twin.model(images()), wanted, rtol=0, atol=0)


# hooks


@pytest.mark.parametrize("pre", [False, True])
def test_hooks_that_change_values_are_named(pre):
    net = small()
    data = [(images(), torch.tensor([0, 2]))]
    view = find_blocks(net, images())
    quiet = net.blocks[0].register_forward_hook(lambda module, args, out: None)
    pathlens.path_gradients(view, data, method="exact")
    quiet.remove()
    if pre:
        net.blocks[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    else:
        net.blocks[2].register_forward_hook(lambda module, args, out: out * 2)
    words = "Net's own forward by .*hooks do not run in it, and there are some on blocks.2; remove them"
    for call in (
        lambda: pathlens.path_gradients(view, data),
        lambda: pathlens.lattice(net, data, dtype="float32"),
        lambda: pathlens.path_gradients(view, data, mode="train"),
        lambda: pathlens.path_gradients(view, data, lesion=plans.delete(0)),
        lambda: pathlens.delete_blocks(view, data),
        lambda: pathlens.delete_blocks(view, data, fast=False),
    ):
        with pytest.raises(NumericsError, match=words) as caught:
            call()
        assert "plain-forward" not in str(caught.value)


def test_a_network_that_draws_at_random_is_told_so():
    net = nn.Sequential(small(), nn.Dropout(0.5)).double()
    before = copy.deepcopy(net.state_dict())
    data = [(images(8), torch.tensor([0, 2] * 4))]
    with pytest.raises(NumericsError, match="draws at random in this mode"):
        pathlens.path_gradients(net, data, mode="train")
    pathlens.path_gradients(net, data, method="exact")
    close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
