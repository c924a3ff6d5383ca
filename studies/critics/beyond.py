"""Do the conclusions hold beyond ResNets? The same measurements on a vision transformer and a ConvNeXt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pathlens
from pathlens.metrics import sample_interval
from pathlens.tables import Table
from studies.common import Page, StudySetting, make_table, say, train_all
from studies.critics.drawing import lengths_figure, pairs_figure
from studies.critics.responses import correlation, measure_responses, response_rows
from studies.critics.shortcuts import PAIRS, pair_rows
from studies.subjects import Subject, subject

NETS = Path(__file__).resolve().parent / "nets.py"

RUNS = (
    ("network", "", "network; all were trained on digits"),
    ("seed", "", "of the training; missing for the packaged network"),
    ("blocks", "", "residual blocks"),
    ("error_intact", "fraction", "test error of the intact network"),
    ("error_intact_low", "fraction", "lower end of its 95 % interval (Wilson)"),
    ("error_intact_high", "fraction", "upper end of it"),
    ("branch_increase", "fraction", "mean increase of the error with a branch deleted"),
    ("branch_largest", "fraction", "largest increase"),
    ("skip_increase", "fraction", "mean increase of the error with a shortcut deleted"),
    ("harmless", "fraction", "share of blocks whose deletion is not told apart from the intact network"),
    ("shortcut_worse", "fraction", "share of blocks whose shortcut hurts more to delete, told apart"),
    ("branch_worse", "fraction", "share of blocks whose branch hurts more to delete, told apart"),
    ("rho", "", "rank correlation of relative response and error over blocks"),
    ("peak", "blocks", "length of path that contributes most to the exact gradient"),
    ("first", "blocks", "shortest effective length of the exact gradient"),
    ("last", "blocks", "longest effective length"),
    ("middle", "fraction", "middle of the effective lengths over the number of blocks"),
    ("share_of_paths", "fraction", "what the effective lengths hold of all paths"),
)

_COMPARED = ("error_intact", "branch_increase", "skip_increase", "harmless", "shortcut_worse", "rho", "middle")

SUMMARY = (
    ("network", "", "network"),
    ("seeds", "", "trained networks"),
    ("blocks", "", "residual blocks"),
    *(
        column
        for name, unit, what in RUNS
        if name in _COMPARED
        for column in (
            (name, unit, f"mean over seeds: {what}"),
            (f"{name}_low", unit, "lower end of Student's 95 % interval of the mean over seeds"),
            (f"{name}_high", unit, "upper end of it"),
        )
    ),
)


def networks(study: StudySetting) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> (callable of nets.py, arguments of its training)."""
    # a shift by one pixel, which the recipe for digits has, takes a transformer of 2x2 patches far longer to learn
    recipe = (
        *("--data", "digits", "--crop", "0", "--optimizer", "adamw", "--weight-decay", "0.05"),
        *("--schedule", "cosine"),
    )
    if study.scale == "smoke":
        short = (*recipe, "--epochs", "1", "--limit", "64", "--validation", "10")
        return {"vit": ("tiny_vit", short), "convnext": ("tiny_convnext", short)}
    return {
        "vit": ("vit", (*recipe, "--epochs", "50", "--lr", "1e-3")),
        "convnext": ("convnext", (*recipe, "--epochs", "40", "--lr", "2e-3")),
    }


def trained(study: StudySetting) -> list[tuple[int | None, Subject]]:
    """The trained networks with their seeds."""
    seeds = study.pick(range(1), range(3), range(5))
    chosen = networks(study)
    wanted = {
        f"{name}-seed{seed}": ("--model", f"{NETS}:{build}", "--seed", str(seed), *arguments)
        for name, (build, arguments) in chosen.items()
        for seed in seeds
    }
    done = train_all(wanted, study)
    found: list[tuple[int | None, Subject]] = []
    for name, (build, _) in chosen.items():
        for seed in seeds:
            loaded = pathlens.load_model(f"{NETS}:{build}", done[f"{name}-seed{seed}"] / "weights.safetensors")
            found.append((seed, subject(study, name, f"{name} trained on digits with seed {seed}", loaded)))
    return found


def run_row(
    seed: int | None, subject: Subject, lesions: Mapping[str, Table], gradients: Table, rho: Any
) -> dict[str, Any]:
    """One network's row from its tables."""
    intact = next(row for row in lesions["branches"].rows if row["count"] == 0)
    pairs = pair_rows(lesions["branches"], lesions["shortcuts"])
    worse = [pair["worse"] for pair in pairs]
    increases = [pair["error_branch"] - pair["error_intact"] for pair in pairs]
    harmless = [pair["error_branch_low"] <= intact["error_high"] for pair in pairs]
    effective, blocks = gradients.provenance["effective"]["exact"], len(pairs)
    totals = gradients.values("total_norm")
    return {
        "network": subject.name,
        "seed": seed,
        "blocks": blocks,
        **{f"error_intact{end}": intact[f"error{end}"] for end in ("", "_low", "_high")},
        "branch_increase": statistics.fmean(increases),
        "branch_largest": max(increases),
        "skip_increase": statistics.fmean(pair["error_skip"] - pair["error_intact"] for pair in pairs),
        "harmless": statistics.fmean(harmless),
        "shortcut_worse": worse.count("shortcut") / blocks,
        "branch_worse": worse.count("branch") / blocks,
        "rho": rho,
        "peak": totals.index(max(totals)),
        "first": effective["first"],
        "last": effective["last"],
        "middle": (effective["first"] + effective["last"]) / 2 / blocks,
        "share_of_paths": effective["share_of_paths"],
    }


