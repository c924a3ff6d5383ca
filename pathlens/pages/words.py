"""What a run says in words: what was asked, on what, and the numbers that a reader looks for first."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pathlens.pages.runs import Run
from pathlens.tables import Table

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNSAID = ("json", "quiet", "out")
_METHODS = {"exact": "exact sums", "sampled": "sampled paths", "signed": "root mean squares"}


@dataclass(frozen=True)
class Headline:
    """One number of a result: what it is, its value, and what belongs to it."""

    label: str
    value: str
    detail: str = ""


def said(value: Any) -> str:
    """A fact of a manifest as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(said, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {said(item)}" for key, item in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(fraction: float) -> str:
    """``39.44 %``, which is not broken over lines."""
    return f"{100 * fraction:.2f}\N{NO-BREAK SPACE}%"


def number(value: float) -> str:
    """Three digits, as ``0.0123`` or ``1.23×10⁻⁶``; integers of any size."""
    digits, _, exponent = f"{Decimal(value) if isinstance(value, int) else value:.3g}".partition("e")
    return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else digits


_NUMBER = ("int", "float", "null")
ERROR = ("error", "error_low", "error_high")


def has(table: Table | None, numbers: Sequence[str], texts: Sequence[str] = (), whole: Sequence[str] = ()) -> bool:
    """Whether the columns are there and hold numbers or texts or nothing, and ``whole`` an integer in each row."""
    if table is None or not table.rows:
        return False
    kinds = {**dict.fromkeys(numbers, _NUMBER), **dict.fromkeys(texts, ("str", "null"))}
    return all(table.types.get(name) in allowed for name, allowed in kinds.items()) and all(
        table.types.get(name) == "int" and None not in table.values(name) for name in whole
    )


def is_deletion(table: Table | None) -> bool:
    """A table of deleted blocks or shortcuts."""
    return has(table, ("block", "sample", *ERROR), ("name",), ("count",))


def is_reordering(table: Table | None) -> bool:
    """A table of reordered blocks."""
    return has(table, ("sample", "kendall_tau", *ERROR), whole=("swaps",))


def is_profile(table: Table | None) -> bool:
    """A table of norms by path length."""
    if table is None or not has(table, ("total_norm", "path_norm_mean", "path_norm_rms"), (), ("length", "n_paths")):
        return False
    return has(table, [name for name in table.names if name.startswith("path_norm_")])


def is_history(table: Table | None) -> bool:
    """A table of epochs."""
    return has(table, ("train_loss", "train_error", "validation_loss", "validation_error"), whole=("epoch",))


def is_structure(table: Table | None) -> bool:
    """A table of the blocks of a network."""
    return has(table, ("parameters", "multiply_adds"), ("name", "kind"), ("block",))


def split_rows(table: Table) -> tuple[dict[str, Any] | None, list[dict[str, Any]], bool]:
    """The intact row, the rows of single blocks or else the summary rows of sets, and whether they are single."""
    rows: list[dict[str, Any]] = list(table.rows)
    intact = next((row for row in rows if row["count"] == 0), None)
    damaged = [row for row in rows if row["count"] and row["error"] is not None]
    single = [row for row in damaged if row["block"] is not None and row["sample"] is None]
    if single and all(row["count"] == 1 for row in damaged):
        return intact, sorted(single, key=lambda row: row["block"]), True
    means = [row for row in damaged if row["sample"] is None and row["block"] is None]
    return intact, sorted(means, key=lambda row: row["count"]), False


def title(run: Run) -> str:
    """One sentence on what was done."""
    table = run.tables.get(run.verb) or next(iter(run.tables.values()))
    network = said(run.manifest.get("model", run.manifest.get("network", "a network")))
    if is_deletion(table):
        what = {"delete-skips": "shortcuts"}.get(run.verb, "blocks")
        _, rows, single = split_rows(table)
        if single:
            return f"{network}: each of {len(rows)} {what} deleted in turn"
        return f"{network}: random sets of {what} deleted"
    if is_reordering(table):
        return f"{network}: blocks in other orders"
    if is_profile(table):
        return f"{network}: gradient norms by path length"
    if is_history(run.tables.get("history")):
        return f"{network}: training, {said(run.manifest.get('rule', ''))}"
    if is_structure(table):
        return f"{network}: {len(table.rows)} blocks"
    return f"{network}: {run.verb}"


def asked(run: Run) -> list[tuple[str, str]]:
    """The verb, the command line and the options that were given a value."""
    facts = [("Verb", run.verb)]
    command = run.manifest.get("command")
    if isinstance(command, list) and command:
        facts.append(("Command", shlex.join(map(str, command))))
    given = {name: value for name, value in run.arguments.items() if value not in (None, False) and name not in _UNSAID}
    if given:
        facts.append(("Options", "; ".join(f"{name.replace('_', '-')} {said(value)}" for name, value in given.items())))
    return facts


def setting(run: Run) -> list[tuple[str, str]]:
    """Network, data, and how they were run."""
    facts = run.manifest
    weights = facts.get("weights", facts.get("weights_at_start"))
    found = [("Network", " ".join(said(facts[name]) for name in ("model",) if name in facts))]
    if "network" in facts and "blocks" in facts:
        found[0] = ("Network", f"{found[0][1]} ({said(facts['network'])}, {said(facts['blocks'])} blocks)".strip())
    if weights is not None:
        found.append(("Weights", said(weights)))
    if "model_sha256" in facts:
        found.append(("Network hash", said(facts["model_sha256"])))
    if "data" in facts:
        images = facts.get("images", facts.get("train_images"))
        split = said(facts.get("split", "train" if "train_images" in facts else ""))
        whole = facts.get("images_in_split")
        count = "" if images is None else f", {said(images)} images" + (f" of {said(whole)}" if whole else "")
        found.append(("Data", f"{said(facts['data'])} {split}{count}".replace(" ,", ",")))
    labels = {"data_sha256": "Data hash", "train_sha256": "Data hash", "normalisation": "Normalisation"}
    for name, label in labels.items():
        if name in facts:
            found.append((label, said(facts[name])))
    if "dtype" in facts:
        found.append(("Precision", f"{said(facts['dtype'])} on {said(facts.get('device'))}"))
    if "seed" in facts:
        found.append(("Seed", said(facts["seed"])))
    seconds = facts.get("wall_time_seconds", facts.get("seconds"))
    if "date" in facts:
        took = f", {seconds:.4g} s" if isinstance(seconds, int | float) else ""
        found.append(("Run", f"{said(facts['date'])}{took}"))
    return [(label, value) for label, value in found if value]


def headlines(run: Run) -> list[Headline]:
    """The numbers that a reader looks for first."""
    found: list[Headline] = []
    for stem, table in run.tables.items():
        for fits, tell in _TELL:
            if fits(table):
                found += tell(run, table)
                break
        else:
            if not is_history(table) and stem == run.verb:
                found.append(Headline("Rows", f"{len(table.rows):,}", stem))
    return found


def _with_interval(label: str, row: dict[str, Any], detail: str = "") -> Headline:
    interval = ""
    if row["error_low"] is not None and row["error_high"] is not None:
        interval = f"95\N{NO-BREAK SPACE}% interval {100 * row['error_low']:.2f} to {100 * row['error_high']:.2f}"
    return Headline(label, percent(row["error"]), "; ".join(filter(None, (detail, interval))))


def _deletion(run: Run, table: Table) -> list[Headline]:
    intact, rows, single = split_rows(table)
    found = [_with_interval("Error of the intact network", intact)] if intact and intact["error"] is not None else []
    if single:
        worst = max(rows, key=lambda row: row["error"])
        part = "shortcut" if run.verb == "delete-skips" else "block"
        found.append(_with_interval("Largest error", worst, f"{part} {worst['block']}, {worst['name']}"))
        found.append(Headline("Median over blocks", percent(statistics.median(row["error"] for row in rows))))
        if intact and intact["error_high"] is not None:
            inside = sum(row["error"] <= intact["error_high"] for row in rows)
            found.append(
                Headline(
                    "Blocks without visible effect", f"{inside} of {len(rows)}", "error within the interval of intact"
                )
            )
    elif rows:
        ends = [rows[0]] if len(rows) == 1 else [rows[0], rows[-1]]
        found += [_with_interval(f"Mean error, {row['count']} deleted", row) for row in ends]
    return found


def _reordering(run: Run, table: Table) -> list[Headline]:
    rows: list[dict[str, Any]] = [row for row in table.rows if row["error"] is not None]
    found = [_with_interval("Error of the intact network", row) for row in rows if row["swaps"] == 0][:1]
    means = [row for row in rows if row["swaps"] and row["sample"] is None]
    for row in sorted(means, key=lambda row: row["swaps"])[-1:]:
        tau = "" if row["kendall_tau"] is None else f"mean Kendall tau {row['kendall_tau']:.3f}"
        found.append(_with_interval(f"Mean error, {row['swaps']} swaps", row, tau))
    return found


def _profile(run: Run, table: Table) -> list[Headline]:
    facts = run.manifest
    found = []
    if isinstance(facts.get("gradient_norm"), float):
        found.append(Headline("Gradient norm", number(facts["gradient_norm"]), f"at {said(facts.get('at'))}"))
    effective = facts.get("effective")
    for method, span in effective.items() if isinstance(effective, dict) else ():
        if isinstance(span, dict) and isinstance(span.get("first"), int) and isinstance(span.get("last"), int):
            parts = []
            for name, of in (("share_of_contribution", "of the contribution"), ("share_of_paths", "of all paths")):
                if isinstance(span.get(name), float):
                    parts.append(f"{number(100 * span[name])}\N{NO-BREAK SPACE}% {of}")
            label = f"Effective lengths, {_METHODS.get(method, method)}"
            found.append(Headline(label, f"{span['first']} to {span['last']}", ", ".join(parts)))
    whole = facts.get("relative_difference_to_autograd")
    if isinstance(whole, float):
        found.append(Headline("Sum over lengths against autograd", number(whole), "relative difference"))
    return found


def _structure(run: Run, table: Table) -> list[Headline]:
    found = [Headline("Blocks", str(len(table.rows)))]
    for name, label in (("parameters", "Parameters in blocks"), ("multiply_adds", "Multiply-adds of an example")):
        found.append(Headline(label, f"{sum(value for value in table.values(name) if isinstance(value, int)):,}"))
    return found


def _evaluation(run: Run, table: Table) -> list[Headline]:
    rows: list[dict[str, Any]] = [row for row in table.rows if row["error"] is not None]
    found = [_with_interval(f"Error, {said(row['split'])}", row) for row in rows]
    recipe = run.manifest.get("recipe")
    if isinstance(recipe, dict) and "epochs" in recipe:
        found.append(Headline("Epochs", said(recipe["epochs"]), f"rule: {said(run.manifest.get('rule'))}"))
    return found


_TELL: tuple[tuple[Callable[[Table], bool], Callable[[Run, Table], list[Headline]]], ...] = (
    (is_deletion, _deletion),
    (is_reordering, _reordering),
    (is_profile, _profile),
    (is_structure, _structure),
    (lambda table: has(table, ERROR, ("split",)), _evaluation),
)
