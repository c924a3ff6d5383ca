"""The estimators of path gradients by their names; ``tests/project/test_contributing.py`` adds one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pathlens
from pathlens.analyses import profiles
from pathlens.analyses.profiles import what_is_left
from pathlens.errors import NumericsError, UsageError
from pathlens.estimators import ALIASES, METHODS, estimators, exact, rademacher, sampled
from pathlens.estimators.estimator import Estimator
from pathlens.estimators.resampling import RESAMPLES, example_weights, interval
from pathlens.models import preresnet
from pathlens.paths import ChainPaths, shortest_intervals
from pathlens.residual.gradients import Linearisation, mixes_examples
from pathlens.residual.modes import in_mode
from pathlens.results.path_profile import PATH_GRADIENTS
from tests.helpers.lesion_oracle import small_batches, small_net


def test_methods_are_the_estimators_and_all_of_them() -> None:
    assert [estimator.name for estimator in estimators()] == list(METHODS[:-1])
    for name in METHODS[:-1]:
        assert [estimator.name for estimator in estimators(name)] == [name]
    for other, name in ALIASES.items():
        assert [estimator.name for estimator in estimators(other)] == [name]
    with pytest.raises(UsageError, match=r"method 'guess' is unknown; give one of exact, sampled, signed, all"):
        estimators("guess")


@pytest.mark.parametrize("paths", [2, 8, 150])
def test_the_interval_of_sampled_paths_is_that_of_scipy(paths: int) -> None:
    rng = np.random.default_rng(paths)
    means, counts = rng.lognormal(size=paths), rng.integers(1, 17, paths).astype(float)
    sampler = sampled.Sampler(paths=ChainPaths(tuple(range(9))), longest=9, rel_error=0.1, max_samples=400, seed=7)
    sampler.norms[3] = [(0, np.full((1, int(count)), mean)) for mean, count in zip(means, counts, strict=True)]
    expected = stats.bootstrap(
        (means, counts),
        lambda mean, count, axis: (mean * count).sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng([7, 3, 3, paths]),
    )
    assert sampler._interval(3, sampler.mean(3)) == pytest.approx(tuple(expected.confidence_interval))


def test_zeros_alone_do_not_say_that_a_mean_is_known() -> None:
    sampler = sampled.Sampler(paths=ChainPaths(tuple(range(9))), longest=9, rel_error=0.1, max_samples=80, seed=7)
    while 3 in sampler.open_lengths:
        step = sampler.next_round(20)
        norms = {length: [[float(length != 3)]] * 4 for length in step.lengths}
        sampler.take(step, {unit: {str(length): paths for length, paths in norms.items()} for unit in step.units})
    assert (sampler.stopped[3], len(sampler.flat(3))) == ("budget", 20 * 80)
    assert (sampler.stopped[4], sampler.intervals[4]) == ("interval", (1.0, 1.0))


def sampled_twice(rng: np.random.Generator, batches: int, paths: int, size: int) -> sampled.Sampler:
    """Norms of paths of 3 of 9 blocks, with an effect of the path, of the example and of both; their mean is 6."""
    sampler = sampled.Sampler(paths=ChainPaths(tuple(range(9))), longest=9, rel_error=0.1, max_samples=99, seed=1)
    sampler.norms[3] = []
    examples = rng.exponential(3, (batches, size))
    for _ in range(paths // 4):
        for batch in range(batches):
            norms = rng.exponential(2, (4, 1)) + examples[batch] + rng.exponential(1, (4, size))
            sampler.norms[3].append((batch, norms))
    return sampler


def test_paths_and_examples_are_drawn_anew_each_on_its_own() -> None:
    sampler = sampled_twice(np.random.default_rng(0), batches=2, paths=8, size=3)
    weights = example_weights(5, 6)
    assert (weights.sum(1) == 6).all()
    drawn = sampler._drawn(3)
    means = sampler.resampled(3, weights)
    of_batch = [np.concatenate([norms for batch, norms in sampler.norms[3] if batch == one]) for one in (0, 1)]
    place = [(batch, round_ * 4 + path) for round_ in range(2) for batch in range(2) for path in range(4)]
    for sample in range(0, RESAMPLES, 50):
        cells = [
            of_batch[batch][path, example]
            for batch, path in (place[number] for number in drawn[sample])
            for example in range(3)
            for _ in range(int(weights[sample, batch * 3 + example]))
        ]
        assert means[sample] == pytest.approx(np.mean(cells))


def test_the_interval_covers_what_other_paths_and_examples_would_say() -> None:
    rng, covered, by_paths = np.random.default_rng(0), 0, 0
    weights = example_weights(0, 4 * 16)
    for _ in range(200):
        sampler = sampled_twice(rng, batches=4, paths=16, size=16)
        low, high = interval(sampler.resampled(3, weights), sampler.mean(3))
        covered += low <= 6 <= high
        low, high = sampler._interval(3, sampler.mean(3))
        by_paths += low <= 6 <= high
    assert 0.9 <= covered / 200 <= 0.99
    assert by_paths / 200 < 0.75  # why more is needed than paths with the examples of their batches


def test_where_all_paths_are_taken_only_examples_are_drawn() -> None:
    sampler = sampled.Sampler(paths=ChainPaths((0, 1, 2)), longest=3, rel_error=0.1, max_samples=9, seed=1)
    norms = np.random.default_rng(0).exponential(size=(3, 5))
    sampler.norms[1] = [(0, norms)]
    weights = example_weights(0, 5)
    assert sampler.resampled(1, weights) == pytest.approx(weights @ norms.mean(0) / 5)
    sampler.norms[1] = [(0, norms[:, :1])]
    mean = sampler.mean(1)
    assert interval(sampler.resampled(1, example_weights(0, 1)), mean) == (mean, mean)


def test_a_sample_without_paths_for_its_examples_has_no_mean() -> None:
    sampler = sampled.Sampler(paths=ChainPaths(tuple(range(9))), longest=9, rel_error=0.1, max_samples=9, seed=1)
    sampler.norms[4] = [(0, np.ones((1, 1))), (1, np.ones((1, 1)))]
    means = sampler.resampled(4, example_weights(0, 2))
    assert 0.05 < np.isnan(means).mean() < 0.25  # both times the other batch: 2/16
    assert set(means[~np.isnan(means)]) == {1.0}
    assert interval(means, 1.0) == (1.0, 1.0)


def test_all_estimators_draw_the_same_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Estimator] = {}
    monkeypatch.setattr(profiles, "what_is_left", lambda chosen, _: seen.update(chosen) or {})
    # 12 examples in batches of 5, 5 and 2; there is one path of length 0, whose norm all estimators measure
    table = pathlens.path_gradients(small_net(), small_batches(12, size=5), max_samples=4, draws=2)
    first = {name: estimator.resampled[:, 0] for name, estimator in seen.items() if estimator.resampled is not None}
    assert first["sampled"] == pytest.approx(first["exact"], rel=1e-6)
    assert np.corrcoef(first["signed"], first["exact"])[0, 1] > 0.9
    assert np.ptp(first["exact"]) > 0.1 * first["exact"].mean()
    for span in table.provenance["effective"].values():
        for name in ("first", "last", "share_of_paths"):
            assert span[f"{name}_low"] <= span[name] <= span[f"{name}_high"]
    # an example's factor is that of all its paths: the more it differs, the less do ranges, unlike the norms
    steady = estimators("exact")[0]
    norms = np.array([3.0, 9.0, 4.0, 1.0])[:, None] * np.random.default_rng(0).lognormal(0, 2, 30)
    steady.resampled = example_weights(0, 30) @ norms.T / 30
    assert np.ptp(steady.resampled[:, 0]) > 3
    assert len(np.unique(shortest_intervals(steady.resampled), axis=0)) == 1


def test_what_cancellation_leaves_is_a_ratio_on_the_same_examples() -> None:
    rows = [
        {"length": k, "n_paths": n, "path_norm_mean": 1.0, "total_norm": t} for k, n, t in ((2, 5, 1.0), (3, 4, 2.0))
    ]
    exact, one = estimators("exact")[0], estimators("sampled")[0]
    factors = np.random.default_rng(0).lognormal(0, 1, 999)
    exact.resampled, one.resampled = np.outer(factors, (1.0, 2.0)), np.outer(factors, (1.0, 1.0))
    both = {"exact": exact, "sampled": one}
    assert what_is_left(both, rows) == pytest.approx({"length": 3, "left": 0.5, "low": 0.5, "high": 0.5})
    one.resampled = np.outer(factors * np.linspace(0.9, 1.1, 999), (1.0, 1.0))
    found = what_is_left(both, rows)
    assert (found["low"], found["high"]) == pytest.approx((0.5 / 1.095, 0.5 / 0.905), rel=1e-3)
    assert what_is_left({"exact": exact}, rows) == {}
    assert what_is_left(both, [{**row, "n_paths": 10**400} for row in rows]) == {}
    table = pathlens.path_gradients(small_net(), small_batches(12, size=4), max_samples=4, draws=2)
    left = table.provenance["cancellation"]
    assert left["low"] <= left["left"] <= left["high"]
    assert any(
        f"at length {left['length']} the sum over all paths is" in note
        for note in PATH_GRADIENTS.notes(table.provenance)
    )


def test_one_example_has_no_interval_over_examples() -> None:
    table = pathlens.path_gradients(small_net(), small_batches(1, size=1), max_samples=8, draws=2)
    assert "cancellation" not in table.provenance
    assert [name for name, span in table.provenance["effective"].items() if "first_low" in span] == ["sampled"]


def test_more_paths_than_floats_can_say_have_a_root_mean_square() -> None:
    rows = [{"n_paths": 10**400, "path_norm_mean": None}]
    rademacher._fill(rows, np.array([[1e-300], [3e-300]]))
    assert rows[0]["path_norm_rms"] == 0
    rows[0]["n_paths"] = 100
    rademacher._fill(rows, np.array([[1.0], [3.0]]))
    assert (rows[0]["path_norm_rms"], rows[0]["path_norm_rms_error"]) == pytest.approx((2**0.5 / 10, 2**0.5 / 10 / 4))


class EverySign:
    """A generator that draws every pattern of signs once, in the place of random ones."""

    def __init__(self) -> None:
        self.patterns = itertools.product((0, 1), repeat=3)

    def integers(self, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
        return np.tile(np.array(next(self.patterns))[:, None], (1, size[1]))


def sizes_of_signs(
    model: nn.Module, x: Tensor, y: Tensor, mode: str, monkeypatch: pytest.MonkeyPatch
) -> set[tuple[int, int]]:
    """Shapes of the signs that are drawn for three blocks, by which root mean squares are those of all paths."""
    view = pathlens.find_blocks(model, x)
    generator, sizes, every = np.random.default_rng, [], EverySign()
    draw = every.integers
    monkeypatch.setattr(every, "integers", lambda *given, size: (sizes.append(size), draw(*given, size=size))[1])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: every if seed[1:2] == [1] else generator(seed))
    # over all patterns the mean of the squares is the sum of the squares of all paths, if a path has one sign
    options = {"mode": mode, "dtype": "float64", "method": "signed"}
    table = pathlens.path_gradients(view, [(x, y)], draws=8, **options)
    with in_mode(model, mode == "train"):
        linear = Linearisation(view, x, y)
    for row in table.rows:
        paths = list(itertools.combinations(range(3), row["length"]))
        assert row["path_norm_rms"] == pytest.approx(float(linear.through(paths).norms().square().mean().sqrt()))
    return set(sizes)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_signs_see_the_paths_that_go_through_other_examples(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x, y = preresnet(8).double(), torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 7])
    # signs of an example alone would give its own part of a path another sign than the part through others
    assert sizes_of_signs(model, x, y, mode, monkeypatch) == {(3, 1 if mode == "train" else 3)}


class OfTheBatch(nn.Module):
    """A batch norm that uses the statistics of the batch in every mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.variance, training=True)


