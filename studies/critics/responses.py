"""Are the blocks that can be deleted without harm merely those that respond weakly?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pathlens.tables import Table
from studies import record
from studies.common import Page, StudySetting, say
from studies.critics.drawing import responses_figure
from studies.record import make_table
from studies.rules.lesions import rank_interval
from studies.subjects import Subject

RESPONSES = (
    ("block", "", "index of the block, from 0"),
    ("name", "", "its module"),
    ("stage", "", "its stage, from 0"),
    ("kind", "", "its shortcut"),
    ("branch_std", "", "standard deviation of what the branch adds, over images, channels and positions"),
    ("shortcut_std", "", "the same of what the shortcut adds"),
    ("relative_std", "", "branch_std over shortcut_std"),
    ("error", "fraction", "error with the branch deleted"),
    ("error_low", "fraction", "lower end of its 95 % interval (Wilson)"),
    ("error_high", "fraction", "upper end of it"),
    ("increase", "fraction", "error minus that of the intact network, on the same images"),
    ("increase_low", "fraction", "lower end of its 95 % interval (Tango)"),
    ("increase_high", "fraction", "upper end of it"),
    ("loss", "nats", "loss with the branch deleted; missing where it is not finite"),
)

DEVIATIONS = (
    ("block", "", "index of the block, from 0"),
    ("branch_std", "", "standard deviation of what the branch adds, over images, channels and positions"),
    ("shortcut_std", "", "the same of what the shortcut adds"),
)

CORRELATIONS = (
    ("network", "", "network"),
    ("which", "", "all blocks, or those with identity shortcuts alone"),
    ("response", "", "column of the response"),
    ("harm", "", "column of the harm"),
    ("n_blocks", "blocks", "how many"),
    ("ties", "blocks", "number of blocks minus that of distinct values of their harm"),
    ("rho", "", "Spearman's rank correlation; missing where one of the two does not vary"),
    ("rho_low", "", "lower end of its 95 % bootstrap interval over blocks (percentile)"),
    ("rho_high", "", "upper end of it"),
)


@torch.no_grad()
def measure_responses(subject: Subject, images: int, batch_size: int = 128) -> list[tuple[float, float]]:
    """Standard deviation of branch and shortcut of each block, as they enter the addition."""
    view, data = subject.view, subject.images(images)
    #: block, (branch, shortcut), (values, sum, sum of squares)
    sums = np.zeros((len(view), 2, 3))
    for index in range(data.num_batches(batch_size)):
        batch = data.batch(index, batch_size, mean=subject.mean, std=subject.std, device=subject.device)
        x = view.stem(batch.images)
        for block in range(len(view)):
            start = view.transition(block, x)
            sides = view.branch(block, start), view.shortcut(block, start)
            for side, values in enumerate(sides):
                exact = values.double()
                sums[block, side] += exact.numel(), float(exact.sum()), float(exact.square().sum())
            x = view.post(block, sides[0] + sides[1])
    means, squares = sums[..., 1] / sums[..., 0], sums[..., 2] / sums[..., 0]
    found = np.sqrt(np.maximum(0.0, squares - means**2))
    return [(float(branch), float(shortcut)) for branch, shortcut in found]


def response_rows(deviations: Sequence[tuple[float, float]], lesions: Table) -> list[dict[str, Any]]:
    """Responses beside the harm of each block's deletion."""
    rows = []
    for row in (row for row in lesions.rows if row["block"] is not None):
        branch, shortcut = deviations[row["block"]]
        rows.append(
            {
                **{name: row[name] for name in ("block", "name", "stage", "kind")},
                "branch_std": branch,
                "shortcut_std": shortcut,
                "relative_std": branch / shortcut if shortcut else None,
                **{name: row[name] for name in ("error", "error_low", "error_high", "loss")},
                **{f"increase{end}": row[f"difference{end}"] for end in ("", "_low", "_high")},
            }
        )
    return rows


