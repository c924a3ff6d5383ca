"""Counts, intervals and draws of paths, against brute force and the numbers in the paper."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathlens.errors import UsageError
from pathlens.paths import (
    all_paths,
    effective_paths,
    length_range,
    path_counts,
    sample_paths,
    shortest_interval,
    shortest_intervals,
)
from tests.helpers.model_helpers import one_line


def brute(weights: list[int], share: Fraction) -> tuple[int, int]:
    """Every interval, in exact arithmetic: enough weight, then the shortest, the heaviest, the leftmost."""
    enough = []
    for first, last in itertools.combinations_with_replacement(range(len(weights)), 2):
        held = sum(map(Fraction, weights[first : last + 1]))
        if held >= share * sum(map(Fraction, weights)):
            enough.append((last - first, -held, first, last))
    return min(enough)[2:]


@pytest.mark.parametrize("blocks", range(11))
def test_counts_are_those_of_the_listed_subsets(blocks):
    lengths = Counter(sum(taken) for taken in itertools.product((0, 1), repeat=blocks))
    counts = path_counts(blocks)
    assert counts == [lengths[length] for length in range(blocks + 1)]
    for length, count in enumerate(counts):
        paths = all_paths(blocks, length)
        assert len(paths) == len(set(paths)) == count
        assert all(list(path) == sorted(set(path)) and set(path) <= set(range(blocks)) for path in paths)
        assert {len(path) for path in paths} == {length}


def test_counts_of_600_blocks_are_exact():
    counts = path_counts(600)
    assert sum(counts) == 2**600
    assert counts[300] == math.factorial(600) // math.factorial(300) ** 2
    assert all(isinstance(count, int) for count in counts)


def test_most_paths_of_54_blocks_have_19_to_35():
    # Veit, Wilber, Belongie 2016, section 5: more than 95 % of all paths go through 19 to 35 blocks, which is true;
    # 20 to 34 is the shortest such range
    counts = path_counts(54)
    assert sum(counts[19:36]) / 2**54 == pytest.approx(stats.binom(54, 0.5).cdf(35) - stats.binom(54, 0.5).cdf(18))
    assert length_range(54, 0.98) == (19, 35)
    assert length_range(54) == (20, 34)
    assert sum(counts[20:35]) > Fraction(95, 100) * 2**54 > sum(counts[20:34])


def test_interval_of_600_blocks_is_decided_exactly():
    first, last = length_range(600)
    counts = path_counts(600)
    assert first + last == 600
    assert 20 * sum(counts[first : last + 1]) >= 19 * 2**600
    assert 20 * sum(counts[first + 1 : last + 1]) < 19 * 2**600
    # normal approximation: 1.96 standard deviations, which are half the root of n
    assert last - 300 == pytest.approx(1.96 * math.sqrt(600) / 2, abs=1)


@given(
    st.lists(st.integers(0, 50) | st.integers(0, 10**40), min_size=1, max_size=9).filter(any),
    st.integers(1, 100),
)
def test_integers_against_brute_force(weights, percent):
    assert shortest_interval(weights, percent / 100) == brute(weights, Fraction(percent, 100))


@given(
    st.lists(st.integers(0, 2**20), min_size=1, max_size=9).filter(any),
    st.sampled_from([0.125, 0.25, 0.5, 0.75, 0.9375, 1.0]),
)
def test_floats_against_brute_force(weights, share):
    # sums of these and the shares are exact in floating point
    assert shortest_interval([w / 2**10 for w in weights], share) == brute(weights, Fraction(share))


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=20).filter(any), st.floats(0.01, 1))
def test_interval_holds_its_share_and_no_shorter_one_does(weights, share):
    first, last = shortest_interval(weights, share)
    assert 0 <= first <= last < len(weights)
    total = sum(map(Fraction, weights))
    assert sum(map(Fraction, weights[first : last + 1])) >= Fraction(share) * total * (1 - Fraction(1, 10**12))
    shorter = last - first
    best = max((sum(map(Fraction, weights[i : i + shorter])) for i in range(len(weights) - shorter + 1)), default=0)
    assert best <= Fraction(share) * total * (1 + Fraction(1, 10**12))


@given(st.lists(st.lists(st.floats(0, 100), min_size=5, max_size=5), min_size=1, max_size=4), st.floats(0.01, 1))
def test_many_intervals_are_those_of_each(rows, share):
    weights = np.array([[round(weight, 3) for weight in row] for row in rows]) + np.eye(len(rows), 5)
    for row, (first, last) in zip(weights, shortest_intervals(weights, share).tolist(), strict=True):
        # sums of floats, in which equal and enough depend on rounding
        wanted = shortest_interval(row.tolist(), share)
        assert row[first : last + 1].sum() == pytest.approx(row[wanted[0] : wanted[1] + 1].sum())
        assert last - first == wanted[1] - wanted[0]


def test_interval_by_hand():
    assert shortest_interval([0, 0, 3, 0]) == (2, 2)
    assert shortest_interval([1, 1, 1], 0.5) == (0, 1)  # one weight alone is only a third
    assert shortest_interval([1] * 10, 0.1) == (0, 0)
    assert shortest_interval([1, 5, 1, 5, 2], 0.5) == (3, 4)  # 1..3 holds more and is longer
    assert shortest_interval([1.0, 2.0, 3.0, 2.0, 1.0], 0.5) == (1, 2)  # of the two with equal weight, the first
    assert shortest_interval([7]) == (0, 0)
    assert shortest_interval([1, 0, 1], 1.0) == (0, 2)


@pytest.mark.parametrize(
    ("weights", "share", "match"),
    [
        ([], 0.95, "no weight"),
        ([0, 0], 0.95, "no weight"),
        ([1, -1], 0.95, "-1"),
        ([1.0, math.nan], 0.95, "nan"),
        ([1.0, math.inf], 0.95, "inf"),
        ([1, 2], 0, "share 0 "),
        ([1, 2], 1.5, "share 1.5 "),
        ([1, 2], math.nan, "share nan "),
    ],
)
def test_intervals_that_cannot_be(weights, share, match):
    for call in (shortest_interval, effective_paths):
        with pytest.raises(UsageError, match=match) as caught:
            call(weights, share)
        one_line(caught)


def test_effective_paths_of_the_paper():
    # section 5: lengths 5 to 17 of 54 blocks hold most of the gradient and 0.45 % of all paths
    contributions = [1.0 if 5 <= length <= 17 else 1e-4 for length in range(55)]
    found = effective_paths(contributions, 0.99)
    assert (found.first, found.last) == (5, 17)
    assert found.share_of_paths == pytest.approx(0.0045, abs=5e-5)
    assert found.share_of_paths == sum(math.comb(54, k) for k in range(5, 18)) / 2**54
    assert found.share_of_contribution == pytest.approx(13 / (13 + 42e-4))
    mean = stats.binom(found.blocks_per_batch, 0.5).mean()
    assert mean == pytest.approx((5 + 17) / 2, abs=0.5)


def test_effective_paths_where_paths_outgrow_floats():
    counts = path_counts(1200)
    assert counts[600] > 10**308
    found = effective_paths(counts)
    assert (found.first, found.last) == length_range(1200) == (566, 633)
    assert found.share_of_contribution == found.share_of_paths == pytest.approx(0.95, abs=0.005)
    assert found.blocks_per_batch == 566 + 633


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=30))
def test_effective_paths_count_at_least_one_block(contributions):
    found = effective_paths(contributions)
    assert 1 <= found.blocks_per_batch <= len(contributions) - 1
    assert 0 < found.share_of_paths <= 1
    assert found.share_of_contribution * (1 + 1e-12) >= 0.95


def test_effective_paths_where_long_lengths_were_left_out():
    contributions = [math.comb(54, length) * 0.04**length for length in range(55)]
    whole = effective_paths(contributions)
    assert effective_paths(contributions[: whole.last + 1], whole.share_of_contribution, 54).share_of_paths < 1e-3
    cut = effective_paths(contributions[:30], blocks=54)
    assert (cut.first, cut.last, cut.share_of_paths, cut.blocks_per_batch) == (
        whole.first, whole.last, whole.share_of_paths, whole.blocks_per_batch,
    )  # fmt: skip


def test_effective_paths_of_a_network_without_blocks():
    found = effective_paths([2.0])
    assert (found.first, found.last, found.share_of_paths, found.blocks_per_batch) == (0, 0, 1.0, 0)


def test_draws_are_uniform():
    draws = sample_paths(7, 3, 34, np.random.default_rng(0))
    counts = Counter(draws)
    rng = np.random.default_rng(1)
    for _ in range(200):
        counts.update(sample_paths(7, 3, 34, rng))
    paths = all_paths(7, 3)
    assert set(counts) <= set(paths)
    assert stats.chisquare([counts[path] for path in paths]).pvalue > 1e-3


def test_draws_repeat_with_their_seed():
    one, two, other = (sample_paths(54, 20, 50, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == two != other
    assert all(len(path) == 20 and list(path) == sorted(set(path)) and 0 <= path[0] <= path[-1] < 54 for path in one)
    assert all(type(block) is int for path in one for block in path)
    assert len(one) == 50


@pytest.mark.parametrize(("blocks", "length", "count"), [(5, 2, 10), (5, 2, 1000), (6, 0, 1), (6, 6, 3), (0, 0, 1)])
def test_where_there_are_no_more_paths_all_are_given(blocks, length, count):
    rng = np.random.default_rng(0)
    assert sample_paths(blocks, length, count, rng) == all_paths(blocks, length)
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


def test_paths_that_cannot_be():
    rng = np.random.default_rng(0)
    for call, match in (
        (lambda: path_counts(-1), "-1 blocks"),
        (lambda: sample_paths(5, 6, 1, rng), r"length 6 is outside 0\.\.5"),
        (lambda: sample_paths(5, -1, 1, rng), "length -1"),
        (lambda: sample_paths(5, 2, 0, rng), "0 paths"),
        (lambda: length_range(5, 0), "share 0 "),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            call()
        one_line(caught)
