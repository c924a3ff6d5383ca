"""Columns of tables that hold a curve for each scheme of initialisation, and for the weights that were given."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pathlens.errors import UsageError
from pathlens.results.charts import block_head
from pathlens.results.result import Row, Rows, column


@dataclass(frozen=True, kw_only=True)
class OfCurve:
    """Which curve a row is of."""

    network: str = column("", "class of the network")
    weights: str = column("", "scheme of the initialisation, or where the weights are from")
    seeds: int = column("", "initialisations that a value is the mean of; 1 for given weights")


def by_label(rows: Rows) -> dict[str, list[Row]]:
    """The rows of each curve, in the order of the blocks, by network and weights.

    Args:
        rows: with numbers of blocks, of one or more tables.

    Raises:
        UsageError: two curves have the same name, so that one line would be drawn through the blocks of both.
    """
    several = len({row["network"] for row in rows}) > 1
    curves: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{row['network']}, {row['weights']}" if several else str(row["weights"])
        curves.setdefault(label, []).append(row)
    for label, own in curves.items():
        counts = Counter((row["block"], row.get("place")) for row in own)
        twice = next((block for (block, _), count in counts.items() if count > 1), None)
        if twice is not None:
            raise UsageError(
                f"the curve {label!r} has block {twice} twice, as of two networks or schemes under one name; give each "
                "a name of its own in the column 'network' or 'weights'"
            )
    return {label: sorted(own, key=lambda row: row["block"]) for label, own in curves.items()}


def heads(rows: Rows) -> dict[str, str]:
    """What the places of a chart are called, the stem among them.

    Args:
        rows: of one curve.
    """
    return {str(row["block"]): "stem" if row["block"] < 0 else block_head(row) for row in rows}
