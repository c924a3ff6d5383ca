"""Norms of random paths of each length, drawn until their mean is known well enough or the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pathlens.estimators import resampling
from pathlens.estimators.estimator import NORM, Estimator, Problem
from pathlens.estimators.resampling import RESAMPLES, example_weights
from pathlens.paths import Paths
from pathlens.tables import Json
from pathlens.tables.declared import MutableRow, Row, Shown, column, formatted

if TYPE_CHECKING:
    from torch import Tensor

_STEP = 4  # paths of each length that a round draws for a batch
_FEWEST = 8  # paths below which an interval is not trusted
_PATHS, _BOOTSTRAP = 2, 3  # parts of random seeds, different for each purpose
_AT_ONCE = 256  # paths whose gradients are computed together


@dataclass(frozen=True)
class Round:
    """The paths of one round: fresh ones of each open length for every batch."""

    number: int
    batches: int
    paths: Paths
    seed: int
    lengths: tuple[int, ...]
    draws: int

    @property
    def units(self) -> range:
        """Numbers of this round's units, one for each batch; no other round has them."""
        return range(self.number * self.batches, (self.number + 1) * self.batches)

    def paths_for(self, unit: int) -> dict[int, Sequence[Collection[int]]]:
        """Paths of each length for a unit; all of them where they are few."""
        paths: dict[int, Sequence[Collection[int]]] = {}
        for length in self.lengths:
            if self.paths.count(length) <= self.draws:
                paths[length] = self.paths.every(length)
            else:
                rng = np.random.default_rng([self.seed % 2**64, _PATHS, unit, length])
                paths[length] = self.paths.sample(length, self.draws, rng)
        return paths


