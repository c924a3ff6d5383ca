"""Do the conclusions hold beyond ResNets? The same measurements on a vision transformer and a ConvNeXt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pathlens
from pathlens.metrics import sample_interval
from pathlens.tables import Column, Table
from studies import record
from studies.common import Page, StudySetting, say, train_all
from studies.critics.drawing import lengths_figure, pairs_figure
from studies.critics.responses import correlation, measure_responses, response_rows
from studies.critics.shortcuts import PAIRS, pair_rows
from studies.record import make_table
from studies.rules.claims import LEVEL
from studies.rules.paths import range_rows
from studies.subjects import subject

NETS = Path(__file__).resolve().parent / "nets.py"

BLOCKS = (
    ("network", "", "network; all were trained on digits"),
    ("seed", "", "of the training"),
    *(column for column in PAIRS if column[0] not in ("difference", "difference_low", "difference_high")),
    ("harm_low", "fraction", "lower end of the 95 % interval of harm_branch (Tango)"),
    ("harm_high", "fraction", "upper end of it"),
    ("harm_skip", "fraction", "error_skip minus error_intact, on the same images"),
    ("harm_skip_low", "fraction", "lower end of its 95 % interval (Tango)"),
    ("harm_skip_high", "fraction", "upper end of it"),
    ("harm_skip_p", "", "McNemar's exact test of it, corrected by Holm's method over the blocks"),
    ("relative_std", "", "standard deviation of what the branch adds, over that of the shortcut"),
)

LENGTHS = (
    ("network", "", "network"),
    ("seed", "", "of the training"),
    ("length", "blocks", "number of branches that a path takes"),
    ("n_paths", "", "number of paths of this length, exact"),
    ("total_norm", "loss per unit of input", "norm of the sum over all paths of this length, mean over examples"),
    ("total_low", "loss per unit of input", "lower end of its 95 % interval over examples"),
    ("total_high", "loss per unit of input", "upper end of it"),
    ("blocks", "blocks", "residual blocks"),
)

RUNS = (
    ("network", "", "network; all were trained on digits"),
    ("seed", "", "of the training"),
    ("blocks", "", "residual blocks"),
    ("error_intact", "fraction", "test error of the intact network"),
    ("branch_increase", "fraction", "mean increase of the error with a branch deleted"),
    ("branch_largest", "fraction", "largest increase"),
    ("skip_increase", "fraction", "mean increase of the error with a shortcut deleted"),
    ("differ", "blocks", "deleted branches that differ from the intact network (McNemar's exact test, Holm)"),
    ("shortcut_worse", "fraction", "share of blocks whose shortcut hurts more to delete, told apart"),
    ("branch_worse", "fraction", "share of blocks whose branch hurts more to delete, told apart"),
    ("rho", "", "rank correlation of relative response and loss over blocks"),
    ("peak", "blocks", "length of path that contributes most to the exact gradient"),
    ("first", "blocks", "shortest effective length of the exact gradient"),
    ("last", "blocks", "longest effective length"),
    ("middle", "fraction", "middle of the effective lengths over the number of blocks"),
    ("share_of_paths", "fraction", "what the effective lengths hold of all paths"),
)

_COMPARED = ("error_intact", "branch_increase", "skip_increase", "shortcut_worse", "rho", "middle")

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


def train(study: StudySetting) -> dict[str, Path]:
    """Train the networks; name of the run -> folder."""
    wanted = {
        f"{name}-seed{seed}": ("--model", f"{NETS}:{build}", "--seed", str(seed), *arguments)
        for name, (build, arguments) in networks(study).items()
        for seed in study.pick(range(1), range(3), range(5))
    }
    return train_all(wanted, study)


def measure(study: StudySetting, done: Mapping[str, Path]) -> None:
    """Lesions, responses and exact gradients of every trained network."""
    images, shown = study.pick(24, 360, 360), study.pick(2, 64, 360)
    blocks: list[dict[str, Any]] = []
    lengths: list[dict[str, Any]] = []
    effective: dict[str, Any] = {}
    blocks_facts: dict[str, Any] = {}
    lengths_facts: dict[str, Any] = {}
    for run, folder in done.items():
        name, _, seed = run.rpartition("-seed")
        loaded = pathlens.load_model(f"{NETS}:{networks(study)[name][0]}", folder / "weights.safetensors")
        one = subject(study, name, f"{name} trained on digits with seed {seed}", loaded)
        say(f"lesions and path gradients of {one.words}")
        data, options, key = one.images(images), one.options, {"network": name, "seed": int(seed)}
        lesions = pathlens.delete_blocks(one.view, data, **options)
        skips = pathlens.delete_skips(one.view, data, **options)
        pairs = pair_rows(lesions, skips)
        answered = response_rows(measure_responses(one, images), lesions)
        ends, of_skips = (
            {row["block"]: row for row in table.rows if row["block"] is not None} for table in (lesions, skips)
        )
        for pair, response in zip(pairs, answered, strict=True):
            own, skip = ends[pair["block"]], of_skips[pair["block"]]
            more = {"harm_low": own["difference_low"], "harm_high": own["difference_high"]}
            more |= {f"harm_skip{end}": skip[f"difference{end}"] for end in ("", "_low", "_high")}
            more["harm_skip_p"] = skip["p_holm"]
            blocks.append({**key, **pair, **more, "relative_std": response["relative_std"]})
        gradients = pathlens.path_gradients(
            one.view, one.images(shown, "train"), method="exact", batch_size=16, **options
        )
        lengths += [{**key, **row, "blocks": len(one.view)} for row in gradients.rows]
        effective[run] = gradients.provenance["effective"]
        blocks_facts = record.images(data)
        lengths_facts = {
            "effective": effective,
            "batch_size": 16,
            "mode": "eval",
            **record.images(one.images(shown, "train")),
        }
    study.tables.put("beyond-blocks", make_table(BLOCKS, blocks, **blocks_facts))
    study.tables.put("beyond-lengths", make_table(LENGTHS, lengths, **lengths_facts))


def by_run(table: Table) -> dict[tuple[str, int], Table]:
    """A table of several networks, network by network, each with its own effective lengths where there are any."""
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in table.rows:
        found.setdefault((row["network"], row["seed"]), []).append(row)
    effective = table.provenance.get("effective", {})
    return {
        run: Table(
            table.columns,
            tuple(rows),
            {**table.provenance, **({"effective": effective[label(run)]} if label(run) in effective else {})},
        )
        for run, rows in found.items()
    }


def label(run: tuple[str, int]) -> str:
    """Network and seed, short."""
    return f"{run[0]}-seed{run[1]}"


def lesions_of(blocks: Table) -> tuple[Table, Table]:
    """Both lesions of one network's blocks, as tables of ``delete-blocks`` and ``delete-skips`` name their columns."""
    names = ("block", "name", "kind")
    branches = [
        {
            **{name: row[name] for name in names},
            **{f"error{end}": row[f"error_branch{end}"] for end in ("_low", "_high")},
            "difference": row["harm_branch"],
            **{f"difference{end}": row[f"harm{end}"] for end in ("_low", "_high")},
            "p_holm": row["harm_p"],
        }
        for row in blocks.rows
    ]
    skips = [
        {
            **{name: row[name] for name in names},
            **{f"difference{end}": row[f"harm_skip{end}"] for end in ("", "_low", "_high")},
            "p_holm": row["harm_skip_p"],
        }
        for row in blocks.rows
    ]
    return _table(branches), _table(skips)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(tuple(map(Column, rows[0])), tuple(rows))


