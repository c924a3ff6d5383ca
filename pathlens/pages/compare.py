"""Several runs beside each other: their numbers, what differs between them, and their curves in one chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pathlens.report.reading import Run
from pathlens.results import Headline
from pathlens.results.charts import Chart, Series
from pathlens.results.text import said

_COMPARED = (
    "verb", "model", "weights", "weights_at_start", "trained", "model_sha256", "blocks", "rule", "recipe", "data",
    "split", "images", "train_images", "data_sha256", "train_sha256", "normalisation", "at", "method", "mode", "dtype",
    "device", "seed", "commit", "input_shape", "output", "additions", "concatenations_are_blocks",
    "concatenations_are_choices", "replace", "loss",
)  # fmt: skip
#: options that say nothing of a result, or that the manifest states; of blocks it states how many the network has
_UNSAID = {"out", "json", "quiet", *_COMPARED} - {"blocks"}
#: what a manifest leaves out where it is as usual, so that the option says it
_OFTEN_LEFT_OUT = ("output", "additions", "replace", "loss")


def shared_numbers(headlines: list[list[Headline]]) -> tuple[list[int], list[tuple[str, list[Headline | None]]]]:
    """The headlines that two runs or more have: the runs that have any, and a row of theirs for each label."""
    counts = Counter(label for own in headlines for label in dict.fromkeys(headline.label for headline in own))
    labels = [label for label, count in counts.items() if count > 1]
    columns = [index for index, own in enumerate(headlines) if any(item.label in labels for item in own)]
    rows = [
        (label, [next((item for item in headlines[index] if item.label == label), None) for index in columns])
        for label in labels
    ]
    return columns, rows


def differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """What differs between runs: the name of a statement, and what each run states.

    Runs of one verb differ also in what only some of them state: it is not said that the others are alike.
    """
    stated = [dict(_stated(run)) for run in runs]
    names = dict.fromkeys(name for statements in stated for name in statements)
    different = []
    for name in names:
        values = [statements.get(name) for statements in stated]
        by_verb: dict[str, set[str | None]] = {}
        for run, value in zip(runs, values, strict=True):
            by_verb.setdefault(run.verb, set()).add(value)
        if len({*values} - {None}) > 1 or any(len(own) > 1 for own in by_verb.values()):
            different.append((name, [value or "–" for value in values]))
    return different


def subject(runs: list[Run]) -> str:
    """A heading for several runs: of which networks."""
    networks = list(dict.fromkeys(said(run.manifest.get("model", run.manifest.get("network"))) for run in runs))
    few = f"{', '.join(networks[:-1])} and {networks[-1]}" if len(networks) > 1 else networks[0]
    return f"{few if len(networks) <= 3 else f'{len(networks)} networks'}: {len(runs)} runs side by side"


def _stated(run: Run) -> Iterator[tuple[str, str]]:
    asked = {name: run.arguments[name] for name in _OFTEN_LEFT_OUT if run.arguments.get(name) is not None}
    stated = {**asked, **run.manifest}
    for name in _COMPARED:
        if name in stated:
            yield name.replace("_", " "), said(stated[name])
    for name, value in run.arguments.items():
        if name not in _UNSAID:
            yield f"option {name.replace('_', '-')}", said(value)
    versions = run.manifest.get("versions")
    for name, value in versions.items() if isinstance(versions, dict) else ():
        yield f"version of {name}", said(value)


def overlays(runs: list[Run], charts: list[list[Chart]]) -> list[Chart]:
    """One chart for each kind of chart that two runs or more have: a curve for each run, or maps beside each other."""
    kinds = dict.fromkeys(_kind(chart) for own in charts for chart in own)
    overlaid = []
    for kind in kinds:
        pairs = [(index, chart) for index, own in enumerate(charts) for chart in own if _kind(chart) == kind]
        if len(pairs) > 1 and all("surfaces" in chart for _, chart in pairs):
            overlaid.append(_beside(runs, pairs))
            continue
        shared = _shared_key([chart for _, chart in pairs])
        if len(pairs) > 1 and shared is not None:
            overlaid.append(_overlay(runs, pairs, shared))
    return overlaid


def _kind(chart: Chart) -> tuple[str, str]:
    """Family of a chart, and what its values are, with their unit."""
    if "surfaces" in chart:
        return chart["family"], ", ".join(str(layer["label"]) for layer in chart["layers"])
    return chart["family"], str(chart["y"]["label"])


def _beside(runs: list[Run], pairs: list[tuple[int, Chart]]) -> Chart:
    """One map with the surfaces of all runs, so that they have the same colours."""
    surfaces = [
        {**surface, "name": ", ".join(filter(None, (runs[index].label, surface["name"])))}
        for index, chart in pairs
        for surface in chart["surfaces"]
    ]
    return {**pairs[0][1], "surfaces": surfaces}


def _shared_key(charts: list[Chart]) -> str | None:
    keys = [[series["key"] for series in chart.get("series", ())] for chart in charts]
    return next((key for key in keys[0] if all(key in own for own in keys)), None)


def _overlay(runs: list[Run], pairs: list[tuple[int, Chart]], key: str) -> Chart:
    first = pairs[0][1]
    series: list[Series] = []
    rules: list[Mapping[str, object]] = []
    heads: dict[str, str] = {}
    for index, chart in pairs:
        own = next(item for item in chart["series"] if item["key"] == key)
        plain = {name: value for name, value in own.items() if name != "marks"}
        if plain.get("line") != "none":  # points that no line joins stay points
            plain.pop("line", None)
        series.append({**plain, "name": f"{runs[index].label} ({runs[index].verb})", "colour": index})
        # the band of one network would be taken for that of all
        rules += [{"y": rule["y"], "name": rule["name"], "colour": index} for rule in chart.get("rules", ())]
        for place, text in chart.get("heads", {}).items():
            heads[place] = text if heads.get(place, text) == text else ""
    notes = dict.fromkeys(note for _, chart in pairs if (note := chart["y"].get("note")))
    same_stages = all(chart.get("stages") == first.get("stages") for _, chart in pairs)
    of = f": {next(item['name'] for item in first['series'] if item['key'] == key)}" if len(first["series"]) > 1 else ""
    return {
        "family": first["family"],
        "title": f"{first['title']}{of}",
        "x": {**first["x"], "label": " or ".join(dict.fromkeys(chart["x"]["label"] for _, chart in pairs))},
        "y": {**first["y"], "note": "; ".join(notes)},
        "series": series,
        "rules": rules,
        "heads": {place: text for place, text in heads.items() if text},
        "stages": first.get("stages", []) if same_stages else [],
    }
