"""The policy gradient against enumeration and autograd, and a step of the training against plain forward passes."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathlens
from pathlens.data import ImageData, open_data
from pathlens.errors import CheckpointError, NumericsError, RunError, UsageError
from pathlens.metrics import task_named
from pathlens.models import preresnet, resnet, save_weights, state_sha256
from pathlens.policies import Settings, learning
from pathlens.policies import network as policies
from pathlens.policies.learning import Learner
from pathlens.policies.network import PolicyNetwork
from pathlens.policies.rewards import bounded, most_probable, reward, surrogate
from pathlens.policies.routing import chosen_logits
from pathlens.residual import ResidualView, engines
from pathlens.residual.inference import Inference
from pathlens.training.batches import BLOCKS, generator
from tests.helpers.progress import Progress

# networks are so small here that threads only wait for each other
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data("digits", split="train", limit=24)


def view_of(data: ImageData, model: nn.Module) -> ResidualView:
    return pathlens.find_blocks(model.eval().double(), data.batch(0, 2, dtype=torch.float64).images)


@pytest.fixture(scope="module")
def view(data: ImageData) -> ResidualView:
    """Three blocks, two of which change shapes, trained for a moment, so that some answers are right."""
    torch.manual_seed(3)
    model, batch = resnet(8, in_channels=1, widths=(4, 5, 6)), data.batch(0, data.n)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    return view_of(data, model)


def by_choice(view: ResidualView, images: Tensor, kept: Tensor) -> Tensor:
    """Logits by plain forward passes of all images, a choice at a time, with the other blocks deleted."""
    logits = torch.zeros(len(images), 10, dtype=images.dtype)
    for choice in kept.unique(dim=0):
        with pathlens.deleted(view, [block for block, keep in enumerate(choice.tolist()) if not keep]) as model:
            here = (kept == choice).all(1)
            logits = torch.where(here[:, None], model(images), logits)
    return logits


def learner(view: ResidualView, data: ImageData, **settings: Any) -> Learner:
    given = {"epochs": 2, "batch_size": 8, **settings}
    return Learner(view, data, task_named("classification"), None, Settings(**given), data.mean, data.std, CPU)


def test_rewards_by_hand():
    kept = torch.tensor([[True, True, False, False], [True, True, False, False], [False] * 4, [True] * 4])
    correct = torch.tensor([True, False, True, True])
    assert reward(kept, correct, 5.0).tolist() == [0.75, -5.0, 1.0, 0.0]


def test_probabilities_by_hand():
    logits = torch.tensor([0.0, 50.0, -50.0], dtype=torch.float64)
    assert bounded(logits, 0.8).tolist() == pytest.approx([0.5, 0.8, 0.2])
    assert bounded(logits, 1.0).tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert most_probable(logits).tolist() == [False, True, False]


@pytest.fixture(scope="module")
def right(view: ResidualView, data: ImageData) -> dict[tuple[bool, ...], list[bool]]:
    """Whether two images are classified correctly under each choice; not all alike."""
    batch = data.batch(0, data.n, dtype=torch.float64)
    answers = {}
    for choice in product((False, True), repeat=3):
        kept = torch.tensor([choice] * data.n)
        answers[choice] = (by_choice(view, batch.images, kept).argmax(1) == batch.labels).tolist()
    varying = [image for image in range(data.n) if len({given[image] for given in answers.values()}) == 2][:2]
    return {choice: [given[image] for image in varying] for choice, given in answers.items()}


@pytest.mark.parametrize("baseline", ["none", "most probable"])
@pytest.mark.parametrize("choosing", [3, 2])
def test_the_gradient_is_that_of_the_expected_reward(baseline, choosing, right):
    """Over all choices, each with its probability; those of the first blocks are fixed where the last alone choose."""
    logits = torch.tensor([[0.4, -1.1, 0.3], [-0.2, 0.9, 2.0]], dtype=torch.float64, requires_grad=True)
    first = 3 - choosing

    def rewards(kept: Tensor) -> Tensor:
        correct = torch.tensor([right[tuple(row)][image] for image, row in enumerate(kept.tolist())])
        return reward(kept, correct, 2.0)

    likely = most_probable(logits.detach())
    likely[:, :first] = True
    against = rewards(likely) if baseline == "most probable" else torch.zeros(2, dtype=torch.float64)
    expected = logits.new_zeros(2)
    estimated = torch.zeros_like(logits)
    for choice in product((False, True), repeat=choosing):
        kept = torch.tensor([[True] * first + list(choice)] * 2)
        chances = bounded(logits[:, first:], 0.8)
        weight = torch.where(kept[:, first:], chances, 1 - chances).prod(1)
        expected = expected + weight * rewards(kept)
        loss = surrogate(logits[:, first:], kept[:, first:], rewards(kept) - against, 0.8)
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        estimated += weight.detach()[:, None] * gradient
    (exact,) = torch.autograd.grad(-expected.sum(), logits)
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(estimated, exact, atol=1e-14, rtol=1e-12)


NETWORKS = {
    "padding": lambda: resnet(14, in_channels=1, widths=(4, 5, 6)),
    "projection": lambda: resnet(8, in_channels=1, widths=(4, 5, 6), shortcut="projection"),
    "pre-activation": lambda: preresnet(14, in_channels=1, widths=(4, 6, 8)),
    "plain": lambda: resnet(8, in_channels=1, widths=(4, 4, 4), shortcut="none"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_run_together_are_as_images_by_choice(name, data):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval().double()
    images = data.batch(0, 5, dtype=torch.float64).images
    view = pathlens.find_layers(model, images) if name == "plain" else view_of(data, model)
    kept = torch.rand(5, len(view)) < 0.6
    kept[0], kept[1], kept[:, -1] = True, False, True
    kept[:, 0] = True
    other = kept.flip(0)
    expected = by_choice(view, images, kept)
    for engine in ("plain", "folded-3x2"):
        with Inference(view, CPU, torch.float64, engines.named(engine, CPU, torch.float64)) as net:
            own, others = chosen_logits(net, images, [kept, other])
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(others[[4, 0]], chosen_logits(net, images[[4, 0]], [kept[[0, 4]]])[0])


def test_images_of_a_trained_network_run_together_as_one_by_one():
    loaded = pathlens.load_model()
    images = open_data("digits").batch(0, 2, mean=loaded.mean, std=loaded.std).images
    view = pathlens.find_blocks(loaded.model, images)
    kept = torch.rand(2, len(view), generator=torch.Generator().manual_seed(1)) < 0.8
    with torch.no_grad():
        (own,) = chosen_logits(Inference(view), images, [kept])
        for image, row in enumerate(kept.tolist()):
            x = view.stem(images[image : image + 1])
            for block, keep in enumerate(row):
                x = view.run(x, block, block + 1) if keep else view.without_branch(block, x)
            torch.testing.assert_close(own[image : image + 1], view.head(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("joint", [False, True])
def test_a_step_has_the_gradients_of_plain_forward_passes(joint, data, view):
    trained = learner(view, data, joint_epochs=2 if joint else 0, curriculum=4, penalty=1.5, alpha=0.7)
    policy, settings = trained.policy.train(), trained.settings
    step = 6 if joint else 3  # in epoch 2, which is a joint one, or 1
    images, labels, _ = trained._batches(step)
    logits = policy(images)
    drawn = torch.from_numpy(generator(0, BLOCKS, step).random((8, 3)))
    kept, likely = drawn < bounded(logits.detach(), settings.alpha), logits.detach() > 0
    first = 3 - settings.choosing(step / 3, 3)
    kept[:, :first] = likely[:, :first] = True
    assert 0 <= first < 3
    assert not kept.all()
    answers, others = (by_choice(trained.view, images, choice) for choice in (kept, likely))
    rewards = [reward(choice, given.argmax(1) == labels, 1.5) for choice, given in ((kept, answers), (likely, others))]
    loss = surrogate(logits[:, first:], kept[:, first:], rewards[0] - rewards[1], settings.alpha).mean()
    loss = loss + F.cross_entropy(answers, labels) if joint else loss
    parts = [*policy.parameters(), *(trained.view.model.parameters() if joint else ())]
    expected = torch.autograd.grad(loss, parts, allow_unused=True)
    sums = trained._step(step).tolist()
    assert sums[1] == pytest.approx(float(rewards[0].sum()))
    assert sums[2] == int((answers.argmax(1) == labels).sum())
    assert sums[3] == int(kept.sum())
    assert any(gradient.abs().max() > 1e-4 for gradient in expected[: len(list(policy.parameters()))])
    for parameter, gradient in zip(parts, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-10, rtol=1e-7)


class Several(nn.Module):
    """Features before the logits, which are what is studied."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"features": x.flatten(1), "logits": self.net(x)}


