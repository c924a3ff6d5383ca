"""The restricted backward pass against enumerated paths, one autograd product at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pathlens import find_blocks, restrict_backward
from pathlens.errors import UsageError

torch.manual_seed(0)


class Block(nn.Module):
    """Pre- or post-activation, with or without a projection, with a norm after the addition where asked."""

    def __init__(self, cin, cout, stride=1, post=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout)
        self.down = nn.Conv2d(cin, cout, 1, stride) if stride != 1 or cin != cout else None
        self.post = nn.GroupNorm(1, cout) if post else None

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def skip(self, x):
        return x if self.down is None else self.down(x)

    def end(self, total):
        return total if self.post is None else F.relu(self.post(total))

    def forward(self, x):
        return self.end(self.branch(x) + self.skip(x))


class Net(nn.Module):
    def __init__(self, post):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList([Block(4, 4, 1, post), Block(4, 6, 2, post), Block(6, 6, 1, post)])
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def paths_oracle(net, images, labels, allowed):
    """Parameter gradients, from the definition: one product for each path from the loss to each parameter.

    ``allowed(taken, index, part)`` says whether a path counts; ``taken`` are the blocks whose branch it went through.
    """
    grads = {name: torch.zeros_like(p) for name, p in net.named_parameters()}

    def collect(value, cotangent, module, prefix):
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(
            value, [p for _, p in named], cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for (name, _), grad in zip(named, found, strict=True):
            grads[prefix + name] += grad

    def product(value, start, cotangent):
        return torch.autograd.grad(value, start, cotangent, retain_graph=True)[0]

    stem = net.stem(images)
    x = stem.detach().requires_grad_()
    steps = []
    for block in net.blocks:
        branch, skip = block.branch(x), block.skip(x)
        total = (branch + skip).detach().requires_grad_()
        end = block.end(total)
        steps.append((block, x, branch, skip, total, end))
        x = end.detach().requires_grad_()
    loss = F.cross_entropy(net.fc(x.mean((2, 3))), labels)
    collect(loss, torch.ones(()).double(), net.fc, "fc.")
    seed = product(loss, x, torch.ones(()).double())
    count = len(steps)
    # every way of going back: for each block downwards, branch or skip
    frontier = [((), seed)]
    for index in reversed(range(count)):
        block, start, branch, skip, total, end = steps[index]
        onward = []
        for taken, cotangent in frontier:
            if block.post is not None:
                if allowed(taken, index, "post"):
                    collect(end, cotangent, block.post, f"blocks.{index}.post.")
                cotangent = product(end, total, cotangent)  # noqa: PLW2901
            with_branch = (index, *taken)
            if allowed(with_branch, index, "branch"):
                for part in ("conv1", "bn1", "conv2", "bn2"):
                    collect(branch, cotangent, getattr(block, part), f"blocks.{index}.{part}.")
            if block.down is not None and allowed(taken, index, "skip"):
                collect(skip, cotangent, block.down, f"blocks.{index}.down.")
            onward.append((with_branch, product(branch, start, cotangent)))
            onward.append((taken, cotangent if block.down is None else product(skip, start, cotangent)))
        frontier = onward
    for taken, cotangent in frontier:
        if allowed(taken, 0, "stem"):
            collect(stem, cotangent, net.stem, "stem.")
    return grads


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=generator).double(), torch.randint(5, (n,), generator=generator)


def make(post, train):
    torch.manual_seed(3)
    net = Net(post).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    return net.train(train)


def gradients(net):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}


def assert_equal(found, wanted, tolerance=1e-10):
    assert found.keys() == wanted.keys()
    for name in found:
        scale = max(1.0, float(wanted[name].abs().max()))
        torch.testing.assert_close(
            found[name], wanted[name], rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


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
