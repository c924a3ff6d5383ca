"""Does the contribution computed from single paths survive cancellation, and how heavy-tailed are their norms?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pathlens
from pathlens import figures
from pathlens.tables import Table
from studies.common import Page, StudySetting, keep, say
from studies.critics.drawing import cancellation_figure
from studies.critics.tails import TAILS, measure_tails
from studies.record import make_table
from studies.rules.paths import RANGES, beside_independent, range_rows
from studies.subjects import Subject

_NORM = "loss per unit of input"

CANCELLATION = (
    ("length", "blocks", "number of branches that a path takes"),
    ("n_paths", "", "number of paths of this length, exact"),
    ("contribution", _NORM, "n_paths times the mean norm of sampled paths (the paper's)"),
    ("contribution_low", _NORM, "lower end, from the 95 % bootstrap interval of the mean"),
    ("contribution_high", _NORM, "upper end"),
    ("incoherent", _NORM, "total_rms if paths had independent directions: root of n_paths times path_norm_rms"),
    ("total_rms", _NORM, "norm of the sum over all paths of this length (exact), root mean square over examples"),
    ("total_norm", _NORM, "norm of the sum over all paths of this length (exact), mean over examples"),
    ("total_low", _NORM, "lower end of its 95 % interval over examples"),
    ("total_high", _NORM, "upper end of it"),
    ("survives", "fraction", "total_norm over contribution: 1 without cancellation"),
    ("coherence", "", "total_rms over incoherent: 1 for independent directions, root of n_paths for equal ones"),
)
#: of the figure of :func:`cancellation_rows`
CAPTION = (
    "The paper's product, the sum of independent directions, and the exact sum, by length: {network}. The exact sum on "
    "the left and its ratio to the product are means over examples; its ratio to independent directions is of root "
    "mean squares. What is 12 powers of ten below the largest contribution is left out."
)


def cancellation_rows(table: Table) -> list[dict[str, Any]]:
    """Products and exact sums of each length, from the table of path-gradients."""
    rows = []
    for row in table.rows:
        count = float(row["n_paths"])
        total_rms, incoherent = beside_independent(table, row)
        rows.append(
            {
                "length": row["length"],
                "n_paths": row["n_paths"],
                "contribution": row["contribution"],
                "contribution_low": count * row["path_norm_low"],
                "contribution_high": count * row["path_norm_high"],
                "incoherent": incoherent,
                "total_rms": total_rms,
                **{name: row[name] for name in ("total_norm", "total_low", "total_high")},
                "survives": row["total_norm"] / row["contribution"] if row["contribution"] else None,
                "coherence": total_rms / incoherent if incoherent else None,
            }
        )
    return rows


def measure(study: StudySetting, subjects: Sequence[Subject]) -> None:
    """Path gradients of every length, and distributions of single paths."""
    tails = []
    for subject in subjects:
        say(f"path gradients of {subject.name}")
        measured = partial(
            pathlens.path_gradients,
            subject.view,
            subject.images(study.pick(2, 512, 512), "train"),
            max_samples=study.pick(4, 32, 32),
            draws=study.pick(2, 8, 16),
            batch_size=16,
            **subject.options,
        )
        same = ("pretrained_resnets", f"gradients-{subject.name}")
        table = keep(study, f"path-gradients-{subject.name}", measured, same=same)
        peaks = {row["peak"] for row in range_rows(subject.name, table)}
        tails += measure_tails(study, subject, sorted(peaks | {len(subject.view) // 2}))
    study.tables.put("tails", make_table(TAILS, tails))


def state(page: Page, networks: Sequence[str]) -> None:
    """The section of the page."""
    tables = page.tables
    tails, sums = tables["tails"].rows[0]["images"], tables[f"path-gradients-{networks[0]}"].provenance["images"]
    page.section(
        "c. Single paths, cancellation and heavy tails",
        "The paper multiplies the mean norm of sampled paths with the number of paths of their length. The gradients "
        "of those paths are vectors, and their sum may be far shorter. Below, that product stands beside the exact "
        "norm of the sum, and beside what the sum would measure if paths had independent directions (root of the "
        "number of paths times their root mean square, by random signs). Norms differ between examples too; "
        "`tail_example` compares the paths of one example among each other. A sample of few paths misses the heaviest "
        "ones, and no resampling of it brings them back: `missed` is the root mean square of all paths, by random "
        "signs, over that of the sample, and the interval of `tail_example` is widened by it. Distributions are of the "
        "first "
        f"{tails} training images, the others of {sums}.",
    )
    ranges = []
    for network in networks:
        table = tables[f"path-gradients-{network}"]
        rows, found = cancellation_rows(table), range_rows(network, table)
        ranges += found
        exact = next(row for row in found if row["contribution"] == "exact")
        shaded = (exact["first"], exact["last"])
        page.figure(
            f"path-gradients-{network}",
            partial(figures.path_gradients, table, effective=shaded),
            f"Number of paths, norm of one path, and contribution, by length: {network}. Shaded: effective lengths of "
            "the exact curve.",
        )
        page.table(f"path-gradients-{network}")
        page.measured(f"path-gradients-{network}")
        tables.put(f"cancellation-{network}", make_table(CANCELLATION, rows))
        page.figure(
            f"cancellation-{network}",
            partial(cancellation_figure, rows),
            CAPTION.format(network=network),
        )
        top = max(rows, key=lambda one: one["total_norm"])
        mean_length = sum(one["length"] * one["total_norm"] for one in rows) / sum(one["total_norm"] for one in rows)
        past = 1 - mean_length / rows[-1]["length"]
        page.text(
            f"{network}: at length {top['length']}, where the sum is largest, it is {top['survives']:.1%} of the "
            f"product, and {top['coherence']:.1f} times what independent directions would give (above 1 paths "
            f"reinforce each other). Weighted by the exact sums, paths take {mean_length:.1f} of "
            f"{rows[-1]['length']} branches, and {past:.0%} of them go through a block's shortcut: that deleting it "
            "costs more than deleting the branch (a) is what a view of paths weighted by their gradients expects too."
        )
        page.table(f"cancellation-{network}")
        caption = f"How path norms are distributed, and how far means of few of them fall short: {network}."
        page.figure(f"tails-{network}", None, caption)
    tables.put("effective", make_table(RANGES, ranges))
    whole = ("blocks", "peak", "first", "first_low", "first_high", "last", "last_low", "last_high", "blocks_per_batch")
    shown = {"network": "", "contribution": ""} | dict.fromkeys(whole, "d") | {"share_of_paths": ".2g"}
    page.table("effective", shown)
    shown = {
        "network": "", "length": "d", "paths": "d", "images": "d", "mean": ".2g", "mean_low": ".2g", "mean_high": ".2g",
        "median": ".2g", "q99": ".2g", "top_share": ".0%", "rms": ".2g", "rms_error": ".1g", "rms_signed": ".2g",
        "rms_signed_error": ".1g", "tail": ".1f", "tail_example": ".2f", "tail_example_low": ".2f",
        "tail_example_high": ".2f", "missed": ".1f", "four_below": ".0%", "four_median": ".2f",
    }  # fmt: skip
    page.table("tails", shown)
