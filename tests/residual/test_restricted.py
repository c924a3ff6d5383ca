"""The restricted backward pass against enumerated paths, one autograd product at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from pathlens import find_blocks, restrict_backward
from pathlens.errors import UsageError
from tests.helpers.restricted_oracle import (
    Tuned,
    assert_equal,
    assert_freed_by_backward,
    batch,
    gradients,
    make,
    paths_oracle,
)

torch.manual_seed(0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("lengths", [{0}, {1}, {2}, {3}, {0, 2}, {1, 2}, {0, 1, 2, 3}])
def test_lengths_equal_enumerated_paths(post, train, lengths):
    net, (images, labels) = make(post, train), batch()
    wanted = paths_oracle(copy.deepcopy(net), images, labels, lambda taken, index, part: len(taken) in lengths)
    with restrict_backward(net, lengths=lengths):
        F.cross_entropy(net(images), labels).backward()
    assert_equal(gradients(net), wanted)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("path", [(), (0,), (2,), (0, 2), (0, 1, 2)])
def test_one_path_equals_its_product(train, path):
    net, (images, labels) = make(True, train), batch()

    def allowed(taken, index, part):
        # the blocks passed so far must be exactly those of the path from here on
        if part == "skip":
            return index not in path and set(taken) == {b for b in path if b > index}
        first = index if part in ("branch", "stem") else index + 1
        return set(taken) == {b for b in path if b >= first} and (part != "branch" or index in path)

    wanted = paths_oracle(copy.deepcopy(net), images, labels, allowed)
    with restrict_backward(net, path=path):
        F.cross_entropy(net(images), labels).backward()
    assert_equal(gradients(net), wanted)


@pytest.mark.parametrize("train", [False, True])
def test_all_lengths_equal_the_ordinary_backward_pass(train):
    net, (images, labels) = make(True, train), batch()
    plain = copy.deepcopy(net)
    loss = F.cross_entropy(plain(images), labels)
    loss.backward()
    images = images.clone().requires_grad_()
    with restrict_backward(net, lengths=range(4)):
        restricted = F.cross_entropy(net(images), labels)
        restricted.backward()
    assert torch.equal(restricted, loss)
    assert_equal(gradients(net), gradients(plain), 1e-12)
    assert images.grad is not None
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer, msg=name)


def test_a_training_step_on_the_users_own_loop():
    net, (images, labels) = make(False, True), batch(16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    frozen = net.blocks[2].conv1.weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    losses = []
    view = find_blocks(net, images)
    for step in range(25):
        optimizer.zero_grad()
        # a model does as well, but is traced every time
        with restrict_backward(view if step else net, lengths=range(1, 3)):
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(frozen, before)
    assert frozen.grad is None


def test_gradients_accumulate_like_ordinary_ones():
    net, (images, labels) = make(False, False), batch()
    for _ in range(2):
        with restrict_backward(net, lengths=[1]):
            F.cross_entropy(net(images), labels).backward()
    twice = gradients(net)
    net.zero_grad()
    with restrict_backward(net, lengths=[1]):
        F.cross_entropy(net(images), labels).backward()
    assert_equal(twice, {name: 2 * grad for name, grad in gradients(net).items()}, 1e-12)


def learned(net):
    return {**gradients(net), "scale": net.scale.grad, "shift": net.shift.grad}


@pytest.mark.parametrize("lengths", [{1}, {0, 2}, {0, 1, 2}])
def test_learned_tensors_that_are_no_parameters_get_their_gradient(lengths):
    restricted = []
    for registered in (True, False):
        net, (images, _) = Tuned(registered), batch()
        with restrict_backward(net, lengths=lengths):
            net(images).square().sum().backward()
        restricted.append(learned(net))
    wanted, found = restricted
    assert wanted["scale"].any()
    assert_equal(found, wanted, 1e-12)
    if len(lengths) == 3:
        plain = Tuned(registered=False)
        plain(batch()[0]).square().sum().backward()
        assert_equal(found, learned(plain), 1e-12)


@pytest.mark.parametrize("choice", [{"lengths": [1, 2]}, {"path": [0, 2]}])
def test_activations_are_freed_by_the_backward_pass_unless_they_are_to_be_kept(choice):
    net, (images, labels) = make(True, True), batch()
    once = {}

    def note():
        once.update({name: grad.clone() for name, grad in gradients(net).items()})

    with restrict_backward(find_blocks(net, images), **choice):
        assert_freed_by_backward(lambda: F.cross_entropy(net(images), labels), note)
    assert_equal(gradients(net), {name: 2 * grad for name, grad in once.items()}, 1e-12)


def test_a_second_backward_pass_of_freed_activations_is_refused():
    net, (images, _) = Tuned(registered=True), batch()
    with restrict_backward(net, lengths=[1]):
        total = net(images).sum()
        total.backward()
        with pytest.raises(UsageError, match="freed by an earlier one; give that one retain_graph=True") as error:
            total.backward()
    assert "\n" not in str(error.value)


def test_without_gradients_nothing_is_saved():
    net, (images, _) = make(True, True), batch()
    view, plain = find_blocks(net, images), copy.deepcopy(net)

    def refuse(tensor):
        raise AssertionError("a tensor is saved")

    with torch.no_grad():
        wanted = plain(images)
        with restrict_backward(view, lengths=[1]), torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
            found = net(images)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(dict(net.named_buffers()), dict(plain.named_buffers()))


def test_bad_requests_are_one_clear_line():
    net, (images, _) = make(False, False), batch()
    view = find_blocks(net, images)
    for arguments, words in (
        ({"lengths": [4]}, "outside 0..3"),
        ({"lengths": []}, "none"),
        ({"lengths": [-1]}, "0 or more"),
        ({"path": [3]}, "does not exist"),
        ({"path": [1, 1]}, "twice"),
        ({}, "either"),
        ({"lengths": [1], "path": [1]}, "either"),
    ):
        with pytest.raises(UsageError, match=words), restrict_backward(view, **arguments):
            pass
        assert "forward" not in net.__dict__
    with pytest.raises(UsageError, match="no forward pass ran inside"), restrict_backward(net, lengths=[1]):
        pass
    with pytest.raises(ZeroDivisionError), restrict_backward(net, lengths=[1]):
        raise ZeroDivisionError
    assert "forward" not in net.__dict__
