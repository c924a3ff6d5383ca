"""Statistics of paired answers against other ways to compute them, and published numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from pathlens.errors import NumericsError, UsageError
from pathlens.metrics import PairedCounts, holm, mcnemar_p, paired_interval


@given(st.integers(0, 10_000), st.data())
def test_mcnemar_s_exact_test_is_the_binomial_test(together: int, data: st.DataObject) -> None:
    # most splits of many images are so uneven that p is 0
    spread = min(together // 2, 20 + 3 * math.isqrt(together))
    lost = data.draw(st.integers(together // 2 - spread, together // 2 + spread) | st.integers(0, together))
    wanted = binomtest(lost, together, 0.5).pvalue if together else 1.0
    assert mcnemar_p(lost, together - lost) == pytest.approx(wanted, rel=1e-9, abs=1e-300)
    assert mcnemar_p(lost, together - lost) == mcnemar_p(together - lost, lost)


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.02, 0.3, 0.9, 1.0]) | st.floats(0, 1), max_size=7))
@settings(max_examples=60)
def test_holm_s_correction_is_the_closed_test_of_bonferroni(family: list[float]) -> None:
    # Marcus, Peritz, Gabriel 1976: reject a hypothesis where every set that it is in is rejected
    sets = [s for size in range(len(family)) for s in itertools.combinations(range(len(family)), size + 1)]
    for index, adjusted in enumerate(holm(family)):
        wanted = max(min(1.0, len(s) * min(family[i] for i in s)) for s in sets if index in s)
        assert adjusted == pytest.approx(wanted, rel=1e-14)


def profile_statistic(lost: int, gained: int, n: int, difference: float) -> float:
    """The score statistic of a difference, with the likeliest rates found by a search."""
    same = n - lost - gained

    def unlikely(rate: float) -> float:
        rates = (rate + difference, rate, 1 - difference - 2 * rate)
        return -sum(c * math.log(max(r, 1e-300)) for c, r in zip((lost, gained, same), rates, strict=True) if c)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    rate = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (lost - gained - n * difference) / math.sqrt(n * (2 * rate + difference * (1 - difference)))


@given(st.data(), st.integers(1, 2000), st.sampled_from([(0.9, 1.64485363), (0.95, 1.95996398)]))
@settings(max_examples=60)
def test_the_interval_s_ends_solve_tango_s_equation(
    data: st.DataObject, n: int, confidence: tuple[float, float]
) -> None:
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = paired_interval(lost, gained, n, confidence[0])
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert (low, high) == pytest.approx([-end for end in reversed(paired_interval(gained, lost, n, confidence[0]))])
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1:
            statistic = profile_statistic(lost, gained, n, end)
            assert statistic == pytest.approx(sign * confidence[1], rel=1e-4)
    # the test that the interval inverts at no difference
    if lost != gained:
        assert (low <= 0 <= high) == ((lost - gained) ** 2 <= confidence[1] ** 2 * (lost + gained))


def test_published_comparisons() -> None:
    """Fagerland, Lydersen, Laake 2014, table II; their package contingencytables prints the second one."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert paired_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert mcnemar_p(6, 16) == pytest.approx(0.052479, abs=5e-7)
    # as Wilson's, an interval without a single difference has a width
    assert paired_interval(0, 0, 44)[1] == pytest.approx(1.959964**2 / (44 + 1.959964**2), abs=1e-6)
    assert paired_interval(5, 0, 5)[1] == 1


def test_the_interval_covers_the_difference() -> None:
    table = np.random.default_rng(0).multinomial(400, (0.08, 0.03, 0.89), size=500)
    hits = [low <= 0.05 <= high for low, high in (paired_interval(int(b), int(c), 400) for b, c, _ in table)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_what_is_no_comparison_is_refused() -> None:
    for numbers in ((-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(UsageError, match="give counts"):
            paired_interval(*numbers)
    with pytest.raises(UsageError, match="give 0 or more"):
        mcnemar_p(-1, 2)
    with pytest.raises(UsageError, match="p-value"):
        holm([0.1, 1.1])
    with pytest.raises(NumericsError, match="no images"):
        _ = PairedCounts().difference


def test_a_sum_over_batches_and_processes() -> None:
    assert PairedCounts(3, 1, 0) + PairedCounts(4, 0, 2) == PairedCounts(7, 1, 2)
    assert PairedCounts(7, 1, 2).difference == pytest.approx(-1 / 7)
