"""The restricted backward pass against enumerated paths, one autograd product at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from pathlens import find_blocks, restrict_backward
from pathlens.errors import UsageError
from tests.helpers.restricted_oracle import assert_equal, batch, gradients, make, paths_oracle

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
