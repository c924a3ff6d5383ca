"""The page: what the tables show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pathlens import figures
from pathlens.tables import Table
from studies import record
from studies.common import Page, StudySetting
from studies.critics.cancellation import CAPTION, cancellation_rows
from studies.critics.drawing import cancellation_figure
from studies.rules import lesions as lesion_rules
from studies.rules import margin
from studies.rules import paths as path_rules
from studies.rules import veit as veit_claims
from studies.veit2016 import left, retraining
from studies.veit2016.cifar import SCHEDULE, Kept, took
from studies.veit2016.curve import curve_figure
from studies.veit2016.hurt import hurt_figure
from studies.veit2016.judged import own_number, rises_of, verdicts
from studies.veit2016.measured import kinds_of

LESIONS = {"block": "", "name": "", "stage": "", "kind": "", "error": ".2%", "error_low": ".2%", "error_high": ".2%"}
WORDS = {
    "full": "whole",
    "sd": "by stochastic depth",
    "plain": "the plain network, its layers deleted",
    "highway": "the highway network",
}

SINGLES = (
    ("run", "", "name of the training run"),
    ("network", "", "reference name"),
    ("trained", "", "full, mN for N random blocks a batch, sd for stochastic depth, plain, highway"),
    ("seed", "", "of the run"),
    ("blocks", "", "blocks, of a plain network layers"),
    ("intact", "fraction", "error of the intact network"),
    ("mean", "fraction", "mean rise of error over the single deletions"),
    ("median", "fraction", "median rise"),
    ("largest", "fraction", "largest rise"),
    ("critical", "", "blocks that are shown to cost more than 5 points alone (Holm)"),
    ("differ", "blocks", "deletions that differ from the intact network (McNemar's exact test, Holm)"),
    ("n", "images", "test images"),
)

_RUN = (
    ("run", "", "name of the training run"),
    ("network", "", "reference name"),
    ("trained", "", "full, mN for N random blocks a batch, sd for stochastic depth"),
    ("seed", "", "of the run"),
)
MANY = (*_RUN, *lesion_rules.SPLIT_SETS)
MANY_ORDERS = (*_RUN, *lesion_rules.SPLIT_ORDERS)


def state(study: StudySetting, missing: Sequence[str], kept: Sequence[Kept]) -> Page:
    """The page, from the tables.

    Args:
        study: what was asked for.
        missing: trainings that were wanted and are not there.
        kept: trainings on CIFAR-10 that are there.
    """
    page = Page(
        study,
        "Veit, Wilber, Belongie 2016, redone",
        "Does a trained residual network behave like an ensemble of relatively shallow networks?",
    )
    if study.scale == "smoke":
        page.text("**A smoke run for the tests. Its numbers mean nothing.**")
    if missing:
        own = ", where own stands for mN, with the number N of blocks that the effective lengths of seed 0 ask for"
        how = f"`python -m studies.veit2016.cifar NAME`{own if any('-own-' in name for name in missing) else ''}"
        page.text(
            f"**Not there yet**: {len(missing)} trainings on CIFAR-10 ({', '.join(missing)}), by {how}. Nothing is "
            "said of them, and what needs three of their seeds cannot tell."
        )
    if missing or kept:
        page.text(f"**The networks on CIFAR-10.** {SCHEDULE}{took(kept)}{_convolutions(kept)}")
    tables = page.tables
    waiting = {one.name: [kind for kind in kinds_of(one.trained) if f"{kind}-{one.name}" not in tables] for one in kept}
    if any(waiting.values()) and study.scale == "cpu":
        named = "; ".join(f"{name} ({', '.join(kinds)})" for name, kinds in waiting.items() if kinds)
        page.text(f"**Trained, and not all measured yet**: {named}, by `python -m studies.veit2016 --only cifar`.")
    runs = [dict(one) for one in tables["runs"].rows]
    _put_derived(study, runs)
    _lesions(page, runs)
    _many(page, runs)
    _gradients(page, runs)
    _left(page, runs)
    if "lesions-imagenet" in tables:
        _imagenet(page)
    _retraining(page, runs, kept)
    data = {run["network"]: run["data"] for run in runs}
    page.claims(verdicts(tables, runs), lambda network: data[network.split(",")[0]])
    return page


def _convolutions(kept: Sequence[Kept]) -> str:
    """A sentence on those that torch's own kernels did not compute, with a blank before it; nothing where none."""
    names = [name for one in kept if (name := one.facts.get("convolutions"))]
    if not names:
        return ""
    return (
        f" In {len(names)} of the {len(kept)} that are there the 3x3 convolutions of training, but for the first and "
        f"those of stride 2, were computed by {' and '.join(dict.fromkeys(names))} (`studies/veit2016/winograd/`), "
        "which rounds otherwise than torch's own convolutions, by which everything is measured."
    )


