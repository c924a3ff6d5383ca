"""Section 5: is a network that only ever sees its effective paths as good as the whole one?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pathlens.metrics import sample_interval, wilson_interval
from pathlens.tables import read_table
from studies.rules import answers, margin
from studies.rules.claims import Verdict, counted, of_seeds, paired
from studies.veit2016.trainings import Training

Row = Mapping[str, Any]

RUNS = (
    ("run", "", "name of the run"),
    ("network", "", "reference name"),
    ("data", "", "what it was trained on"),
    ("rule", "", "which paths were trained"),
    ("trained", "", "the same, short: full, mN for N random blocks a batch, sd for stochastic depth"),
    ("seed", "", "of the run"),
    ("epochs", "", "of the run, of all its phases"),
    ("dtype", "", "numbers it was trained with"),
    ("blocks", "", "residual blocks in a step's sub-network, mean"),
    ("test_error", "fraction", "share of test images classified wrongly after the last epoch"),
    ("test_error_low", "fraction", "lower end of the 95 % interval over images (Wilson)"),
    ("test_error_high", "fraction", "upper end of it"),
    ("test_images", "", "images"),
    ("train_loss", "nats", "mean loss of the last epoch as trained"),
    ("commit", "", "of the code that trained it"),
)
COMPARED = (*RUNS, *answers.COLUMNS)

SUMMARY = (
    ("network", "", "reference name"),
    ("data", "", "what it was trained on"),
    ("trained", "", "full, mN for N random blocks a batch, sd for stochastic depth"),
    ("seeds", "", "runs; of a rule those whose whole network of the same seed is there"),
    ("error", "fraction", "mean test error over the seeds"),
    ("error_low", "fraction", "lower end of Student's 95 % interval of the mean over seeds"),
    ("error_high", "fraction", "upper end of it"),
    ("difference", "fraction", "mean over seeds of this error minus that of the full network with the same seed"),
    ("difference_low", "fraction", "lower end of Student's 95 % interval of it"),
    ("difference_high", "fraction", "upper end of it"),
    *answers.BOTH,
    ("p", "", "two-sided paired t test of the difference against 0; missing where it does not vary"),
    *margin.COLUMNS,
)

FITTED = (
    ("run", "", "name of the run"),
    ("network", "", "reference name"),
    ("trained", "", "full, or mN for N random blocks a batch"),
    ("seed", "", "of the run"),
    ("train_error", "fraction", "share of training images classified wrongly by the network as it is tested"),
    ("train_error_low", "fraction", "lower end of the 95 % interval over images (Wilson)"),
    ("train_error_high", "fraction", "upper end of it"),
    ("train_images", "", "the first ones of the training split, as they are"),
    ("test_error", "fraction", "share of test images, of the table of runs"),
    ("difference", "fraction", "test error minus that of the whole network of the same seed"),
    ("of_fit", "fraction", "the part of it that is a difference of training errors"),
    ("of_gap", "fraction", "the rest: a difference of what test errors are above training errors"),
)

HISTORY = (
    ("run", "", "name of the run"),
    ("epoch", "", "epochs done"),
    ("lr", "", "learning rate of the last step"),
    ("train_loss", "nats", "mean loss as trained"),
    ("train_error", "fraction", "share classified wrongly as trained"),
    ("validation_error", "fraction", "share of held-out images classified wrongly by the whole network"),
)


def runs_table(done: Mapping[str, Path], wanted: Sequence[Training]) -> list[dict[str, Any]]:
    """One row for each run, read from what the runs wrote."""
    rows = []
    for training in wanted:
        result = read_table(done[training.name] / "result.csv")
        history = read_table(done[training.name] / "history.csv")
        (test,) = [row for row in result.rows if row["split"] == "test"]
        facts = result.provenance
        rows.append(
            {
                "run": training.name,
                "network": training.network,
                "data": training.data,
                "rule": facts["rule"],
                "trained": training.tag,
                "seed": training.seed,
                "epochs": facts["recipe"]["epochs"],
                "dtype": facts["dtype"],
                "blocks": statistics.fmean(float(row["blocks"] or 0) for row in history.rows),
                "test_error": test["error"],
                "test_error_low": test["error_low"],
                "test_error_high": test["error_high"],
                "test_images": test["n"],
                "train_loss": history.rows[-1]["train_loss"],
                "commit": facts["commit"],
            }
        )
    return rows


def compare(rows: Sequence[dict[str, Any]], right: Mapping[str, torch.Tensor]) -> None:
    """Write into the rows of runs which test images they lose and gain against the whole network of their seed.

    Args:
        rows: of runs.
        right: by name of the run, of :func:`studies.rules.answers.is_right`.
    """
    whole = {(row["network"], row["seed"]): row["run"] for row in rows if row["trained"] == "full"}
    answers.compare(rows, right, lambda row: whole.get((row["network"], row["seed"])))


def fitted_rows(runs: Sequence[Row], right: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """What of a difference of test errors is one of training errors already.

    Args:
        runs: rows of runs.
        right: by name of the run, which training images the network gets right; runs without have no row.
    """
    found: list[dict[str, Any]] = []
    for run in (one for one in runs if one["run"] in right):
        own = right[run["run"]]
        wrong, images = int((~own).sum()), len(own)
        low, high = wilson_interval(wrong, images)
        row: dict[str, Any] = {name: run.get(name) for name, *_ in FITTED}
        row |= {"train_error": wrong / images, "train_error_low": low, "train_error_high": high, "train_images": images}
        found.append(row)
    whole = {(row["network"], row["seed"]): row for row in found if row["trained"] == "full"}
    for row in found:
        full = whole.get((row["network"], row["seed"]))
        if full is not None and full is not row:
            row["difference"], row["of_fit"] = (row[name] - full[name] for name in ("test_error", "train_error"))
            row["of_gap"] = row["difference"] - row["of_fit"]
    return found


def history_rows(done: Mapping[str, Path], wanted: Sequence[Training]) -> list[dict[str, Any]]:
    """The histories of all runs, one after the other."""
    return [
        {**{name: row[name] for name, *_ in HISTORY[1:]}, "run": training.name}
        for training in wanted
        for row in read_table(done[training.name] / "history.csv").rows
    ]


def summary_rows(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean over seeds for each network and rule, and the paired difference to the full network."""
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for run in runs:
        if run["trained"] not in ("plain", "highway"):
            groups.setdefault((run["network"], run["trained"]), {})[run["seed"]] = run
    found: list[dict[str, Any]] = []
    for (network, trained), own in groups.items():
        whole = groups.get((network, "full"), {})
        common = {seed: run for seed, run in own.items() if seed in whole}
        used = common or own
        errors = [float(run["test_error"]) for run in used.values()]
        low, high = sample_interval(errors, bounds=(0, 1))
        row: dict[str, Any] = dict.fromkeys(name for name, *_ in SUMMARY)
        row |= {"network": network, "data": next(iter(own.values()))["data"], "trained": trained, "seeds": len(used)}
        row |= {"error": statistics.fmean(errors), "error_low": low, "error_high": high}
        if trained != "full" and common:
            differences = answers.gaps(common, whole)
            made = paired(differences)
            row |= {"difference": made.mean, "p": made.p}
            row |= {"difference_low": made.low, "difference_high": made.high}
            row["both_low"], row["both_high"] = answers.both_interval(common, whole)
            row |= margin.tested(differences if is_blocks(row) else ())
        found.append(row)
    for network in {row["network"] for row in found}:
        margin.correct([row for row in found if row["network"] == network])
    return found


def is_blocks(row: Row) -> bool:
    """Whether a row is of networks that were trained with a number of random blocks a batch."""
    return str(row["trained"])[1:].isdigit()


def as_good(row: Row) -> Verdict:
    """Is a network that was trained on a part of its paths as good as the whole one, but for the margin?"""
    low, high = row["both_low"], row["both_high"]
    outcome, p, told = margin.judged(row, row["difference"], low, high)
    interval = "no interval" if low is None else f"{100 * low:+.2f} to {100 * high:+.2f} over seeds and images"
    evidence = "; ".join(filter(None, (interval, told, counted(row["seeds"], "seed"))))
    return of_seeds(
        Verdict(
            outcome,
            f"{row['trained'][1:]} blocks a batch: {100 * row['difference']:+.2f} points of error against the whole "
            f"network ({evidence})",
            row["difference"],
            low,
            high,
            p,
        ),
        row["seeds"],
    )
