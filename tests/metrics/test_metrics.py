"""Counts and intervals against sums written out by hand, closed formulas and textbook numbers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens.errors import DataError, ModelError, NumericsError, UsageError
from pathlens.metrics import ClassificationCounts, count_values, kendall_tau, sample_interval, wilson_interval
from tests.helpers import ROOT


def batch(n: int = 200, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    """Correct answers and summed loss, one image at a time, in Python floats."""
    correct, losses = 0, []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        correct += row.index(max(row)) == label
        top = max(row)
        losses.append(top + math.log(math.fsum(math.exp(x - top) for x in row)) - row[label])
    return correct, math.fsum(losses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_counts_equal_sums_by_hand(dtype):
    logits, labels = batch()
    logits = logits.to(dtype)
    counts = ClassificationCounts.of(logits, labels)
    correct, loss_sum = by_hand(logits, labels)
    assert (counts.n, counts.correct, counts.nonfinite) == (200, correct, 0)
    assert counts.loss_sum == pytest.approx(loss_sum, rel=1e-13)
    assert counts.error == (200 - correct) / 200
    assert counts.loss == pytest.approx(loss_sum / 200, rel=1e-13)


@given(cuts=st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_counts(cuts):
    logits, labels = batch(60)
    whole = ClassificationCounts.of(logits, labels)
    edges = [0, *sorted(cuts), 60]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    merged = sum((ClassificationCounts.of(logits[p], labels[p]) for p in parts), ClassificationCounts())
    summed = ClassificationCounts.from_values(sum(count_values(logits[p], labels[p]) for p in parts).tolist())
    for counts in (merged, summed):
        assert (counts.n, counts.correct, counts.nonfinite) == (whole.n, whole.correct, whole.nonfinite)
        assert counts.loss_sum == pytest.approx(whole.loss_sum, rel=1e-14)


def test_huge_logits_keep_a_finite_loss():
    counts = ClassificationCounts.of(torch.tensor([[0.0, 1e38], [1e38, 0.0]]), torch.tensor([0, 0]))
    assert counts.correct == 1
    assert counts.loss == pytest.approx(5e37, rel=1e-6)


def test_small_losses_are_not_rounded_away():
    logits = torch.tensor([[30.0, 0.0]])  # in float32, log-softmax gives 0
    assert ClassificationCounts.of(logits, torch.tensor([0])).loss == pytest.approx(math.exp(-30), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_logits_are_counted_and_reported(bad):
    logits, labels = batch(10)
    labels = logits.argmax(1)
    logits[3, 2] = bad
    counts = ClassificationCounts.of(logits, labels)
    assert counts.nonfinite == 1
    assert counts.correct == 9
    rest = torch.arange(10) != 3
    assert counts.loss_sum == pytest.approx(by_hand(logits[rest], labels[rest])[1])
    assert math.isnan(counts.loss)
    with pytest.raises(NumericsError, match=r"the network without block 3 gives NaN or infinity for 1 of 10 images"):
        counts.require_finite("the network without block 3")
    ClassificationCounts.of(*batch(10)).require_finite("the intact network")


def test_gradients_and_inputs_are_left_alone():
    logits, labels = batch(5)
    logits.requires_grad_()
    kept = logits.detach().clone(), labels.clone()
    values = count_values(logits, labels)
    assert not values.requires_grad
    assert values.dtype == torch.float64
    assert torch.equal(logits, kept[0])
    assert torch.equal(labels, kept[1])


def test_no_images_have_no_error():
    empty = ClassificationCounts.of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert empty == ClassificationCounts()
    for read in (lambda: empty.error, lambda: empty.loss):
        with pytest.raises(NumericsError, match="no images"):
            read()


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_outside_the_classes_are_refused(label):
    logits, labels = batch(10)
    labels[[2, 5]] = label
    with pytest.raises(DataError, match="2 of 10 labels are outside the classes"):
        ClassificationCounts.of(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), ModelError),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.long), ModelError),
        (torch.zeros(4, 0), torch.zeros(4, dtype=torch.long), ModelError),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long), ModelError),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), DataError),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long), DataError),
        (torch.zeros(4, 3), torch.zeros(4), DataError),
    ],
)
def test_wrong_shapes_and_types_are_refused(logits, labels, error):
    with pytest.raises(error, match="give"):
        ClassificationCounts.of(logits, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counts_on_a_gpu_equal_those_on_the_cpu():
    logits, labels = batch(500)
    here, there = ClassificationCounts.of(logits, labels), ClassificationCounts.of(logits.cuda(), labels)
    assert (here.n, here.correct, here.nonfinite) == (there.n, there.correct, there.nonfinite)
    assert there.loss_sum == pytest.approx(here.loss_sum, rel=1e-13)
    labels[7] = 7
    with pytest.raises(DataError, match="1 of 500"):
        ClassificationCounts.of(logits.cuda(), labels)


@given(n=st.integers(1, 3000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_wilson_interval_solves_its_equation(n, share, confidence):
    # The ends p are where |p^ - p| = z sqrt(p (1 - p) / n).
    failures = round(share * n)
    z = {0.5: 0.67448975, 0.9: 1.64485363, 0.95: 1.95996398, 0.99: 2.57582930}[confidence]
    low, high = wilson_interval(failures, n, confidence)
    assert 0 <= low <= failures / n <= high <= 1
    for end, at_wall in ((low, failures == 0), (high, failures == n)):
        gap = abs(failures / n - end) - z * math.sqrt(max(0.0, end * (1 - end)) / n)
        assert at_wall or gap == pytest.approx(0, abs=1e-7)


def test_wilson_interval_known_numbers():
    # Newcombe 1998, Statistics in Medicine 17, table I: method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_covers_the_true_rate():
    generator = np.random.default_rng(0)
    hits = 0
    for failures in generator.binomial(1000, 0.08, size=400):
        low, high = wilson_interval(int(failures), 1000)
        hits += low <= 0.08 <= high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(("failures", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_interval_refuses_what_is_no_rate(failures, n, confidence):
    with pytest.raises(UsageError, match="give"):
        wilson_interval(failures, n, confidence)


def test_sample_interval_known_numbers():
    # Student's t from the tables: t(0.975, 4) = 2.776445, t(0.95, 4) = 2.131847; sd of 1..5 is sqrt(2.5).
    low, high = sample_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), rel=1e-6)
    low, high = sample_interval([1, 2, 3, 4, 5], confidence=0.9)
    assert high - 3 == pytest.approx(2.131847 * math.sqrt(0.5), rel=1e-6)
    assert sample_interval([0.9, 1.0], bounds=(0, 1))[1] == 1
    assert sample_interval([0.0, 0.1], bounds=(0, 1))[0] == 0
    assert sample_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert sample_interval([0.3]) == (None, None)


def test_sample_interval_covers_the_true_mean():
    draws = np.random.default_rng(1).normal(2.0, 3.0, size=(500, 5))
    hits = sum(low <= 2.0 <= high for low, high in map(sample_interval, draws))
    assert 0.92 <= hits / 500 <= 0.98


def test_sample_interval_refuses_what_has_no_mean():
    with pytest.raises(UsageError, match="no samples"):
        sample_interval([])
    with pytest.raises(NumericsError, match="NaN"):
        sample_interval([0.1, math.nan])
    with pytest.raises(UsageError, match="confidence"):
        sample_interval([0.1, 0.2], confidence=95)


@given(st.integers(2, 9).flatmap(lambda n: st.permutations(range(n))))
@settings(max_examples=50, deadline=None)
def test_kendall_tau_counts_pairs(order):
    pairs = list(combinations(order, 2))
    expected = sum(1 if a < b else -1 for a, b in pairs) / len(pairs)
    assert kendall_tau(order) == pytest.approx(expected, abs=1e-12)


def test_kendall_tau_ends_and_refusals():
    assert kendall_tau(range(54)) == pytest.approx(1)
    assert kendall_tau([3, 2, 1, 0]) == pytest.approx(-1)
    assert kendall_tau([10, 20, 15]) == pytest.approx(1 / 3)
    assert kendall_tau([0]) == 1.0
    for order in ([], [0, 1, 1]):
        with pytest.raises(UsageError, match="every block once"):
            kendall_tau(order)


def test_import_is_light():
    code = "import sys, pathlens.metrics; print([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n"
