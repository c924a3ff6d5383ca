"""Parameter gradients over some paths, from the definition, and a network to take them of."""

from __future__ import annotations

import gc
import weakref

import torch
import torch.nn.functional as F
from torch import nn


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


class Tuned(nn.Module):
    """Branches are multiplied by a tensor and moved by a buffer that are learned, or by parameters of these names."""

    def __init__(self, registered):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.double()
        scale, shift = (torch.rand(4, 1, 1).double() + 0.5 for _ in range(2))
        if registered:
            self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)
        else:
            self.scale = scale.requires_grad_()
            self.register_buffer("shift", shift.requires_grad_())

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            x = x + torch.tanh(conv(x) * self.scale + self.shift)
        return x.mean((2, 3))


class Saved:
    """A tensor that autograd has saved; a tensor itself cannot tell, since others share its memory."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


def saving():
    """What autograd saves in a with block, for as long as it keeps it, and that block."""
    kept = weakref.WeakSet()

    def pack(tensor):
        saved = Saved(tensor)
        kept.add(saved)
        return saved

    return kept, torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor)


def assert_freed_by_backward(loss_of, between=lambda: None):
    """Activations of a loss are freed by its backward pass, unless they are to be kept for another one.

    Args:
        loss_of: computes it.
        between: called between the two.
    """
    kept, block = saving()
    with block:
        loss = loss_of()
    gc.collect()
    count = len(kept)
    assert count > 0
    loss.backward(retain_graph=True)
    assert len(kept) == count
    between()
    loss.backward()
    gc.collect()
    assert not kept


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
