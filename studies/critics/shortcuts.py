"""Does deleting the shortcut of a block hurt more than deleting its branch?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from scipy import stats

import pathlens
from pathlens.metrics import sample_interval
from pathlens.tables import Table
from studies.common import Page, StudySetting, keep, say
from studies.critics.drawing import counts_figure, pairs_figure
from studies.record import make_table
from studies.rules.claims import mean_interval
from studies.rules.lesions import distinct_sets
from studies.rules.networks import worse
from studies.subjects import Subject

PAIRS = (
    ("block", "", "index of the block, from 0"),
    ("name", "", "its module"),
    ("stage", "", "its stage, from 0"),
    ("kind", "", "its shortcut"),
    ("error_intact", "fraction", "error of the intact network"),
    ("error_branch", "fraction", "error with the block's branch deleted"),
    ("error_branch_low", "fraction", "lower end of its 95 % interval (Wilson)"),
    ("error_branch_high", "fraction", "upper end of it"),
    ("error_skip", "fraction", "error with the block's shortcut deleted"),
    ("error_skip_low", "fraction", "lower end of its 95 % interval (Wilson)"),
    ("error_skip_high", "fraction", "upper end of it"),
    ("difference", "fraction", "error_skip minus error_branch"),
    ("difference_low", "fraction", "lower end of its 95 % interval (Newcombe's from Wilson's, as if of other images)"),
    ("difference_high", "fraction", "upper end of it"),
    (
        "worse",
        "",
        "what is shown to hurt more to delete: shortcut or branch (one-sided tests, Holm over the blocks)",
    ),
    ("harm_branch", "fraction", "error_branch minus error_intact, on the same images"),
    ("harm_p", "", "McNemar's exact test of it, corrected by Holm's method over the blocks"),
    ("loss_branch", "nats", "loss with the branch deleted; missing where it is not finite"),
    ("loss_skip", "nats", "loss with the shortcut deleted; missing where it is not finite"),
)

SUMMARY = (
    ("network", "", "network"),
    ("which", "", "all blocks, or those with identity shortcuts alone"),
    ("n_blocks", "blocks", "how many"),
    ("error_intact", "fraction", "error of the intact network"),
    ("error_branch", "fraction", "mean error with a branch deleted"),
    ("error_skip", "fraction", "mean error with a shortcut deleted"),
    ("difference", "fraction", "mean over blocks of the paired difference, shortcut minus branch"),
    ("difference_low", "fraction", "lower end of its 95 % bootstrap interval over blocks (percentile)"),
    ("difference_high", "fraction", "upper end of it"),
    ("p", "", "Wilcoxon's signed-rank test of the differences, two-sided; missing where all are zero"),
    ("shortcut_worse", "blocks", "blocks whose shortcut hurts more, told apart"),
    ("branch_worse", "blocks", "blocks whose branch hurts more, told apart"),
    ("not_told_apart", "blocks", "the other blocks"),
)

COUNTS = (
    ("network", "", "network"),
    ("deleted", "", "branches or shortcuts"),
    ("count", "blocks", "how many random blocks lost theirs"),
    ("sets", "", "distinct random sets"),
    ("error", "fraction", "mean error over the sets"),
    (
        "error_low",
        "fraction",
        "lower end of the 95 % interval: of the mean over sets (Student; missing where they do not differ), of the "
        "intact network over images (Wilson)",
    ),
    ("error_high", "fraction", "upper end of it"),
)


def pair_rows(branches: Table, skips: Table) -> list[dict[str, Any]]:
    """Both lesions of each block side by side, from the tables of delete-blocks and delete-skips."""
    intact = next(float(row["error"]) for row in branches.rows if row["count"] == 0)
    by_block = {row["block"]: row for row in skips.rows if row["block"] is not None}
    told, rows = worse(branches, skips), []
    for branch in (row for row in branches.rows if row["block"] is not None):
        skip = by_block[branch["block"]]
        difference, low, high = newcombe(skip, branch)
        rows.append(
            {
                **{name: branch[name] for name in ("block", "name", "stage", "kind")},
                "error_intact": intact,
                **{f"error_branch{end}": branch[f"error{end}"] for end in ("", "_low", "_high")},
                **{f"error_skip{end}": skip[f"error{end}"] for end in ("", "_low", "_high")},
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
                "worse": told[branch["block"]],
                "harm_branch": branch["difference"],
                "harm_p": branch["p_holm"],
                "loss_branch": branch["loss"],
                "loss_skip": skip["loss"],
            }
        )
    return rows


def newcombe(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float, float]:
    """Difference of two errors with Newcombe's interval (1998, method 10) from their Wilson intervals.

    It takes the errors for those of different images. They are of the same ones, and mostly wrong on the same ones, so
    that the interval is too wide rather than too narrow.
    """
    a, a_low, a_high = (float(first[name]) for name in ("error", "error_low", "error_high"))
    b, b_low, b_high = (float(second[name]) for name in ("error", "error_low", "error_high"))
    return a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def summarise(network: str, which: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paired difference over blocks."""
    differences = [row["difference"] for row in rows]
    low, high = mean_interval(differences)
    told = [row["worse"] for row in rows]
    return {
        "network": network,
        "which": which,
        "n_blocks": len(rows),
        "error_intact": rows[0]["error_intact"],
        "error_branch": statistics.fmean(row["error_branch"] for row in rows),
        "error_skip": statistics.fmean(row["error_skip"] for row in rows),
        "difference": statistics.fmean(differences),
        "difference_low": low,
        "difference_high": high,
        "p": float(stats.wilcoxon(differences).pvalue) if any(differences) else None,
        "shortcut_worse": told.count("shortcut"),
        "branch_worse": told.count("branch"),
        "not_told_apart": told.count(None),
    }


