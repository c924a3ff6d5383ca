"""What a page says of runs that name blocks otherwise, measure other things, or have layers for blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pathlens
from pathlens import figures
from pathlens.pages.compare import differences, overlays, shared_numbers
from pathlens.pages.page import _block_names
from pathlens.pages.words import charts
from pathlens.report import write_run
from pathlens.report.reading import Run, read_runs
from pathlens.results import Headline, named
from pathlens.results.structure import BLOCKS
from pathlens.tables import Table


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 4), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.wide = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        x = self.wide(x) + torch.relu(self.wide(torch.relu(x)))
        logits: Tensor = self.head(x)
        return logits


def small() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    return Small().eval(), [(torch.randn(6, 5), torch.arange(6) % 3)]


def written(folder: Path, table: Table, **manifest: Any) -> Path:
    verb = manifest.pop("verb")
    write_run(folder, {manifest.pop("stem", verb): table}, {}, {"verb": verb, "model": "small", "seed": 0, **manifest})
    return folder


def runs_of(*folders: Path) -> list[Run]:
    return list(read_runs(list(folders)))


def test_names_are_those_that_a_run_states(tmp_path: Path) -> None:
    net, data = small()
    same = {"model_sha256": "of the network"}
    lattice = pathlens.lattice(net, data)
    stated = [f"block {index}" for index in range(5)]
    by_layer = pathlens.delete_blocks(net, data)
    layers = written(tmp_path / "layers", by_layer, verb="delete-blocks", arguments={"group": "layer"}, **same)
    drawn = written(tmp_path / "drawn", lattice, verb="path-gradients", stem="lattice", block_names=stated, **same)
    names = _block_names(runs_of(layers, drawn))
    assert list(names) == ["drawn"]
    assert list(names["drawn"]["names"].values()) == stated
    # a table with the same names has the stages too
    other = written(tmp_path / "blocks", by_layer, verb="delete-blocks", arguments={"group": "block"}, **same)
    own = [row["name"] for row in by_layer.rows if row["block"] is not None]
    named_so = written(tmp_path / "own", lattice, verb="path-gradients", stem="lattice", block_names=own, **same)
    both = _block_names(runs_of(other, named_so, drawn))
    assert both["own"]["stages"]
    assert both["own"]["stages"] == both["blocks"]["stages"]
    assert both["drawn"]["stages"] == []


def test_parameters_and_multiply_adds_of_the_whole_and_of_its_blocks() -> None:
    view = pathlens.find_blocks(*[part if index == 0 else part[0][0] for index, part in enumerate(small())])
    rows, totals = view.rows(), vars(view.totals)
    assert any(row["shortcut_parameters"] for row in rows)
    shown = {headline.label: headline.value for headline in BLOCKS.headlines(rows, totals)}
    assert shown["Parameters"] == f"{sum(p.numel() for p in view.model.parameters()):,}"
    assert shown["Multiply-adds of an example"] == f"{totals['multiply_adds']:,}"
    inside = [row["parameters"] + row["shortcut_parameters"] for row in rows]
    assert shown["Parameters, in blocks"] == f"{sum(inside):,}"
    (parameters, _) = BLOCKS.charts(rows, totals)
    assert parameters["series"][0]["y"] == inside


def test_charts_of_different_things_are_not_overlaid(tmp_path: Path) -> None:
    net, data = small()
    sweep = pathlens.delete_blocks(net, data)
    one, two, three = runs_of(
        written(tmp_path / "one", sweep, verb="delete-blocks"),
        written(tmp_path / "two", sweep, verb="delete-blocks"),
        written(tmp_path / "three", sweep, verb="delete-blocks", task="next-token"),
    )
    assert len(overlays([one, two], [charts(one), charts(two)])) == 1
    assert overlays([one, three], [charts(one), charts(three)]) == []
    (chart,) = overlays([one, three, two], [charts(one), charts(three), charts(two)])
    assert len(chart["series"]) == 2
    blocks, skips = runs_of(
        written(tmp_path / "blocks", pathlens.delete_blocks(net, data, count=[1, 2], samples=2), verb="delete-blocks"),
        written(tmp_path / "skips", pathlens.delete_skips(net, data, count=[1, 2], samples=2), verb="delete-skips"),
    )
    (chart,) = overlays([blocks, skips], [charts(blocks), charts(skips)])
    assert chart["x"]["label"] == "number of deleted blocks or number of deleted shortcuts"


def test_a_label_that_one_run_has_twice_is_not_shared() -> None:
    one = [Headline("moment", "1", "he"), Headline("moment", "2", "stable")]
    assert shared_numbers([one, [Headline("error", "3")]])[1] == []
    assert [label for label, _ in shared_numbers([one, [Headline("moment", "3")]])[1]] == ["moment"]
    # in the order in which the runs have them, the same every time
    both = [Headline(label, "1") for label in ("loss", "error", "blocks", "moment", "share")]
    assert [label for label, _ in shared_numbers([both, both[::-1]])[1]] == [item.label for item in both]


def test_blocks_that_were_asked_for_differ(tmp_path: Path) -> None:
    net, data = small()
    runs = runs_of(*(
        written(tmp_path / name, pathlens.delete_blocks(net, data, blocks=blocks), verb="delete-blocks", blocks=5,
                arguments={"blocks": blocks})
        for name, blocks in (("a", [0, 1]), ("b", [2, 3]))
    ))  # fmt: skip
    assert ("option blocks", ["0, 1", "2, 3"]) in differences(runs)


def test_what_is_deleted_is_called_what_it_is() -> None:
    net, data = small()
    result = named("delete-blocks")

    def title(**options: Any) -> str:
        table = pathlens.delete_blocks(net, data, **options)
        return result.title(table.rows, table.provenance)

    assert title() == "each of 5 blocks deleted in turn"
    assert title(count=[2], contiguous=True) == "runs of neighbouring blocks deleted"
    assert title(count=[2], samples=2) == "random sets of blocks deleted"
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    layers = pathlens.delete_blocks(pathlens.find_layers(plain, data[0][0]), data)
    assert result.title(layers.rows, layers.provenance) == "each of 2 layers deleted in turn"
    (chart,) = result.charts(layers.rows, layers.provenance)
    assert chart["x"]["label"] == "deleted layer"


def test_what_one_of_two_runs_of_a_verb_states_is_a_difference(tmp_path: Path) -> None:
    net, data = small()
    table = pathlens.delete_blocks(net, data)

    def between(one: dict[str, Any], two: dict[str, Any], *verbs: str) -> list[tuple[str, list[str]]]:
        first, second = verbs or ("delete-blocks", "delete-blocks")
        folders = [
            written(tmp_path / name, table, verb=verb, commit="0" * 40, **facts)
            for name, verb, facts in (("one", first, one), ("two", second, two))
        ]
        found = differences(runs_of(*folders))
        for folder in folders:
            (folder / "manifest.json").unlink()
        return found

    assert between({}, {}) == []
    assert between({}, {"replace": "mean"}) == [("replace", ["–", "mean"])]
    # where a manifest leaves out what is as usual, the option says it
    usual = {"arguments": {"replace": "zero", "additions": "trunk", "loss": None}}
    other = {"arguments": {"replace": "mean", "additions": "all", "loss": "dice"}}
    wanted = [("additions", ["trunk", "all"]), ("replace", ["zero", "mean"]), ("loss", ["–", "dice"])]
    assert between(usual, {**other, "replace": "mean", "additions": "all", "loss": "dice"}) == wanted
    assert between(usual, other) == wanted
    assert between({"arguments": {}}, {"arguments": {"concat": True}}) == [("option concat", ["–", "yes"])]
    shapes = [{"input_shape": [3, side, side]} for side in (32, 64)]
    assert between(shapes[0], shapes[1]) == [("input shape", ["3, 32, 32", "3, 64, 64"])]
    # other verbs have other options
    two_verbs = ("delete-blocks", "delete-skips")
    assert between({"replace": "mean"}, {"arguments": {"samples": 3}}, *two_verbs) == [("verb", [*two_verbs])]


def test_points_that_no_line_joins_stay_points(tmp_path: Path) -> None:
    net, data = small()
    tables = {
        "reorder-blocks": pathlens.reorder_blocks(net, data, swaps=[1, 2], samples=3),
        "delete-blocks-exhaustive": pathlens.delete_blocks_exhaustive(net, data),
        "delete-blocks": pathlens.delete_blocks(net, data, count=[1, 2], samples=1),
    }
    for verb, table in tables.items():
        runs = runs_of(*[written(tmp_path / f"{verb} {name}", table, verb=verb) for name in ("a", "b")])
        (chart,) = overlays(runs, [charts(run) for run in runs])
        assert [series["line"] for series in chart["series"]] == ["none", "none"]
    dashed: list[Any] = [
        [{"family": "f", "title": "t", "x": {"label": "x"}, "y": {"label": "y"}, "series": [
            {"key": "k", "name": "n", "colour": 0, "x": [0], "y": [1.0], "line": "dash"}]}]
        for _ in runs
    ]  # fmt: skip
    (chart,) = overlays(runs, dashed)
    assert not any("line" in series for series in chart["series"])  # curves of runs are told apart by colour


def test_means_of_all_sets_that_exist_have_no_interval() -> None:
    net, data = small()
    result = named("delete-blocks")
    for options, name in (
        ({"count": [2], "contiguous": True}, "mean over sets"),
        ({"count": [2, 3], "samples": 4}, "mean over sets, 95 % interval"),
        ({"count": [1, 2], "samples": 5}, "mean over sets, 95 % interval unless all were measured"),
    ):
        table = pathlens.delete_blocks(net, data, **options)
        (chart,) = result.charts(table.rows, table.provenance)
        assert chart["series"][0]["name"] == name
        (line,) = figures.deletion(table).axes[0].containers
        assert line.get_label() == name
