"""The estimators of path gradients by their names; ``tests/project/test_contributing.py`` adds one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pathlens.errors import UsageError
from pathlens.estimators import ALIASES, METHODS, estimators, sampled
from pathlens.paths import ChainPaths


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
    sampler.norms[3] = means.tolist()
    sampler.means[3] = [(float(mean), int(count)) for mean, count in zip(means, counts, strict=True)]
    expected = stats.bootstrap(
        (means, counts),
        lambda mean, count, axis: (mean * count).sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng([7, 3, 3, paths]),
    )
    assert sampler._interval(3) == pytest.approx(tuple(expected.confidence_interval))


def test_zeros_alone_do_not_say_that_a_mean_is_known() -> None:
    sampler = sampled.Sampler(paths=ChainPaths(tuple(range(9))), longest=9, rel_error=0.1, max_samples=80, seed=7)
    while 3 in sampler.open_lengths:
        step = sampler.next_round(20)
        norms = {length: [[float(length != 3)]] * 4 for length in step.lengths}
        sampler.take(step, {unit: {str(length): paths for length, paths in norms.items()} for unit in step.units})
    assert (sampler.stopped[3], len(sampler.norms[3])) == ("budget", 20 * 80)
    assert (sampler.stopped[4], sampler.intervals[4]) == ("interval", (1.0, 1.0))
