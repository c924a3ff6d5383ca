"""Section 5.3: is a network that only ever sees its effective paths as good as the whole one?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from pathlens.metrics import sample_interval
from pathlens.tables import read_table
from studies.common import Page, make_table
from studies.veit2016.trainings import Training

RUNS = (
    ("run", "", "name of the run"),
    ("network", "", "reference name"),
    ("data", "", "what it was trained on"),
    ("rule", "", "which paths were trained"),
    ("seed", "", "of the run"),
    ("epochs", "", "of the run"),
    ("dtype", "", "numbers it was trained with"),
    ("blocks", "", "residual blocks in a step's sub-network, mean"),
    ("test_error", "fraction", "share of test images classified wrongly after the last epoch"),
    ("test_error_low", "fraction", "lower end of the 95 % interval over images (Wilson)"),
    ("test_error_high", "fraction", "upper end of it"),
    ("test_images", "", "images"),
    ("train_loss", "nats", "mean loss of the last epoch as trained"),
    ("seconds", "s", "of all training steps, beside other runs on the same machine"),
    ("commit", "", "of the code that trained it"),
)

SUMMARY = (
    ("network", "", "reference name"),
    ("data", "", "what it was trained on"),
    ("rule", "", "which paths were trained"),
    ("seeds", "", "runs"),
    ("error", "", "mean test error over the seeds"),
    ("error_low", "", "lower end of Student's 95 % interval of the mean over seeds"),
    ("error_high", "", "upper end of it"),
    ("difference", "", "mean over seeds of this error minus that of the full network with the same seed"),
    ("difference_low", "", "lower end of Student's 95 % interval of it"),
    ("difference_high", "", "upper end of it"),
    ("p", "", "two-sided paired t test of the difference against 0"),
    ("time", "", "mean training time over that of the full network"),
)

HISTORY = (
    ("run", "", "name of the run"),
    ("epoch", "", "epochs done"),
    ("lr", "", "learning rate of the last step"),
    ("train_loss", "nats", "mean loss as trained"),
    ("train_error", "fraction", "share classified wrongly as trained"),
    ("validation_error", "fraction", "share of held-out images classified wrongly by the whole network"),
    ("seconds", "s", "wall time of the steps"),
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
                "seed": training.seed,
                "epochs": facts["recipe"]["epochs"],
                "dtype": facts["dtype"],
                "blocks": statistics.fmean(float(row["blocks"] or 0) for row in history.rows),
                "test_error": test["error"],
                "test_error_low": test["error_low"],
                "test_error_high": test["error_high"],
                "test_images": test["n"],
                "train_loss": history.rows[-1]["train_loss"],
                "seconds": sum(float(row["seconds"] or 0) for row in history.rows),
                "commit": facts["commit"],
            }
        )
    return rows


def summary_rows(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Training]) -> list[dict[str, Any]]:
    """Mean over seeds for each network and rule, and the paired difference to the full network."""
    found: list[dict[str, Any]] = []
    by_name = {row["run"]: row for row in rows}
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for training in wanted:
        if training.residual:
            groups.setdefault((training.network, training.rule), {})[training.seed] = by_name[training.name]
    for (network, rule), runs in groups.items():
        whole = groups[network, "full"]
        errors = [float(run["test_error"]) for run in runs.values()]
        low, high = sample_interval(errors, bounds=(0, 1))
        row: dict[str, Any] = {
            "network": network,
            "data": next(iter(runs.values()))["data"],
            "rule": next(iter(runs.values()))["rule"],
            "seeds": len(runs),
            "error": statistics.fmean(errors),
            "error_low": low,
            "error_high": high,
            "difference": None,
            "difference_low": None,
            "difference_high": None,
            "p": None,
            "time": statistics.fmean(runs[s]["seconds"] / whole[s]["seconds"] for s in runs),
        }
        if rule != "full" and len(runs) > 1:
            differences = [float(runs[s]["test_error"]) - float(whole[s]["test_error"]) for s in runs]
            row["difference"] = statistics.fmean(differences)
            row["difference_low"], row["difference_high"] = sample_interval(differences, bounds=(-1, 1))
            if len(set(differences)) > 1:  # no test of samples without spread
                row["p"] = float(stats.ttest_1samp(differences, 0).pvalue)
        found.append(row)
    return found


def retraining(page: Page, done: Mapping[str, Path], wanted: Sequence[Training]) -> None:
    """The section of the page, with its tables."""
    rows = runs_table(done, wanted)
    summary = summary_rows(rows, wanted)
    history = [
        {**{name: row[name] for name, *_ in HISTORY[1:]}, "run": training.name}
        for training in wanted
        for row in read_table(done[training.name] / "history.csv").rows
    ]
    page.section(
        "Retraining on effective paths (section 5.3), and stochastic depth",
        "The paper trained a 54-block network with 23 random blocks in each batch, so that the lengths of the paths it "
        "sees are those that carry the gradient: 5.96 % error, against 6.10 % of the full network (CIFAR-10). At test "
        "time all blocks run, each branch times the probability that it was in a batch. Here the same with a paired "
        "comparison over seeds. Errors are of the test split, read once, after the last epoch.",
    )
    shown = {
        "network": "", "data": "", "rule": "", "seeds": "d", "error": ".2%", "error_low": ".2%", "error_high": ".2%",
        "difference": "+.2%", "difference_low": "+.2%", "difference_high": "+.2%", "p": ".2g", "time": ".2f",
    }  # fmt: skip
    page.table("retraining", make_table(SUMMARY, summary), shown)
    page.text(_reading(summary))
    epochs = {row["network"]: row["epochs"] for row in rows}
    page.text(
        "Trained for "
        + ", ".join(f"{count} epochs ({network})" for network, count in epochs.items())
        + ". Where that is far below the 200 of the paper, rules that see a part of the network in each step are "
        "behind because they need more steps, and such rows do not speak against the paper. Times are of runs side by "
        "side on one machine."
    )
    page.table("runs", make_table(RUNS, rows))
    page.table("epochs", make_table(HISTORY, history))


def _reading(summary: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers say, from the numbers."""
    lines = []
    for row in summary:
        if row["difference"] is None:
            continue
        sure = row["difference_low"] is not None and not row["difference_low"] <= 0 <= row["difference_high"]
        if sure:
            verdict = f"{'worse' if row['difference'] > 0 else 'better'} than the full network"
        elif row["seeds"] < 3:
            verdict = "two seeds are too few for a useful interval"
        else:
            verdict = "not told apart from the full network"
        lines.append(
            f"- {row['network']} on {row['data']}, {row['rule']}: {verdict} "
            f"(difference {100 * row['difference']:+.2f} points, {row['seeds']} seeds)."
        )
    return "\n".join(lines)