def summary_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds for each network."""
    found = []
    for network in dict.fromkeys(run["network"] for run in runs):
        own = [run for run in runs if run["network"] == network]
        row: dict[str, Any] = {"network": network, "seeds": len(own), "blocks": own[0]["blocks"]}
        for name in _COMPARED:
            values = [float(run[name]) for run in own if run[name] is not None]
            row[name] = statistics.fmean(values) if values else None
            bounds = (-1, 1) if name in ("rho", "branch_increase", "skip_increase") else (0, 1)
            row[f"{name}_low"], row[f"{name}_high"] = sample_interval(values, bounds=bounds) if values else (None, None)
        found.append(row)
    return found


def beyond(page: Page, study: StudySetting, packaged: Subject, known: Mapping[str, Table]) -> list[dict[str, Any]]:
    """The section of the page; returns the means over seeds.

    Args:
        page: to write on.
        study: what was asked for.
        packaged: the residual network that comes with the package, for comparison.
        known: its lesion tables.
    """
    subjects = [(None, packaged), *trained(study)]
    page.section(
        "d. Beyond ResNets",
        "A vision transformer (attention and MLP are two blocks a layer) and a ConvNeXt, both trained here on digits "
        "with AdamW and without shifting images, beside the package's residual network on the same data. A deletion is "
        "harmless here where the 95 % intervals of its error and of the intact network's overlap.",
    )
    images, runs, curves, tables = study.pick(24, 360, 360), [], [], {}
    for seed, one in subjects:
        say(f"lesions and path gradients of {one.words}")
        data, options = one.images(images), one.options
        if one is packaged:
            lesions: Mapping[str, Table] = known
        else:
            lesions = {
                "branches": pathlens.delete_blocks(one.view, data, **options),
                "shortcuts": pathlens.delete_skips(one.view, data, **options),
            }
        gradients = pathlens.path_gradients(
            one.view, one.images(study.pick(2, 64, 360)), method="exact", batch_size=16, **options
        )
        answered = response_rows(measure_responses(one, images), lesions["branches"])
        rho = correlation(answered, "relative_std", "error", 99)["rho"]
        runs.append(run_row(seed, one, lesions, gradients, rho))
        curves += [{"network": one.name, "seed": seed, "blocks": len(one.view), **row} for row in gradients.rows]
        if seed == 0:
            rows, stem = pair_rows(lesions["branches"], lesions["shortcuts"]), f"shortcuts-{one.name}"
            caption = f"Error with the branch or the shortcut of one block deleted: {one.words}."
            page.figure(stem, pairs_figure(rows), caption)
            tables[stem] = make_table(PAIRS, rows, **lesions["shortcuts"].provenance)
            tables[f"path-gradients-{one.name}"] = gradients
    for stem, table in tables.items():
        page.table(stem, table)
    caption = "Exact contribution of each length, relative to the largest; a line for each trained network."
    page.figure("lengths", lengths_figure(curves), caption)
    shown = {
        "network": "", "seed": "d", "blocks": "d", "error_intact": ".2%", "branch_increase": ".2%",
        "skip_increase": ".2%", "harmless": ".0%", "shortcut_worse": ".0%", "branch_worse": ".0%", "rho": ".2f",
        "peak": "d", "first": "d", "last": "d", "share_of_paths": ".2g",
    }  # fmt: skip
    page.table("beyond-runs", make_table(RUNS, runs, images=images), shown)
    summary = summary_rows(runs)
    shown = {"network": "", "seeds": "d", "error_intact": ".1%"} | {
        f"{name}{end}": ".2f" if name == "middle" else ".1%"
        for name in ("branch_increase", "skip_increase", "harmless", "middle")
        for end in ("", "_low", "_high")
    }
    page.table("beyond", make_table(SUMMARY, summary, images=images), shown)
    page.text("\n".join(reading(row) for row in summary))
    return summary


def reading(row: Mapping[str, Any]) -> str:
    """One network's result in words."""
    more = "more" if row["skip_increase"] > row["branch_increase"] else "less"
    where = "below" if row["middle"] < 0.5 else "not below"
    return (
        f"- {row['network']} ({row['blocks']} blocks, {row['seeds']} network{'s' * (row['seeds'] > 1)}): "
        f"{row['harmless']:.0%} of single deletions are harmless; a deleted shortcut costs "
        f"{100 * row['skip_increase']:.1f} points on average, {more} than a deleted branch "
        f"({100 * row['branch_increase']:.1f}); the effective lengths are centred at {row['middle']:.0%} of the "
        f"blocks, {where} the half around which the numbers of paths are centred."
    )
