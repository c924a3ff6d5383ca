"""Relative squared errors against loops and scikit-learn, and their tests by scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_squared_error, r2_score

from pathlens.errors import DataError, NumericsError, UsageError
from pathlens.metrics.regression import RegressionCounts
from pathlens.metrics.tasks import REGRESSION, task_for


def drawn(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) > 1:  # components of other means and scales
        targets = (targets.movedim(1, -1) * torch.arange(1, shape[1] + 1) + torch.arange(shape[1]) * 10).movedim(-1, 1)
    return targets + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64), targets


def of(networks, targets):
    values, answers = zip(*(REGRESSION.answers(outputs, targets) for outputs in networks), strict=True)
    rows = torch.cat([torch.stack(values), REGRESSION.compare(torch.stack(answers))], dim=1)
    return [REGRESSION.measured(row) for row in rows.tolist()]


@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 4), (5, 3, 2, 2)])
def test_errors_are_those_of_scikit_learn_and_of_a_loop(shape):
    outputs, targets = drawn(*shape)
    ((counts, _),) = of([outputs], targets)
    # components in columns, their other numbers as so many examples
    given, asked = (
        each.reshape(shape[0], shape[1] if len(shape) > 1 else 1, -1).movedim(1, -1).flatten(0, 1).numpy()
        for each in (outputs, targets)
    )
    assert counts.error == pytest.approx(1 - r2_score(asked, given, multioutput="variance_weighted"), rel=1e-9)
    assert counts.loss == pytest.approx(mean_squared_error(asked, given), rel=1e-12)
    assert counts.columns()["rmse"] == pytest.approx(math.sqrt(mean_squared_error(asked, given)), rel=1e-12)
    losses = REGRESSION.losses(outputs, targets)
    by_hand = [
        np.mean([(a - b) ** 2 for a, b in zip(*rows, strict=True)])
        for rows in zip(outputs.reshape(shape[0], -1).tolist(), targets.reshape(shape[0], -1).tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-12)
    interval = stats.ttest_1samp(by_hand, 0).confidence_interval()
    ends = np.clip(interval, 0, None) / counts.variance
    assert [counts.columns()[f"error_{end}"] for end in ("low", "high")] == pytest.approx(ends.tolist(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: REGRESSION.losses(x, targets), (outputs.requires_grad_(),))


def test_networks_are_compared_by_a_paired_t_test():
    outputs, targets = drawn(12, 3)
    worse = outputs + 0.4
    (intact, same), (counts, pairs) = of([outputs, worse], targets)
    test = stats.ttest_rel(*(REGRESSION.losses(given, targets).numpy() for given in (worse, outputs)))
    assert pairs.p == pytest.approx(test.pvalue, rel=1e-9)
    assert pairs.difference == pytest.approx(counts.error - intact.error, rel=1e-9)
    ends = np.array(test.confidence_interval()) / counts.variance
    assert pairs.interval == pytest.approx(ends.tolist(), rel=1e-9)
    assert (same.difference, same.p, same.interval, same.lost, same.gained) == (0.0, 1.0, (0.0, 0.0), None, None)


def test_batches_add_up():
    outputs, targets = drawn(7, 3)
    networks = [outputs, outputs.flip(0)]
    whole = of(networks, targets)
    parts = [of([own[at] for own in networks], targets[at]) for at in (slice(0, 3), slice(3, 7))]
    for one, other, both in zip(*parts, whole, strict=True):
        assert (one[0] + other[0]).columns() == pytest.approx(both[0].columns(), rel=1e-9)
        assert (one[1] + other[1]).difference == pytest.approx(both[1].difference, rel=1e-9, abs=1e-12)
        assert (one[1] + other[1]).p == pytest.approx(both[1].p, rel=1e-6)


def test_an_output_that_overflows_counts_as_zeros():
    outputs, targets = drawn(5, 2)
    broken, zeros = outputs.clone(), outputs.clone()
    broken[3, 1], zeros[3] = math.inf, 0.0
    ((counts, _),), ((expected, _),) = of([broken], targets), of([zeros], targets)
    assert (counts.nonfinite, counts.error) == (1, expected.error)
    assert (counts.columns()["loss"], counts.columns()["rmse"]) == (None, None)
    with pytest.raises(NumericsError, match="the network gives NaN or infinity for 1 of 5 examples"):
        counts.require_finite("the network")


def test_one_number_an_example_may_have_no_axis_of_its_own():
    outputs, targets = drawn(6, 1)
    assert of([outputs], targets[:, 0])[0] == of([outputs], targets)[0]
    torch.testing.assert_close(REGRESSION.losses(outputs, targets[:, 0]), REGRESSION.losses(outputs, targets))


def test_what_does_not_fit_is_refused():
    outputs, targets = drawn(4, 2)
    with pytest.raises(DataError, match=r"targets have shape \(4, 3\) and the network gives \(4, 2\)"):
        REGRESSION.losses(outputs, torch.zeros(4, 3))
    with pytest.raises(DataError, match=r"targets of a regression are torch\.int64; give floating"):
        REGRESSION.check_targets(torch.zeros(4, 2, dtype=torch.long), 4)
    with pytest.raises(DataError, match="targets hold NaN or infinity"):
        REGRESSION.check_targets(torch.full((4, 2), math.nan), 4)
    with pytest.raises(DataError, match=r"4 examples have targets of shape \(3, 2\)"):
        REGRESSION.check_targets(targets[:3], 4)
    with pytest.raises(NumericsError, match="all targets of the 4 examples are equal"):
        _ = of([outputs], torch.full((4, 2), 1 / 3))[0][0].error
    with pytest.raises(NumericsError, match="no examples were counted"):
        _ = RegressionCounts().error
    with pytest.raises(UsageError, match="the task regression has no loss 'cross-entropy'; give squared-error"):
        REGRESSION.with_loss("cross-entropy")
    assert task_for((2, 3), "squared-error") is REGRESSION
