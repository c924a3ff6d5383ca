"""How the norms of single paths of one length are distributed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

import pathlens
from pathlens import figures
from pathlens.paths import sample_paths
from studies.common import StudySetting, say
from studies.critics.drawing import tails_figure
from studies.subjects import Subject

_NORM = "loss per unit of input"
_RESAMPLES = 2000  # of paths and examples together: a matrix of paths x images each

TAILS = (
    ("network", "", "network"),
    ("length", "blocks", "of the paths"),
    ("paths", "", "distinct sampled paths"),
    ("images", "", "examples of each path"),
    ("mean", _NORM, "mean norm over paths and examples"),
    ("mean_low", _NORM, "lower end of its 95 % bootstrap interval over paths (percentile)"),
    ("mean_high", _NORM, "upper end of it"),
    ("median", _NORM, "median over paths and examples"),
    ("q95", _NORM, "95 % quantile"),
    ("q99", _NORM, "99 % quantile"),
    ("largest", _NORM, "largest norm"),
    ("top_share", "fraction", "share of the sum of norms that the largest 1 % hold"),
    ("rms", _NORM, "root mean square of the sample"),
    ("rms_error", _NORM, "its standard error over the sampled paths (bootstrap)"),
    ("rms_signed", _NORM, "root mean square over all paths, by random signs, of the same examples"),
    ("rms_signed_error", _NORM, "its standard error over draws of signs"),
    ("tail", "", "rms_signed over mean"),
    ("tail_error", "", "its standard error, from those of both"),
    ("missed", "", "rms_signed over rms: above 1 where the sample missed heavy paths"),
    ("tail_example", "", "root mean square over mean of the sampled paths of one example, mean over examples"),
    (
        "tail_example_low",
        "",
        "lower end of its 95 % bootstrap interval over paths and examples (percentile, each resampled by itself), "
        "times missed where that is below 1",
    ),
    ("tail_example_high", "", "upper end of it, times missed where that is above 1"),
    ("four_below", "fraction", "how often the mean of four of the paths lies below the mean of all that were sampled"),
    ("four_median", "", "median of the mean of four paths, over that mean"),
)


@dataclass(frozen=True)
class Tail:
    """Norms of single paths of one length: shape (paths, images)."""

    length: int
    norms: np.ndarray


def sample_tail(subject: Subject, images: int, length: int, paths: int) -> Tail:
    """Norms of the gradient of each example's loss at the input through single random paths."""
    batch = subject.images(images, "train").batch(0, images, mean=subject.mean, std=subject.std, device=subject.device)
    rng = np.random.default_rng([length, len(subject.view)])
    norms = []
    for path in dict.fromkeys(sample_paths(len(subject.view), length, paths, rng)):
        inputs = batch.images.clone().requires_grad_()
        with pathlens.restrict_backward(subject.view, path=path) as model:
            loss = cross_entropy(model(inputs), batch.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
        norms.append(torch.linalg.vector_norm(gradient.double().flatten(1), dim=1).cpu().numpy())
    return Tail(length, np.array(norms))


def tail_row(network: str, tail: Tail, signed: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """The distribution of one length's path norms."""
    flat = np.sort(tail.norms.ravel())
    paths = tail.norms.mean(axis=1)
    mean, low, high = float(flat.mean()), None, None
    if len(paths) > 1 and np.ptp(paths) > 0:
        rng = np.random.default_rng(0)
        found = stats.bootstrap((paths,), np.mean, n_resamples=resamples, method="percentile", rng=rng)
        low, high = (float(end) for end in found.confidence_interval)
    error = float(paths.std(ddof=1) / math.sqrt(len(paths))) if len(paths) > 1 else 0.0
    four = few_means(tail, 4, resamples)
    top = flat[-max(1, round(len(flat) / 100)) :]
    within = float(_within(tail.norms, np.ones((1, len(paths)))).mean())
    within_low, within_high = within_interval(tail.norms, min(resamples, _RESAMPLES))
    q50, q95, q99 = (float(value) for value in np.quantile(flat, (0.5, 0.95, 0.99)))
    rms, of_sample = float(signed["path_norm_rms"]), float(np.sqrt(np.square(flat).mean()))
    missed = rms / of_sample
    return {
        "network": network,
        "length": tail.length,
        "paths": len(paths),
        "images": tail.norms.shape[1],
        "mean": mean,
        "mean_low": low,
        "mean_high": high,
        "median": q50,
        "q95": q95,
        "q99": q99,
        "largest": float(flat[-1]),
        "top_share": float(top.sum() / flat.sum()),
        "rms": of_sample,
        "rms_error": _rms_error(tail, resamples),
        "rms_signed": rms,
        "rms_signed_error": signed["path_norm_rms_error"],
        "tail": rms / mean,
        "tail_error": rms / mean * math.hypot((signed["path_norm_rms_error"] or 0.0) / rms, error / mean),
        "missed": missed,
        "tail_example": within,
        "tail_example_low": None if within_low is None else within_low * min(1.0, missed),
        "tail_example_high": None if within_high is None else within_high * max(1.0, missed),
        "four_below": float((four < mean).mean()),
        "four_median": float(np.median(four)) / mean,
    }


def within_interval(norms: np.ndarray, resamples: int) -> tuple[float | None, float | None]:
    """95 % interval of the mean over examples of root mean square over mean of their paths, which are the same for all.

    Paths and examples are resampled each by itself (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics
    1, 386); percentiles with a fixed seed. None where nothing varies.

    Args:
        norms: shape (paths, images).
        resamples: how many.
    """
    rng = np.random.default_rng(2)
    paths, examples = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in norms.shape)
    drawn = (_within(norms, paths) * examples).sum(axis=1) / norms.shape[1]
    if np.ptp(drawn) < 1e-12:
        return None, None
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _within(norms: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Root mean square over mean of each example's paths, where each path counts so many times.

    Args:
        norms: shape (paths, images).
        times: shape (samples, paths).

    Returns:
        Shape (samples, images); 1 where no path has a gradient, because all are then alike.
    """
    mean, square = (times @ powers / times.sum(axis=1, keepdims=True) for powers in (norms, np.square(norms)))
    return np.divide(np.sqrt(square), mean, out=np.ones_like(mean), where=mean > 0)


def few_means(tail: Tail, paths: int, draws: int) -> np.ndarray:
    """Means of so many paths, drawn from the sample with replacement."""
    means = tail.norms.mean(axis=1)
    return means[np.random.default_rng(paths).integers(0, len(means), size=(draws, paths))].mean(axis=1)


def _rms_error(tail: Tail, resamples: int) -> float:
    """Standard error of the root mean square of a sample, over its paths."""
    squares = np.square(tail.norms).mean(axis=1)
    picked = np.random.default_rng(1).integers(0, len(squares), size=(resamples, len(squares)))
    return float(np.sqrt(squares[picked].mean(axis=1)).std())


def measure_tails(study: StudySetting, subject: Subject, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Distributions of the path norms of some lengths, with their figure."""
    say(f"single paths of {subject.name}, lengths {', '.join(map(str, lengths))}")
    images = study.pick(2, 64, 64)
    signed = pathlens.path_gradients(
        subject.view,
        subject.images(images, "train"),
        method="signed",
        draws=study.pick(2, 16, 32),
        batch_size=images,
        **subject.options,
    )
    tails = [sample_tail(subject, images, length, study.pick(5, 128, 4096)) for length in lengths]
    rows = [tail_row(subject.name, tail, signed.rows[tail.length], study.pick(99, 9999, 9999)) for tail in tails]
    few = [
        (tail.length, paths, few_means(tail, paths, 999) / row["mean"])
        for tail, row in zip(tails, rows, strict=True)
        for paths in (1, 2, 4, 8, 16, 32, 64)
    ]
    scaled = {tail.length: (tail.norms / tail.norms.mean(axis=0)).ravel() for tail in tails}
    drawn = tails_figure(scaled, few, {row["length"]: row["tail"] for row in rows})
    figures.save(drawn, study.out, f"tails-{subject.name}")
    return rows
