"""The headline numbers of both networks beside the paper's facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from pathlens.paths import length_range
from pathlens.tables import Table

HEADLINES = (
    ("network", "", "network"),
    ("fact", "", "what was looked at"),
    ("paper", "", "what Veit, Wilber, Belongie 2016 say of their 54-block networks"),
    ("here", "", "what was found here"),
    ("value", "", "the number behind it"),
    ("value_low", "", "lower end of its 95 % interval, where there is one"),
    ("value_high", "", "upper end of it"),
    ("agrees", "", "whether it agrees with the paper; missing where that cannot be told"),
)


def headlines(network: str, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Rows of one network.

    Args:
        network: its name.
        tables: ``lesions``, ``skips``, ``sets``, ``orders`` and ``gradients``.
    """
    found = [
        _single(tables["lesions"]),
        _worst(tables["lesions"]),
        _skips(tables["lesions"], tables["skips"]),
        _sets(tables["sets"]),
        _orders(tables["orders"]),
        *_paths(tables["gradients"]),
    ]
    return [{"network": network, "value_low": None, "value_high": None, "agrees": None, **row} for row in found]


def singles(table: Table) -> list[dict[str, Any]]:
    """Rows of single deletions."""
    return [dict(row) for row in table.rows if row["block"] is not None]


def intact(table: Table) -> dict[str, Any]:
    """The row of the whole network."""
    return next(dict(row) for row in table.rows if row.get("count") == 0 or row.get("swaps") == 0)


def downsampling(rows: list[dict[str, Any]]) -> set[int]:
    """Blocks whose shortcut changes shapes."""
    return {row["block"] for row in rows if row["kind"] != "identity"}


def _single(table: Table) -> dict[str, Any]:
    rows, whole = singles(table), intact(table)
    apart = [row for row in rows if row["error_low"] > whole["error_high"]]
    return {
        "fact": "deleting one block",
        "paper": "the error hardly changes for most blocks",
        "here": f"{len(rows) - len(apart)} of {len(rows)} deletions are not told apart from the intact network",
        "value": 1 - len(apart) / len(rows),
        "agrees": len(apart) < len(rows) / 2,
    }


def _worst(table: Table) -> dict[str, Any]:
    rows = sorted(singles(table), key=lambda row: (row["error"], row["loss"] or 0.0), reverse=True)
    changing = downsampling(rows)
    ranks = [1 + place for place, row in enumerate(rows) if row["block"] in changing]
    worst = rows[0]
    return {
        "fact": "which blocks hurt most",
        "paper": "those that downsample",
        "here": f"block {worst['block']} ({worst['name']}, stage {worst['stage']}, {worst['kind']}) is the worst; "
        f"blocks that downsample are at rank {' and '.join(map(str, ranks)) or 'none'} of {len(rows)}",
        "value": worst["error"],
        "value_low": worst["error_low"],
        "value_high": worst["error_high"],
        "agrees": bool(changing) and {row["block"] for row in rows[: len(changing)]} == changing,
    }


def _skips(lesions: Table, skips: Table) -> dict[str, Any]:
    without = {row["block"]: row["error"] for row in singles(lesions)}
    differences = [row["error"] - without[row["block"]] for row in singles(skips)]
    worse = sum(difference > 0 for difference in differences)
    interval = stats.binomtest(worse, len(differences)).proportion_ci(method="wilson")
    return {
        "fact": "deleting the shortcut instead",
        "paper": "not done",
        "here": f"the error is higher than without the branch in {worse} of {len(differences)} blocks",
        "value": worse / len(differences),
        "value_low": float(interval.low),
        "value_high": float(interval.high),
    }


def _sets(table: Table) -> dict[str, Any]:
    drawn = [(row["count"], row["error"]) for row in table.rows if row["sample"] is not None]
    return {
        "fact": "number of deleted blocks and error",
        "paper": "the error rises smoothly with the number",
        "here": f"rank correlation over {len(drawn)} random sets",
        **_correlation(drawn, 1),
    }


def _orders(table: Table) -> dict[str, Any]:
    drawn = [(row["kendall_tau"], row["error"]) for row in table.rows if row["sample"] is not None]
    return {
        "fact": "Kendall's tau of reordered blocks and error",
        "paper": "the error falls smoothly towards the trained order",
        "here": f"rank correlation over {len(drawn)} random orders",
        **_correlation(drawn, -1),
    }


def _correlation(pairs: Sequence[tuple[float, float]], sign: int) -> dict[str, Any]:
    """Spearman's correlation, and whether it has the sign where the interval tells; nothing where a side does not vary.

    The interval is by Fisher's transformation with the standard error of Bonett and Wright (2000).
    """
    if len(pairs) < 4 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return {"value": None}
    rho = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    if abs(rho) == 1:
        return {"value": rho, "agrees": rho == sign}
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (len(pairs) - 3))
    low, high = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    told = True if min(low * sign, high * sign) > 0 else False if max(low * sign, high * sign) < 0 else None
    return {"value": rho, "value_low": low, "value_high": high, "agrees": told}


def _paths(table: Table) -> list[dict[str, Any]]:
    blocks, effective = len(table.rows) - 1, table.provenance["effective"]
    first, last = length_range(blocks)
    rows = [
        {
            "fact": "lengths of 95 % of the paths",
            "paper": "19 to 35 of 54 blocks",
            "here": f"{first} to {last} of {blocks} blocks",
            "value": (first + last) / 2 / blocks,
        }
    ]
    words = {"sampled": "effective lengths, the paper's product", "exact": "effective lengths, exact sum"}
    for kind, fact in words.items():
        own = effective[kind]
        rows.append(
            {
                "fact": fact,
                "paper": "5 to 17 of 54 blocks, 0.45 % of the paths",
                "here": f"{own['first']} to {own['last']} of {blocks} blocks, {own['share_of_paths']:.2%} of the paths",
                "value": (own["first"] + own["last"]) / 2 / blocks,
                "agrees": (own["first"] + own["last"]) / 2 < (first + last) / 2,
            }
        )
    totals, products = table.values("total_norm"), table.values("contribution")
    peak = totals.index(max(totals))
    row = table.rows[peak]
    rows.append(
        {
            "fact": "cancellation where the exact sum is largest",
            "paper": "not looked at",
            "here": f"at length {peak} the exact sum is {totals[peak] / products[peak]:.2g} of the product",
            "value": totals[peak] / products[peak],
            "value_low": row["total_low"] / (row["n_paths"] * row["path_norm_high"]),
            "value_high": row["total_high"] / (row["n_paths"] * row["path_norm_low"]),
        }
    )
    return rows