def _put_derived(study: StudySetting, runs: Sequence[Mapping[str, Any]]) -> None:
    tables = study.tables
    singles, many, many_orders, ranges, shares, paths = [], [], [], [], [], []
    for run in runs:
        names = {name: run[name] for name in ("run", "network", "trained", "seed")}
        if f"lesions-{run['run']}" in tables:
            singles.append({**names, **_single_row(tables[f"lesions-{run['run']}"])})
        if {f"lesions-{run['run']}", f"sets-{run['run']}"} <= tables.keys():
            drawn = lesion_rules.distinct_sets(tables[f"sets-{run['run']}"])
            many += [{**names, **one} for one in lesion_rules.split_rows(drawn, tables[f"lesions-{run['run']}"])]
        if {f"lesions-{run['run']}", f"orders-{run['run']}"} <= tables.keys():
            drawn = lesion_rules.distinct_orders(tables[f"orders-{run['run']}"])
            many_orders += [{**names, **one} for one in lesion_rules.split_rows(drawn, tables[f"lesions-{run['run']}"])]
        if f"gradients-{run['run']}" in tables:
            ranges += path_rules.range_rows(run["run"], tables[f"gradients-{run['run']}"])
            shares.append(path_rules.share_row(run["run"], tables[f"gradients-{run['run']}"]))
            paths += left.left_rows(run["run"], tables[f"gradients-{run['run']}"])
    tables.put("retraining", record.make_table(retraining.SUMMARY, retraining.summary_rows(runs)))
    tables.put("singles", record.make_table(SINGLES, singles))
    tables.put("many", record.make_table(MANY, many))
    tables.put("many-orders", record.make_table(MANY_ORDERS, many_orders))
    tables.put("effective", record.make_table(path_rules.RANGES, ranges))
    tables.put("shares", record.make_table(path_rules.SHARES, shares))
    tables.put("paths-left", record.make_table(left.LEFT, paths))


def _single_row(lesions: Table) -> dict[str, Any]:
    found = lesion_rules.costs(lesions)
    rises = [cost.difference for cost in found]
    (intact,) = [one for one in lesions.rows if one["count"] == 0]
    return {
        "blocks": len(found),
        "intact": intact["error"],
        "mean": statistics.fmean(rises),
        "median": statistics.median(rises),
        "largest": max(rises),
        "critical": ", ".join(map(str, lesion_rules.critical_blocks(lesions))) or "none",
        "differ": sum(cost.p_holm < lesion_rules.LEVEL for cost in found),
        "n": intact["n"],
    }