def test_joint_epochs_learn_by_the_output_that_is_studied(data, view):
    several = view_of(data, Several(copy.deepcopy(view.model)))
    plain, wrapped = (learner(one, data, epochs=1, joint_epochs=1, curriculum=0).run() for one in (view, several))
    assert state_sha256(wrapped.policy) == state_sha256(plain.policy)
    assert state_sha256(wrapped.view.model.net) == state_sha256(plain.view.model) != state_sha256(view.model)


def test_the_last_blocks_are_chosen_first():
    published = Settings(epochs=20, curriculum=6)
    assert [published.choosing(epoch, 6) for epoch in (0, 0.9, 1, 4.5, 5, 6, 19)] == [1, 1, 2, 5, 6, 6, 6]
    assert [Settings(epochs=4).choosing(epoch, 8) for epoch in (0, 0.25, 1, 1.99, 2)] == [1, 2, 5, 8, 8]
    assert Settings(curriculum=0).choosing(0, 5) == 5


@pytest.mark.parametrize(("joint", "stop"), [(0, 2), (1, 7)])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(joint, stop, data, view, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "_SECONDS", 0.0)
    before = state_sha256(view.model)
    whole = learner(view, data, joint_epochs=joint).run()
    with pytest.raises(KeyboardInterrupt):
        learner(view, data, joint_epochs=joint).run(tmp_path, progress=Progress(stop))
    resumed = Progress()
    again = learner(view, data, joint_epochs=joint).run(tmp_path, progress=resumed)
    assert resumed.told[0][0] == stop + 1
    assert state_sha256(again.policy) == state_sha256(whole.policy)
    assert state_sha256(again.view.model) == state_sha256(whole.view.model)
    timeless = [[{**row, "seconds": 0} for row in learned.history] for learned in (whole, again)]
    assert timeless[0] == timeless[1]
    assert [row["phase"] for row in whole.history] == ["frozen", "frozen", "joint"][: 2 + joint]
    assert state_sha256(view.model) == before
    assert (state_sha256(whole.view.model) == before) == (not joint)
    with pytest.raises(RunError, match="penalty was 5"):
        learner(view, data, joint_epochs=joint, penalty=4.0).run(tmp_path)


