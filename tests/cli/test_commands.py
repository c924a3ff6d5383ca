"""The command line when all is well: what is printed where, what is written, and what a user sees."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from safetensors import safe_open

import pathlens
from pathlens.analyses import sweep as sweeps
from pathlens.cli import main, progress, show
from pathlens.cli.options import parse_range
from pathlens.errors import ResourceError, UsageError
from pathlens.models.registry import packaged_file
from pathlens.tables import Column, Table, read_table
from tests.helpers import ROOT
from tests.helpers.cli_files import make_files
from tests.helpers.lesion_oracle import small_net

REQUIRED = ["block", "name", "stage", "kind", "count", "sample", "error", "error_low", "error_high", "loss"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(files: dict[str, str]) -> list[str]:
    return ["-m", f"{files['user']}:build", "-d", files["images"], "--mean", "0,0,0", "--std", "1,1,1"]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("}\n")
    assert printed.count("\n") == 1

    def not_json(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(printed, parse_constant=not_json)
    assert set(found) == {"table", "provenance"}
    return found


@pytest.mark.slow
def test_the_default_is_the_paper_s_first_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = as_json(capsys, "delete-blocks", "--out", str(tmp_path / "out"))
    rows, facts = found["table"], found["provenance"]
    assert len(rows) == 55
    assert all(set(REQUIRED) <= set(row) for row in rows)
    assert [row["block"] for row in rows] == [None, *range(54)]
    assert {row["stage"] for row in rows} == {None, 0, 1, 2}
    assert {row["kind"] for row in rows} == {None, "identity", "padding"}
    assert {row["n"] for row in rows} == {360}
    assert all(row["error_low"] <= row["error"] <= row["error_high"] for row in rows)
    # the error that the packaged file states for the very images that the command uses by default
    with safe_open(str(packaged_file("digits54.safetensors")), "pt") as weights:
        stated = float(weights.metadata()["test_error"])
    assert rows[0]["error"] == pytest.approx(stated, abs=1e-6)
    # Veit et al. 2016, section 4.1: most blocks of a trained network can be deleted, the ones that downsample cannot
    errors = {row["block"]: row["error"] for row in rows}
    assert sorted(errors[block] for block in range(54))[26] < errors[None] + 0.02
    assert errors[18] > errors[None] + 0.02
    assert facts["model"] == "digits54"
    assert facts["trained"] is True
    assert (facts["data"], facts["split"], facts["images"], facts["images_in_split"]) == ("digits", "test", 360, 360)
    assert "digits54.safetensors" in facts["normalisation"]
    assert len(facts["model_sha256"]) == len(facts["data_sha256"]) == 64
    assert {"versions", "hardware", "command", "date", "seed", "dtype", "device", "seconds"} <= set(facts)
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert names == {
        "manifest.json",
        *(f"delete-blocks.{end}" for end in ("csv", "parquet", "meta.json", "png", "pdf")),
    }
    frame = pd.read_parquet(tmp_path / "out" / "delete-blocks.parquet")
    assert frame["error"].tolist() == [row["error"] for row in rows]
    assert pd.read_csv(tmp_path / "out" / "delete-blocks.csv")["error"].tolist() == frame["error"].tolist()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["arguments"]["model"] is None
    assert manifest["wall_time_seconds"] > 0
    assert (tmp_path / "out" / "delete-blocks.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "delete-blocks.pdf").read_bytes().startswith(b"%PDF")


def test_table_on_stdout_and_the_rest_on_stderr(
    small: list[str], capsys: pytest.CaptureFixture[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    assert main(["delete-blocks", *small, "--batch-size", "10"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r" *(-|\d+) ", line)] == ["-", *"012345"]
    titles = "block name stage kind error % 95 % interval difference p (Holm) loss error"
    assert lines[0].split() == titles.split()
    assert re.match(r"networks that differ from the intact one at 5 %: \d of 6 \(McNemar", lines[-2])
    assert "build" in lines[-1]
    assert "normalisation given (--mean, --std)" in lines[-1]
    assert all(line == line.rstrip() for line in lines)
    assert all(line.startswith("pathlens: ") for line in printed.err.splitlines())
    assert re.search(r"delete-blocks: 1 of 3, 0:00:\d\d left", printed.err)
    assert re.search(r"delete-blocks: 3 of 3 in 0:00:\d\d", printed.err)
    assert "--out" in printed.err
    assert not [path for path in own_cache.rglob("*") if path.is_file()]  # no journal is left


def test_replaced_branches(small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = as_json(
        capsys, "delete-blocks", *small, "--replace", "mean", "--blocks", "1:2", "--out", f"{tmp_path}/mean"
    )
    assert table["provenance"]["replace"] == "mean"
    assert json.loads((tmp_path / "mean" / "manifest.json").read_text())["arguments"]["replace"] == "mean"
    assert main(["report", f"{tmp_path}/mean", "--out", f"{tmp_path}/page.html"]) == 0
    assert "the mean of their branches in their place" in (tmp_path / "page.html").read_text()
    assert main(["delete-blocks", *small, "--replace", "mean", "--search", "greedy"]) == 2
    assert "--replace mean: --search greedy deletes branches" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["delete-blocks", "delete-skips", "reorder-blocks", "blocks"])
def test_quiet_is_quiet(verb: str, files: dict[str, str], small: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", f"{files['user']}:pair"] if verb == "blocks" else small
    assert main([verb, *arguments, "-q"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert len(printed.out.splitlines()) > 6


def test_same_numbers_in_python_and_on_the_command_line(
    small: list[str], files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "delete-blocks", *small, "--count", "1:3", "--samples", "2", "--seed", "4")
    counts = [(row["count"], row["sample"]) for row in found["table"]]
    means = [(size, None) for size in (1, 2, 3)]
    assert counts == [(0, None), *((size, sample) for size in (1, 2, 3) for sample in (0, 1)), *means]
    data = pathlens.open_data(files["images"])
    model = pathlens.load_model(f"{files['user']}:build").model
    options: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), "seed": 4}
    wanted = pathlens.delete_blocks(model, data, count=range(1, 4), samples=2, **options)
    assert found["table"] == [dict(row) for row in wanted.rows]
    assert (
        found["table"]
        == as_json(capsys, "delete-blocks", *small, "--count", "1:3", "--samples", "2", "--seed", "4")["table"]
    )
    other = as_json(capsys, "delete-blocks", *small, "--count", "1:3", "--samples", "2", "--seed", "5")
    assert [row["blocks"] for row in other["table"]] != [row["blocks"] for row in found["table"]]


def test_options_reach_the_work(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    exact = as_json(capsys, "delete-blocks", *small, "--blocks", "1:5:2")
    assert [row["block"] for row in exact["table"]] == [None, 1, 3, 5]
    short = as_json(capsys, "delete-blocks", *small, "--blocks", "-1", "--limit", "7", "--batch-size", "2")
    assert [row["block"] for row in short["table"]] == [None, 5]
    assert {row["n"] for row in short["table"]} == {7}
    assert short["provenance"]["images_in_split"] == 30
    half = as_json(capsys, "delete-blocks", *small, "--blocks", "1:5:2", "--dtype", "bfloat16")
    assert half["provenance"]["dtype"] == "bfloat16"
    assert half["table"][1]["loss"] == pytest.approx(exact["table"][1]["loss"], rel=0.1)
    assert half["table"][1]["loss"] != exact["table"][1]["loss"]
    plain = as_json(capsys, "delete-blocks", *small, "--blocks", "1:5:2", "--plain-forward")
    assert plain["provenance"]["largest_relative_logit_difference"] == 0
    own = as_json(capsys, "delete-blocks", *small[:4], "--blocks", "1")
    assert own["provenance"]["normalisation"].startswith("of the data: computed from")


def test_reorder_and_skips(small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    orders = as_json(capsys, "reorder-blocks", *small, "--swaps", "1,3", "--samples", "2", "--out", f"{tmp_path}/r")
    assert [row["swaps"] for row in orders["table"]] == [0, 1, 1, 3, 3, 1, 3]
    assert {"kendall_tau", "order", "moved", "stages", "kinds"} <= set(orders["table"][0])
    assert (tmp_path / "r" / "reorder-blocks.png").exists()
    skips = as_json(capsys, "delete-skips", *small, "--out", f"{tmp_path}/s")
    assert [row["block"] for row in skips["table"]] == [None, *range(6)]
    assert (tmp_path / "s" / "delete-skips.pdf").exists()


def test_additions_off_the_trunk(
    files: dict[str, str], small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    unet = ["-m", f"{files['user']}:levels", *small[2:]]
    beside = as_json(capsys, "delete-blocks", *unet, "--additions", "off-trunk", "--out", f"{tmp_path}/u")
    assert [row["name"] for row in beside["table"]] == [None, "add1", "add2"]
    assert beside["provenance"]["additions"] == "off-trunk"
    assert json.loads((tmp_path / "u" / "manifest.json").read_text())["arguments"]["additions"] == "off-trunk"
    asked = json.loads((tmp_path / "u" / "manifest.json").read_text())["arguments"]
    assert (asked["replace"], asked["concat"]) == ("zero", False)  # also where they are as usual
    everywhere = as_json(capsys, "delete-skips", *unet, "--additions", "all", "--count", "2", "--samples", "3")
    assert {row["count"] for row in everywhere["table"]} == {0, 2}
    picture = str(tmp_path / "blocks.png")
    assert (
        main(["blocks", *unet[:2], "--picture", picture, "--input-shape", "3,8,8", "--additions", "all", "--json"]) == 0
    )
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["table"]] == ["add", "add1", "add2", "add3"]
    cheap = ["--additions", "all", "--concat", "--limit", "4", "--draws", "1", "--max-samples", "4"]
    paths = as_json(capsys, "path-gradients", *unet, *cheap, "--lattice", "--out", str(tmp_path / "l"))
    assert [row["n_paths"] for row in paths["table"]] == [1, 3, 5, 6, 4, 1]
    assert all(row["path_norm_mean"] > 0 and row["path_norm_rms"] > 0 for row in paths["table"])
    assert paths["provenance"]["relative_difference_to_autograd"] < 1e-5
    places = read_table(tmp_path / "l" / "lattice.parquet").values("boundary")
    assert set(places) == set(range(-1, 5))
    assert (tmp_path / "l" / "lattice.png").exists()
    assert main(["delete-blocks", *unet, "--additions", "nested"]) == 3
    assert "has no nested additions, but 2 trunk, 2 off-trunk" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plain_network(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``vgg15`` on images of CIFAR's shape, untrained and said to be so."""
    command = ["delete-blocks", "-m", "vgg15", "-w", "random", "-d", files["cifar"], "--seed", "3"]
    found = as_json(capsys, *command, "--out", str(tmp_path / "out"))
    kinds = [row["kind"] for row in found["table"]]
    assert kinds[0] is None
    assert set(kinds[1:]) == {"layer", "layer-resized"}
    assert len(kinds) == 15  # 13 convolutions and the first of the two linear layers
    # 3 to 64 channels at the start
    assert kinds[1] == "layer-resized"
    assert found["provenance"]["trained"] is False
    assert "untrained" in found["provenance"]["weights"]
    assert main([*command, "--blocks", "0"]) == 0
    printed = capsys.readouterr()
    assert "weights are random (seed 3): untrained" in printed.err
    assert "layer-resized" in printed.out


