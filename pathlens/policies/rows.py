"""Rows of the tables of ``blockdrop``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathlens.analyses.rows import mean_of, row_of
from pathlens.data import ImageData
from pathlens.metrics import holm, wilson_interval
from pathlens.policies.baselines import Fixed
from pathlens.policies.evaluation import Answers, Measured
from pathlens.residual import ResidualView
from pathlens.residual.costs import multiply_adds
from pathlens.residual.modes import in_mode
from pathlens.residual.trace import trace
from pathlens.results.blockdrop import ChoiceRow, ClassRow, ImageRow
from pathlens.results.measured import Measured as MeasuredColumns
from pathlens.tables.declared import MutableRow, Row

#: of the row of the mean over random sets: what else is averaged, and what is the same for all
_MEANS = ("multiply_adds", "policy_difference")
_SAME = ("network", "blocks", "blocks_sd", "choices")


class Costs:
    """Multiply-adds for one example.

    Args:
        view: of the network.
        policy: that chooses.
    """

    def __init__(self, view: ResidualView, policy: torch.nn.Module) -> None:
        own = next(policy.parameters())
        dtype = own.dtype if view.input_dtype.is_floating_point else view.input_dtype
        with in_mode(policy):
            traced = trace(policy, torch.zeros(2, *view.input_shape, device=own.device, dtype=dtype), None)
        self.policy = sum(multiply_adds(traced).values())
        self.branches = torch.tensor([block.multiply_adds for block in view], dtype=torch.float64)
        self.whole = view.totals.multiply_adds

    def mean(self, kept: Tensor) -> float:
        """Over examples, of the blocks that run, shape (examples, K), with stem, shortcuts and head."""
        return self.whole - float((~kept).double().mean(0) @ self.branches)


def network_rows(measured: Measured, sets: Sequence[Fixed], costs: Costs) -> list[MutableRow]:
    """A row for each network, and one for the mean over random sets.

    Args:
        measured: the whole network, the policy's, and those of the sets.
        sets: that run the same blocks for all examples.
        costs: of the network and the policy.
    """
    named: list[tuple[str, Answers, Fixed | None]] = [("intact", measured.intact, None)]
    named += [] if measured.tuned is None else [("tuned", measured.tuned, None)]
    named += [("policy", measured.policy, None)]
    named += [(fixed.network, answers, fixed) for fixed, answers in zip(sets, measured.others, strict=True)]
    rows = [_row(network, answers, fixed, costs) for network, answers, fixed in named]
    # two ways may lead to one set of blocks, which is then one network and one test
    names = [row["network"] if row["kept"] is None else row["kept"] for row in rows[1:]]
    family = {name: row["p"] for name, row in zip(names, rows[1:], strict=True)}
    corrected = dict(zip(family, holm(list(family.values())), strict=True))
    for name, row in zip(names, rows[1:], strict=True):
        row["p_holm"] = corrected[name]
    drawn = [row for row in rows if row["network"] == "random"]
    at = next((index for index, row in enumerate(rows) if row["network"] == "single"), len(rows))
    is_sample = all(fixed.is_drawn for fixed in sets)
    return [*rows[:at], *([mean_of(drawn, is_sample, _MEANS, _SAME)] if len(drawn) > 1 else []), *rows[at:]]


def _row(network: str, answers: Answers, fixed: Fixed | None, costs: Costs) -> MutableRow:
    run = answers.kept.sum(1).double()
    columns: MutableRow = {
        **vars(MeasuredColumns()),
        **answers.counts.columns(),
        "nonfinite": answers.counts.nonfinite,
    }
    if network != "intact":
        pair = answers.against_intact
        low, high = pair.interval
        columns |= {"difference": pair.difference, "difference_low": low, "difference_high": high}
        columns |= {"lost": pair.lost, "gained": pair.gained, "p": pair.p}
    if network != "policy":
        pair = answers.against_policy
        columns |= {"policy_difference": pair.difference, "policy_lost": pair.lost}
        columns |= {"policy_gained": pair.gained, "policy_p": pair.p}
    return row_of(
        ChoiceRow,
        columns,
        network=network,
        sample=None if fixed is None else fixed.sample,
        blocks=float(run.mean()),
        blocks_sd=float(run.std(correction=0)),
        choices=len(answers.kept.unique(dim=0)),
        kept=None if fixed is None else ",".join(map(str, fixed.kept)),
        multiply_adds=costs.mean(answers.kept) + (costs.policy if network == "policy" else 0),
        seconds=answers.seconds,
    )


def image_rows(measured: Measured) -> list[Row]:
    """A row for each example.

    Args:
        measured: with the policy's choices.
    """
    policy, labels = measured.policy, measured.labels
    assert policy.right is not None
    assert measured.intact.right is not None
    share: Callable[[float], float] = (
        float if labels is None else int
    )  # of the one class of an example all or nothing is right
    classes = [None] * len(policy.kept) if labels is None else labels.tolist()
    columns = (classes, policy.kept.tolist(), policy.right.tolist(), measured.intact.right.tolist())
    return [
        vars(
            ImageRow(
                image=image,
                label=label,
                blocks=sum(kept),
                choice="b" + "".join(map(str, map(int, kept))),
                correct=share(right),
                intact_correct=share(before),
            )
        )
        for image, (label, kept, right, before) in enumerate(zip(*columns, strict=True))
    ]


def class_rows(measured: Measured, data: ImageData) -> list[Row]:
    """A row for each class that has images.

    Args:
        measured: with the policy's choices, of images that have a class each.
        data: which may name the classes.
    """
    rows: list[Row] = []
    assert measured.labels is not None
    assert measured.policy.right is not None
    assert measured.intact.right is not None
    for label in sorted(set(measured.labels.tolist())):
        here = measured.labels == label
        kept, wrong = measured.policy.kept[here], int((1 - measured.policy.right[here]).sum())
        run, images = kept.sum(1).double(), int(here.sum())
        low, high = wilson_interval(wrong, images)
        rows.append(
            vars(
                ClassRow(
                    label=label,
                    name=data.class_names[label] if data.class_names and label < len(data.class_names) else None,
                    n=images,
                    blocks=float(run.mean()),
                    blocks_sd=float(run.std(correction=0)),
                    choices=len(kept.unique(dim=0)),
                    error=wrong / images,
                    error_low=low,
                    error_high=high,
                    intact_error=float((1 - measured.intact.right[here]).mean()),
                )
            )
        )
    return rows