def test_a_policy_belongs_to_its_network(data, view, tmp_path):
    path = tmp_path / "policy.safetensors"
    policy = policies.fresh(view, 1)
    policies.save(path, policy, view, {})
    assert state_sha256(policies.read(path, view)) == state_sha256(policy)
    other = copy.deepcopy(view.model)
    nn.init.zeros_(other.linear.bias)
    with pytest.raises(CheckpointError, match=r"policy of another network: of 3 blocks.*has 3 blocks"):
        policies.read(path, view_of(data, other))
    weights = tmp_path / "weights.safetensors"
    for stated in ("[]", '{"blocks": 1e999, "network_sha256": ""}'):
        save_weights(weights, view.model, {"pathlens_policy": stated})
        with pytest.raises(CheckpointError, match="holds no policy"):
            policies.read(weights, view)
    with pytest.raises(CheckpointError, match="none"):
        policies.read(Path("none"), view)


def test_large_images_are_averaged_down():
    policy = PolicyNetwork(4, 3).eval()
    images = torch.randn(2, 3, 96, 40).repeat_interleave(2, 2)
    assert policy(images).shape == (2, 4)
    torch.testing.assert_close(policy(images), policy(F.adaptive_avg_pool2d(images, (64, 40))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs 0: give 1 or more"),
        ({"batch_size": 1}, "batch_size 1: give 2"),
        ({"lr": 0.0}, "lr 0: give a number above 0"),
        ({"penalty": -1.0}, "penalty -1: give 0 or more"),
        ({"alpha": 0.5}, "alpha 0.5: give more than 0.5"),
        ({"curriculum": -1.0}, "curriculum -1: give a number of epochs"),
    ],
)
def test_settings_that_no_training_can_have(settings, words):
    with pytest.raises(UsageError, match=words):
        Settings(**settings)


def test_a_policy_that_gives_nan_is_named(data, view):
    trained = learner(view, data)
    nn.init.constant_(trained.policy.network.linear.bias, float("nan"))
    with pytest.raises(NumericsError, match="the policy gives NaN or infinity in step 0"):
        trained.run()
