"""Rules that scale or mix branches, against networks written by hand with the drawn numbers in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.errors import UsageError
from pathlens.intervene import deleted
from pathlens.models import preresnet, resnet, shakeshake
from pathlens.residual import find_blocks, view_of
from pathlens.training import (
    BlocksPerBatch,
    Full,
    PathLengths,
    RandomDrop,
    Range,
    Recipe,
    Rule,
    ShakeDrop,
    ShakeShake,
    StochasticDepth,
    parse_rule,
    train,
)
from pathlens.training.batches import BLOCKS, generator
from pathlens.training.fold import fold, last_layers
from pathlens.training.network import Partial, Scalings
from pathlens.training.rules.scaling import Factor, Share, scaled
from tests.helpers.nets_tokens import found
from tests.helpers.training_oracle import assert_same_weights, by_hand, digits, network, plain_loop

RECIPE = Recipe(epochs=2, batch_size=40, lr=0.05, warmup=0, crop=0, flip=False)


def shaken(branch: Tensor, forward: Tensor | float, backward: Tensor | float) -> Tensor:
    """Values of one factor and gradients of another, with nothing but autograd."""
    return branch * backward + (branch * forward - branch * backward).detach()


def uniform(low: float, high: float, level: str, seed: int, like: Tensor) -> Tensor:
    """The same numbers, one after the other."""
    shape = {"batch": [1], "sample": [len(like)], "pixel": list(like.shape)}[level]
    numbers = torch.empty(shape, dtype=like.dtype)
    numbers.uniform_(low, high, generator=torch.Generator().manual_seed(seed))
    return numbers.reshape(shape + [1] * (like.dim() - len(shape)))


@pytest.mark.parametrize(
    ("rule", "rescale"),
    [
        (ShakeDrop(last=0.2, level="batch"), "none"),
        (ShakeDrop(last=0.3, level="sample"), "train"),
        (ShakeDrop(last=0.3, alpha=Range(0, 0.5), beta=Range(-1, 2)), "train"),
    ],
)
def test_shakedrop_equals_a_loop_by_hand(rule: ShakeDrop, rescale: str) -> None:
    net, data = by_hand(), digits()
    twin = copy.deepcopy(net)
    probabilities = [1 - number / 3 * (1 - rule.last) for number in (1, 2, 3)]
    expected = [p + (1 - p) * (rule.alpha.low + rule.alpha.high) / 2 for p in probabilities]
    dropped = []

    def forward(model: Any, images: Tensor, step: int) -> Tensor:
        rng = generator(7, BLOCKS, step)
        kept = rng.random(3) < probabilities
        seeds = rng.integers(2**62, size=(3, 2)).tolist()
        dropped.append(3 - kept.sum())
        x = model.stem(images)
        for index, block in enumerate(model.blocks):
            branch, (one, two) = block.branch(x), seeds[index]
            if not kept[index]:
                alpha = uniform(rule.alpha.low, rule.alpha.high, rule.level, one, branch)
                branch = shaken(branch, alpha, uniform(rule.beta.low, rule.beta.high, rule.level, two, branch))
            x = F.relu(block.shortcut(x) + (branch / expected[index] if rescale == "train" else branch))
        return model.fc(x.mean((2, 3)))

    trained = train(net, data, recipe=RECIPE, rule=rule, rescale=rescale, dtype="float64", seed=7)
    losses = plain_loop(twin, data, RECIPE, 7, forward)
    assert 0 < sum(dropped) < 18
    assert_same_weights(net, twin)
    assert [row["train_loss"] for row in trained.history.rows] == pytest.approx(losses, rel=1e-11)
    assert [row["blocks"] for row in trained.history.rows] == [3, 3]  # all of them run


class TwoBranches(nn.Module):
    """Blocks of two branches and one of one, written in the three ways that people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)
        self.first = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.second = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))

    def terms(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.first[index](x)), torch.tanh(self.second[index](x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one, two = self.terms(0, x)
        x = x + one + two
        one, two = self.terms(1, x)
        x = x + (one - two) / 2
        one, two = self.terms(2, x)
        x = x + (0.5 * one + two * 0.25)
        one, two = self.terms(3, x)
        x = x + self.second[3](one)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    "rule", [ShakeShake(), ShakeShake(level="batch", backward="even"), ShakeShake("even"), ShakeShake(backward="keep")]
)
def test_shake_shake_equals_a_loop_by_hand(rule: ShakeShake) -> None:
    torch.manual_seed(2)
    net, data = TwoBranches().double(), digits()
    twin = copy.deepcopy(net)

    def forward(model: Any, images: Tensor, step: int) -> Tensor:
        seeds = generator(3, BLOCKS, step).integers(2**62, size=(4, 2)).tolist()
        x = model.stem(images)
        for index, factors in enumerate([(1, 1), (0.5, -0.5), (0.5, 0.25)]):
            alpha = uniform(0, 1, rule.level, seeds[index][0], x) if rule.forward == "shake" else 0.5
            drawn = {"shake": uniform(0, 1, rule.level, seeds[index][1], x), "even": 0.5, "keep": alpha}
            beta: Any = drawn[rule.backward]
            one, two = (term * factor for term, factor in zip(model.terms(index, x), factors, strict=True))
            x = x + shaken(one, 2 * alpha, 2 * beta) + shaken(two, 2 * (1 - alpha), 2 * (1 - beta))
        x = x + model.second[3](model.terms(3, x)[0])
        return model.fc(x.mean((2, 3)))

    train(net, data, recipe=RECIPE, rule=rule, dtype="float64", seed=3)
    plain_loop(twin, data, RECIPE, 3, forward)
    assert_same_weights(net, twin)


class OneBlock(nn.Module):
    """Linear in what its branch is multiplied by, so that the mean of many draws is near the expectation."""

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 2)
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.double_branch = double

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        branch = self.first(F.relu(x))
        if self.double_branch:
            branch = branch + self.second(torch.tanh(x))
        return self.fc((x + branch).mean((2, 3)))


