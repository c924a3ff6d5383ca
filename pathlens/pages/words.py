"""What a run says: what was asked, on what, the numbers that a reader looks for first, and its charts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pathlens import results
from pathlens.report.reading import Run
from pathlens.results import Headline, Result
from pathlens.results.charts import Chart
from pathlens.results.text import said
from pathlens.tables import Table

_UNSAID = ("json", "quiet", "out")


def declared(run: Run) -> Iterator[tuple[str, Table, Result | None]]:
    """The tables of a run with their stems, and the results that they are of, as far as they are known."""
    for stem, table in run.tables.items():
        yield stem, table, results.find(table, stem, run.verb)


def title(run: Run) -> str:
    """One sentence on what was done."""
    network = said(run.manifest.get("model", run.manifest.get("network", "a network")))
    tables = sorted(declared(run), key=lambda item: item[0] != run.verb)  # the verb's own table first
    titles = (result.title(table.rows, run.manifest) for _, table, result in tables if result is not None)
    return f"{network}: {next(filter(None, titles), run.verb)}"


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
    for stem, table, result in declared(run):
        told = result.headlines(table.rows, run.manifest) if result is not None else []
        if not told and stem == run.verb:
            told = [Headline("Rows", f"{len(table.rows):,}", stem)]
        found += told
    return found


def charts(run: Run) -> list[Chart]:
    """The charts of all tables of a run that have one."""
    return [
        chart
        for _, table, result in declared(run)
        if result is not None
        for chart in result.charts(table.rows, run.manifest)
    ]
