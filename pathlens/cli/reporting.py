"""``pathlens report``: results of any verbs as one page to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathlens.cli import options as o
from pathlens.cli.progress import say, waiting


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders: what verbs wrote with --out.", show_default=False),
    ],
    out: Annotated[Path, o.option("The page; one that is there is replaced.", "--out", metavar="PAGE.html")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, o.option("Heading of the page. Default: made from the runs.", metavar="TEXT")] = None,
    quiet: o.Quiet = False,
) -> None:
    """One HTML page of the results in run folders, to be opened from disk: no network is needed.

    For each run: what was asked, on what, with what result, tables that sort and filter, figures, the lattice, and
    provenance. Several runs are also compared with each other.
    """
    from pathlens.pages import report_page

    with waiting("reading tables", not quiet):
        page = report_page(runs, out, title)
    if not quiet:
        size = page.stat().st_size / 1e6
        say(f"wrote {page} ({size:.1f} MB); open it in a browser")
