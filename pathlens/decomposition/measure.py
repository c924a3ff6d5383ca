"""The numbers of a break-up: how large each summand is, how it varies with the sum, and what it does to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pathlens.decomposition.carry import CONSTANTS, STEM, Summands
from pathlens.errors import UsageError
from pathlens.metrics.tasks import ManyAnswers, Task, of_two_classes
from pathlens.metrics.units import IGNORED, require_inside, require_targets
from pathlens.residual.chain import Chain, check_index

WHOLE = -3
"""Key of the whole, beside those of the summands."""

OUTPUT = "output"
SUM = "sum"
"""Where to decompose: the sum of the last block, or what the network returns."""


@dataclass(frozen=True)
class Contribution:
    """What one summand is, over a batch.

    Attributes:
        second_moment: mean of its squares.
        variance: mean over channels of the variance of a channel.
        covariance: mean over channels of the covariance of a channel with that of the whole.
        examples: number.
        logit: sum over examples of what it adds to the logit of the label, less what it adds to the mean logit; 0 where
            the whole is no output.
        logit_squares: sum over examples of its square.
        units: answers that are right or wrong; 0 where the whole is no output.
        wrong: of these, how many are wrong with this summand and those before it alone; NaN where a logit of these is
            not finite.
    """

    second_moment: float
    variance: float
    covariance: float
    examples: float = 0.0
    logit: float = 0.0
    logit_squares: float = 0.0
    units: float = 0.0
    wrong: float = 0.0


def target_of(chain: Chain, at: str | int) -> tuple[fx.Node, int | None]:
    """The tensor to decompose, and the block whose sum it is.

    Args:
        chain: the traced network.
        at: ``sum`` (of the last block), ``output``, or the index of a block.

    Raises:
        UsageError: anything else, or layers, which have no sums.
    """
    if chain.links[0].addition.is_layer:
        raise UsageError("a plain network adds nothing up, so that there is no sum to decompose; give a residual one")
    if at == OUTPUT:
        return chain.trace.main, None
    try:
        index = len(chain.links) - 1 if at == SUM else check_index(int(at), len(chain.links))
    except ValueError:
        raise UsageError(f"at {at!r} is unknown; give {SUM}, {OUTPUT}, or the number of a block") from None
    return chain.links[index].total, index


def measure_summands(
    chain: Chain, whole: Tensor, summands: Summands, block: int | None, task: Task | None, targets: Tensor
) -> dict[int, Contribution]:
    """The numbers of each summand, and of the whole.

    Summands are added up in the order constants, stem, blocks.

    Args:
        chain: the traced network.
        whole: shape (N, ...).
        summands: as of :func:`decompose_at`.
        block: whose sum it is; None for the output.
        task: of the network, which says where in the output the classes are; nothing where the whole is no output.
        targets: shape (N, ...).

    Raises:
        DataError: targets of another shape than the output's, or outside the classes.
    """
    classes = task.axis if isinstance(task, ManyAnswers) else 1
    axis = classes if block is None else chain.links[block].channel_axis
    reference = _by_channel(whole, axis)
    keys = [CONSTANTS, STEM, *sorted(key for key in summands if key >= 0)]
    so_far = torch.zeros_like(whole)
    contributions = {WHOLE: Contribution(*_moments(reference, reference))}
    for key in keys:
        moments = _moments(_by_channel(summands[key], axis), reference)
        answers: Sequence[float] = ()
        if block is None:
            so_far = so_far + summands[key]
            part, through = (of_two_classes(own).movedim(classes, -1) for own in (summands[key], so_far))
            answers = _answers(part, through, targets)
        contributions[key] = Contribution(*moments, *answers)
    return contributions


def _by_channel(x: Tensor, axis: int) -> Tensor:
    """A row for each channel, in float64."""
    return x.movedim(axis, 0).flatten(1).double()


def _moments(part: Tensor, whole: Tensor) -> list[float]:
    """Second moment, variance, and covariance with the whole, means over the rows."""
    centred = part - part.mean(1, True)
    covariance = (centred * (whole - whole.mean(1, True))).mean()
    return torch.stack([part.square().mean(), centred.square().mean(), covariance]).tolist()


def _answers(part: Tensor, so_far: Tensor, targets: Tensor) -> Sequence[float]:
    """Examples, their contributions to the label's logit and the squares of those, units, and how many are wrong.

    Args:
        part: the summand, shape (N, ..., classes).
        so_far: it and those before it.
        targets: shape (N, ...).
    """
    require_targets(targets, part.shape[:-1], "the targets")
    require_inside(targets, part.shape[-1])
    known = targets != IGNORED
    right = targets.long().clamp(0, part.shape[-1] - 1)
    logit = part.gather(-1, right[..., None])[..., 0] - part.mean(-1)
    each = torch.where(known, logit, 0.0).double().reshape(len(known), -1)
    units = known.reshape(len(known), -1).sum(1)
    means = (each.sum(1) / units.clamp(min=1))[units > 0]
    wrong = torch.where(so_far.isfinite().all(-1), (so_far.argmax(-1) != right).double(), torch.nan)[known].sum()
    return [len(means), float(means.sum()), float(means.square().sum()), float(units.sum()), float(wrong)]
