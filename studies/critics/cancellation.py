"""Does the contribution computed from single paths survive cancellation, and how heavy-tailed are their norms?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import pathlens
from pathlens import figures
from pathlens.paths import effective_paths
from pathlens.tables import Table
from studies.common import Page, StudySetting, make_table, say
from studies.critics.drawing import cancellation_figure
from studies.critics.tails import TAILS, one_tail
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

RANGES = (
    ("network", "", "network"),
    ("blocks", "", "residual blocks"),
    ("contribution", "", "sampled: mean path norms (the paper's); signed: root mean square; exact: the sum"),
    ("peak", "blocks", "length that contributes most"),
    ("first", "blocks", "shortest effective length"),
    ("first_low", "blocks", "lower end of its 95 % interval, from the intervals of the lengths drawn independently"),
    ("first_high", "blocks", "upper end of it"),
    ("last", "blocks", "longest effective length"),
    ("last_low", "blocks", "lower end of its 95 % interval"),
    ("last_high", "blocks", "upper end of it"),
    ("share_of_paths", "fraction", "what the range holds of all paths"),
    ("blocks_per_batch", "blocks", "random blocks whose path lengths are centred on the range"),
)


def cancellation_rows(table: Table) -> list[dict[str, Any]]:
    """Products and exact sums of each length, from the table of path-gradients."""
    rows, examples = [], table.provenance["images_measured"]
    for row in table.rows:
        count = float(row["n_paths"])
        # the interval over examples tells their variance, and random signs measure squares
        error = (row["total_high"] - row["total_norm"]) / 1.96
        total_rms = math.sqrt(row["total_norm"] ** 2 + error**2 * (examples - 1))
        incoherent = math.sqrt(count) * row["path_norm_rms"]
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


def range_rows(network: str, table: Table, draws: int) -> list[dict[str, Any]]:
    """Effective range of each kind of contribution, with intervals."""
    counts = np.array([float(row["n_paths"]) for row in table.rows])
    columns = {
        "sampled": ("path_norm_mean", "path_norm_low", "path_norm_high"),
        "signed": ("path_norm_rms", None, "path_norm_rms_error"),
        "exact": ("total_norm", "total_low", "total_high"),
    }
    share, rng, rows = table.provenance["share"], np.random.default_rng(0), []
    for kind, (middle, low, high) in columns.items():
        values = np.array(table.values(middle), dtype=float)
        ends = np.array([row[high] or 0.0 for row in table.rows], dtype=float)
        error = ends if low is None else (ends - np.array(table.values(low), dtype=float)) / (2 * 1.96)
        scale = counts if kind != "exact" else np.ones_like(counts)
        drawn = np.abs(values + error * rng.standard_normal((draws, len(values)))) * scale
        tried = [effective_paths(weights.tolist(), share) for weights in drawn]
        best = effective_paths((values * scale).tolist(), share)
        row = {"network": network, "blocks": len(values) - 1, "contribution": kind}
        row["peak"] = int(np.argmax(values * scale))
        for end in ("first", "last"):
            low_end, high_end = np.quantile([getattr(one, end) for one in tried], (0.025, 0.975), method="nearest")
            row |= {end: getattr(best, end), f"{end}_low": int(low_end), f"{end}_high": int(high_end)}
        rows.append(row | {"share_of_paths": best.share_of_paths, "blocks_per_batch": best.blocks_per_batch})
    return rows


def cancellation(page: Page, study: StudySetting, subjects: Sequence[Subject]) -> dict[str, list[dict[str, Any]]]:
    """The section of the page; returns rows of effective ranges, of tails, and of each network's lengths."""
    page.section(
        "c. Single paths, cancellation and heavy tails",
        "The paper multiplies the mean norm of sampled paths with the number of paths of their length. The gradients "
        "of those paths are vectors, and their sum may be far shorter. Below, that product stands beside the exact "
        "norm of the sum, and beside what the sum would measure if paths had independent directions (root of the "
        "number of paths times their root mean square, by random signs). Norms differ between examples too; "
        "`tail_within` compares the paths of one example among each other.",
    )
    ranges, tails, lengths = [], [], {}
    for subject in subjects:
        say(f"path gradients of {subject.name}")
        images, options = study.pick(2, 64, 256), {"batch_size": 16, **subject.options}
        table = pathlens.path_gradients(
            subject.view,
            subject.images(images),
            max_samples=study.pick(4, 16, 128),
            draws=study.pick(2, 8, 16),
            **options,
        )
        rows = lengths[subject.name] = cancellation_rows(table)
        found = range_rows(subject.name, table, study.pick(20, 1000, 1000))
        ranges += found
        exact = next(row for row in found if row["contribution"] == "exact")
        drawn = figures.path_gradients(table, effective=(exact["first"], exact["last"]))
        caption = f"Number of paths, norm of one path, and contribution, by length: {subject.words}."
        page.figure(f"path-gradients-{subject.name}", drawn, f"{caption} Shaded: effective lengths of the exact curve.")
        page.table(f"path-gradients-{subject.name}", table)
        page.figure(
            f"cancellation-{subject.name}",
            cancellation_figure(rows),
            f"The paper's product, the sum of independent directions, and the exact sum, by length: {subject.words}.",
        )
        page.table(f"cancellation-{subject.name}", make_table(CANCELLATION, rows, **table.provenance))
        tails += one_tail(page, study, subject, sorted({row["peak"] for row in found} | {len(subject.view) // 2}))
    shown = {name: "d" for name, *_ in RANGES} | {"network": "", "contribution": "", "share_of_paths": ".2g"}
    page.table("effective", make_table(RANGES, ranges), shown)
    shown = {
        "network": "", "length": "d", "paths": "d", "mean": ".2g", "mean_low": ".2g", "mean_high": ".2g",
        "median": ".2g", "q99": ".2g", "top_share": ".0%", "rms_signed": ".2g", "tail": ".1f", "tail_within": ".1f",
        "missed": ".1f", "four_below": ".0%", "four_median": ".2f",
    }  # fmt: skip
    page.table("tails", make_table(TAILS, tails), shown)
    for subject in subjects:
        page.text(reading(subject.name, ranges, tails, lengths[subject.name]))
    return {"ranges": ranges, "tails": tails}


def reading(
    network: str,
    ranges: Sequence[Mapping[str, Any]],
    tails: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """One network's result in words."""
    own = {row["contribution"]: row for row in ranges if row["network"] == network}
    exact, sampled = own["exact"], own["sampled"]
    at_peak = rows[exact["peak"]]
    heaviest = max((row for row in tails if row["network"] == network), key=lambda row: row["tail"])
    apart = exact["last"] < sampled["first"] or sampled["last"] < exact["first"]
    relation = "do not overlap" if apart else "overlap"
    moved = exact["peak"] - sampled["peak"]
    direction = (
        "like" if not moved else f"{abs(moved)} block{'s' * (abs(moved) > 1)} {'beyond' if moved > 0 else 'below'}"
    )
    return (
        f"- {network}: the product puts the effective lengths at {sampled['first']} to {sampled['last']}, the exact "
        f"sum at {exact['first']} to {exact['last']}; the two ranges {relation}, and the exact curve has its peak at "
        f"{exact['peak']}, {direction} the product's ({sampled['peak']}). At the exact peak the sum measures "
        f"{at_peak['survives']:.2g} of the product and {at_peak['coherence']:.2g} times what independent directions "
        f"would give. At length {heaviest['length']} the root mean square over all paths is {heaviest['tail']:.2g} "
        f"times the mean of {heaviest['paths']} sampled ones ({heaviest['tail_within']:.2g} times among the sampled "
        f"paths of one example), the largest 1 % hold {heaviest['top_share']:.0%} of the sampled sum, and "
        f"{heaviest['four_below']:.0%} of means of four paths lie below that mean."
    )
