"""The table of path gradients for people."""

from __future__ import annotations

from typing import Any

from pathlens.cli.show import Shown, print_columns, print_dim, summary
from pathlens.tables import Table

_NUMBERS = (
    ("total_norm", "total norm\n(exact)"),
    ("path_norm_mean", "path norm\nmean"),
    ("path_norm_low", "95 %\nlow"),
    ("path_norm_high", "\nhigh"),
    ("path_norm_median", "\nmedian"),
    ("path_norm_rms", "\nrms"),
)


def show_paths(table: Table) -> None:
    """Print the table of path gradients on stdout, with a bar for what each length contributes."""
    rows: list[dict[str, Any]] = [dict(row) for row in table.rows]
    columns = [
        Shown("length", [str(row["length"]) for row in rows]),
        Shown("paths", [_count(row["n_paths"]) for row in rows], gives_way=2),
    ]
    for name, title in _NUMBERS:
        if any(row[name] is not None for row in rows):
            gives_way = {"path_norm_low": 1, "path_norm_high": 1, "path_norm_median": 3}.get(name, 0)
            columns.append(Shown(title, [_number(row[name]) for row in rows], gives_way=gives_way))
    if any(row["samples"] is not None for row in rows):
        columns.append(Shown("samples", [str(row["samples"]) for row in rows], gives_way=4))
        columns.append(Shown("stopped", [str(row["stopped"]) for row in rows], left=True, gives_way=5))
    share = "contribution_share" if rows[0]["contribution_share"] is not None else "total_share"
    if rows[0][share] is not None:
        columns.append(Shown("share %", [f"{100 * row[share]:.2f}" for row in rows]))
        print_columns(columns, [row[share] for row in rows])
    else:
        print_columns(columns, [0.0 for _ in rows])
    for line in (*_facts(table.provenance), summary(table.provenance)):
        print_dim(line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _count(value: int) -> str:
    return f"{value:,}" if value < 10**9 else f"{float(value):.3e}"


def _facts(found: dict[str, Any]) -> list[str]:
    lines = []
    lesion = found.get("lesion", {})
    for what, blocks in (("branches", lesion.get("deleted_blocks")), ("shortcuts", lesion.get("deleted_shortcuts"))):
        if blocks:
            lines.append(f"without the {what} of blocks {', '.join(map(str, blocks))}")
    names = {"sampled": "sampled contribution", "exact": "exact sums", "signed": "root mean square contribution"}
    for kind, effective in found.get("effective", {}).items():
        lines.append(
            f"effective lengths by {names[kind]}: {effective['first']} to {effective['last']} hold "
            f"{100 * effective['share_of_contribution']:.1f} % with {100 * effective['share_of_paths']:.3g} % of all "
            f"paths; {effective['blocks_per_batch']} blocks a batch centre a random sub-network on them"
        )
    difference = found.get("relative_difference_to_autograd")
    if difference is not None:
        lines.append(
            f"sum over lengths against autograd's gradient: relative difference {difference:.1e}; left out: "
            f"{found['left_out']}"
        )
    return lines
