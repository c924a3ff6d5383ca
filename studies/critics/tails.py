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
from pathlens.metrics import sample_interval
from pathlens.paths import sample_paths
from studies.common import StudySetting, say
from studies.critics.drawing import tails_figure
from studies.subjects import Subject

_NORM = "loss per unit of input"

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
    ("tail_example_low", "", "lower end of its 95 % interval over examples (Student)"),
    ("tail_example_high", "", "upper end of it"),
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
    within = np.sqrt(np.square(tail.norms).mean(axis=0)) / tail.norms.mean(axis=0)
    within_low, within_high = sample_interval(within.tolist())
    q50, q95, q99 = (float(value) for value in np.quantile(flat, (0.5, 0.95, 0.99)))
    rms = float(signed["path_norm_rms"])
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
        "rms": float(np.sqrt(np.square(flat).mean())),
        "rms_error": _rms_error(tail, resamples),
        "rms_signed": rms,
        "rms_signed_error": signed["path_norm_rms_error"],
        "tail": rms / mean,
        "tail_error": rms / mean * math.hypot((signed["path_norm_rms_error"] or 0.0) / rms, error / mean),
        "missed": rms / float(np.sqrt(np.square(flat).mean())),
        "tail_example": float(within.mean()),
        "tail_example_low": None if within_low is None else float(within_low),
        "tail_example_high": None if within_high is None else float(within_high),
        "four_below": float((four < mean).mean()),
        "four_median": float(np.median(four)) / mean,
    }


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
