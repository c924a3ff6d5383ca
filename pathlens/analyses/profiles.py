"""Gradients resolved by path length: exact sums, sampled paths, and second moments by random signs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from pathlens import paths
from pathlens.analyses import path_rows
from pathlens.analyses.evaluation import losses_of
from pathlens.analyses.linear import Observed, Opened, opened, type_of
from pathlens.analyses.options import GradientOptions
from pathlens.analyses.runner import Progress
from pathlens.analyses.sources import Data
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.estimators import ALIASES, estimators
from pathlens.estimators.estimator import Estimator, Problem, Request
from pathlens.estimators.resampling import interval, whole_interval
from pathlens.plans import Plan
from pathlens.residual import ResidualView
from pathlens.residual.flow import blocks_at, concatenation_edges, place_of
from pathlens.residual.gradients import boundary_of
from pathlens.residual.losses import Loss
from pathlens.residual.routes import path_blocks
from pathlens.results.lattice import LATTICE
from pathlens.results.path_profile import PATH_GRADIENTS
from pathlens.tables import Json, Table
from pathlens.tables.declared import Rows


def path_gradients(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    method: str = "all",
    at: str | int | None = None,
    max_length: int | None = None,
    lesion: Plan | Iterable[Plan] = (),
    tolerance: float = 0.0,
    rel_error: float = 0.1,
    max_samples: int = 64,
    draws: int = 8,
    share: float = 0.95,
    seed: int = 0,
    additions: str | None = None,
    concat: bool = False,
    loss: Loss | str | None = None,
    progress: Progress | None = None,
    **options: Unpack[GradientOptions],
) -> Table:
    r"""Gradient norm of every path length (Veit, Wilber, Belongie 2016, section 5), by up to three methods.

    Norms are L2 norms of the gradient of an example's own loss, averaged over examples, so that they do not depend on
    the batch size. They do where batch norms use the statistics of the batch, in train mode or because they keep no
    others: an example's gradient then holds what it does to the losses of its batch.

    An example none of whose tokens or pixels counts (-100) has no loss and is left out; with such batch norms, only
    where no target of its batch counts. Which targets count for a ``loss`` that is a function nobody knows: all
    examples enter.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        method: ``exact``: the norm of the sum over all paths of each length, :math:`\|G_k\|`, by the recurrence;
            ``sampled``: norms of single random paths, the paper's protocol; ``signed``: the root mean square path norm,
            from :math:`E\|\sum_p \epsilon_p g_p\|^2 = \sum_p \|g_p\|^2` with random signs of the blocks (also called
            ``rademacher``); or ``all``.
        at: where the gradient is taken: ``input``, ``stem``, or ``block:I`` for x_I, the input of block I; paths then
            run through blocks I and later. Default: ``input``, or ``stem`` where the input is of integers.
        max_length: leave longer paths out. What is of all lengths is then not known: shares of the contribution, the
            effective ranges, and what is left when gradients are added.
        lesion: measure the network with these deletions and reorderings of :mod:`pathlens.plans`, and with those of the
            ``with`` blocks around. A block without its branch is no choice for a path; one without its shortcut is
            taken by every path, which makes it longer by one.
        tolerance: leave lengths out whose gradient is at most this fraction of the largest, block by block.
        rel_error: sample paths of a length until half the 95 % bootstrap interval over paths is this fraction of the
            mean, above 0 and finite; what depends on the examples gets no narrower by more paths, and stands in the
            table.
        max_samples: paths of a length for each batch at most.
        draws: random sign vectors for each example.
        share: of the contribution that the effective range holds.
        seed: of paths and signs.
        additions: which residual additions are blocks, as for :func:`pathlens.find_blocks`; a view must have those.
            Where they are no chain, paths are those of ``pathlens.residual.polynomials``, signs are drawn for each way
            at which paths part, and ``block:I`` is the branch point of block I.
        concat: paths choose at concatenations too, of a tensor and something learned from it (DenseNets, U-Nets).
        loss: (outputs, targets) -> loss of each example, or the name of one that goes with what the outputs fit, such
            as ``soft-iou`` (default: the cross-entropy, in nats: of a class for each image, or a mean over tokens or
            pixels).
        progress: called with (batches done, batches in all), summed over the methods.
        **options: see :func:`pathlens.analyses.linear.opened`.

    Returns:
        A row for each length. Its provenance has the effective ranges (``effective``), how the mean norm falls with
        length (``decay``) and what is left of number times mean norm when gradients are added first
        (``cancellation``), each with 95 % bootstrap intervals where there are two examples or more; the relative
        difference between the sum over lengths and autograd's gradient, what was left out, and the number of all paths
        (``all_paths``, as text beyond 64 bits).

    Raises:
        UsageError: lengths, places, blocks, numbers of samples or methods that do not exist, a view of other blocks, or
            float16, whose numbers do not reach down to the gradients of single paths.
        DataError: no target counts.
        NumericsError: a gradient that is not finite, a sum over lengths that is not autograd's gradient, or a model
            whose own forward computes something else than what was traced (forward hooks on inner modules).
    """
    _check_type(model, options.get("dtype"))
    chosen = estimators(method)
    request = _checked(Request(_place(at), max_length, tolerance, rel_error, max_samples, draws, share, seed, concat))
    more: dict[str, Any] = {"additions": additions, "concat": concat}
    with opened(model, data, lesion=lesion, progress=progress, **more, **options) as run:
        request = _placed(request, run)
        losses, named = losses_of(run.view, loss, run.runner)
        observed = Observed(run, loss)
        problem = _problem(run, request, losses, observed)
        run.identify("path-gradients", (request, named))
        rows = path_rows.empty(problem.numbers, problem.lengths)
        estimated: dict[str, Json] = {}
        for estimator in chosen:
            estimated |= estimator.estimate(problem, rows)
        measured: dict[str, Json] = {
            "images_measured": observed.examples,
            **observed.left_out,
            "all_paths": _stated(sum(problem.numbers)),
            **estimated,
        }
        if problem.is_whole:
            measured["effective"] = {
                estimator.name: effective_range(estimator, rows, share, problem.numbers, run.is_chain)
                for estimator in sorted(chosen, key=lambda estimator: estimator.rank)
                if any(estimator.contributions(rows))
            }
            left = what_is_left({estimator.name: estimator for estimator in chosen}, rows)
            measured |= {"cancellation": left} if left else {}
        else:
            measured["max_length"] = request.max_length
        record = run.record(
            verb="path-gradients",
            at=request.at,
            loss=named,
            method=ALIASES.get(method, method),
            blocks_in_paths=_blocks_in_paths(problem),
            seed=seed,
            share=share,
            measured=measured,
            resumed_units=run.runner.resumed,
            processes=run.runner.group.world,
            seconds=run.runner.seconds,
        )
    return PATH_GRADIENTS.table(rows, record.entries())


def lattice(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    at: str | int | None = None,
    max_length: int | None = None,
    lesion: Plan | Iterable[Plan] = (),
    tolerance: float = 0.0,
    additions: str | None = None,
    concat: bool = False,
    loss: Loss | str | None = None,
    progress: Progress | None = None,
    **options: Unpack[GradientOptions],
) -> Table:
    r"""Where the gradient lives: the mean norm of :math:`G^{(i)}_k` at every boundary i and length k.

    Arguments and errors as :func:`path_gradients`.

    Returns:
        A row for each boundary (-1 is the input, i is x_i) and length, with the norm and the number of paths from the
        loss to there. Where blocks are no chain, boundary i is the branch point of block i, and n the first tensor that
        all paths pass behind all n blocks.
    """
    _check_type(model, options.get("dtype"))
    request = _checked(Request(_place(at), max_length, tolerance, concat=concat))
    more: dict[str, Any] = {"additions": additions, "concat": concat}
    with opened(model, data, lesion=lesion, progress=progress, **more, **options) as run:
        request = _placed(request, run)
        losses, named = losses_of(run.view, loss, run.runner)
        observed = Observed(run, loss)
        problem = _problem(run, request, losses, observed)
        run.identify("lattice", (request, named))
        chain = run.view.chain()
        told = blocks_at(chain, run.concat).items()
        apart = {boundary for node, boundaries in told if chain.trace.batch_axis(node) for boundary in boundaries}

        def compute(_batch: int, images: Tensor, labels: Tensor) -> Any:
            linear = problem.linearise(images, labels)
            places = []
            for profile in linear.profiles(request.max_length, request.tolerance):
                norms = profile.norms()
                if norms.shape[1] != len(images) or profile.boundary in apart:
                    raise UsageError(
                        f"at boundary {profile.boundary} the network has no row for each of {len(images)} examples "
                        "(pieces of them are in the batch, or sequences come first), so that norms there are not "
                        "theirs; give path-gradients at the input"
                    )
                places.append([profile.boundary, profile.first, norms.sum(1).tolist()])
            return places

        results = observed("lattice", compute)
        sums: dict[tuple[int, int], float] = {}
        for places in results.values():
            for boundary, first, norms in places:
                for offset, norm in enumerate(norms):
                    key = (boundary, first + offset)
                    sums[key] = sums.get(key, 0.0) + norm
        rows = path_rows.lattice(sums, observed.examples, _numbers(run), problem.is_whole)
        record = run.record(
            verb="lattice",
            at=request.at,
            loss=named,
            examples=observed.examples,
            measured={**({} if problem.is_whole else {"max_length": request.max_length}), **observed.left_out},
            seconds=run.runner.seconds,
        )
    return LATTICE.table(rows, record.entries())


def _check_type(model: nn.Module | ResidualView, dtype: str | None) -> None:
    if type_of(model, dtype) == "float16":
        raise UsageError(
            "gradients of single paths are below the smallest numbers of float16 and would be lost; give dtype "
            "bfloat16 or float32 (--dtype)"
        )


def _stated(count: int) -> int | str | None:
    """A number as provenance has it: as text beyond 64 bits, as tables have it, and none that Python does not print."""
    if count < 2**63:
        return count
    digits = sys.get_int_max_str_digits()
    return None if digits and count.bit_length() > 3.3 * digits else str(count)


def _place(at: str | int | None) -> str:
    """Where the gradient is taken, as text; empty where that depends on the input."""
    return "" if at is None else str(at)


def _placed(request: Request, run: Opened) -> Request:
    return request if request.at else replace(request, at="input" if run.has_gradient_at_input else "stem")


def _checked(request: Request) -> Request:
    for name, number, least in (
        ("max-samples", request.max_samples, 1),
        ("draws", request.num_samples, 1),
        ("max-length", request.max_length, 0),
    ):
        if number is not None and number < least:
            raise UsageError(f"{name} must be {least} or more; found {number}")
    if not 0 <= request.tolerance < 1:
        raise UsageError(f"tolerance {request.tolerance} is outside [0, 1)")
    if not 0 < request.rel_error < math.inf:
        raise UsageError(f"rel-error {request.rel_error} must be above 0 and finite")
    if not 0 < request.share <= 1:
        raise UsageError(f"share {request.share} is outside (0, 1]")
    return request


def _problem(run: Opened, request: Request, loss: Loss, observed: Observed) -> Problem:
    chosen, shortest, numbers, signs = _paths(run, request.at)
    least, most = shortest, shortest + len(numbers) - 1
    if request.max_length is not None and not least <= request.max_length <= most:
        raise UsageError(
            f"max-length {request.max_length} is outside {least}..{most}: paths run through {most} blocks here"
            + (f", {least} of which have no shortcut" if run.is_chain and least else "")
        )
    return Problem(
        request,
        chosen,
        shortest,
        numbers,
        signs,
        run.runner.source.count or 0,
        run.runner.device,
        run.runner.dtype,
        run.dtype,
        run.mode == "train" or run.mixes,
        linearise=lambda images, labels: run.linearise(images, labels, request.at, loss),
        measure=observed,
    )


def _blocks_in_paths(problem: Problem) -> int | None:
    chosen = problem.paths
    return len(chosen.free) + len(chosen.forced) if isinstance(chosen, paths.ChainPaths) else None


def _paths(run: Opened, at: str) -> tuple[paths.Paths, int, list[int], int]:
    """The paths, the shortest length, numbers of paths from there on, and of random signs."""
    if run.is_chain:
        free, forced = path_blocks(run.route, max(0, boundary_of(at, len(run.view))))
        return paths.ChainPaths(free, forced), len(forced), paths.path_counts(len(free)), len(run.view)
    name, chain = type(run.view.model).__name__, run.view.chain()
    if not chain.links and not concatenation_edges(chain):
        raise NoResidualBlocksError(
            f"{name} has no residual addition, and no concatenation of a tensor and something learned from it, at "
            "which paths could choose"
        )
    # networkx takes its time, and a chain does not need it
    from pathlens.graph.choices import GraphPaths, count_choices, number_of_ways

    place = place_of(chain, at)
    numbers = count_choices(chain, run.route, place, run.concat)
    if not any(numbers):
        raise UsageError(
            f"at {at}: no path leads from there to the output of {name} as it is lesioned; give another place"
        )
    shortest = next(length for length, number in enumerate(numbers) if number)
    chosen = GraphPaths(chain, run.route, place, run.concat, shortest)
    return chosen, shortest, numbers[shortest:], number_of_ways(chain)


def _numbers(run: Opened) -> Callable[[int], Mapping[int, int]]:
    """Numbers of paths from the loss to a boundary, by length."""
    if run.is_chain:

        def numbers(boundary: int) -> Mapping[int, int]:
            free, forced = path_blocks(run.route, max(0, boundary))
            return dict(enumerate(paths.path_counts(len(free)), len(forced)))

        return numbers
    from pathlens.graph.choices import count_choices_from

    chain = run.view.chain()
    nodes = {boundary: node for node, boundaries in blocks_at(chain, run.concat).items() for boundary in boundaries}
    nodes[-1] = chain.trace.source
    counted = count_choices_from(chain, run.route, nodes.values(), run.concat)
    return lambda boundary: dict(enumerate(counted[nodes[boundary]]))


def effective_range(
    estimator: Estimator, rows: Rows, share: float, numbers: Sequence[int], is_chain: bool
) -> dict[str, Json]:
    """The effective range, with what it is in bootstrap samples.

    Args:
        estimator: what made the rows.
        rows: of the table. They begin at the shortest length, which blocks without a shortcut add to; a length that no
            path has contributes nothing.
        share: of the contribution that the range holds.
        numbers: of paths of the shortest length, and of each longer one.
        is_chain: whether blocks are a chain.
    """
    known = [value or 0.0 for value in estimator.contributions(rows)]
    effective = paths.effective_paths(known, share, len(numbers) - 1, None if is_chain else numbers)
    shortest = rows[0]["length"]
    found: dict[str, Json] = vars(effective) | {"first": shortest + effective.first, "last": shortest + effective.last}
    if estimator.resampled is not None:
        contributed = estimator.contributed(np.nan_to_num(estimator.resampled), [row["n_paths"] for row in rows])
        ends = paths.shortest_intervals(contributed[contributed.any(1)], share)
        distinct = set(map(tuple, ends.tolist()))
        held = {(first, last): sum(numbers[first : last + 1]) / sum(numbers) for first, last in distinct}
        found |= whole_interval("first", shortest + ends[:, 0]) | whole_interval("last", shortest + ends[:, 1])
        found |= whole_interval("share_of_paths", np.array([held[first, last] for first, last in ends.tolist()]))
    return found


def what_is_left(estimators_by_name: Mapping[str, Estimator], rows: Rows) -> dict[str, Json]:
    """What is left of the number of paths times their mean norm when their gradients are added first.

    Args:
        estimators_by_name: those that made the rows.
        rows: of the table.

    Returns:
        At the length whose sum is largest: that norm over the product, with the 95 % interval of the ratio over
        bootstrap samples with the same examples for both. Nothing where not both were measured, on two examples or
        more, where either is zero, and where there are more paths than floats can say.
    """
    exact, sampled = estimators_by_name.get("exact"), estimators_by_name.get("sampled")
    if exact is None or sampled is None or exact.resampled is None or sampled.resampled is None:
        return {}
    peak = max(range(len(rows)), key=lambda place: rows[place]["total_norm"] or 0.0)
    row = rows[peak]
    if not row["path_norm_mean"] or not row["total_norm"] or row["n_paths"] > sys.float_info.max:
        return {}
    ratio = row["total_norm"] / row["path_norm_mean"] / float(row["n_paths"])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = exact.resampled[:, peak] / sampled.resampled[:, peak] / float(row["n_paths"])
    low, high = interval(ratios[np.isfinite(ratios)], ratio)
    return {"length": row["length"], "left": ratio, "low": low, "high": high}
