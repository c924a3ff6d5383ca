"""Pages of results: what they say, that text stays text, that nothing is loaded, and what is refused."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import statistics
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import pathlens
from pathlens.cli import app, main
from pathlens.errors import PathlensError, RunError, UsageError
from pathlens.pages.encode import encode, script_json
from pathlens.pages.words import _WITH_NO, asked, charts, setting
from pathlens.report import write_run
from pathlens.report.reading import read_runs
from pathlens.tables import Column, Table
from tests.helpers.page_runs import HOSTILE, RESULTS, lattice, norm, profile, write_hostile, write_lesions, write_paths

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails where an element is not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())

    @property
    def data(self) -> dict[str, Any]:
        (text,) = [text for tag, text in self.texts if tag == "script" and text.startswith('{"runs"')]
        return json.loads(text)


@pytest.fixture
def page(tmp_path: Path):
    def made(*runs: Path) -> Page:
        return Page(pathlens.report_page(runs, tmp_path / "page.html"))

    return made


# What it says


def test_numbers_are_those_of_the_table(page):
    with (RESULTS / "digits54" / "delete-blocks.csv").open() as stream:
        intact, *rows = list(csv.DictReader(stream))
    errors = [float(row["error"]) for row in rows]
    worst = max(rows, key=lambda row: float(row["error"]))
    single, corrected = (sum(float(row[name]) <= 0.05 for row in rows) for name in ("p", "p_holm"))
    shown = page(RESULTS / "digits54")
    for text in (
        f"{100 * float(intact['error']):.2f} %",
        f"{100 * max(errors):.2f} %",
        f"block {worst['block']}, {worst['name']}",
        f"{100 * statistics.median(errors):.2f} %",
        f"{single} of {len(rows)}, {corrected} after Holm",
        "digits54: each of 54 blocks deleted in turn",
        "pathlens delete-blocks --out results/digits54",
    ):
        assert text in shown.text
    (run,) = shown.data["runs"]
    columns = {column["name"]: column["values"] for column in run["tables"][0]["columns"]}
    assert columns["error"] == [float(row["error"]) for row in (intact, *rows)]
    assert columns["name"] == [None, *(row["name"] for row in rows)]
    (chart,) = run["charts"]
    assert chart["series"][0]["y"] == pytest.approx([100 * error for error in errors])
    assert chart["series"][0]["low"] == pytest.approx([100 * float(row["error_low"]) for row in rows])
    assert chart["rules"][0]["y"] == pytest.approx(100 * float(intact["error"]))
    assert chart["heads"][worst["block"]].startswith(f"block {worst['block']}, {worst['name']}, stage")


def test_provenance_is_whole(page):
    manifest = json.loads((RESULTS / "digits54" / "manifest.json").read_text())
    shown = page(RESULTS / "digits54")
    (pre,) = [text for tag, text in shown.texts if tag == "pre"]
    assert json.loads(pre) == {name: value for name, value in manifest.items() if name != "files"}
    for name, facts in manifest["files"].items():
        assert name in shown.text
        assert facts["sha256"] in shown.text
    (picture,) = shown.all("img")
    data = base64.b64decode((picture["src"] or "").removeprefix("data:image/png;base64,"))
    assert data == (RESULTS / "digits54" / "delete-blocks.png").read_bytes()


def test_options_that_are_zero_or_turned_off_are_told(tmp_path):
    arguments = {
        "crop": 0, "weight_decay": 0.0, "test": False, "flip": False, "sync_batch_norm": True, "compile": False,
        "lr": None, "quiet": False,
    }  # fmt: skip
    (run,) = read_runs([write_lesions(tmp_path / "run", arguments=arguments)])
    assert dict(asked(run))["Options"] == "crop 0; weight-decay 0; test no; flip no; sync-batch-norm yes"
    # what has a form of --no- is off only where that was given
    options = [option for command in get_command(app).commands.values() for option in command.params]
    assert {option.name for option in options if option.secondary_opts} == set(_WITH_NO)


def test_examples_are_called_what_they_are(tmp_path):
    for number, (facts, said) in enumerate(
        (
            ({"split": "test", "images": 20, "images_in_split": 30}, "some test, 20 images of 30"),
            ({"split": "test", "images": 20, "examples": "sequences"}, "some test, 20 sequences"),
            ({"split": "test", "images": 20, "examples": 20}, "some test, 20 images"),
            ({"train_images": 20, "task": "next-token"}, "some train, 20 sequences"),
        )
    ):
        (run,) = read_runs([write_lesions(tmp_path / str(number), data="some", **facts)])
        assert dict(setting(run))["Data"] == said


def test_vectors_are_taken_before_pixels(tmp_path):
    folder = write_lesions(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("a.png", "a.svg", "b.png"):
        (folder / name).write_bytes(name.encode())
        manifest["files"][name] = {"sha256": hashlib.sha256(name.encode()).hexdigest()}
    manifest["files"]["lost.svg"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (run,) = read_runs([folder])
    assert {picture.name: picture.data for picture in run.pictures} == {"a.svg": b"a.svg", "b.png": b"b.png"}
    assert any("lost.svg" in warning for warning in run.warnings)


def test_several_runs_are_compared(page, tmp_path):
    one = write_lesions(tmp_path / "full", seed=0, data="digits")
    two = write_lesions(tmp_path / "effective", errors=[0.2, 0.2, 0.2, 0.9, 0.2, 0.2, 0.2], seed=1, data="digits")
    paths = write_paths(tmp_path / "paths")
    shown = page(one, two, paths)
    (chart,) = shown.data["together"]
    assert [series["name"] for series in chart["series"]] == ["full (delete-blocks)", "effective (delete-blocks)"]
    assert chart["series"][1]["y"] == pytest.approx([20, 20, 90, 20, 20, 20])
    assert [rule["y"] for rule in chart["rules"]] == pytest.approx([10, 20])
    assert "50.00 %" in shown.text
    assert "90.00 %" in shown.text
    assert "intervals that overlap do not show that two runs agree" in shown.text
    between = re.search(r"What differs between the runs \d+ full effective paths (.*?) full delete-blocks", shown.text)
    assert between
    assert "seed 0 1 –" in between[1]
    assert "digits" not in between[1]
    # names of modules come from another run on the same network
    assert shown.data["runs"][2]["lattices"]["lattice"]["names"]["5"] == "layer5"


def test_names_of_another_network_are_not_borrowed(page, tmp_path):
    lesions, paths = write_lesions(tmp_path / "a"), write_paths(tmp_path / "b", model_sha256="b" * 64)
    assert page(lesions, paths).data["runs"][1]["lattices"]["lattice"].get("names") is None


def test_a_run_names_its_blocks_where_no_other_does(page, tmp_path):
    names = [f"own{block}" for block in range(6)]
    lesions, paths = write_lesions(tmp_path / "a"), write_paths(tmp_path / "b", block_names=names)
    assert page(paths).data["runs"][0]["lattices"]["lattice"]["names"] == {str(i): f"own{i}" for i in range(6)}
    # a table of other names may be of another view of the network
    assert page(paths, lesions).data["runs"][0]["lattices"]["lattice"]["names"]["5"] == "own5"
    odd = write_paths(tmp_path / "c", block_names=["one", 2])
    assert page(odd).data["runs"][0]["lattices"]["lattice"].get("names") is None


def test_a_run_given_twice_is_shown_once(page, tmp_path):
    folder = write_lesions(tmp_path / "run")
    shown = page(folder, tmp_path / "run" / ".." / "run", folder)
    assert len(shown.data["runs"]) == 1
    assert shown.data["together"] == []


def test_labels_tell_runs_apart(tmp_path):
    folders = [write_lesions(tmp_path / name) for name in ("a/run", "b/run", "c/x/run", "d/x/run", "other")]
    assert [run.label for run in read_runs(folders)] == ["a/run", "b/run", "c/x/run", "d/x/run", "other"]


def test_the_same_runs_give_the_same_bytes(tmp_path):
    folder = write_paths(tmp_path / "run")
    one = pathlens.report_page(folder, tmp_path / "one.html").read_bytes()
    assert pathlens.report_page([folder], tmp_path / "two.html").read_bytes() == one


def test_tables_of_unknown_verbs_are_shown(page, tmp_path):
    table = Table((Column("n"), Column("error"), Column("count")), ({"n": 1, "error": "odd", "count": None},))
    write_run(
        tmp_path / "run", {"made-up": table}, {}, {"verb": "made-up", "notes": 3, "arguments": [], "effective": 1}
    )
    shown = page(tmp_path / "run")
    assert shown.data["runs"][0]["tables"][0]["columns"][1]["values"] == ["odd"]
    assert shown.data["runs"][0]["charts"] == []


# Charts and lattices


def test_contributions_are_numbers_of_paths_times_norms_in_one_unit(tmp_path):
    blocks = 40
    (run,) = read_runs([write_paths(tmp_path / "run", blocks)])
    by_family = {chart["family"]: chart for chart in charts(run)}
    series = {item["key"]: item for item in by_family["contribution"]["series"]}
    for key, column, factor in (
        ("sampled", "y", 1),
        ("sampled", "low", 0.5),
        ("sampled", "high", 2),
        ("signed", "y", 2),
    ):
        for k, found in enumerate(series[key][column]):
            middle = math.comb(blocks, k) * 0.01**k * (factor if column == "y" else 1)
            expected = math.comb(blocks, k) * 0.01**k * factor
            assert found == (pytest.approx(expected, rel=1e-9) if middle >= 1e-4 else None)
    assert series["exact"]["y"][:14] == [0.5**k for k in range(14)]
    axis = by_family["contribution"]["y"]
    assert (axis["label"], axis["log"]) == ("gradient norm of a length", True)
    assert axis["note"] == "below 10⁻⁴ not drawn"
    counts = by_family["paths by length"]["series"][0]["y"]
    assert counts == pytest.approx([100 * math.comb(blocks, k) / 2**blocks for k in range(blocks + 1)], rel=1e-9)


def test_numbers_of_paths_beyond_floats_are_exact(tmp_path):
    blocks = 1100  # C(1100, 550) has 330 digits
    coded = encode(profile(blocks), "path-gradients")["columns"][1]
    assert coded["type"] == "bigint"
    assert [int(text) for text in coded["values"]] == [math.comb(blocks, k) for k in range(blocks + 1)]
    write_run(tmp_path / "run", {"path-gradients": profile(blocks)}, {}, {"verb": "path-gradients"})
    (run,) = read_runs([tmp_path / "run"])
    assert sum(charts(run)[0]["series"][0]["y"]) == pytest.approx(100)


def test_large_lattices_are_packed_without_loss():
    table = lattice(70)
    assert len(table.rows) > 2000
    coded = {column["name"]: column for column in encode(table, "lattice")["columns"]}
    unpacked = struct.unpack(f"<{len(table.rows)}d", base64.b64decode(coded["norm"]["f64"]))
    for row, value in zip(table.rows, unpacked, strict=True):
        assert value == row["norm"] == norm(int(row["boundary"] or 0), int(row["length"] or 0))
        assert row["n_paths"] == math.comb(
            coded["n_paths"]["choose"] - max(0, int(row["boundary"] or 0)), row["length"]
        )


def test_counts_that_are_not_binomial_are_kept():
    table = lattice(70)
    rows = [dict(row) for row in table.rows]
    rows[1000]["n_paths"] = 12345
    (coded,) = [c for c in encode(Table(table.columns, tuple(rows)), "lattice")["columns"] if c["name"] == "n_paths"]
    assert "choose" not in coded
    assert int(coded["values"][1000]) == 12345


# Text stays text, and nothing is loaded


def test_markup_in_names_is_text(page, tmp_path):
    shown = page(write_hostile(tmp_path / "<i>run"), write_lesions(tmp_path / "plain"))
    assert [attributes.get("type") for attributes in shown.all("script")] == ["application/json", None]
    assert shown.all("img") == shown.all("i") == shown.all("b") == []
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert shown.text.count(HOSTILE) > 8
    assert "<i>run" in shown.text
    run = shown.data["runs"][0]
    names = next(column for column in run["tables"][0]["columns"] if column["name"] == "name")
    assert names["values"][1] == f"{HOSTILE}0"
    assert HOSTILE not in shown.source


def test_json_cannot_end_its_element():
    text = script_json({"</script><!--": ["&lt;", "]]>", "\u2028", 2.5, None]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script><!--": ["&lt;", "]]>", "\u2028", 2.5, None]}


def test_odd_characters_do_not_stop_a_page(page, tmp_path):
    folder = write_lesions(tmp_path / "run", notes=["nul \0 and \u202e reversed"])
    manifest = (folder / "manifest.json").read_text().replace('"net6"', '"half a pair \\ud800"')
    (folder / "manifest.json").write_text(manifest)
    assert "half a pair ?" in page(folder).text


def test_nothing_is_loaded(page, tmp_path):
    shown = page(RESULTS / "digits54", RESULTS / "resnet20", write_paths(tmp_path / "paths"))
    for tag, attributes in shown.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, value)
    style, script = ("".join(text for tag, text in shown.texts if tag == name) for name in ("style", "script"))
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|fetch\(|XMLHttp|WebSocket|import\(|eval\(", script)
    assert "innerHTML" not in script
    assert shown.elements[2][1].get("charset") == "utf-8"


def test_policy_allows_the_two_blocks_of_the_page_alone(page, tmp_path):
    shown = page(write_lesions(tmp_path / "run"))
    (policy,) = [a["content"] for a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    style, code = (
        [text for tag, text in shown.texts if tag == name and not text.startswith("{")] for name in ("style", "script")
    )
    for text, rule in ((style, "style-src"), (code, "script-src")):
        digest = hashlib.sha256("".join(text).encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"


def test_size_is_that_of_what_is_shown(tmp_path):
    bare = pathlens.report_page(write_lesions(tmp_path / "run"), tmp_path / "bare.html").stat().st_size
    assert bare < 90_000
    picture = (RESULTS / "digits54" / "delete-blocks.png").stat().st_size
    whole = pathlens.report_page(RESULTS / "digits54", tmp_path / "whole.html").stat().st_size
    assert whole < bare + 1.4 * picture + 20_000


# Command line, and what is refused


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lesions(tmp_path / "a")
    write_paths(tmp_path / "b")
    assert main(["report", "a", "b", "--title", "Two <runs>"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "wrote report.html" in err
    assert '<h1 class="text">Two &lt;runs&gt;</h1>' in (tmp_path / "report.html").read_text()
    assert main(["report", "a", "--quiet", "--out", "pages/new.html"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "pages" / "new.html").is_file()


def _break(folder: Path, name: str, old: str | None, new: str | bytes) -> None:
    path = folder / name
    if old is not None:
        text = path.read_text()
        assert old in text
        new = text.replace(old, str(new))
    path.write_bytes(new if isinstance(new, bytes) else new.encode())


def _relist(folder: Path, name: str) -> None:
    """State in the manifest what a file holds now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _damaged_table(folder: Path) -> None:
    _break(folder, "delete-blocks.parquet", None, b"PAR1")
    _relist(folder, "delete-blocks.parquet")


