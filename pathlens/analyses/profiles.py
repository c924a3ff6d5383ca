"""Gradients resolved by path length: exact sums, sampled paths, and second moments by random signs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from pathlens import paths
from pathlens.analyses import path_rows
from pathlens.analyses.linear import Opened, opened
from pathlens.analyses.options import GradientOptions
from pathlens.analyses.provenance import Json
from pathlens.analyses.runner import Progress
from pathlens.analyses.sampling import Round, Sampler
from pathlens.analyses.sources import Data
from pathlens.errors import NumericsError, UsageError
from pathlens.plans import Plan
from pathlens.residual import ResidualView
from pathlens.residual.gradients import boundary_of
from pathlens.residual.losses import Loss, cross_entropy
from pathlens.residual.routes import path_blocks
from pathlens.results.lattice import LATTICE
from pathlens.results.path_profile import PATH_GRADIENTS
from pathlens.tables import Table

METHODS = ("exact", "sampled", "signed", "all")

#: largest relative difference between the sum over lengths and autograd's gradient that rounding explains
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class _Request:
    """What one call asked for, checked."""

    methods: tuple[str, ...]
    at: str
    max_length: int | None
    tolerance: float
    rel_error: float
    max_samples: int
    draws: int
    share: float
    seed: int


def path_gradients(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    method: str = "all",
    at: str | int = "input",
    max_length: int | None = None,
    lesion: Plan | Iterable[Plan] = (),
    tolerance: float = 0.0,
    rel_error: float = 0.1,
    max_samples: int = 64,
    draws: int = 8,
    share: float = 0.95,
    seed: int = 0,
    loss: Loss = cross_entropy,
    progress: Progress | None = None,
    **options: Unpack[GradientOptions],
) -> Table:
    r"""Gradient norm of every path length (Veit, Wilber, Belongie 2016, section 5), and what lies behind its mean.

    Norms are L2 norms of the gradient of an example's own loss, averaged over examples, so that they do not depend on
    the batch size.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        method: ``exact``: the norm of the sum over all paths of each length, :math:`\|G_k\|`, by the recurrence;
            ``sampled``: norms of single random paths, the paper's protocol; ``signed``: the root mean square path norm,
            from :math:`E\|\sum_p \epsilon_p g_p\|^2 = \sum_p \|g_p\|^2` with random signs of the blocks; or ``all``.
        at: where the gradient is taken: ``input``, ``stem``, or ``block:I`` for x_I, the input of block I; paths then
            run through blocks I and later.
        max_length: leave longer paths out.
        lesion: measure the network with these deletions and reorderings of :mod:`pathlens.plans`, and with those of the
            ``with`` blocks around. A block without its branch is no choice for a path; one without its shortcut is
            taken by every path, which makes it longer by one.
        tolerance: leave lengths out whose gradient is at most this fraction of the largest, block by block.
        rel_error: sample paths of a length until half the 95 % bootstrap interval is this fraction of the mean.
        max_samples: paths of a length for each batch at most.
        draws: random sign vectors for each example.
        share: of the contribution that the effective range holds.
        seed: of paths and signs.
        loss: (logits, labels) -> loss of each example.
        progress: called with (batches done, batches in all), summed over the methods.
        **options: see :func:`pathlens.analyses.linear.opened`.

    Returns:
        A row for each length. Its provenance has the effective ranges, the relative difference between the sum over
        lengths and autograd's gradient, and what was left out.

    Raises:
        UsageError: lengths, places, blocks, numbers of samples or methods that do not exist.
        NumericsError: a gradient that is not finite, a sum over lengths that is not autograd's gradient, or a model
            whose own forward computes something else than what was traced (forward hooks on inner modules).
    """
    request = _request(method, at, max_length, tolerance, rel_error, max_samples, draws, share, seed)
    with opened(model, data, lesion=lesion, progress=progress, **options) as run:
        free, forced = _fit(request, run)
        run.identify("path-gradients", request)
        columns, measured = _measure(run, request, free, forced, loss)
        provenance = run.provenance(
            verb="path-gradients",
            at=request.at,
            method=method,
            blocks_in_paths=len(free) + len(forced),
            seed=seed,
            share=share,
            measured=measured,
            resumed_units=run.runner.resumed,
            processes=run.runner.group.world,
            seconds=run.runner.seconds,
        )
    return PATH_GRADIENTS.table(columns, provenance.facts())


def lattice(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    at: str | int = "input",
    max_length: int | None = None,
    lesion: Plan | Iterable[Plan] = (),
    tolerance: float = 0.0,
    loss: Loss = cross_entropy,
    progress: Progress | None = None,
    **options: Unpack[GradientOptions],
) -> Table:
    r"""Where the gradient lives: the mean norm of :math:`G^{(i)}_k` at every boundary i and length k.

    Arguments and errors as :func:`path_gradients`.

    Returns:
        A row for each boundary (-1 is the input, i is x_i) and length, with the norm and the number of paths from the
        loss to there.
    """
    request = _request("exact", at, max_length, tolerance, 0.1, 1, 1, 0.95, 0)
    with opened(model, data, lesion=lesion, progress=progress, **options) as run:
        _fit(request, run)
        run.identify("lattice", request)

        def compute(_batch: int, images: Tensor, labels: Tensor) -> Any:
            linear = run.linearise(images, labels, request.at, loss)
            places = []
            for profile in linear.profiles(request.max_length, request.tolerance):
                norms = profile.norms().sum(1).tolist()
                places.append([profile.boundary, profile.first, norms])
            return [len(images), places]

        results = run.runner.run("lattice", compute)
        examples = sum(count for count, _ in results.values())
        sums: dict[tuple[int, int], float] = {}
        for _, places in results.values():
            for boundary, first, norms in places:
                for offset, norm in enumerate(norms):
                    key = (boundary, first + offset)
                    sums[key] = sums.get(key, 0.0) + norm
        rows = path_rows.lattice(sums, examples, run.route)
        provenance = run.provenance(verb="lattice", at=request.at, examples=examples, seconds=run.runner.seconds)
    return LATTICE.table(rows, provenance.facts())


def _request(
    method: str,
    at: str | int,
    max_length: int | None,
    tolerance: float,
    rel_error: float,
    max_samples: int,
    draws: int,
    share: float,
    seed: int,
) -> _Request:
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; give one of {', '.join(METHODS)}")
    for name, number, least in (("max-samples", max_samples, 1), ("draws", draws, 1), ("max-length", max_length, 0)):
        if number is not None and number < least:
            raise UsageError(f"{name} must be {least} or more; found {number}")
    if not 0 <= tolerance < 1:
        raise UsageError(f"tolerance {tolerance} is outside [0, 1)")
    if not rel_error > 0:
        raise UsageError(f"rel-error {rel_error} must be above 0")
    if not 0 < share <= 1:
        raise UsageError(f"share {share} is outside (0, 1]")
    methods = METHODS[:3] if method == "all" else (method,)
    return _Request(methods, str(at), max_length, tolerance, rel_error, max_samples, draws, share, seed)


Blocks = tuple[int, ...]


def _fit(request: _Request, run: Opened) -> tuple[Blocks, Blocks]:
    """The blocks at which paths choose between branch and shortcut, and those whose branch every path takes."""
    free, forced = path_blocks(run.route, max(0, boundary_of(request.at, len(run.view))))
    least, most = len(forced), len(forced) + len(free)
    if request.max_length is not None and not least <= request.max_length <= most:
        raise UsageError(
            f"max-length {request.max_length} is outside {least}..{most}: paths run through {most} blocks here"
            + (f", {least} of which have no shortcut" if forced else "")
        )
    return free, forced


def _measure(
    run: Opened, request: _Request, free: Blocks, forced: Blocks, loss: Loss
) -> tuple[list[dict[str, Any]], dict[str, Json]]:
    shortest = len(forced)
    longest = shortest + len(free) if request.max_length is None else request.max_length
    lengths = range(shortest, longest + 1)
    table = path_rows.Rows(len(free), shortest, longest)
    runner = run.runner
    found: dict[str, Json] = {"images_measured": run.images}
    if "exact" in request.methods:
        results = runner.run("exact", partial(_exact, run, request, lengths, loss))
        found |= _take_exact(table, list(results.values()), run, request)
    if "signed" in request.methods:
        results = runner.run("signed", partial(_signed, run, request, longest, loss))
        table.signed(list(results.values()))
        found["draws"] = request.draws
    if "sampled" in request.methods:
        sampler = Sampler(len(free), longest - shortest, request.rel_error, request.max_samples, request.seed)
        while sampler.open_lengths:
            step = sampler.next_round(runner.source.count or 0)
            compute = partial(_sampled, run, request, step, free, forced, loss)
            results = runner.run("sampled", compute, step.units)
            sampler.take(step, results)
        table.sampled(sampler)
    rows = table.finished()
    found["effective"] = {
        kind: _effective(values, request.share, len(free), shortest) for kind, values in table.contributions().items()
    }
    return rows, found


def _effective(contributions: list[float], share: float, free: int, shortest: int) -> dict[str, Json]:
    """The effective range; ``contributions`` begins at the shortest length, random blocks have a choice."""
    effective = paths.effective_paths(contributions, share, free)
    return vars(effective) | {"first": shortest + effective.first, "last": shortest + effective.last}


def _exact(
    run: Opened, request: _Request, lengths: range, loss: Loss, _batch: int, images: Tensor, labels: Tensor
) -> Any:
    linear, count = run.linearise(images, labels, request.at, loss), len(images)
    profile = linear.exact(lengths[-1], request.tolerance)
    norms = torch.zeros(len(lengths), count, dtype=torch.float64)
    norms[profile.lengths.start - lengths.start : profile.lengths.stop - lengths.start] = profile.norms().cpu()
    reference = linear.reference.double()
    missing = (profile.total().double() - reference).square().sum()
    per_example = torch.linalg.vector_norm(reference.flatten(1), dim=1)
    return {
        "examples": count,
        "sums": norms.sum(1).tolist(),
        "squares": norms.square().sum(1).tolist(),
        "missing": float(missing),
        "whole": float(reference.square().sum()),
        "gradient": float(per_example.sum()),
        "kept": [profile.lengths.start, profile.lengths.stop - 1],
    }


def _take_exact(table: path_rows.Rows, results: list[Any], run: Opened, request: _Request) -> dict[str, Json]:
    table.exact(results)
    difference = math.sqrt(sum(r["missing"] for r in results) / max(sum(r["whole"] for r in results), 1e-300))
    cut = request.max_length is not None or request.tolerance > 0
    limit = _ROUNDING.get(run.runner.dtype)
    if not cut and limit is not None and not difference <= limit:
        raise NumericsError(
            f"the sum over all path lengths differs from autograd's gradient by {difference:.1e} of its norm, more "
            f"than rounding explains (limit {limit:.0e}); use --dtype float64"
        )
    kept = [min(r["kept"][0] for r in results), max(r["kept"][1] for r in results)]
    return {
        "gradient_norm": sum(r["gradient"] for r in results) / sum(r["examples"] for r in results),
        "relative_difference_to_autograd": difference,
        "lengths_kept": kept,
        "left_out": "lengths beyond those kept; their sum is the relative difference" if cut else "nothing",
    }


def _signed(
    run: Opened, request: _Request, longest: int, loss: Loss, batch: int, images: Tensor, labels: Tensor
) -> Any:
    """For each draw, the sum over examples of the squared norm at each length."""
    linear, count = run.linearise(images, labels, request.at, loss), len(images)
    rng = np.random.default_rng([request.seed, 1, batch])
    squares = []
    for _ in range(request.draws):
        drawn = rng.integers(0, 2, size=(len(run.view), count)) * 2 - 1
        signs = torch.as_tensor(drawn, dtype=run.runner.dtype, device=run.runner.device)
        profile = linear.exact(longest, 0.0, signs)
        squares.append(profile.norms().square().sum(1).tolist())
    return {"examples": count, "squares": squares}


def _sampled(
    run: Opened,
    request: _Request,
    step: Round,
    free: Blocks,
    forced: Blocks,
    loss: Loss,
    unit: int,
    images: Tensor,
    labels: Tensor,
) -> Any:
    """Norms of the drawn paths for the examples of one batch: blocks chosen -> a list for each path."""
    linear = run.linearise(images, labels, request.at, loss)
    drawn = step.paths_for(unit)
    flat = [(*forced, *(free[place] for place in path)) for length in drawn for path in drawn[length]]
    norms: list[list[float]] = []
    for start in range(0, len(flat), _PATHS_AT_ONCE):
        norms += linear.through(flat[start : start + _PATHS_AT_ONCE]).norms().tolist()
    remaining = iter(norms)
    return {str(length): [next(remaining) for _ in drawn[length]] for length in drawn}


_PATHS_AT_ONCE = 256