def test_blocks(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    found = as_json(
        capsys, "blocks", "-m", f"{files['user']}:pair", "--picture", str(picture), "--out", f"{tmp_path}/o"
    )
    rows = found["table"]
    assert [row["name"] for row in rows] == [f"blocks.{i}" for i in range(6)]
    own = {f"blocks.{i}": sum(p.numel() for p in block.parameters()) for i, block in enumerate(small_net().blocks)}
    assert {row["name"]: row["parameters"] for row in rows} == own
    # 3x3 convolutions on 8x8 and then 4x4 positions
    assert rows[0]["multiply_adds"] == 2 * 9 * 8 * 8 * 64
    assert rows[3]["multiply_adds"] == 9 * 8 * 16 * 16 + 9 * 16 * 16 * 16
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "o" / "blocks.csv").exists()
    assert main(["blocks", "-m", "torchvision:resnet18", "--input-shape", "3,32,32"]) == 0
    assert len(re.findall(r"^ *\d+ +layer\d\.\d", capsys.readouterr().out, re.MULTILINE)) == 8


def test_what_a_network_prints_is_kept_out_of_the_results(
    files: dict[str, str], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small[1] = f"{files['user']}:Talks"
    found = as_json(capsys, "delete-blocks", *small, "--blocks", "0", "-q")
    assert len(found["table"]) == 2
    assert main(["blocks", "-m", f"{files['user']}:Talks", "--input-shape", "3,8,8"]) == 0
    printed = capsys.readouterr()
    assert "a word" not in printed.out
    assert "a word from the network" in printed.err


@pytest.mark.parametrize("verb", ["delete-blocks", "blocks"])
def test_results_go_to_stdout_when_stderr_is_a_terminal(
    verb: str, files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar takes the streams over while it is shown."""
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=sys.stderr, force_terminal=True, width=80))
    data = ["-d", files["images"]] if verb == "delete-blocks" else ["--input-shape", "3,8,8"]
    assert main([verb, "-m", f"{files['user']}:Talks", *data, "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["table"]) in (6, 7)
    assert "a word from the network" in printed.err
    assert ("━" in printed.err) == (verb == "delete-blocks")


@pytest.mark.parametrize("error", [UsageError("no norm above zero"), TypeError("a bug")])
def test_a_figure_that_cannot_be_drawn_does_not_lose_the_numbers(
    error: Exception,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pathlens.figures.draw", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    command = ["delete-blocks", *small, "--blocks", "0:1", "--out", str(out)]
    if isinstance(error, UsageError):
        assert main(command) == error.exit_code
    else:
        with pytest.raises(TypeError, match="a bug"):
            main(command)
    assert "intact" in capsys.readouterr().out
    assert len(read_table(out / "delete-blocks.csv").rows) == 3
    assert (out / ".journal").exists()  # the same command goes on from there
    monkeypatch.undo()
    assert main(command) == 0
    assert read_table(out / "delete-blocks.csv").provenance["resumed_batches"] == 1
    assert not (out / ".journal").exists()


def test_a_full_disk_does_not_lose_the_numbers(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ResourceError("the disk is full; free some of it")

    monkeypatch.setattr("pathlens.report.write_run", full)
    assert main(["delete-blocks", *small, "--json", "-q", "--out", str(tmp_path / "out")]) == 7
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["table"]) == 7
    assert printed.err == "pathlens: error: the disk is full; free some of it\n"


def test_interrupted(small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "_count", interrupt)
    assert main(["delete-blocks", *small, "-q"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "the same command goes on where this one stopped" in line
    assert "blockdrop: without --out it trains its policy anew" in line


def test_no_place_for_a_journal(small: list[str], capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    own_cache.write_text("a file")
    assert main(["delete-blocks", *small, "--blocks", "0"]) == 0
    assert "starts anew" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pathlens {pathlens.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Exit codes: 0 done" in text
    for verb in ("blocks", "delete-blocks", "delete-skips", "reorder-blocks"):
        assert f"\n  {verb} " in text
        assert main([verb, "--help"]) == 0
        assert f"Usage: pathlens {verb}" in capsys.readouterr().out
    assert main([]) == 2
    assert "Usage: pathlens" in capsys.readouterr().err


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pathlens", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=120) == 141


def lesions_table(rows: int = 3, name: str = "layer1.0") -> Table:
    columns = tuple(Column(c) for c in (*REQUIRED, "blocks", "difference", "p_holm"))
    made = [
        {
            "block": i,
            "name": f"{name}.{i}",
            "stage": 0,
            "kind": "identity",
            "count": 1,
            "sample": None,
            "blocks": str(i),
        }
        | {"error": 0.12345, "error_low": 0.1111, "error_high": 0.2222, "loss": 1.23456}
        | {"difference": 0.0321, "p_holm": 0.00005 if i else 0.025}
        for i in range(rows)
    ]
    return Table(columns, tuple(made), {"model": "m", "data": "d"})


@pytest.mark.parametrize("width", [45, 55, 60, 70, 80, 100, 120, 300])
@pytest.mark.parametrize("name", ["layer1.0", "features.denseblock1.denselayer1.branch"])
def test_numbers_are_whole_at_any_width(
    width: int, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "make_console", lambda: Console(width=width))
    show.show(lesions_table(name=name), "delete-blocks")
    lines = capsys.readouterr().out.splitlines()
    numbers = [line for line in lines if "12.35" in line]
    assert len(numbers) == 3
    for line in numbers:
        assert "11.11 - 22.22" in line
        assert "1.2346" in line
        assert len(line) <= width
    assert all("…" not in line for line in lines)
    assert any("█" in line for line in lines) == (width in {8: (60, 100, 120, 300), 39: (300,)}[len(name)])
    left_out = [line for line in lines if line.startswith("(not shown")]
    assert len(left_out) == (width < 100)
    assert all("stage" in line for line in left_out)
    assert all(("difference" in line) == (width < 70) and ("p (Holm)" in line) == (width < 80) for line in left_out)
    if width >= 80:
        assert [("+3.21" in line, "0.0250" in line, "<0.0001" in line) for line in numbers] == [
            (True, True, False),
            *[(True, False, True)] * 2,
        ]
    if width == 300:
        assert f"{name}.2" in numbers[2]


def test_ascii_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with contextlib.redirect_stdout(stream):
        show.show(lesions_table(name="größe"), "delete-blocks")
    stream.flush()
    printed = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "###" in printed
    assert "gr??e.0" in printed


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("7", (7,)), ("1:4", (1, 2, 3, 4)), ("0:20:5", (0, 5, 10, 15, 20)), ("1,2,5:7,2", (1, 2, 5, 6, 7)), ("-2", (-2,))],
)
def test_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_range(text, "blocks") == numbers


@pytest.mark.parametrize(
    "text", ["", "a", "1:", ":3", "1::2", "3:1", "1:9:0", "1:2:3:4", "1,,2", "1.5", "0:9999999999"]
)
def test_no_ranges(text: str) -> None:
    with pytest.raises(UsageError, match="--count"):
        parse_range(text, "count")


def test_a_range_that_leaves_its_last_number_out_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"LAST is included, unlike in Python's range$"):
        parse_range("4:0", "blocks")
    assert main(["delete-blocks", "--blocks", "0:54"]) == UsageError.exit_code
    assert "block 54 does not exist" in (message := capsys.readouterr().err)
    assert message.endswith("--blocks 0:54 includes both ends, unlike Python's range\n")
