"""The measured tables of results/, and what a reader can compute from them without the code of the studies."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tests.helpers import ROOT

RESULTS = ROOT / "results"
NOTICEABLE = 0.05  # of error, by one deletion
#: columns of a claim over networks of several seeds: median, smallest and largest
SPREAD = ["value", "value_low", "value_high"]


def read(study: str, stem: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / study / f"{stem}.csv")


def claim(study: str, name: str, network: str) -> pd.Series:
    (_, one), *more = claims(study, name, network).iterrows()
    assert not more
    return one


def claims(study: str, name: str, network: str = "") -> pd.DataFrame:
    """Rows of a claim, of one network or of all; there are some."""
    found = read(study, "claims")
    found = found[(found["claim"] == name) & ((found["network"] == network) | (not network))]
    assert len(found)
    return found


def by_seed(study: str, start: str) -> dict[int, str]:
    """Stems of the tables whose names differ in their seed alone."""
    paths = RESULTS.joinpath(study).glob(f"{start}-seed*.csv")
    return dict(sorted((int(path.stem.rpartition("seed")[2]), path.stem) for path in paths))


def spread(values: Any) -> list[float]:
    """What ``SPREAD`` names, of the values of all seeds."""
    return [float(np.median(values)), min(values), max(values)]


def unprinted(text: str, *numbers: str | int) -> list[str]:
    """Those of some numbers that a text does not have; one that is given twice has to be there twice."""
    printed = Counter(re.findall(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?", text))
    return list((Counter(map(str, numbers)) - printed).elements())


def single(study: str, stem: str) -> pd.DataFrame:
    """Rows of single deletions, by block."""
    table = read(study, stem)
    return table[table["block"].notna()].astype({"block": int}).set_index("block")


def intact(table: pd.DataFrame) -> float:
    return table.loc[table["count"] == 0, "error"].item()


def rises(study: str, stem: str) -> pd.Series:
    """Errors without each block minus that of the intact network, by block."""
    return single(study, stem)["error"] - intact(read(study, stem))


def holm(ps: np.ndarray) -> np.ndarray:
    """P values after Holm's correction: the largest of those up to one's own, each times how many are not below it."""
    return np.array([min(1.0, max(p * (ps >= p).sum() for p in ps[ps <= own])) for own in ps])


def shown(study: str, stem: str, less: bool = False, law: Any = stats.norm) -> list[int]:
    """Blocks that are shown to cost more than 5 points alone, or less, by the intervals of their costs and Holm.

    Args:
        study: folder of results.
        stem: of a table of single deletions.
        less: than 5 points.
        law: that the intervals are of.
    """
    table = single(study, stem)
    sign, end = (-1, "difference_high") if less else (1, "difference_low")
    error = (table[end] - table["difference"]).abs() / law.ppf(0.975)
    p = law.sf((sign * (table["difference"] - NOTICEABLE) / error).to_numpy())
    return [int(block) for block, one in zip(table.index, holm(p), strict=True) if one < 0.05]


def costlier(one: pd.DataFrame, other: pd.DataFrame, law: Any = stats.norm) -> tuple[int, int]:
    """How many deletions are shown to cost more than those beside them, and how many less; Holm over all of both.

    Args:
        one: rows of single deletions.
        other: those beside them, in their order.
        law: that the intervals of the costs are of.
    """
    cost, low, high = (
        [table[f"difference{end}"].to_numpy() for table in (one, other)] for end in ("", "_low", "_high")
    )
    gap = cost[0] - cost[1]
    below = np.hypot(cost[0] - low[0], high[1] - cost[1]) / law.ppf(0.975)
    above = np.hypot(high[0] - cost[0], cost[1] - low[1]) / law.ppf(0.975)
    more, less = np.split(holm(law.sf(np.concatenate([gap / below, -gap / above]))) < 0.05, 2)
    return int(more.sum()), int(less.sum())


def contributions(table: pd.DataFrame) -> pd.Series:
    """Number of paths of each length times the mean norm of a sampled one."""
    return table["n_paths"].astype(float) * table["path_norm_mean"].fillna(0)


def shortest_interval(weights: pd.Series) -> tuple[int, int]:
    """Shortest interval of places that holds 95 % of the weights; of several the heaviest."""
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    ends = ((first, last) for first in range(len(weights)) for last in range(first, len(weights)))
    held = [(last - first, sums[first] - sums[last + 1], first, last) for first, last in ends]
    _, _, first, last = min(one for one in held if -one[1] >= 0.95 * sums[-1])
    return first, last


def line(table: pd.DataFrame) -> Any:
    """Through the logarithms of the mean norms of sampled paths, over their lengths."""
    seen = table[table["path_norm_mean"] > 0]
    return stats.linregress(seen["length"], np.log10(seen["path_norm_mean"]))


def left(table: pd.DataFrame) -> float:
    """Norm of the sum over the paths of a length over their number times mean norm, where the sum is largest."""
    peak = table.loc[table["total_norm"].idxmax()]
    return peak["total_norm"] / (float(peak["n_paths"]) * peak["path_norm_mean"])
