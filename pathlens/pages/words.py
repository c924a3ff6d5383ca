"""What a run says: what was asked, on what, the numbers that a reader looks for first, and its charts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pathlens import results
from pathlens.report.reading import Run
from pathlens.results import Headline, Result
from pathlens.results.charts import Chart
from pathlens.results.tasks import WORDS
from pathlens.results.text import number, said
from pathlens.tables import Table

_UNSAID = ("json", "quiet", "out")
#: options with a form of --no-: these are off only where that was given; others are off by default
_WITH_NO = ("flip", "nesterov", "test", "sync_batch_norm")


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
    lines = [("Verb", run.verb)]
    command = run.manifest.get("command")
    if isinstance(command, list) and command:
        lines.append(("Command", shlex.join(map(str, command))))
    given = {name: value for name, value in run.arguments.items() if _is_given(name, value) and name not in _UNSAID}
    if given:
        lines.append(("Options", "; ".join(f"{name.replace('_', '-')} {said(value)}" for name, value in given.items())))
    return lines


def _is_given(name: str, value: object) -> bool:
    """Whether an option has a value that is worth a word; 0 is one, though it equals False."""
    if isinstance(value, bool):
        return value or name in _WITH_NO
    return value is not None


def setting(run: Run) -> list[tuple[str, str]]:
    """Network, data, and how they were run."""
    manifest = run.manifest

    def stated(name: str) -> str:
        return said(manifest[name]) if name in manifest else ""

    network = stated("model")
    if "network" in manifest and "blocks" in manifest:
        network = f"{network} ({stated('network')}, {stated('blocks')} blocks)".strip()
    lines = [("Network", network)]
    weights = manifest.get("weights", manifest.get("weights_at_start"))
    if weights is not None:
        lines.append(("Weights", said(weights)))
    lines.append(("Network hash", stated("model_sha256")))
    if "data" in manifest:
        images = manifest.get("images", manifest.get("train_images"))
        split = said(manifest.get("split", "train" if "train_images" in manifest else ""))
        whole = manifest.get("images_in_split")
        examples = manifest.get("examples")
        if not isinstance(examples, str):  # a lattice states how many they are, and a training its task alone
            examples, _ = WORDS.get(str(manifest.get("task")), ("images", ""))
        count = "" if images is None else f", {said(images)} {examples}" + (f" of {said(whole)}" if whole else "")
        lines.append(("Data", f"{stated('data')} {split}{count}".replace(" ,", ",")))
    lines += [("Data hash", stated("data_sha256")), ("Data hash", stated("train_sha256"))]
    lines.append(("Normalisation", stated("normalisation")))
    if "dtype" in manifest:
        lines.append(("Precision", f"{stated('dtype')} on {said(manifest.get('device'))}"))
    lines.append(("Seed", stated("seed")))
    seconds = manifest.get("wall_time_seconds", manifest.get("seconds"))
    if "date" in manifest:
        took = f", {number(seconds)} s" if isinstance(seconds, int | float) else ""
        lines.append(("Run", f"{stated('date')}{took}"))
    return [(label, value) for label, value in lines if value]


def headlines(run: Run) -> list[Headline]:
    """The numbers that a reader looks for first."""
    shown: list[Headline] = []
    for stem, table, result in declared(run):
        of_table = result.headlines(table.rows, run.manifest) if result is not None else []
        if not of_table and stem == run.verb:
            of_table = [Headline("Rows", f"{len(table.rows):,}", stem)]
        shown += of_table
    return shown


def charts(run: Run) -> list[Chart]:
    """The charts of all tables of a run that have one."""
    return [
        chart
        for _, table, result in declared(run)
        if result is not None
        for chart in result.charts(table.rows, run.manifest)
    ]
