"""Are the blocks that can be deleted without harm merely those that respond weakly?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from pathlens.tables import Table
from studies.common import Page, StudySetting, make_table, say
from studies.critics.drawing import responses_figure
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
    ("increase", "fraction", "error minus that of the intact network"),
    ("loss", "nats", "loss with the branch deleted; missing where it is not finite"),
)

CORRELATIONS = (
    ("network", "", "network"),
    ("which", "", "all blocks, or those with identity shortcuts alone"),
    ("response", "", "column of the response"),
    ("harm", "", "column of the harm"),
    ("n_blocks", "blocks", "how many"),
    ("rho", "", "Spearman's rank correlation; missing where one of the two does not vary"),
    ("rho_low", "", "lower end of its 95 % bootstrap interval over blocks (percentile)"),
    ("rho_high", "", "upper end of it"),
    ("p", "", "two-sided, of no correlation"),
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
    intact = next(float(row["error"]) for row in lesions.rows if row["count"] == 0)
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
                "increase": float(row["error"]) - intact,
            }
        )
    return rows


def correlation(rows: Sequence[Mapping[str, Any]], response: str, harm: str, resamples: int) -> dict[str, Any]:
    """Spearman's rank correlation of two columns over blocks, with a bootstrap interval."""
    pairs = [(row[response], row[harm]) for row in rows if row[response] is not None and row[harm] is not None]
    found: dict[str, Any] = {"n_blocks": len(pairs), "rho": None, "rho_low": None, "rho_high": None, "p": None}
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    if len(pairs) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return found
    whole = stats.spearmanr(x, y)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(x), size=(resamples, len(x)))
    ranks = (stats.rankdata(values[drawn], axis=1) for values in (x, y))
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):  # samples of one block alone have no correlation
        rhos = (centred[0] * centred[1]).sum(1) / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    low, high = np.nanquantile(rhos, (0.025, 0.975))
    found |= {"rho": float(whole.statistic), "p": float(whole.pvalue) if math.isfinite(whole.pvalue) else None}
    return found | {"rho_low": float(low), "rho_high": float(high)}


def responses(
    page: Page, study: StudySetting, subjects: Sequence[Subject], lesions: Mapping[str, Table]
) -> list[dict[str, Any]]:
    """The section of the page; returns the correlations."""
    page.section(
        "b. Size of the response against harm",
        "He et al. 2016a (figure 7) measure the standard deviation of each layer's response after batch norm and read "
        "from it that deeper networks change the signal less in each layer. If the blocks that can be deleted were "
        "merely those that add little, the harm of a deletion would follow the size of the response. Here the response "
        "is of a whole branch as it enters the addition, in units of the activations and relative to the shortcut.",
    )
    found = []
    images, resamples = study.pick(24, 1000, 10_000), study.pick(99, 9999, 9999)
    for subject in subjects:
        say(f"responses of {subject.name}")
        rows = response_rows(measure_responses(subject, images), lesions[subject.name])
        identity = [row for row in rows if row["kind"] == "identity"]
        chosen = {"all": rows} | ({"identity": identity} if 2 < len(identity) < len(rows) else {})
        for which, blocks in chosen.items():
            for response in ("branch_std", "relative_std"):
                for harm in ("error", "loss"):
                    names = {"network": subject.name, "which": which, "response": response, "harm": harm}
                    found.append(names | correlation(blocks, response, harm, resamples))
        stem = f"responses-{subject.name}"
        page.figure(stem, responses_figure(rows), f"Harm of deleting a block against its response: {subject.words}.")
        page.table(stem, make_table(RESPONSES, rows, **lesions[subject.name].provenance))
    shown = {
        "network": "", "which": "", "response": "", "harm": "", "n_blocks": "d", "rho": ".2f", "rho_low": ".2f",
        "rho_high": ".2f", "p": ".2g",
    }  # fmt: skip
    page.table("responses", make_table(CORRELATIONS, found, images=images), shown)
    page.text("\n".join(reading(row) for row in found if (row["which"], row["harm"]) == ("all", "error")))
    return found


def reading(row: Mapping[str, Any]) -> str:
    """One correlation in words."""
    what = {"branch_std": "the response", "relative_std": "the response relative to the shortcut"}[row["response"]]
    if row["rho"] is None:
        return f"- {row['network']}: no correlation of {what} with the error, one of the two does not vary."
    if row["rho_low"] <= 0 <= row["rho_high"]:
        words = f"{what} does not tell which blocks hurt"
    elif row["rho"] > 0:
        words = f"blocks hurt more the larger {what}"
    else:
        words = f"blocks hurt more the smaller {what}"
    return (
        f"- {row['network']}: {words} (rank correlation {row['rho']:.2f}, {row['rho_low']:.2f} to "
        f"{row['rho_high']:.2f}; its square, the share of the ranks' variance, {row['rho'] ** 2:.0%})."
    )
