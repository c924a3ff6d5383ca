"""Recipes, learning rates and draws of sub-networks against formulas written out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathlens.data import open_data
from pathlens.errors import UsageError
from pathlens.training import BlocksPerBatch, Configuration, Full, PathLengths, Recipe, StochasticDepth, recipe_for
from pathlens.training.batches import BLOCKS, CROP, ORDER, generator
from pathlens.training.rules import parse_lengths, parse_stochastic_depth
from tests.helpers.data_files import image_folder


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    return [recipe.rate(step, steps_per_epoch) for step in range(recipe.epochs * steps_per_epoch)]


def test_the_default_is_that_of_he_et_al() -> None:
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.lr) == (200, 128, "sgd", 0.1)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, True, 1e-4)
    assert (recipe.crop, recipe.flip, recipe.label_smoothing) == (4, True, 0.0)
    found = rates(recipe, 390)
    assert found[: 390 - 1] == [0.1 * (step + 1) / 390 for step in range(389)]
    assert set(found[389 : 100 * 390]) == {0.1}
    assert found[100 * 390 : 150 * 390] == pytest.approx([0.01] * 50 * 390, rel=1e-12)
    assert found[150 * 390 :] == pytest.approx([0.001] * 50 * 390, rel=1e-12)


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_warm_up_returns_to_the_full_rate(schedule: str, warmup: float, steps: int) -> None:
    recipe = Recipe(epochs=10, lr=0.4, schedule=schedule, warmup=warmup)
    found = rates(recipe, steps)
    rising = warmup * steps
    for step, rate in enumerate(found):
        if step + 1 < rising:
            assert rate == pytest.approx(0.4 * (step + 1) / rising)
    top = max(0, math.ceil(rising) - 1)  # the first step after the rise
    assert found[top] == 0.4
    assert max(found) == 0.4
    assert found[: top + 1] == sorted(found[: top + 1])
    assert min(found) > 0


def test_cosine_goes_from_the_full_rate_towards_zero() -> None:
    recipe = Recipe(epochs=6, lr=0.2, schedule="cosine", warmup=1)
    found = rates(recipe, 4)
    wanted = [0.05, 0.1, 0.15, 0.2] + [0.1 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert 0 < found[-1] < 0.002


def test_steps_at_the_milestones() -> None:
    recipe = Recipe(epochs=10, lr=1.0, milestones=(0.25, 0.5, 0.9), gamma=0.5, warmup=0)
    assert rates(recipe, 2) == [1.0] * 5 + [0.5] * 5 + [0.25] * 8 + [0.125] * 2
    # the warm-up does not put the milestones off
    assert rates(Recipe(epochs=10, lr=1.0, milestones=(0.1,), gamma=0.5, warmup=2.0), 1)[1:] == [0.5] * 9


def test_recipes_by_data() -> None:
    digits = recipe_for("digits")
    assert (digits.epochs, digits.batch_size, digits.weight_decay, digits.schedule) == (60, 64, 1e-3, "cosine")
    assert (digits.warmup, digits.crop, digits.flip, digits.lr) == (5, 1, False, 0.1)
    assert recipe_for("cifar10") == recipe_for("anything") == Recipe()
    changed = recipe_for("digits", lr=0.3, optimizer=None, milestones=[0.5], crop=0)
    assert (changed.lr, changed.optimizer, changed.milestones, changed.crop) == (0.3, "sgd", (0.5,), 0)
    # a short trial run of a long recipe still warms up, and returns to the full rate
    assert recipe_for("digits", epochs=2).warmup == 0.5
    assert recipe_for("digits", epochs=1).warmup == 0.25
    assert recipe_for("cifar10", epochs=40).warmup == 1.0
    assert recipe_for("digits", epochs=2, warmup=1.5).warmup == 1.5
    assert recipe_for("digits", momentum=0.0, nesterov=False).nesterov is False
    assert recipe_for("digits", flip=True).flip is True


def test_a_folder_that_is_called_like_the_embedded_scans(tmp_path: Path) -> None:
    folder = open_data(image_folder(tmp_path / "digits", {"one": 2, "two": 2}), split="train", image_size=8)
    assert folder.name == "digits"
    assert Configuration.of(folder, {}).recipe == Recipe()
    scans = open_data("digits", split="train", limit=20)
    for data in (scans, scans.subset(torch.arange(5), "train")):
        assert Configuration.of(data, {}).recipe == recipe_for("digits")


def test_a_recipe_as_json() -> None:
    spoken = Recipe(milestones=[0.2, 0.4]).spoken()
    assert spoken["milestones"] == [0.2, 0.4]
    assert "augment" not in spoken  # a run of a version that knew of none goes on
    assert Recipe(augment="randaugment").spoken()["augment"] == "randaugment"
    assert Recipe(**spoken) == Recipe(milestones=(0.2, 0.4))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1, 1.5, True, NAN]),
        ("batch_size", [0, -3, 2.0, False]),
        ("crop", [-1, 0.5]),
        ("optimizer", ["adam", ""]),
        ("schedule", ["linear"]),
        ("augment", ["autoaugment", ""]),
        ("lr", [0.0, -0.1, NAN, INF]),
        ("momentum", [-0.1, 1.0, NAN]),
        ("weight_decay", [-1e-9, NAN, INF]),
        ("gamma", [0.0, -1.0, NAN, INF]),
        ("warmup", [-0.5, 200.0, 201.0, NAN]),
        ("label_smoothing", [-0.1, 1.0, NAN]),
        ("milestones", [(0.5, 0.5), (0.75, 0.5), (0.0,), (1.0,), (-0.5,), (NAN,)]),
    ],
)
def test_values_that_no_training_could_use(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UsageError) as caught:
            Recipe(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} ")
        assert "give" in message
        assert "\n" not in message


def test_nesterov_without_momentum() -> None:
    with pytest.raises(UsageError, match="momentum 0 has no Nesterov form"):
        Recipe(momentum=0.0)
    assert Recipe(momentum=0.0, nesterov=False).momentum == 0
    assert Recipe(momentum=0.0, optimizer="adamw").momentum == 0


# rules


def rng(step: int, seed: int = 0) -> np.random.Generator:
    return generator(seed, BLOCKS, step)


def test_exactly_so_many_blocks() -> None:
    rule = BlocksPerBatch(23)
    drawn = np.stack([rule.draw(54, 128, rng(step)) for step in range(4000)])
    assert drawn.dtype == bool
    assert drawn.shape == (4000, 54)
    assert set(drawn.sum(1)) == {23}
    assert rule.expectation(54) == (23 / 54,) * 54
    # each block as often as the others: five standard errors of a binomial share
    assert np.abs(drawn.mean(0) - 23 / 54).max() < 5 * math.sqrt(23 / 54 * 31 / 54 / 4000)
    # and each pair as often as without replacement
    pairs = (drawn[:, :, None] & drawn[:, None, :]).mean(0)[~np.eye(54, dtype=bool)]
    wanted = 23 * 22 / (54 * 53)
    assert np.abs(pairs - wanted).max() < 5.5 * math.sqrt(wanted * (1 - wanted) / 4000)
    assert BlocksPerBatch(5).draw(5, 2, rng(0)).all()


def test_survival_probabilities_of_huang_et_al() -> None:
    # equation 4: p_l = 1 - l / L (1 - p_L), l from 1 to L
    for count, last in ((54, 0.5), (5, 0.2), (1, 0.7), (3, 1.0)):
        wanted = [1 - number / count * (1 - last) for number in range(1, count + 1)]
        found = StochasticDepth("linear", last).expectation(count)
        assert found == pytest.approx(wanted, rel=1e-15)
        assert found[-1] == pytest.approx(last)
        assert StochasticDepth("uniform", last).expectation(count) == (last,) * count
    assert Full().expectation(4) == PathLengths(1, 2).expectation(4) == (1.0,) * 4


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize(("decay", "last"), [("linear", 0.5), ("uniform", 0.3), ("linear", 0.0)])
def test_blocks_are_kept_as_often_as_stated(per: str, decay: str, last: float) -> None:
    rule = StochasticDepth(decay, last, per)
    draws = [rule.draw(6, 8, rng(step)) for step in range(3000)]
    assert draws[0].shape == ((6,) if per == "batch" else (6, 8))
    assert draws[0].dtype == bool
    kept = np.stack(draws, 1).reshape(6, -1)
    survival = np.array(rule.expectation(6))
    number = kept.shape[1]
    assert (np.abs(kept.mean(1) - survival) <= 4.5 * np.sqrt(survival * (1 - survival) / number)).all()
    # independently of each other
    joint = (kept[:, None] & kept[None]).mean(2)
    wanted = survival[:, None] * survival[None]
    away = np.abs(joint - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / number) + 1e-12
    assert away[~np.eye(6, dtype=bool)].all()


def test_draws_depend_on_seed_and_step_alone() -> None:
    for rule in (BlocksPerBatch(4), StochasticDepth("linear", 0.5), StochasticDepth("uniform", 0.5, "sample")):
        forwards = [rule.draw(9, 5, rng(step, seed=3)) for step in range(20)]
        backwards = [rule.draw(9, 5, rng(step, seed=3)) for step in reversed(range(20))][::-1]
        assert all(np.array_equal(one, two) for one, two in zip(forwards, backwards, strict=True))
        others = [rule.draw(9, 5, rng(step, seed=4)) for step in range(20)]
        assert any(not np.array_equal(one, two) for one, two in zip(forwards, others, strict=True))
        assert len({draw.tobytes() for draw in forwards}) > 10
    # what is drawn for one purpose says nothing of another, and negative seeds are seeds
    assert generator(0, ORDER, 1).integers(2**62) != generator(0, CROP, 1).integers(2**62)
    assert generator(-1, ORDER, 1).integers(2**62) != generator(1, ORDER, 1).integers(2**62)


@pytest.mark.parametrize(
    ("rule", "blocks", "words"),
    [
        (BlocksPerBatch(0), 5, "--blocks-per-batch 0: the network has 5 blocks; give 1 to 5"),
        (BlocksPerBatch(-2), 5, "give 1 to 5"),
        (BlocksPerBatch(6), 5, "--blocks-per-batch 6: the network has 5 blocks; give 1 to 5"),
        (StochasticDepth("linear", 0.0), 5, "probability 0 never trains the last block"),
        (StochasticDepth("uniform", 0.0), 5, "probability 0 never trains"),
        (PathLengths(0, 6), 5, "path lengths 0:6: this network has paths of 0 to 5 blocks"),
        (PathLengths(4, 3), 5, "path lengths 4:3"),
        (PathLengths(-1, 3), 5, "path lengths -1:3"),
    ],
)
def test_rules_that_do_not_fit_the_network(rule: Any, blocks: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        rule.check(blocks)
    assert words in str(caught.value)


def test_rules_that_fit() -> None:
    for rule in (Full(), BlocksPerBatch(1), BlocksPerBatch(5), StochasticDepth("linear", 0.01), PathLengths(0, 5)):
        rule.check(5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5", "give linear:P or uniform:P"),
        ("linear", "give linear:P or uniform:P"),
        ("linear:", "give linear:P or uniform:P"),
        ("linear:half", "give linear:P or uniform:P"),
        ("linear:0.5:0.5", "give linear:P or uniform:P"),
        ("quadratic:0.5", "'quadratic' is unknown"),
        ("linear:1.5", "1.5 is outside [0, 1]"),
        ("uniform:-0.1", "-0.1 is outside [0, 1]"),
        ("uniform:nan", "nan is outside [0, 1]"),
        ("linear:inf", "inf is outside [0, 1]"),
    ],
)
def test_stochastic_depth_that_is_none(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_stochastic_depth(text)
    assert words in str(caught.value)


def test_rules_from_text_and_to_text() -> None:
    assert parse_stochastic_depth("linear:0.5") == StochasticDepth("linear", 0.5, "batch")
    assert parse_stochastic_depth("uniform:1", "sample") == StochasticDepth("uniform", 1.0, "sample")
    assert parse_lengths("5:17") == PathLengths(5, 17)
    assert parse_lengths("3") == PathLengths(3, 3)
    for text in ("", "a:b", "1:2:3", "1.5:2", "1-2"):
        with pytest.raises(UsageError, match="--path-lengths"):
            parse_lengths(text)
    with pytest.raises(UsageError, match="per 'pixel' is unknown"):
        StochasticDepth("linear", 0.5, "pixel")
    assert [str(rule) for rule in (Full(), BlocksPerBatch(3), PathLengths(1, 4))] == [
        "full", "blocks-per-batch 3", "path-lengths 1:4"
    ]  # fmt: skip
    assert str(StochasticDepth("linear", 0.5, "sample")) == "stochastic-depth linear:0.5 per sample"