EXPECTED: dict[str, Rule] = {
    "resdrop": StochasticDepth("linear", 0.5),
    "sample": StochasticDepth("uniform", 0.3, "sample"),
    "randomdrop": RandomDrop(last=0.4).at(0.5),
    "shakedrop": ShakeDrop(),
    "shakedrop of samples": ShakeDrop(last=0.3, alpha=Range(0.2, 1), level="sample"),
    "shakedrop of batches": ShakeDrop(last=0, alpha=Range(0, 1), level="batch"),
    "shake-shake": ShakeShake(),
    "shake-shake of batches": ShakeShake(level="batch"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_network_at_test_time_is_the_mean_of_many_draws(name: str) -> None:
    rule = EXPECTED[name]
    torch.manual_seed(1)
    net = OneBlock(rule.mixes).double()
    images, draws = torch.randn(1, 1, 4, 4, dtype=torch.float64).expand(32, 1, 4, 4), 80
    view = view_of(net, images)
    partial = Partial(view, mixed=rule.mixes)
    logits = []
    with torch.no_grad():
        for step in range(draws):
            rng = generator(0, BLOCKS, step)
            kept = torch.from_numpy(rule.draw(1, 32, rng))
            logits.append(partial(images, kept, None, None, Scalings(rule.scale(1, rng), Share(32))).mean(0))
        if not rule.mixes:
            net.eval()
            fold(net, last_layers(view), rule.expectation(1))
        wanted = net(images)[0]
    stack = torch.stack(logits)
    error = stack.std(0) / draws**0.5
    assert ((stack.mean(0) - wanted).abs() < 4.5 * error + 1e-12).all()
    assert (stack.std(0) > 1e-4).all()


def test_random_drop_rises_with_time() -> None:
    """Each step of the training is one of stochastic depth with the probabilities of its time."""
    rule = RandomDrop(last=0.2)
    assert rule.at(0).expectation(4) == (1.0,) * 4
    assert rule.at(0.5).expectation(4) == pytest.approx([1 - share / 4 * 0.5 * 0.8 for share in (1, 2, 3, 4)])
    assert rule.at(1).expectation(4) == rule.expectation(4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert RandomDrop("uniform", 0.2).at(0.25).expectation(2) == pytest.approx([0.8, 0.8])
    net, data = network(), digits()
    twin = copy.deepcopy(net)
    view = find_blocks(twin, torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    partial, counts = Partial(view), []

    def forward(model: nn.Module, images: Tensor, step: int) -> Tensor:
        kept = generator(6, BLOCKS, step).random((3, 1))[:, 0] < [
            1 - step / 6 * number / 3 * 0.8 for number in (1, 2, 3)
        ]
        counts.append(kept.sum())
        return partial(images, torch.from_numpy(kept))

    trained = train(net, data, recipe=RECIPE, rule=rule, dtype="float64", seed=6)
    plain_loop(twin, data, RECIPE, 6, forward, zeros=True)
    for stage, probability in enumerate((1 - 0.8 / 3, 1 - 1.6 / 3, 0.2), start=1):
        twin.get_parameter(f"layer{stage}.0.conv2.weight").data.mul_(probability)
    assert_same_weights(net, twin)
    assert [row["blocks"] for row in trained.history.rows] == [np.mean(counts[:3]), np.mean(counts[3:])]
    assert counts[0] == 3


def test_weights_between_are_folded_with_the_probabilities_of_their_time(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    kept = {}
    for rescale in ("test", "none"):
        options: Any = {"rescale": rescale, "keep_epochs": [0, 1, 2], "out": tmp_path / rescale}
        train(network(), digits(80), recipe=RECIPE, rule=RandomDrop(last=0.5), dtype="float64", seed=2, **options)
        kept[rescale] = [load_file(tmp_path / rescale / "epochs" / f"epoch-00{e}.safetensors") for e in range(3)]
    name = "layer3.0.conv2.weight"
    for folded, bare, probability in zip(kept["test"], kept["none"], (1, 0.75, 0.5), strict=True):
        torch.testing.assert_close(folded[name], bare[name] * probability)


@pytest.mark.parametrize("level", ["batch", "sample", "pixel"])
def test_a_factor_is_the_same_for_any_number_of_processes(level: str) -> None:
    factor, like = Factor(Range(-1, 1), level, 5), torch.zeros(7, 3, 2, 2)
    whole = factor.drawn(like, Share(7)).expand_as(like)
    for rank in (0, 1):
        mine = like[rank::2]
        assert torch.equal(factor.drawn(mine, Share(7, rank, 2)).expand_as(mine), whole[rank::2])
    numbers = {"batch": 1, "sample": 7, "pixel": 84}[level]
    assert len(whole.unique()) == numbers
    assert whole.abs().max() <= 1
    half = scaled(like.bfloat16().requires_grad_(), whole, whole)
    assert half.dtype == torch.bfloat16


def post_activation() -> nn.Module:
    return resnet(8, in_channels=1, widths=(4, 4, 6))


@pytest.mark.parametrize(
    ("build", "rule", "words"),
    [
        (post_activation, ShakeShake(), "none of the 3 blocks of this network is a sum of two branches"),
        (lambda: shakeshake(8, 2, in_channels=1), ShakeShake(), "mixes its branches at random by itself in train mode"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(10)),
         ShakeDrop(), "shakedrop: a plain network has no shortcut"),
        (post_activation, ShakeDrop(last=0, alpha=Range(-1, 0)), "multiply a branch by -0.5 on average"),
        (post_activation, RandomDrop(last=0), "never trains the last block"),
    ],
)  # fmt: skip
def test_networks_that_a_rule_cannot_train(build: Callable[[], nn.Module], rule: Rule, words: str) -> None:
    net = build()
    net(torch.zeros(2, 1, 8, 8))
    with pytest.raises(UsageError, match=words):
        train(net, digits(), recipe=RECIPE, rule=rule)


@pytest.mark.parametrize("options", [{"rule": BlocksPerBatch(2)}, {"rule": PathLengths(0, 2)}, {"compiled": True}])
def test_a_lesioned_network_is_trained_in_full_alone(options: dict[str, Any]) -> None:
    net, recipe = network(), Recipe(epochs=1, batch_size=20, warmup=0, crop=0, flip=False)
    with deleted(find_blocks(net, torch.zeros(2, 1, 8, 8).double()), 1):
        with pytest.raises(UsageError, match="PreActResNet as they are, and an intervention is active on it") as caught:
            train(net, digits(20), recipe=recipe, dtype="float64", **options)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        train(net, digits(20), recipe=recipe, dtype="float64")
    assert "\n" not in str(caught.value)
    changed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith("layer2.0.conv") for name in changed)
    assert any(name.startswith("layer1.0.conv") for name in changed)


class Across(nn.Module):
    """Blocks of two branches where sequences come first, or where the two halves of each lie in the batch."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.folded, self.out = folded, nn.Linear(4, 3)
        self.first, self.second = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4) if self.folded else x.transpose(0, 1)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + torch.relu(first(x)) + torch.tanh(second(x))
        x = x.reshape(-1, 6, 4) if self.folded else x.transpose(0, 1)
        return self.out(x.mean(1))


EACH_ITS_OWN: list[Rule] = [
    StochasticDepth(per="sample"), RandomDrop(per="sample"), ShakeDrop(), ShakeDrop(level="sample"), ShakeShake(),
]  # fmt: skip
ONE_FOR_ALL: list[Rule] = [
    StochasticDepth(), RandomDrop(), ShakeDrop(level="batch"), ShakeShake(level="batch"), ShakeShake("even", "even"),
]  # fmt: skip


@pytest.mark.parametrize("folded", [False, True])
def test_what_has_no_row_for_each_image_has_no_draw_for_each(folded: bool) -> None:
    view = find_blocks(Across(folded).eval(), torch.zeros(2, 6, 4))
    assert len(view) == 2
    for rule in EACH_ITS_OWN:
        with pytest.raises(UsageError, match=r"at block 0 .* has no row for each example .*(per|level)=batch"):
            rule.check_view(view)
    for rule in ONE_FOR_ALL:
        rule.check_view(view)
    # windows inside of a branch, beside which images have their rows
    StochasticDepth(per="sample").check_view(found("windows")[1])


def test_any_network_can_be_shaken() -> None:
    """Pre-activation blocks with projections, in bfloat16, and the expectation is folded into the weights."""
    data = digits(80)
    net = preresnet(8, in_channels=1, widths=(4, 4, 6))
    trained = train(net, data, recipe=RECIPE, rule=ShakeDrop(), dtype="bfloat16", validation=data)
    assert trained.result.rows[0]["loss"] == trained.history.rows[-1]["validation_loss"]


def test_rules_from_text() -> None:
    assert parse_rule("full") == Full()
    assert parse_rule("resdrop") == parse_rule("stochastic-depth") == StochasticDepth("linear", 0.5, "batch")
    assert parse_rule("resdrop:last=0.8") == StochasticDepth("linear", 0.8)
    assert parse_rule("stochastic-depth:uniform,0.7,sample") == StochasticDepth("uniform", 0.7, "sample")
    assert parse_rule("randomdrop:per=sample,last=0.9") == RandomDrop("linear", 0.9, "sample")
    assert parse_rule("shakedrop:0.6,alpha=0,level=batch") == ShakeDrop(0.6, Range(0, 0), Range(0, 1), "batch")
    assert parse_rule("shake-shake:even,keep") == ShakeShake("even", "keep")
    assert parse_rule("blocks-per-batch:23") == BlocksPerBatch(23)
    assert parse_rule("path-lengths:first=1,last=4") == PathLengths(1, 4)
    assert [str(parse_rule(text)) for text in ("resdrop", "randomdrop", "shakedrop", "shake-shake")] == [
        "stochastic-depth linear:0.5 per batch",
        "randomdrop decay=linear last=0.5 per=batch",
        "shakedrop last=0.5 alpha=-1:1 beta=0:1 level=pixel",
        "shake-shake forward=shake backward=shake level=sample",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dropout", "--rule 'dropout' is unknown; give one of full, blocks-per-batch, .*shake-shake.*resdrop"),
        ("shakedrop:depth=1", "--rule shakedrop: cannot use 'depth=1'; it has last=NUMBER, alpha=A:B, .*level=WORD"),
        ("shakedrop:last=0.5,last=0.6", "cannot use 'last=0.6'"),
        ("shakedrop:last=much", "cannot use 'last=much'"),
        ("shakedrop:alpha=a:b", "cannot use 'alpha=a:b'"),
        ("shakedrop:alpha=1:-1", "range 1:-1: give LOW:HIGH"),
        ("shakedrop:alpha=nan", "range nan:nan"),
        ("shakedrop:last=2", "shakedrop probability 2 is outside"),
        ("shakedrop:level=channel", "level 'channel' is unknown; give one of batch, sample, pixel"),
        ("shake-shake:level=pixel", "level 'pixel' is unknown; give one of batch, sample"),
        ("shake-shake:forward=keep", "forward 'keep' is unknown"),
        ("blocks-per-batch", "--rule blocks-per-batch: lacks a setting; it has count=INTEGER"),
        ("full:1", "--rule full: cannot use '1'; it has no settings"),
        ("blocks-per-batch:1,2", "cannot use '2'"),
        ("randomdrop:decay=cubic", "'cubic' is unknown"),
    ],
)  # fmt: skip
def test_rules_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_rule(text)