def _first(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each network and rule the run of the smallest seed."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for run in runs:
        other = found.setdefault((run["network"], run["trained"]), run)
        if run["seed"] < other["seed"]:
            found[run["network"], run["trained"]] = run
    return list(found.values())


def _lesions(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    page.section(
        "Deleting single blocks (figures 3 and 8)",
        "Every block of the networks of the table below; the figures show seed 0 where they do not name seeds. Highway "
        "networks are ours: the paper deletes none.",
    )
    own = [run for run in _first(runs) if f"lesions-{run['run']}" in page.tables]
    for data in dict.fromkeys(run["data"] for run in own):
        kinds = [run for run in own if run["data"] == data and run["trained"] in ("full", "plain", "highway")]
        if any(run["trained"] != "full" for run in kinds):
            _lesions_panel(page, "lesions" if data == own[0]["data"] else f"lesions-{data}", _by_rule(kinds), "seed 0")
    for network in dict.fromkeys(run["network"] for run in own):
        trainings = [run for run in own if run["network"] == network]
        if len(trainings) > 1:
            _lesions_panel(page, f"lesions-{network}", _by_rule(trainings), "seed 0")
        if seeds := _seeds(page, runs, network, "lesions"):
            _lesions_panel(page, f"lesions-{network}-seeds", seeds, f"all seeds of {network}, trained whole")
    for run in own:
        stem = f"lesions-{run['run']}"
        caption = f"Error with each block deleted in turn: {run['network']}, {_words(run)}, {run['data']}."
        chance = veit_claims.CHANCE if run["trained"] == "plain" else None
        page.figure(stem, partial(figures.deletion, page.tables[stem], chance=chance), caption)
        page.measured(stem)
    shown = {
        "network": "", "trained": "", "seed": "d", "intact": ".2%", "mean": "+.2%", "median": "+.2%",
        "largest": "+.2%", "critical": "", "differ": "d", "n": "d",
    }  # fmt: skip
    page.table("singles", shown)


def _by_rule(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {f"{run['network']}, {_words(run).split(',')[0]}": run for run in runs}


def _seeds(page: Page, runs: Sequence[Mapping[str, Any]], network: str, kind: str) -> dict[str, Mapping[str, Any]]:
    """The whole trainings of a network of which there are tables of a kind, by seed; none of a single one."""
    whole = [run for run in runs if run["network"] == network and run["trained"] == "full"]
    found = {f"seed {run['seed']}": run for run in whole if f"{kind}-{run['run']}" in page.tables}
    return found if len(found) > 1 else {}


def _words(run: Mapping[str, Any]) -> str:
    return WORDS.get(run["trained"], f"{run['trained'][1:]} random blocks a batch")


def _lesions_panel(page: Page, stem: str, runs: Mapping[str, Mapping[str, Any]], which: str) -> None:
    """Networks of several kinds, as in figure 3, one network trained by several rules, as in figure 8, or its seeds.

    Args:
        page: that shows them.
        stem: of the figure.
        runs: by their names in the legend.
        which: seed or seeds, in words.
    """
    tables = {name: page.tables[f"lesions-{run['run']}"] for name, run in runs.items()}
    (data,) = {run["data"] for run in runs.values()}
    layers = " (of the plain network each layer)" if any(run["trained"] == "plain" for run in runs.values()) else ""
    # the smallest multiple of 10 % that leaves 5 points above every intact network
    intact = max(row["error"] for table in tables.values() for row in table.rows if row["count"] == 0)
    zoom = math.ceil(10 * intact + 0.5) / 10
    caption = (
        f"Error with each block deleted in turn{layers}, {data}, {which}; below, the same up to "
        f"{100 * zoom:g} %. Bars: 95 % intervals over images (Wilson)."
    )
    page.figure(stem, partial(figures.deletions, tables, chance=veit_claims.CHANCE, zoom=zoom), caption)


def _many(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    page.section(
        "Deleting many blocks (figure 5a), and reordering (figure 5b)",
        "Distinct random sets, the same for all networks of a depth, so that what depends on the draw is shared by the "
        "seeds. A mean over sets hides two kinds: those that hold a critical block (`singles`), and the others, which "
        "differ most where few blocks are deleted. Both are shown, and likewise of orders those that move a critical "
        "block: in the figures of single networks, and in the tables below of every seed that was trained whole. Sets "
        "of one block are some of those deleted above. At `--scale cpu` those on CIFAR-10 are of the first 2,000 test "
        "images, so that errors differ from above. More "
        f"sets of {veit_claims.HURT} blocks (`hurt`), where they are there, tell what hardens networks.",
    )
    for network in dict.fromkeys(run["network"] for run in runs if run["trained"] == "full"):
        panel = {
            _words(run): page.tables[f"sets-{run['run']}"]
            for run in _first(runs)
            if run["network"] == network and f"sets-{run['run']}" in page.tables
        }
        if not panel:
            continue
        caption = (
            f"Error with random sets of blocks deleted, by how {network} was trained, seed 0: means over the sets of a "
            "size with 95 % intervals; numbers of blocks are whole, and the markers beside each other."
        )
        page.figure(f"sets-{network}", partial(figures.deletions, panel), caption)
        if seeds := _seeds(page, runs, network, "sets"):
            panel = {name: page.tables[f"sets-{run['run']}"] for name, run in seeds.items()}
            caption = f"The same of all seeds of {network}, trained whole; the sets of blocks are the same ones."
            page.figure(f"sets-{network}-seeds", partial(figures.deletions, panel), caption)
        _hurt(page, [run for run in runs if run["network"] == network])
    for run in _first(runs):
        stem = f"sets-{run['run']}"
        if stem in page.tables:
            critical = _critical(page, run)
            caption = (
                f"Error with random sets of blocks deleted: {run['network']}, {_words(run)}, {run['data']}"
                f"{lesion_rules.apart('sets', page.tables[stem], critical)}"
            )
            page.figure(stem, partial(figures.deletion, page.tables[stem], critical=critical), caption)
            page.measured(stem)
        if f"hurt-{run['run']}" in page.tables:
            page.measured(f"hurt-{run['run']}")
    _both_kinds(page, "many", "sets")
    for run in _first(runs):
        stem = f"orders-{run['run']}"
        if stem in page.tables:
            critical = _critical(page, run)
            caption = (
                f"Error against Kendall's tau of the order of the blocks: {run['network']}, {run['data']}"
                f"{lesion_rules.apart('orders', page.tables[stem], critical)}"
            )
            page.figure(stem, partial(figures.reordering, page.tables[stem], critical=critical), caption)
            page.measured(stem)
    _both_kinds(page, "many-orders", "orders")


def _both_kinds(page: Page, stem: str, what: str) -> None:
    """What sets or orders cost that touch a critical block, and the others, in every network that was trained whole."""
    page.text(lesion_rules.side_by_side([one for one in page.tables[stem].rows if one["trained"] == "full"], what))
    page.table(stem)


def _hurt(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    """What the sets cost by which it is judged how hard networks are to hurt, where there are rules to compare."""
    rises: dict[tuple[str, int], list[float]] = {}
    for run in sorted(runs, key=lambda one: int(one["seed"])):
        found = rises_of(page.tables, run["run"])
        own = [rise for blocks, rise in found.items() if len(blocks) == veit_claims.HURT]
        if own and run["trained"] != "sd":
            rises[_words(run), run["seed"]] = own
    if len({trained for trained, _ in rises}) > 1:
        caption = (
            f"Rise of error where random sets of {veit_claims.HURT} blocks are deleted, by seed and by how "
            f"{runs[0]['network']} was trained: every set, and means with 95 % bootstrap intervals over the sets."
        )
        page.figure(f"hurt-{runs[0]['network']}", partial(hurt_figure, rises), caption)


def _critical(page: Page, run: Mapping[str, Any]) -> list[int]:
    stem = f"lesions-{run['run']}"
    return lesion_rules.critical_blocks(page.tables[stem]) if stem in page.tables else []


def _gradients(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    page.section(
        "Lengths of paths and where the gradient comes from (figure 6)",
        "The paper samples single paths of each length and multiplies the mean norm of their gradient by the number of "
        "paths. The exact curve is the norm of the sum over all paths of a length, which the paper could not compute: "
        "it is shorter than the product unless all paths pull one way. What paths of these norms in independent "
        "directions would give is drawn beside both.",
    )
    own = [run for run in _first(runs) if f"gradients-{run['run']}" in page.tables]
    for blocks in dict.fromkeys(page.tables[f"gradients-{run['run']}"].provenance["blocks"] for run in own):
        page.text(path_rules.lengths_of_paths(blocks))
    for run in own:
        stem = f"gradients-{run['run']}"
        table = page.tables[stem]
        effective = table.provenance["effective"]["sampled"]
        caption = (
            f"Number of paths, norm of a path's gradient, and contribution, by length: {run['network']}, {run['data']}."
        )
        shaded = (effective["first"], effective["last"])
        page.figure(stem, partial(figures.path_gradients, table, effective=shaded), caption)
        page.measured(stem)
        if note := path_rules.own_intervals(table):
            page.text(note)
        cancelled = partial(cancellation_figure, cancellation_rows(table))
        page.figure(f"cancellation-{run['run']}", cancelled, CAPTION.format(network=run["run"]))
    shown = {
        name: "d"
        for name, *_ in path_rules.RANGES
        if name not in ("first_low", "first_high", "share_low", "share_high")
    }
    page.table("effective", shown | {"network": "", "contribution": "", "share_of_paths": ".2g"})
    if rows := page.tables["shares"].rows:
        page.text(path_rules.by_projection(rows))
        page.table("shares", path_rules.SHARES_SHOWN)


def _left(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    rows = page.tables["paths-left"].rows
    page.section(
        "Paths that are left (figure 7)",
        "Deleting a block halves the paths, whichever block it is: a fact of combinatorics. What those that are left "
        "carried in the intact network is computed from the contributions sampled above, of which a path of length l "
        "keeps its part with probability C(n-k, l)/C(n, l) over the sets of k blocks. That it carries the same in the "
        "lesioned network is assumed; how much the network still knows is in the sets above.",
    )
    for name in (run["run"] for run in _first(runs)):
        own = [one for one in rows if one["run"] == name]
        if own:
            caption = f"Number of paths by length after deletions, and what is left of paths and contributions: {name}."
            page.figure(f"paths-left-{name}", partial(left.left_figure, own), caption)
    shown = {
        "run": "", "deleted": "d", "paths": ".2g", "first": "d", "last": "d", "contribution": ".1%",
        "effective_first": "d", "effective_last": "d",
    }  # fmt: skip
    page.table("paths-left", shown, rows=lambda one: one["deleted"] in left.CURVES)


def _imagenet(page: Page) -> None:
    name = page.tables["lesions-imagenet"].provenance["model"]
    page.section(
        "An ImageNet network (figure 4)",
        "The paper deletes blocks of a ResNet of 200 layers, whose weights are not published any more in a format that "
        f"can be read safely; here {name}.",
    )
    table = page.tables["lesions-imagenet"]
    page.figure("lesions-imagenet", lambda: figures.deletion(table), f"Top-1 error with each block deleted: {name}.")
    page.table("lesions-imagenet", LESIONS)


def _retraining(page: Page, runs: Sequence[Mapping[str, Any]], kept: Sequence[Kept]) -> None:
    page.section(
        "Training on effective paths (section 5), and stochastic depth",
        "The paper trained a 54-block network with 23 random blocks in each batch, so that the lengths of the paths it "
        "sees are those that carry the gradient: 5.96 % error, against 6.10 % of the full network (CIFAR-10). At test "
        "time all blocks run, each branch times the probability that it was in a batch. Errors are of the test split "
        f"after the last epoch, read once but for what is said above of CIFAR-10; the margin of "
        f"{100 * margin.MARGIN:g} points was set before.",
    )
    shown = {
        "network": "", "data": "", "trained": "", "seeds": "d", "error": ".2%", "error_low": ".2%", "error_high": ".2%",
        "difference": "+.2%", "difference_low": "+.2%", "difference_high": "+.2%", "both_low": "+.2%",
        "both_high": "+.2%", "p": ".2g", **margin.SHOWN,
    }  # fmt: skip
    page.table("retraining", shown)
    _curve(page)
    if "fitted" in page.tables and page.tables["fitted"].rows:
        page.text(
            "Where the difference comes from, on CIFAR-10: what is missing on the training images already has not been "
            "fitted (`of_fit`); the rest is what test errors are above training errors (`of_gap`): where it is below "
            "zero, the network that was trained on fewer paths errs less beyond its training error. Training images as "
            "they are, the first 10,000; the networks as they are tested, with all blocks."
        )
        shown = {
            "run": "", "train_error": ".2%", "train_error_low": ".2%", "train_error_high": ".2%", "test_error": ".2%",
            "difference": "+.2%", "of_fit": "+.2%", "of_gap": "+.2%",
        }  # fmt: skip
        page.table("fitted", shown)
    own = [one for one in page.tables["effective"].rows if one["contribution"] == "sampled"]
    for network in dict.fromkeys(run["network"] for run in runs if run["trained"] == "full"):
        asked = [one["blocks_per_batch"] for one in own if one["network"].startswith(f"{network}-")]
        if asked:
            span = f"{min(asked)} to {max(asked)} blocks a batch over {len(asked)} seeds"
            for first in own_number(page.tables, network):
                span = (
                    f"{span} (seed 0, by which it is trained: {first})" if len(asked) > 1 else f"{first} blocks a batch"
                )
            page.text(f"The effective lengths of {network} ask for {span}.")
    epochs = dict.fromkeys((run["network"], run["epochs"]) for run in runs)
    page.text(f"Epochs: {', '.join(f'{network} {count}' for network, count in epochs)}; the paper trained 200.")
    page.table("runs")
    page.table("epochs")
    if kept:
        page.text(
            "Histories of the trainings on CIFAR-10: `../cifar10/history-NAME.csv`, and `-half` of their first phase."
        )


def _curve(page: Page) -> None:
    """What is lost by the number of random blocks, where networks were trained on some."""
    rows = [
        one for one in page.tables["retraining"].rows if retraining.is_blocks(one) and one["difference"] is not None
    ]
    if not rows:
        return
    asked = {network: own_number(page.tables, network) for network in dict.fromkeys(one["network"] for one in rows)}
    effective = {network: numbers[0] for network, numbers in asked.items() if numbers}
    caption = (
        "Test error minus that of the whole network of the same seed, by how many random blocks each batch had: means "
        "over seeds with Student's 95 % intervals (verdicts go by those over seeds and images, which are no narrower), "
        f"the margin of {100 * margin.MARGIN:g} points, and the number that the effective lengths of seed 0 ask for."
    )
    page.figure("retraining", partial(curve_figure, rows, effective), caption)
