"""The numbers that the paper states, beside what was measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from scipy import stats

from pathlens.tables import Table
from studies.common import Page, make_table

COLUMNS = (
    ("fact", "", "what is compared"),
    ("paper", "", "the paper's statement"),
    ("here", "", "the same, measured here"),
    ("agrees", "", "whether the two agree, by the rule in the last column"),
    ("rule", "", "what was asked of the numbers"),
)


class Facts:
    """Collects measured numbers section by section."""

    @staticmethod
    def lesions(tables: Mapping[str, Table]) -> dict[str, Any]:
        """Of single lesions: the typical and the worst block of each kind of network."""
        found: dict[str, Any] = {}
        for rule, table in tables.items():
            intact, *rows = table.rows
            changes = [float(row["error"] or 0) - float(intact["error"] or 0) for row in rows]
            found[f"{rule} intact"] = float(intact["error"] or 0)
            found[f"{rule} median change"] = statistics.median(changes)
            found[f"{rule} largest"] = max(float(row["error"] or 0) for row in rows)
            found[f"{rule} median error"] = statistics.median(float(row["error"] or 0) for row in rows)
            kinds = [row["kind"] for row in rows]
            if rule == "full":
                order = sorted(range(len(rows)), key=lambda i: -changes[i])
                resized = [i for i, kind in enumerate(kinds) if kind in ("projection", "padding")]
                found["ranks of downsampling blocks"] = [order.index(i) + 1 for i in resized]
                found["blocks"] = len(rows)
        return found

    @staticmethod
    def many(tables: Mapping[str, Table]) -> dict[str, Any]:
        """Of random sets of blocks: does error grow smoothly, and more slowly after training with random blocks."""
        found: dict[str, Any] = {}
        for rule, table in tables.items():
            means = [row for row in table.rows if row["sample"] is None]
            errors = [float(row["error"] or 0) for row in means]
            found[f"{rule} rank"] = _rank(range(len(errors)), errors)
            found[f"{rule} many"] = errors[-1] - errors[0]
            found["most"] = means[-1]["count"]
        return found

    @staticmethod
    def orders(table: Table) -> dict[str, Any]:
        """Of reordered networks: does error grow with the distance from the trained order."""
        rows = [row for row in table.rows if row["sample"] is not None and row["kendall_tau"] is not None]
        distances = [-float(row["kendall_tau"] or 0) for row in rows]
        return {"reordering": _rank(distances, [float(row["error"] or 0) for row in rows])}

    @staticmethod
    def gradients(table: Table, half: tuple[int, int]) -> dict[str, Any]:
        """Of path lengths: where 95 % of the paths and of the contribution lie."""
        found: dict[str, Any] = {"all paths": half, "n": len(table.rows) - 1}
        for method, effective in table.provenance["effective"].items():
            if effective:
                found[f"effective {method}"] = (effective["first"], effective["last"])
                found[f"share {method}"] = effective["share_of_paths"]
        return found

    @staticmethod
    def show(page: Page, found: Mapping[str, Any]) -> None:
        """The table, and what agrees and what does not."""
        rows = [row for row in _rows(found) if row is not None]
        page.section("Beside the paper")
        page.table("facts", make_table(COLUMNS, rows), {"fact": "", "paper": "", "here": "", "agrees": "", "rule": ""})
        against = [row["fact"] for row in rows if row["agrees"] == "no"]
        page.text(
            f"Of {len(rows)} statements, {len(rows) - len(against)} agree"
            + (f"; these do not: {'; '.join(against)}." if against else ".")
            + " Likely reasons where numbers differ: images and task (at `--scale cpu` digits, which few blocks tell "
            "apart, so that single blocks matter more or less than on CIFAR-10), length of training, and the paper's "
            "sampled norms, whose mean over few paths understates a heavy-tailed distribution while their sum ignores "
            "that gradients of different paths cancel. The critics' study looks into the latter two."
        )


def _rows(found: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    def row(fact: str, paper: str, here: str, agrees: bool, rule: str) -> dict[str, Any]:
        return {"fact": fact, "paper": paper, "here": here, "agrees": "yes" if agrees else "no", "rule": rule}

    n, (low, high) = found["n"], found["all paths"]
    change, plain = found["full median change"], found["plain median error"]
    ranks = found["ranks of downsampling blocks"]
    rows: list[dict[str, Any] | None] = [
        row(
            "deleting one residual block, typically",
            "little change of error",
            f"median change {100 * change:+.2f} points",
            change < 0.05,
            "below 5 points",
        ),
        row(
            "deleting one layer of the plain network",
            "falls to chance",
            f"median error {plain:.1%}, largest {found['plain largest']:.1%}",
            plain > 0.5,
            "median error above 50 %",
        ),
        row(
            "downsampling blocks",
            "hurt most",
            f"rank {', '.join(map(str, ranks))} of {found['blocks']}",
            bool(ranks) and max(ranks) <= max(3, found["blocks"] // 10),
            "all among the worst tenth",
        ),
        row(
            "deleting more blocks",
            "error grows smoothly",
            f"Spearman's rank correlation {found['full rank']:.2f} up to {found['most']} blocks",
            found["full rank"] > 0.9,
            "above 0.9",
        ),
        row(
            "reordering more",
            "error grows smoothly",
            f"Spearman's rank correlation {found['reordering']:.2f}",
            found["reordering"] > 0.5,
            "above 0.5",
        ),
        row(
            "95 % of the paths",
            "19 to 35 of 54 blocks",
            f"{low} to {high} of {n}",
            n != 54 or abs(low - 19) + abs(high - 35) <= 2,
            "for 54 blocks within one at both ends",
        ),
        row(
            "stochastic depth and lesions",
            "more robust when blocks are deleted",
            f"{found['most']} blocks cost {100 * found['stochastic depth many']:.1f} points, after full training "
            f"{100 * found['full many']:.1f}",
            found["stochastic depth many"] < found["full many"],
            "a smaller rise of error",
        ),
        row(
            "highway network",
            "lesions cost little too",
            f"median change {100 * found['highway median change']:+.2f} points",
            found["highway median change"] < 0.05,
            "below 5 points",
        ),
    ]
    for method, words in (("sampled", "the paper's way"), ("exact", "norm of the sum"), ("signed", "root mean square")):
        if f"effective {method}" in found:
            first, last = found[f"effective {method}"]
            share = found[f"share {method}"]
            rows.append(
                row(
                    f"effective lengths, {words}",
                    "5 to 17 of 54 blocks, 0.45 % of the paths",
                    f"{first} to {last} of {n}, {share:.2%} of the paths",
                    share < 0.05 and last < n / 2,
                    "shorter than half the depth, below 5 % of the paths",
                )
            )
    return rows


def _rank(xs: Any, ys: Any) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    first, second = list(xs), list(ys)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


facts = Facts()
