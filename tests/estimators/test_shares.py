"""What each length contributes to the gradient, and how path norms fall with length, against other ways to say it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pathlens
from pathlens.data import open_data
from pathlens.estimators.sampled import decay
from pathlens.results.path_profile import PATH_GRADIENTS
from tests.helpers.lesion_oracle import small_batches, small_net


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of each example's own loss, at the input, flattened."""
    images = images.clone().requires_grad_()
    # in eval mode examples do not mix
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels, reduction="sum"), images)
    return gradient.flatten(1)


def components(model: nn.Module, images: Tensor, labels: Tensor, lengths: Iterable[int]) -> tuple[Any, Any]:
    """Norm of each example's gradient, and its component for each length, from restricted backward passes."""
    whole = gradients(model, images, labels)
    norms = whole.norm(dim=1)
    along = []
    for length in lengths:
        with pathlens.restrict_backward(model, lengths=length) as restricted:
            along.append((gradients(restricted, images, labels) * whole).sum(1) / norms)
    return norms.numpy(), torch.stack(along).numpy()


def test_shares_of_a_small_network_by_restricted_backward() -> None:
    net = small_net()
    batches = small_batches(9, size=5)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    norms, along = components(net, images, labels, range(7))
    rows = pathlens.path_gradients(net, batches, method="exact").rows
    assert [row["length"] for row in rows] == list(range(7))
    assert math.fsum(row["share"] for row in rows) == pytest.approx(1, rel=1e-12)
    assert min(row["share"] for row in rows) < 0 < max(row["share"] for row in rows)
    for row, found in zip(rows, along, strict=True):
        share = found.mean() / norms.mean()
        assert row["share"] == pytest.approx(share, rel=1e-9, abs=1e-12)
        # the weighted mean of <G_k, g> / |g|^2
        assert share == pytest.approx(np.average(found / norms, weights=norms))
        assert abs(found.mean()) <= row["total_norm"] * (1 + 1e-9)
        half = scipy.stats.t.ppf(0.975, len(norms) - 1) * scipy.stats.sem(found - share * norms) / norms.mean()
        assert (row["share_low"], row["share_high"]) == pytest.approx((share - half, share + half), rel=1e-7, abs=1e-10)
    (row, *_) = pathlens.path_gradients(net, [(images[:1], labels[:1])], method="exact").rows
    assert (row["share_low"], row["share_high"]) == (None, None)


def test_shares_of_the_packaged_network_by_restricted_backward() -> None:
    loaded = pathlens.load_model()
    net = loaded.model.double().eval()
    (batch,) = open_data("digits", limit=3).batches(3, mean=loaded.mean, std=loaded.std)
    images = batch.images.double()
    lengths = (0, 2, 9)
    norms, along = components(net, images, batch.labels, lengths)
    rows = pathlens.path_gradients(net, [(images, batch.labels)], method="exact").rows
    assert math.fsum(row["share"] for row in rows) == pytest.approx(1, rel=1e-9)
    for length, found in zip(lengths, along, strict=True):
        assert rows[length]["share"] == pytest.approx(found.mean() / norms.mean(), rel=1e-6, abs=1e-12)
    assert len({row["share"] for row in rows}) > 10


def test_what_is_left_out_is_missing_from_the_sum() -> None:
    net, batches = small_net(), small_batches(6, size=6)
    whole = pathlens.path_gradients(net, batches, method="exact").rows
    cut = pathlens.path_gradients(net, batches, method="exact", max_length=3).rows
    assert [row["share"] for row in cut] == pytest.approx([row["share"] for row in whole[:4]], rel=1e-10)


@given(
    slope=st.floats(-3, 3),
    start=st.floats(-5, 5),
    noise=st.lists(st.floats(-1, 1), min_size=3, max_size=40),
    lost=st.sets(st.integers(0, 39)),
)
def test_the_slope_is_that_of_least_squares(slope: float, start: float, noise: list[float], lost: set[int]) -> None:
    rows = [
        {"length": length, "path_norm_mean": 0.0 if length in lost else 10 ** (start + slope * length + bit)}
        for length, bit in enumerate(noise)
    ]
    points = {row["length"]: math.log10(row["path_norm_mean"]) for row in rows if row["path_norm_mean"]}
    # other samples, whose lines are laid again one by one
    rng = np.random.default_rng(len(noise))
    others = np.array([row["path_norm_mean"] for row in rows]) * 10 ** rng.uniform(-1, 1, (20, len(rows)))
    line = decay(rows, others)
    if len(points) < 3:
        assert line is None
        return
    assert line is not None
    wanted = scipy.stats.linregress(list(points), list(points.values()))
    assert (line.first, line.last) == (min(points), max(points))
    assert line.slope == pytest.approx(wanted.slope, rel=1e-7, abs=1e-9)
    if statistics.pvariance(points.values()) > 1e-9:
        assert line.explained == pytest.approx(wanted.rvalue**2, abs=1e-6)
    slopes = [scipy.stats.linregress(list(points), np.log10(other[list(points)])).slope for other in others]
    assert (line.low, line.high) == pytest.approx(tuple(np.percentile(slopes, (2.5, 97.5))), rel=1e-7, abs=1e-9)


def test_lengths_without_a_finite_norm_are_left_out() -> None:
    norms = [1.0, 0.1, 0.01, None, 0.0, math.inf]
    rows = [{"length": length, "path_norm_mean": norm} for length, norm in enumerate(norms)]
    others = np.array([[1.0, 0.1, 0.01, math.nan, 0.0, math.inf], [1.0, 0.0, 0.01, 0.1, 0.0, 0.0]])
    line = decay(rows, others)
    assert line is not None
    assert (line.first, line.last) == (0, 2)
    assert (line.slope, line.explained) == pytest.approx((-1, 1))
    assert -1 <= line.low < line.high <= -0.3  # a sample in which length 1 has no norm, and length 3 has one
    assert decay(rows[:2], others[:, :2]) is None
    assert decay([{"length": 0, "path_norm_mean": None}], others[:, :1]) is None


def test_the_slope_is_a_headline() -> None:
    table = pathlens.path_gradients(small_net(), small_batches(4, size=4), method="sampled", max_samples=8)
    lengths, means = zip(*((row["length"], row["path_norm_mean"]) for row in table.rows), strict=True)
    slope = scipy.stats.linregress(lengths, np.log10(means)).slope
    line = table.provenance["decay"]
    assert line["low"] < slope < line["high"]
    (headline,) = [h for h in PATH_GRADIENTS.headlines(table.rows, table.provenance) if h.label.startswith("Slope")]
    assert headline.value == f"{slope:+.3f} decades per block"
    assert headline.detail.endswith("lengths 0 to 6")
    assert any(f"changes by {slope:+.3f} per block" in note for note in PATH_GRADIENTS.notes(table.provenance))
    exact = pathlens.path_gradients(small_net(), small_batches(4, size=4), method="exact")
    assert not [h for h in PATH_GRADIENTS.headlines(exact.rows, exact.provenance) if h.label.startswith("Slope")]