@dataclass
class Sampler:
    """Decides which lengths need more paths; a length is how much longer than the shortest path one is.

    Attributes:
        paths: those there are.
        norms: length -> for each unit its batch and the norms of single paths for single examples, shape (paths,
            examples).
        intervals: length -> 95 % bootstrap interval of the mean over sampled paths with the examples of their batches:
            what more paths make narrower.
        stopped: length -> ``interval``, ``budget`` or ``all paths``.
    """

    paths: Paths
    longest: int
    rel_error: float
    max_samples: int
    seed: int
    norms: dict[int, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    intervals: dict[int, tuple[float, float]] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    _rounds: int = 0

    @property
    def open_lengths(self) -> tuple[int, ...]:
        """Lengths that need more paths."""
        return tuple(n for n in range(self.longest + 1) if n not in self.stopped and self.paths.count(n))

    def next_round(self, batches: int) -> Round:
        """Fresh paths of every open length for every batch."""
        self._rounds += 1
        draws = min(_STEP, self.max_samples - (self._rounds - 1) * _STEP)
        return Round(self._rounds - 1, batches, self.paths, self.seed, self.open_lengths, draws)

    def take(self, step: Round, results: dict[int, Any]) -> None:
        """Add a round's norms, and stop the lengths that need no more."""
        for length in step.lengths:
            taken = self.norms.setdefault(length, [])
            taken += [(unit % step.batches, np.array(results[unit][str(length)])) for unit in sorted(results)]
            self._judge(length)

    def _judge(self, length: int) -> None:
        mean = self.mean(length)
        low, high = self.intervals[length] = self._interval(length, mean)
        if self._has_all(length):
            self.stopped[length] = "all paths"
        elif self.samples(length) >= _FEWEST and mean and (high - low) / 2 <= self.rel_error * mean:
            # zeros alone do not stop it: the paths that have a gradient may be rare
            self.stopped[length] = "interval"
        elif (self._rounds * _STEP) >= self.max_samples:
            self.stopped[length] = "budget"

    def _has_all(self, length: int) -> bool:
        return self.paths.count(length) <= min(_STEP, self.max_samples)

    def samples(self, length: int) -> int:
        """Number of paths, those of different batches counted apart."""
        return sum(len(norms) for _, norms in self.norms[length])

    def flat(self, length: int) -> np.ndarray:
        """Norms of all its paths and examples."""
        return np.concatenate([norms.ravel() for _, norms in self.norms[length]])

    def mean(self, length: int) -> float:
        """Mean over paths and examples."""
        norms = self.flat(length)
        return math.fsum(norms.tolist()) / len(norms)

    def _interval(self, length: int, mean: float) -> tuple[float, float]:
        """95 % bootstrap interval (percentile) of the mean, resampling paths with the examples of their batches."""
        means = np.concatenate([norms.mean(1) for _, norms in self.norms[length]])
        counts = np.concatenate([np.full(len(norms), norms.shape[1]) for _, norms in self.norms[length]])
        if len(means) < 2:
            return mean, mean
        # scipy.stats.bootstrap draws and says the same, and takes several times as long
        drawn = self._drawn(length)
        return resampling.interval((means * counts)[drawn].sum(1) / counts[drawn].sum(1), mean)

    def _drawn(self, length: int) -> np.ndarray:
        """Which paths each bootstrap sample has, shape (samples, paths)."""
        paths = self.samples(length)
        rng = np.random.default_rng([self.seed % 2**64, _BOOTSTRAP, length, paths])
        return rng.integers(0, paths, (RESAMPLES, paths))

    def resampled(self, length: int, weights: np.ndarray) -> np.ndarray:
        """The mean in each bootstrap sample of paths and examples, both drawn anew.

        This is the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386-411) within batches. Where all
        paths of a length were taken only examples are drawn.

        Args:
            length: of the paths.
            weights: of :func:`example_weights`.

        Returns:
            Shape (samples,); NaN for a sample without a path for its examples.
        """
        paths = self.samples(length)
        often = np.ones((len(weights), paths))
        if not self._has_all(length):
            at = self._drawn(length) + paths * np.arange(len(weights))[:, None]
            often = np.bincount(at.ravel(), minlength=often.size).reshape(often.shape).astype(float)
        sizes = {batch: norms.shape[1] for batch, norms in self.norms[length]}
        ends = dict(zip(sorted(sizes), np.cumsum([sizes[batch] for batch in sorted(sizes)]), strict=True))
        sums, numbers, start = np.zeros(len(weights)), np.zeros(len(weights)), 0
        for batch, norms in self.norms[length]:
            drawn = often[:, start : start + len(norms)]
            start += len(norms)
            examples = weights[:, ends[batch] - sizes[batch] : ends[batch]]
            sums += (examples @ norms.T * drawn).sum(1)
            numbers += examples.sum(1) * drawn.sum(1)
        with np.errstate(invalid="ignore"):
            return sums / numbers


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Norms of sampled paths."""

    path_norm_mean: float | None = column(
        NORM, "mean norm of one path, over sampled paths and examples; heavy-tailed: see rms"
    )
    path_norm_low: float | None = column(
        NORM, "lower end of its 95 % bootstrap interval over paths and examples (of one example, over paths)"
    )
    path_norm_high: float | None = column(NORM, "upper end of that interval")
    path_norm_median: float | None = column(NORM, "median over sampled paths and examples")
    path_norm_q05: float | None = column(NORM, "5 % quantile")
    path_norm_q95: float | None = column(NORM, "95 % quantile")


@dataclass(frozen=True, kw_only=True)
class LastColumns:
    """What all paths of a length contribute, and on how many it rests."""

    contribution: float | None = column(NORM, "n_paths times path_norm_mean (the paper's)")
    contribution_share: float | None = column(
        "fraction", "contribution over its sum over all lengths; missing where max_length leaves some out"
    )
    samples: int | None = column("", "sampled paths, those of different batches counted apart")
    stopped: str | None = column(
        "", "why sampling ended: interval (narrow enough), budget (spent) or all paths (nothing to draw)"
    )


@dataclass(frozen=True)
class Decay:
    """A straight line through log10 of ``path_norm_mean`` against length (Veit et al. 2016, figure 6b).

    Attributes:
        slope: decades per block, by ordinary least squares; each length counts alike.
        low: lower end of its 95 % bootstrap interval over paths and examples; other networks may differ by more.
        high: upper end of that interval.
        explained: what the line explains of the variance of log10 of the norm, from 0 to 1.
        first: shortest length with a finite norm above 0; the line is laid through all of these.
        last: longest of them.
    """

    slope: float
    low: float
    high: float
    explained: float
    first: int
    last: int


def decay(rows: Sequence[Row], resampled: np.ndarray) -> Decay | None:
    """How the mean norm of a path falls with its length; None for fewer than three lengths with a norm.

    Args:
        rows: of the table, in the order of ``resampled``.
        resampled: the means of bootstrap samples, shape (samples, lengths).
    """
    lengths = np.array([row["length"] for row in rows], dtype=float)
    means = np.array([row["path_norm_mean"] or 0.0 for row in rows], dtype=float)
    line = _line(lengths, means)
    if line is None:
        return None
    slope, explained, first, last = line
    slopes = [found[0] for found in (_line(lengths, sample) for sample in resampled) if found is not None]
    return Decay(slope, *resampling.interval(np.array(slopes), slope), explained, first, last)


def _line(lengths: np.ndarray, means: np.ndarray) -> tuple[float, float, int, int] | None:
    """Slope, share of the variance that it explains, and the first and last length that have a norm."""
    there = (means > 0) & np.isfinite(means)
    if there.sum() < 3:
        return None
    x, y = lengths[there], np.log10(means[there])
    x_left, y_left = x - x.mean(), y - y.mean()
    slope, spread = x_left @ y_left / (x_left @ x_left), y_left @ y_left
    explained = slope * (x_left @ y_left) / spread if spread else 0.0
    return float(slope), float(explained), int(x.min()), int(x.max())


class Sampled(Estimator):
    """The paper's protocol: the mean norm of single random paths (Veit et al. 2016, section 5)."""

    columns = Columns
    last_columns = LastColumns
    shown: ClassVar[Mapping[str, Shown]] = {
        "path_norm_mean": Shown("path norm\nmean", formatted(".3g")),
        "path_norm_low": Shown("95 %\nlow", formatted(".3g"), gives_way=1),
        "path_norm_high": Shown("\nhigh", formatted(".3g"), gives_way=1),
        "path_norm_median": Shown("\nmedian", formatted(".3g"), gives_way=3),
        "samples": Shown(gives_way=4),
        "stopped": Shown(left=True, gives_way=5),
    }
    norm = "path_norm_mean"
    interval = ("path_norm_low", "path_norm_high")
    of_one = True
    rank = 0
    on_terminal = "sampled contribution"
    in_headline = "sampled paths"
    in_chart = "paths × mean norm (sampled)"
    look: ClassVar[Mapping[str, Any]] = {"colour": 0}

    def estimate(self, problem: Problem, rows: Sequence[MutableRow]) -> Mapping[str, Json]:
        """Round after round, until no length needs more paths."""
        request = problem.request
        longest = problem.lengths[-1] - problem.lengths[0]
        sampler = Sampler(problem.paths, longest, request.rel_error, request.max_samples, request.seed)
        while sampler.open_lengths:
            step = sampler.next_round(problem.batches)
            sampler.take(step, problem.measure(self.name, partial(_measure, problem, step), step.units))
        examples = sum({batch: norms.shape[1] for batch, norms in sampler.norms[min(sampler.norms)]}.values())
        weights = example_weights(request.seed, examples)
        resampled = self.resampled = np.full((RESAMPLES, len(rows)), np.nan)
        for length in sampler.stopped:
            resampled[:, length] = sampler.resampled(length, weights)
        self._fill(rows, sampler, resampled, problem.is_whole)
        line = decay(rows, resampled)
        return {"decay": vars(line)} if line else {}

    def _fill(self, rows: Sequence[MutableRow], sampler: Sampler, resampled: np.ndarray, is_whole: bool) -> None:
        """Mean, interval and quantiles; where there is no path of a length between others, nothing.

        Shares are of all lengths, and known where all are there.
        """
        for chosen, row in enumerate(rows):
            if chosen not in sampler.stopped:
                continue
            norms, mean = sampler.flat(chosen), sampler.mean(chosen)
            row["path_norm_mean"] = mean
            row["path_norm_low"], row["path_norm_high"] = resampling.interval(resampled[:, chosen], mean)
            row["path_norm_q05"], row["path_norm_median"], row["path_norm_q95"] = (
                float(value) for value in np.quantile(norms, (0.05, 0.5, 0.95))
            )
            row["samples"] = sampler.samples(chosen)
            row["stopped"] = sampler.stopped[chosen]
        contributions: list[Any] = self.contributions(rows)
        everything = math.fsum(contribution or 0.0 for contribution in contributions)
        for row, contribution in zip(rows, contributions, strict=True):
            if contribution is not None:
                row["contribution"] = contribution
                if is_whole:
                    row["contribution_share"] = contribution / everything if everything else 0.0


def _measure(problem: Problem, step: Round, unit: int, images: Tensor, labels: Tensor) -> dict[str, list[list[float]]]:
    """Norms of the paths of a round for the examples of one batch: blocks chosen -> a list for each path."""
    linear = problem.linearise(images, labels)
    chosen = step.paths_for(unit)
    flat = [path for paths in chosen.values() for path in paths]
    norms: list[list[float]] = []
    for start in range(0, len(flat), _AT_ONCE):
        norms += linear.through(flat[start : start + _AT_ONCE]).norms().tolist()
    remaining = iter(norms)
    return {str(length): [next(remaining) for _ in paths] for length, paths in chosen.items()}