def count_rows(network: str, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Mean error against the number of random blocks, of both kinds of lesion, over the distinct sets."""
    rows = []
    for deleted, table in tables.items():
        (intact,) = [row for row in table.rows if row["count"] == 0]
        ends = {name: intact[name] for name in ("error", "error_low", "error_high")}
        rows.append({"network": network, "deleted": deleted, "count": 0, "sets": 1, **ends})
        drawn = distinct_sets(table)
        for size in sorted({one.size for one in drawn}):
            errors = [one.error for one in drawn if one.size == size]
            low, high = sample_interval(errors, bounds=(0, 1)) if len(set(errors)) > 1 else (None, None)
            ends = {"error": statistics.fmean(errors), "error_low": low, "error_high": high}
            rows.append({"network": network, "deleted": deleted, "count": size, "sets": len(errors), **ends})
    return rows


def measure(study: StudySetting, subjects: Sequence[Subject]) -> None:
    """Lesions of single blocks and of random sets, of branches and of shortcuts."""
    for subject in subjects:
        say(f"branches and shortcuts of {subject.name}")
        every, some = subject.images(study.pick(24, 10_000, 10_000)), subject.images(study.pick(24, 2000, 10_000))
        options = {**subject.options, "journal": study.runs / "journal"}
        sets = {
            "count": study.pick((1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 12, 16, 20)),
            "samples": study.pick(2, 10, 10),
        }
        for key, measured in (
            ("lesions", partial(pathlens.delete_blocks, subject.view, every, **options)),
            ("skips", partial(pathlens.delete_skips, subject.view, every, **options)),
            ("sets", partial(pathlens.delete_blocks, subject.view, some, **sets, **options)),
            ("skip-sets", partial(pathlens.delete_skips, subject.view, some, **sets, **options)),
        ):
            stem = f"{key}-{subject.name}"
            same = ("pretrained_resnets", stem) if key in ("lesions", "skips") else None
            keep(study, stem, measured, same=same)


def state(page: Page, networks: Sequence[str]) -> None:
    """The section of the page."""
    tables = page.tables
    page.section(
        "a. Deleting shortcuts against deleting branches",
        "In the unraveled network every block halves the paths: 2^(n-1) go through its branch and as many through its "
        "shortcut. An ensemble whose members count alike would lose as much by the one deletion as by the other. Each "
        "block is its own control here: the same network and images, once without the branch and once without the "
        "shortcut.",
    )
    summary, counted = [], []
    for network in networks:
        rows = pair_rows(tables[f"lesions-{network}"], tables[f"skips-{network}"])
        summary.append(summarise(network, "all", rows))
        identity = [row for row in rows if row["kind"] == "identity"]
        if 1 < len(identity) < len(rows):
            summary.append(summarise(network, "identity", identity))
        by_kind = {"branches": tables[f"sets-{network}"], "shortcuts": tables[f"skip-sets-{network}"]}
        counted += count_rows(network, by_kind)
        stem = f"shortcuts-{network}"
        tables.put(stem, make_table(PAIRS, rows))
        caption = f"Error with the branch or the shortcut of one block deleted: {network}."
        page.figure(stem, partial(pairs_figure, rows), caption)
        page.table(stem)
        page.measured(f"lesions-{network}")
    tables.put("shortcuts", make_table(SUMMARY, summary))
    tables.put("counts", make_table(COUNTS, counted))
    shown = {
        "network": "", "which": "", "n_blocks": "d", "error_intact": ".2%", "error_branch": ".2%", "error_skip": ".2%",
        "difference": "+.2%", "difference_low": "+.2%", "difference_high": "+.2%", "p": ".2g", "shortcut_worse": "d",
        "branch_worse": "d", "not_told_apart": "d",
    }  # fmt: skip
    page.table("shortcuts", shown)
    read = "; ".join(f"{name}, {tables[f'sets-{name}'].provenance['images']:,} images" for name in networks)
    caption = (
        f"Error with the branches, or the shortcuts, of random blocks deleted: {read}. Bars: Student's 95 % interval "
        "over the sets, cut off at 0 and 1."
    )
    page.figure("counts", lambda: counts_figure(counted), caption)
    shown = {"network": "", "deleted": "", "count": "d", "sets": "d"}
    page.table("counts", shown | {"error": ".2%", "error_low": ".2%", "error_high": ".2%"})