def _newer(folder: Path) -> None:
    """The table as CSV alone, described by a later version."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["delete-blocks.parquet"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _break(folder, "delete-blocks.meta.json", '"schema_version": 1', '"schema_version": 2')
    _relist(folder, "delete-blocks.meta.json")


def _without_tables(folder: Path) -> None:
    write_run(folder / "empty", {}, {}, {"verb": "delete-blocks"})
    (folder / "manifest.json").write_bytes((folder / "empty" / "manifest.json").read_bytes())


DEEP = "[" * 100_000

BROKEN = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), 8, "run does not exist"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), 8, "has no manifest.json"),
    "no json": (lambda f: _break(f, "manifest.json", None, b"{\xff"), 8, "manifest.json is damaged"),
    "too deep": (lambda f: _break(f, "manifest.json", None, DEEP), 8, "manifest.json is damaged"),
    "a list": (lambda f: _break(f, "manifest.json", None, "[]"), 8, "it names no verb"),
    "not finite": (lambda f: _break(f, "manifest.json", '"seed": 0', '"seed": NaN'), 8, "it holds NaN"),
    "no files": (lambda f: _break(f, "manifest.json", '"files"', '"fils"'), 8, "it lists no files"),
    "outside": (lambda f: _break(f, "manifest.json", '"delete-blocks.csv"', '"../../s.csv"'), 8, "not a file of the"),
    "no tables": (_without_tables, 8, "but no tables"),
    "lost table": (lambda f: (f / "delete-blocks.parquet").unlink(), 8, "parquet is missing"),
    "damaged table": (_damaged_table, 8, "not a pathlens table"),
    "newer table": (_newer, 8, "has table schema version 2, this pathlens reads up to 1; upgrade pathlens"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_run_that_cannot_be_read_is_one_line(case, tmp_path, capsys):
    damage, code, words = BROKEN[case]
    folder = write_lesions(tmp_path / "run")
    good = write_lesions(tmp_path / "good")
    damage(folder)
    out = tmp_path / "page.html"
    out.write_text("mine")
    assert main(["report", str(good), str(folder), "--out", str(out)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_places_that_cannot_be_written(tmp_path, capsys):
    folder = write_lesions(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "page.html").mkdir()
    for out, code, words in (
        (tmp_path / "page.html", 8, "is a folder"),
        (tmp_path / "file" / "page.html", 8, "cannot write"),
        (tmp_path / "nul\0.html", 2, "null byte"),
        (folder / "manifest.json", 2, "let it end with .html"),
    ):
        assert main(["report", str(folder), "--out", str(out)]) == code, out
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert words in printed
    assert json.loads((folder / "manifest.json").read_text())["verb"] == "delete-blocks"


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file, not a run folder"):
        pathlens.report_page([tmp_path / "file"], tmp_path / "page.html")


def test_no_runs(tmp_path, capsys):
    with pytest.raises(UsageError, match="no run was given"):
        pathlens.report_page([], tmp_path / "page.html")
    with pytest.raises(UsageError, match="is no name for a page"):
        pathlens.report_page([], tmp_path / "nul\0.html")
    assert main(["report"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert issubclass(UsageError, PathlensError)
    assert not (tmp_path / "page.html").exists()
