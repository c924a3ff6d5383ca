"""Means over seeds with intervals, paired differences to the whole gradient, and what they say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from pathlens.metrics import sample_interval

Row = Mapping[str, Any]

DISCUSSION = (
    "What the numbers can and cannot say: the paper infers from the gradients of long paths that a network beyond its "
    "effective depth is not trained end to end; here the cut is made by hand, in networks that could also be trained "
    "whole. Without the long paths a step's gradient is smaller as well as in another direction; batch norms make the "
    "networks insensitive to the scale of most weights, but the learning rate was not tuned for each row. The forward "
    "pass uses all blocks at every effective depth, so that L = 1 still trains a deep network, each block as if the "
    "blocks after it were fixed. Equal multiply-adds are not equal parameters, memory, or time: wide networks hold "
    "more arithmetic in fewer steps one after the other. On data that every network nearly solves, differences are "
    "bounded by what is left to gain, and the test loss shows what the error is too coarse for. "
    "Every row is compared with one and the same baseline, and no interval is widened for there being several."
)


def summary_rows(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the table ``summary``; differences are to the first network with whole gradients and the same seed."""
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in runs:
        groups.setdefault((row["network"], row["effective_depth"]), {})[row["seed"]] = row
    whole = groups[runs[0]["network"], "all"]
    found = []
    for (network, depth), own in groups.items():
        row: dict[str, Any] = {"network": network, "effective_depth": depth, "seeds": len(own)}
        for name, bounds in (("test_error", (0.0, 1.0)), ("test_loss", (0.0, float("inf")))):
            values = [one[name] for one in own.values()]
            row[name] = statistics.fmean(values)
            row[f"{name}_low"], row[f"{name}_high"] = sample_interval(values, bounds=bounds)
            row |= _difference(name.replace("test_", ""), [one[name] - whole[seed][name] for seed, one in own.items()])
            if own is whole:
                row |= dict.fromkeys(key for key in row if "difference" in key or key.endswith("_p"))
        for name in ("train_loss", "first", "last", "mean_length"):
            row[name] = statistics.fmean(one[name] for one in own.values())
        row["time"] = statistics.fmean(one["seconds"] / whole[seed]["seconds"] for seed, one in own.items())
        found.append(row)
    return found


def _difference(name: str, values: Sequence[float]) -> dict[str, float | None]:
    low, high = sample_interval(values)
    p = float(stats.ttest_1samp(values, 0).pvalue) if len(set(values)) > 1 else None  # no t without spread
    return {
        f"{name}_difference": statistics.fmean(values),
        f"{name}_difference_low": low,
        f"{name}_difference_high": high,
        f"{name}_p": p,
    }


def verdict(row: Row, name: str = "error") -> str:
    """``worse``, ``better`` or ``not told apart``, by the interval of the paired difference."""
    low, high = row[f"{name}_difference_low"], row[f"{name}_difference_high"]
    if low is None or low <= 0 <= high:
        return "not told apart"
    return "worse" if low > 0 else "better"


def answers(summary: Sequence[Row], costs: Sequence[Row]) -> str:
    """The list of the page's last section."""
    deep, blocks = costs[0]["network"], {row["network"]: row["blocks"] for row in costs}
    cut = [row for row in summary if row["network"] == deep and row["effective_depth"] != "all"]
    lines = [_cut(row, blocks[deep]) for row in cut]
    lines.append(_enough(cut, blocks[deep]))
    lines += [_wide(row, blocks, deep) for row in summary if row["network"] != deep]
    (whole,) = [row for row in summary if row["network"] == deep and row["effective_depth"] == "all"]
    lines.append(
        f"Trained whole, {deep} carries 95 % of its gradient on paths of {whole['first']:.1f} to {whole['last']:.1f} "
        f"blocks (mean {whole['mean_length']:.1f}); "
        + "; ".join(f"trained with L = {row['effective_depth']}, mean {row['mean_length']:.1f}" for row in cut)
        + "."
    )
    return "\n".join(f"- {line}" for line in lines)


def _points(row: Row) -> str:
    return (
        f"error {100 * row['error_difference']:+.2f} points ({verdict(row)}), test loss "
        f"{row['loss_difference']:+.3f} nats ({verdict(row, 'loss')}), seeds: {row['seeds']}"
    )


def _cut(row: Row, blocks: int) -> str:
    return f"Gradient through at most {row['effective_depth']} of {blocks} blocks, against the whole: {_points(row)}."


def _enough(cut: Sequence[Row], blocks: int) -> str:
    """The smallest effective depth from which on neither error nor loss is worse."""
    for start in range(len(cut)):
        if all("worse" not in (verdict(row), verdict(row, "loss")) for row in cut[start:]):
            if cut[start]["seeds"] < 2:
                return "With one seed nothing can be said on which effective depth is enough."
            return (
                f"From L = {cut[start]['effective_depth']} on, no harm by leaving out longer paths was found: the "
                f"network of {blocks} blocks need not be trained end to end here, which agrees with a small effective "
                "depth."
            )
    last = cut[-1]["effective_depth"]
    return (
        f"Even at L = {last} the restricted network is worse than the whole one: paths of more than {last} of {blocks} "
        "blocks matter to training here, unlike the paper's picture of an effective depth far below the real one."
    )


def _wide(row: Row, blocks: Mapping[str, int], deep: str) -> str:
    said = verdict(row)
    if said == "not told apart" and verdict(row, "loss") != said:
        said = f"{verdict(row, 'loss')} in loss alone"
    meaning = {
        "better": "wider is better than deeper, as the paper says",
        "better in loss alone": "in the direction of the paper's claim",
        "worse": "deeper is better than wider, the opposite of the paper's claim",
        "worse in loss alone": "against the direction of the paper's claim",
        "not told apart": "no difference between wider and deeper was found",
    }[said]
    return (
        f"{row['network']}, {blocks[row['network']]} wide blocks of the same multiply-adds, against {deep}: "
        f"{_points(row)}; {meaning}. It trains in {row['time']:.2f} times the time."
    )
