"""One page of the results in run folders."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pathlens.pages import words
from pathlens.pages.compare import differences, overlays, shared_numbers, subject
from pathlens.pages.encode import encode
from pathlens.pages.shell import checked_target, rendered
from pathlens.report.reading import Run, read_runs
from pathlens.results import Headline
from pathlens.results.charts import Chart, stages_of
from pathlens.results.lattice import LATTICE
from pathlens.results.text import said
from pathlens.storage import atomic_write_bytes
from pathlens.tables import Scalar

_SCRIPTS = ("common.js", "chart.js", "lattice.js", "contour.js", "table.js", "theme.js", "page.js")


class _BlockNames(TypedDict):
    """Names of blocks by index, and their stages as charts have them."""

    names: dict[str, Scalar]
    stages: list[dict[str, str | int]]


def report_page(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    title: str | None = None,
) -> Path:
    """Write one HTML page of the results in run folders. It needs no network, and the same runs give the same bytes.

    For each run: what was asked, on what network and data, the numbers to look for first, charts, the lattice, all
    tables, the figures that the run wrote, and its provenance. Of several runs also what differs between them, and
    their curves in one chart. A run that is given twice is shown once.

    Args:
        runs: run folders, as the verbs write them with ``--out`` (or one of them).
        out: the page, an ``.html`` file; replaced if it is there.
        title: heading of the page; by default made from the runs.

    Returns:
        ``out``.

    Raises:
        NumericsError: a table holds NaN or an infinity.
        ResourceError: the disk is full; nothing of the page is visible.
        RunError: a folder has no manifest or no tables, or they are damaged or of a newer version; or ``out`` is a
            folder or cannot be written.
        UsageError: no runs, ``out`` does not end with ``.html``, or a table has two curves under one name.
    """
    target = checked_target(out, "report.html")
    results = read_runs([runs] if isinstance(runs, str | os.PathLike) else runs)
    return atomic_write_bytes(target, render(results, title))


def render(runs: Sequence[Run], title: str | None = None) -> bytes:
    """The page of runs that were read, as UTF-8."""
    runs = list(runs)
    charts = [words.charts(run) for run in runs]
    together = overlays(runs, charts)
    headlines = [words.headlines(run) for run in runs]
    blocks = _block_names(runs)
    data = {
        "runs": [_data(run, own, blocks) for run, own in zip(runs, charts, strict=True)],
        "together": together,
    }
    return rendered(
        "page.html.j2",
        ("page.css",),
        _SCRIPTS,
        data,
        title=title or (words.title(runs[0]) if len(runs) == 1 else subject(runs)),
        runs=[_shown(run, own, told) for run, own, told in zip(runs, charts, headlines, strict=True)],
        together=together,
        numbers=shared_numbers(headlines),
        differences=differences(runs),
    )


def _shown(run: Run, charts: list[Chart], headlines: list[Headline]) -> dict[str, Any]:
    """What the template says of one run."""
    tables = [
        {"stem": stem, "rows": len(table.rows), "lattice": LATTICE.fits(table)} for stem, table in run.tables.items()
    ]
    notes = run.manifest.get("notes")
    return {
        "label": run.label,
        "verb": run.verb,
        "title": words.title(run),
        "headlines": headlines,
        "asked": words.asked(run),
        "setting": words.setting(run),
        "notes": [said(note) for note in notes] if isinstance(notes, list) else [],
        "warnings": run.warnings,
        "charts": charts,
        "tables": tables,
        "pictures": [
            {
                "name": picture.name,
                "kilobytes": max(1, len(picture.data) // 1000),
                "source": f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}",
            }
            for picture in run.pictures
        ],
        "files": [(name, _size_and_hash(entry)) for name, entry in run.manifest["files"].items()],
        "manifest": json.dumps(
            {name: value for name, value in run.manifest.items() if name != "files"}, indent=2, ensure_ascii=False
        ),
    }


def _size_and_hash(entry: object) -> tuple[str, str]:
    """Of a file that the manifest lists, as text."""
    known = entry if isinstance(entry, dict) else {}
    size = known.get("bytes")
    return f"{size:,}" if isinstance(size, int) else "not stated", said(known.get("sha256", "not stated"))


def _data(run: Run, charts: list[Chart], blocks: Mapping[str, _BlockNames]) -> dict[str, Any]:
    """What the scripts draw of one run."""
    names: Mapping[str, object] = blocks.get(run.label, {})
    tables = [encode(table, stem) for stem, table in run.tables.items()]
    lattices = {
        stem: {"table": number, **names}
        for number, (stem, table) in enumerate(run.tables.items())
        if LATTICE.fits(table)
    }
    return {"label": run.label, "charts": charts, "tables": tables, "lattices": lattices}


def _network(run: Run) -> str:
    """What two runs on the same network have in common."""
    digest = run.manifest.get("model_sha256")
    return digest if isinstance(digest, str) else run.label


def _block_names(runs: list[Run]) -> dict[str, _BlockNames]:
    """Modules and stages of the blocks by run: tables of lattices have only numbers.

    A run's own names come first, and stages from a table of the same network with these names; tables of layers number
    something else.
    """
    tables: dict[str, list[_BlockNames]] = {}
    for run in runs:
        if run.arguments.get("group") == "layer":
            continue
        for table in run.tables.values():
            rows: dict[int, dict[str, Scalar]] = {}
            for row in table.rows:
                block = row.get("block")
                if isinstance(block, int) and isinstance(row.get("name"), str):
                    rows.setdefault(block, row)
            ordered = [rows[block] for block in sorted(rows)]
            names = {str(row["block"]): row["name"] for row in ordered}
            if names:
                tables.setdefault(_network(run), []).append({"names": names, "stages": stages_of(ordered)})
    by_run: dict[str, _BlockNames] = {}
    for run in runs:
        stated, known = run.manifest.get("block_names"), tables.get(_network(run), [])
        if isinstance(stated, list) and stated and all(isinstance(name, str) for name in stated):
            own: dict[str, Scalar] = {str(block): name for block, name in enumerate(stated)}
            stages = (one["stages"] for one in known if one["names"] == own)
            by_run[run.label] = {"names": own, "stages": next(stages, [])}
        elif known:
            by_run[run.label] = max(known, key=lambda one: len(one["names"]))
    return by_run