def run_row(run: tuple[str, int], blocks: Table, lengths: Table) -> dict[str, Any]:
    """One network's row from its tables."""
    pairs = blocks.rows
    worse = [pair["worse"] for pair in pairs]
    increases = [pair["harm_branch"] for pair in pairs]
    (exact,) = range_rows(run[0], lengths)
    return {
        "network": run[0],
        "seed": run[1],
        "blocks": len(pairs),
        "error_intact": pairs[0]["error_intact"],
        "branch_increase": statistics.fmean(increases),
        "branch_largest": max(increases),
        "skip_increase": statistics.fmean(pair["error_skip"] - pair["error_intact"] for pair in pairs),
        "differ": sum(pair["harm_p"] < LEVEL for pair in pairs),
        "shortcut_worse": worse.count("shortcut") / len(pairs),
        "branch_worse": worse.count("branch") / len(pairs),
        "rho": correlation(list(pairs), "relative_std", "loss_branch")["rho"],
        **{name: exact[name] for name in ("peak", "first", "last", "share_of_paths")},
        "middle": (exact["first"] + exact["last"]) / 2 / len(pairs),
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


def state(page: Page) -> None:
    """The section of the page."""
    tables = page.tables
    page.section(
        "d. Beyond ResNets",
        "A vision transformer (attention and MLP are two blocks a layer) and a ConvNeXt, both trained here on digits "
        "with AdamW and without shifting images. Lesions and responses (`beyond-blocks`) are of networks in eval mode, "
        "on batches of 128 images.",
    )
    blocks, lengths = by_run(tables["beyond-blocks"]), by_run(tables["beyond-lengths"])
    runs = [run_row(run, own, lengths[run]) for run, own in blocks.items()]
    tables.put("beyond-runs", make_table(RUNS, runs))
    tables.put("beyond", make_table(SUMMARY, summary_rows(runs)))
    for (network, seed), own in blocks.items():
        if seed == 0:
            caption = f"Error with the branch or the shortcut of one block deleted: {network}, seed 0."
            page.figure(f"shortcuts-{network}", partial(pairs_figure, own.rows), caption)
    page.table("beyond-blocks")
    page.measured("beyond-blocks")
    page.figure(
        "lengths",
        lambda: lengths_figure(tables["beyond-lengths"].rows),
        "Exact contribution of each length, relative to the largest; a line for each trained network.",
    )
    page.table("beyond-lengths")
    page.measured("beyond-lengths")
    shown = {
        "network": "", "seed": "d", "blocks": "d", "error_intact": ".2%", "branch_increase": "+.2%",
        "skip_increase": "+.2%", "differ": "d", "shortcut_worse": ".0%", "branch_worse": ".0%", "rho": ".2f",
        "peak": "d", "first": "d", "last": "d", "share_of_paths": ".2g",
    }  # fmt: skip
    page.table("beyond-runs", shown)
    shown = {"network": "", "seeds": "d", "error_intact": ".1%"} | {
        f"{name}{end}": ".2f" if name == "middle" else ".1%"
        for name in ("branch_increase", "skip_increase", "middle")
        for end in ("", "_low", "_high")
    }
    page.table("beyond", shown)