def correlation(rows: Sequence[Mapping[str, Any]], response: str, harm: str) -> dict[str, Any]:
    """Spearman's rank correlation of two columns over blocks, with a bootstrap interval, and how many blocks tie."""
    pairs = [(row[response], row[harm]) for row in rows if row[response] is not None and row[harm] is not None]
    found: dict[str, Any] = {"n_blocks": len(pairs), "ties": len(pairs) - len({value for _, value in pairs})}
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    rho, low, high = rank_interval(xs, ys, 9999)
    return found | {"rho": rho, "rho_low": low, "rho_high": high}


def without_better_losses(network: str, rows: Sequence[Mapping[str, Any]], intact: float) -> str:
    """Which blocks lower the loss while they raise the error, and the correlation by loss without them; else empty.

    Args:
        network: its name.
        rows: of the blocks that are judged.
        intact: loss of the whole network.
    """
    odd = [row for row in rows if row["loss"] < intact and row["increase_low"] > 0]
    if not odd:
        return ""
    blocks = ", ".join(
        f"{row['block']} (loss {row['loss']:.3f} against {intact:.3f} nats, error {100 * row['increase']:+.2f} points)"
        for row in odd
    )
    rest = correlation([row for row in rows if row not in odd], "relative_std", "loss")
    between = (
        "does not vary"
        if rest["rho"] is None
        else (f"is {rest['rho']:.2f} ({rest['rho_low']:.2f} to {rest['rho_high']:.2f})")
    )
    return (
        f"In {network} the loss falls and the error rises without the branch of block {blocks}: a network that is too "
        f"sure of its answers gains in loss by being less so. Without {'it' if len(odd) == 1 else 'them'} the rank "
        f"correlation by loss over the {len(rows) - len(odd)} other blocks {between}. The verdict below takes "
        f"{'it' if len(odd) == 1 else 'them'} in."
    )


def measure(study: StudySetting, subjects: Sequence[Subject]) -> None:
    """The responses of all blocks."""
    for subject in subjects:
        say(f"responses of {subject.name}")
        images = study.pick(24, 10_000, 10_000)
        found = measure_responses(subject, images)
        rows = [{"block": block, "branch_std": one, "shortcut_std": other} for block, (one, other) in enumerate(found)]
        facts = record.images(subject.images(images))
        study.tables.put(
            f"deviations-{subject.name}", make_table(DEVIATIONS, rows, batch_size=128, mode="eval", **facts)
        )


def state(page: Page, networks: Sequence[str]) -> None:
    """The section of the page."""
    tables = page.tables
    page.section(
        "b. Size of the response against harm",
        "He et al. 2016a (figure 7) measure the standard deviation of each layer's response after batch norm and read "
        "from it that deeper networks change the signal less in each layer. If the blocks that can be deleted were "
        "merely those that add little, the harm of a deletion would follow the size of the response. Here the response "
        "is of a whole branch as it enters the addition, in units of the activations and relative to the shortcut.",
    )
    found = []
    for network in networks:
        deviations = [(row["branch_std"], row["shortcut_std"]) for row in tables[f"deviations-{network}"].rows]
        rows = response_rows(deviations, tables[f"lesions-{network}"])
        identity = [row for row in rows if row["kind"] == "identity"]
        chosen = {"all": rows} | ({"identity": identity} if 2 < len(identity) < len(rows) else {})
        for which, blocks in chosen.items():
            for harm in ("loss", "error"):
                for response in ("relative_std", "branch_std"):
                    names = {"network": network, "which": which, "response": response, "harm": harm}
                    found.append(names | correlation(blocks, response, harm))
        stem = f"responses-{network}"
        tables.put(stem, make_table(RESPONSES, rows))
        caption = f"Loss without a block's branch against its response: {network}."
        intact = next(row["loss"] for row in tables[f"lesions-{network}"].rows if row["count"] == 0)
        page.figure(stem, partial(responses_figure, rows, intact), caption)
        if told := without_better_losses(network, identity or rows, intact):
            page.text(told)
        page.table(stem)
        page.measured(f"deviations-{network}")
    tables.put("responses", make_table(CORRELATIONS, found))
    shown = {
        "network": "", "which": "", "response": "", "harm": "", "n_blocks": "d", "ties": "d", "rho": ".2f",
        "rho_low": ".2f", "rho_high": ".2f",
    }  # fmt: skip
    page.table("responses", shown)