class Normed(nn.Module):
    """Three blocks that begin with a norm."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.branches = nn.ModuleList(nn.Sequential(norm(4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("norm", [OfTheBatch, partial(nn.BatchNorm1d, track_running_stats=False)])
def test_signs_are_those_of_the_batch_also_in_eval_mode(
    norm: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x, y = Normed(norm).double(), torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    assert sizes_of_signs(model, x, y, "eval", monkeypatch) == {(3, 1)}


class Around(nn.Module):
    """A residual addition around a norm and a layer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(self.norm(x)))


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised by a batch norm, as in NFNets."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = nn.functional.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return nn.functional.conv2d(x, rows.reshape_as(self.weight), self.bias)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, partial(nn.GroupNorm, 2), Standardised])
def test_other_norms_mix_no_examples(norm: Callable[[int], nn.Module]) -> None:
    view = pathlens.find_blocks(Around(norm(4)).eval(), torch.zeros(2, 4, 6, 6))
    assert not mixes_examples(view.chain().trace)


def test_tf32_rounds_more_coarsely_than_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = exact._measure

    def rounded(*given: Any) -> Any:
        sums = measured(*given)
        return {**sums, "missing": 1e-4 * sums["whole"]}

    monkeypatch.setattr(exact, "_measure", rounded)
    net, batches = small_net(), small_batches(4, size=2)
    table = pathlens.path_gradients(net, batches, method="exact", dtype="tf32")
    assert table.provenance["relative_difference_to_autograd"] == pytest.approx(1e-2)
    for dtype in ("float32", "float64"):
        with pytest.raises(NumericsError, match="more than rounding explains"):
            pathlens.path_gradients(net, batches, method="exact", dtype=dtype)


