"""A trained network whose blocks are no chain: its gradients by path length against autograd with weighted branches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pathlens
from pathlens.models import strictunet
from pathlens.residual.polynomials import GraphLinearisation
from pathlens.training import Recipe, train

CLASSES = 11


class Weighted(torch.autograd.Function):
    """The identity, of which the derivative is z."""

    @staticmethod
    def forward(context, x, z):
        context.z = z
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        return context.z * gradient, None


@pytest.fixture(scope="module")
def trained(one_thread):
    """A small strict U-Net after a short training, in float64."""
    torch.manual_seed(0)
    net = strictunet((1, 1, 1), 4, CLASSES)
    data = pathlens.open_data("digit-scenes", split="train", limit=96)
    recipe = Recipe(epochs=5, batch_size=8, lr=0.05, crop=0, flip=False, warmup=0, schedule="constant")
    history = []
    train(net, data, recipe=recipe, device="cpu", on_epoch=history.append)
    targets = data.rows(torch.arange(data.n))[1]
    shares = torch.bincount(targets.flatten(), minlength=CLASSES).double() / targets.numel()
    # better than any answer that is the same for all pixels
    assert history[-1]["train_loss"] < float(torch.special.entr(shares).sum())
    return net.double().eval()


def last_of_branches(net):
    """The modules whose outputs are added to a shortcut: of each block, and of each level but the first."""
    return [unit.convs[-1] for level in (*net.down, *net.up) for unit in level] + list(net.after)


def pixels(outputs, targets):
    """The mean cross-entropy of each image's pixels."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none").mean((1, 2))


def test_lengths_are_what_weighted_branches_give(trained):
    data = pathlens.open_data("digit-scenes", split="test", limit=2)
    batch = data.batch(0, 2, dtype=torch.float64)
    images, targets = batch.images, batch.labels
    view = pathlens.find_blocks(trained, images, additions="all")
    ends = last_of_branches(trained)
    assert len(view) == len(ends)
    # the gradient with every branch weighted by z is a polynomial in z whose coefficients are those of the lengths
    places = torch.cos(torch.linspace(0, torch.pi, len(ends) + 1, dtype=torch.float64))
    gradients = []
    for z in places.tolist():
        hooks = [end.register_forward_hook(lambda _, __, out, z=z: Weighted.apply(out, z)) for end in ends]
        start = images.clone().requires_grad_()
        gradients.append(torch.autograd.grad(pixels(trained(start), targets).sum(), start)[0])
        for hook in hooks:
            hook.remove()
    powers = places[:, None] ** torch.arange(len(ends) + 1)
    wanted = torch.linalg.solve(powers, torch.stack(gradients).flatten(1)).unflatten(1, images.shape)
    table = pathlens.path_gradients(view, [(images, targets)], method="exact", mode="eval")
    found = {row["length"]: row["total_norm"] for row in table.rows}
    expected = wanted.flatten(2).norm(dim=2).mean(1)
    largest = float(expected.max())
    for length, norm in enumerate(expected.tolist()):
        assert found.get(length, 0.0) == pytest.approx(norm, rel=1e-8, abs=1e-10 * largest)
    assert sum(norm > 1e-6 * largest for norm in expected.tolist()) > len(ends) // 2  # most lengths have a part in it
    profile = GraphLinearisation(view, images, targets, loss=pixels).exact()
    for length, gradient in zip(profile.lengths, profile.gradients, strict=True):
        torch.testing.assert_close(gradient, wanted[length], rtol=1e-8, atol=1e-10 * largest)


@pytest.mark.parametrize("block", [1, 3])
def test_a_deleted_branch_is_a_branch_of_zeros(trained, block):
    images = pathlens.open_data("digit-scenes", split="test", limit=2).batch(0, 2, dtype=torch.float64).images
    # the block of the middle level on the way down, and all that lies below the middle level
    end = {1: trained.down[1][0].convs[-1], 3: trained.after[1]}[block]
    intact = trained(images)
    hook = end.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    wanted = trained(images)
    hook.remove()
    with pathlens.deleted(pathlens.find_blocks(trained, images, additions="all"), block):
        found = trained(images)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert float((found - intact).detach().abs().max()) > 1e-3