def test_norms_whose_squares_are_zeros_have_a_root_mean_square_and_an_interval() -> None:
    norms = np.array([1e-200, 3e-200])
    scales = rademacher.scales_of(np.array([3e-200]))
    rows: list[dict[str, Any]] = [{"n_paths": 1, "path_norm_mean": 2e-200}]
    rademacher._fill(rows, np.square(norms[:, None] / scales), scales)
    assert rows[0]["path_norm_rms"] == pytest.approx(5**0.5 * 1e-200)
    exact._fill(rows, norms[None])
    ends = stats.ttest_1samp(norms * 1e200, 0).confidence_interval()
    assert rows[0]["total_high"] == pytest.approx(ends.high * 1e-200)
    assert rows[0]["total_low"] == 0


@pytest.mark.parametrize("most", [1, 2, 5, 6, 8])
def test_no_more_paths_are_drawn_than_asked_for(most: int) -> None:
    sampler = sampled.Sampler(ChainPaths(tuple(range(9))), longest=9, rel_error=1e-9, max_samples=most, seed=0)
    drawn = dict.fromkeys(range(10), 0)
    while sampler.open_lengths:
        step = sampler.next_round(1)
        (unit,) = step.units
        paths = step.paths_for(unit)
        results = {str(length): [[1.0 + index] for index, _ in enumerate(own)] for length, own in paths.items()}
        sampler.take(step, {unit: results})
        for length, own in paths.items():
            drawn[length] += len(own)
    assert drawn == {length: 1 if length in (0, 9) else most for length in range(10)}
