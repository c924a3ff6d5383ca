"""Run folders from strangers: nothing gets onto a page but the files that the run wrote, and nothing hangs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pathlens
from pathlens.errors import PathlensError, RunError
from pathlens.pages import encode
from pathlens.report import check_run_folder, reading, write_run
from pathlens.report.reading import read_runs
from pathlens.storage import files, lock_run
from pathlens.tables import Column, Table, disk, read_table
from tests.helpers.page_runs import lesions, write_lesions, write_paths

SECRET = b"\x89PNG secret of another user"


def listed(folder: Path, name: str, content: bytes | None) -> None:
    """State in the manifest that the run wrote a file of this content (None: of one that nobody knows)."""
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = "0" * 64 if content is None else hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content or b""), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def linked(path: Path) -> None:
    (path.parent.parent / "secret").write_bytes(SECRET)
    path.symlink_to(path.parent.parent / "secret")


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (linked, "it is a symbolic link"),
    "pipe": (os.mkfifo, "it is no regular file"),
    "folder": (Path.mkdir, "it is no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a symbolic link"),
    "missing": (lambda path: None, "is missing, but the manifest lists it"),
    "other content": (lambda path: path.write_bytes(SECRET + b"."), "its SHA-256 is another"),
    "too long": (lambda path: path.write_bytes(SECRET * 1000), "it is longer than the 10,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_a_figure_that_the_run_did_not_write_is_not_shown(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = ODD[case]
    folder = write_lesions(tmp_path / "run")
    make(folder / "figure.png")
    listed(folder, "figure.png", SECRET)  # even if its content could be guessed
    monkeypatch.setattr(reading, "_LARGEST_PICTURES", 10_000)
    (run,) = read_runs([folder])
    assert run.pictures == ()
    (warning,) = run.warnings
    assert "figure.png" in warning
    assert words in warning
    page = pathlens.report_page(folder, tmp_path / "page.html").read_text()
    assert base64.b64encode(SECRET).decode()[:24] not in page
    assert words in page


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", ["delete-blocks.parquet", "delete-blocks.csv", "delete-blocks.meta.json"])
def test_a_table_that_the_run_did_not_write_is_refused(
    case: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = ODD[case]
    folder = write_lesions(tmp_path / "run")
    if not name.endswith("parquet"):
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"]["delete-blocks.parquet"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / name).unlink()
    make(folder / name)
    listed(folder, name, SECRET)
    monkeypatch.setattr(reading, "LARGEST_TABLE", 10_000)
    with pytest.raises(RunError, match=words) as caught:
        read_runs([folder])
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_description_that_is_not_listed_is_not_read(tmp_path: Path) -> None:
    folder = write_lesions(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("delete-blocks.parquet", "delete-blocks.meta.json"):
        del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (run,) = read_runs([folder])
    assert run.tables["delete-blocks"].columns[0].description == ""


def test_figures_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_lesions(tmp_path / "run")
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(name.encode() * 100)
        listed(folder, name, name.encode() * 100)
    monkeypatch.setattr(reading, "_LARGEST_PICTURES", 1100)
    (run,) = read_runs([folder])
    assert [picture.name for picture in run.pictures] == ["a.png", "b.png"]
    assert "longer than the 100 bytes" in run.warnings[0]


@pytest.mark.parametrize("case", ["link", "pipe", "folder", "too long"])
def test_a_manifest_that_is_no_plain_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = ODD[case]
    folder = write_lesions(tmp_path / "run")
    (folder / "manifest.json").unlink()
    make(folder / "manifest.json")
    for module in (reading, pathlens.report.folder):
        monkeypatch.setattr(module, "LARGEST_MANIFEST", 10_000)
    for call in (lambda: read_runs([folder]), lambda: check_run_folder(folder, "delete-blocks")):
        with pytest.raises(RunError, match=words):
            call()


def test_a_run_that_is_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(RunError, match="Too many levels of symbolic links"):
        read_runs([tmp_path / "run"])


def test_a_lock_that_is_a_link_does_not_cost_its_target(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("my own text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="it is a symbolic link"), lock_run(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "my own text"
    (tmp_path / "run" / ".lock").unlink()
    os.mkfifo(tmp_path / "run" / ".lock")
    with pytest.raises(RunError, match="it is no regular file"), lock_run(tmp_path / "run"):
        pass


def test_an_old_run_of_odd_files_is_replaced(tmp_path: Path) -> None:
    folder = write_lesions(tmp_path / "run")
    linked(folder / "link.png")
    os.mkfifo(folder / "pipe.png")
    for name in ("link.png", "pipe.png", "nul\0.png"):
        listed(folder, name, SECRET)
    write_run(folder, {"delete-blocks": lesions(["a"], [0.1, 0.2])}, {}, {"verb": "delete-blocks"})
    assert (folder / "link.png").is_symlink()
    assert (folder / "pipe.png").exists()
    assert (tmp_path / "secret").read_bytes() == SECRET


# tables that unpack to far more than their files


def described(table: pa.Table) -> pa.Table:
    columns = [{"name": name, "unit": "", "description": "", "type": "str"} for name in table.column_names]
    about = {"schema_version": 1, "columns": columns, "provenance": {}}
    return table.replace_schema_metadata({"pathlens": json.dumps(about)})


BOMBS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "rows": (lambda: pa.table({"n": pa.nulls(20_000_000, pa.int8())}), "20,000,000 rows of 1 columns"),
    "columns": (lambda: pa.table({f"c{n}": [1] for n in range(2000)}), "1 rows of 2,000 columns"),
    "lists": (lambda: pa.table({"n": pa.array([[0] * 10], pa.list_(pa.int8()))}), "column 'n' is of type list"),
    "texts of a dictionary": (
        lambda: pa.table({"t": pa.array(["x" * 1000] * 5).dictionary_encode()}), "column 't' is of type dictionary"
    ),
    "dates": (lambda: pa.table({"d": pa.array([2**31 - 1], pa.date32())}), "column 'd' is of type date32"),
    "no text": (
        lambda: pa.table(
            {"t": pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))}
        ),
        "is not a pathlens table",
    ),
    "twice": (lambda: pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"]), "the same name"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_tables_that_pathlens_did_not_write_are_refused_before_they_are_unpacked(case: str, tmp_path: Path) -> None:
    make, words = BOMBS[case]
    pq.write_table(described(make()), tmp_path / "t.parquet")
    with pytest.raises(RunError, match=words) as caught:
        read_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


def test_texts_that_a_dictionary_repeats_are_counted_as_they_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred bytes for each repetition of a long text."""
    pq.write_table(described(pa.table({"t": ["x" * 20_000] * 5000})), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 30_000
    monkeypatch.setattr(disk, "_LARGEST_UNPACKED", 2**20)
    monkeypatch.setattr(disk, "LARGEST_TABLE", 2**18)
    before = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(RunError, match="unpacks to more than 1,048,576 bytes"):
        read_table(tmp_path / "t.parquet")
    assert pa.default_memory_pool().bytes_allocated() - before < 2**21


def test_a_csv_file_whose_names_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("größe\n1\n".encode("latin-1"))
    with pytest.raises(RunError, match="is not a pathlens table"):
        read_table(tmp_path / "t.csv")


def test_a_long_lattice_takes_no_memory_for_what_it_is_compared_with(tmp_path: Path) -> None:
    columns = [Column(name, "", "") for name in ("boundary", "length", "n_paths", "norm")]
    rows = [{"boundary": place, "length": 0, "n_paths": 1, "norm": 1.0} for place in range(20_000)]
    table = Table(tuple(columns), tuple(rows), {})
    tracemalloc.start()
    try:
        assert encode._choose_from(table) == 19_999
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_numbers_at_the_end_of_floats_make_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"delete-blocks": lesions(["a"], [1.7e307, 1e307])}, {}, {"verb": "delete-blocks"})
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    (tmp_path / "r" / "manifest.json").write_text(json.dumps({**manifest, "date": "x", "wall_time_seconds": 10**400}))
    path = pathlens.report_page(tmp_path / "r", tmp_path / "page.html")
    assert "delete-blocks" in path.read_text()


def test_a_lattice_of_places_that_a_browser_cannot_count_is_a_table_alone(tmp_path: Path) -> None:
    for place, is_drawn in ((3, True), (2**53, False), (-(10**17), False)):
        row = {"boundary": place, "length": 0, "n_paths": 1, "norm": 1.0}
        table = Table(tuple(map(Column, row)), (row,))
        write_run(tmp_path / str(place), {"lattice": table}, {}, {"verb": "path-gradients"})
        page = pathlens.report_page(tmp_path / str(place), tmp_path / "page.html").read_text()
        assert ("data-lattice=" in page) == is_drawn
        assert "data-table=" in page


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"verb": "delete-blocks", "files": {"\\ud800.parquet": {"sha256": ""}}}')
    with pytest.raises(RunError, match="which is not a file of the folder"):
        read_runs([tmp_path])


def test_a_csv_file_of_too_many_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(f"c{n}" for n in range(1001)) + "\n")
    with pytest.raises(RunError, match="1,001 columns"):
        read_table(tmp_path / "t.csv")


def test_a_file_that_grows_while_it_is_read_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x" * 101)
    monkeypatch.setattr(files.os, "fstat", lambda handle: os.stat_result([0o100644, *[0] * 9]))
    with pytest.raises(OSError, match="longer than the 100 bytes"):
        files.read_regular(tmp_path / "f", 100)


# manifests that say anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FACTS = [
    "model", "network", "blocks", "weights", "model_sha256", "data", "images", "split", "seed", "dtype", "device",
    "date", "notes", "arguments", "command", "versions", "effective", "gradient_norm", "block_names", "recipe", "at",
    "seconds", "relative_difference_to_autograd", "wall_time_seconds", "files", "verb", "images_in_split",
    "train_images",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, Any]]:
    made = tmp_path_factory.mktemp("runs")
    folders = [write_lesions(made / "a"), write_paths(made / "b")]
    return {folder: json.loads((folder / "manifest.json").read_text()) for folder in folders}


@given(st.dictionaries(st.sampled_from(FACTS), JSON, max_size=8))
@settings(max_examples=25)
def test_any_manifest_gives_a_page_or_one_line(folders: dict[Path, dict[str, Any]], odd: dict[str, Any]) -> None:
    for folder, facts in folders.items():
        (folder / "manifest.json").write_text(json.dumps({**facts, **odd}))
    message = ""
    try:
        pathlens.report_page(list(folders), folder.parent / "page.html")
    except PathlensError as error:
        message = str(error)
    assert "\n" not in message


def test_a_manifest_that_is_nested_too_deeply(tmp_path: Path) -> None:
    folder = write_lesions(tmp_path / "run", odd=[[[]]])
    assert read_runs([folder])
    deep = (folder / "manifest.json").read_text().replace('"odd": [', '"odd": [' + "[" * 60 + "]" * 60 + ",")
    (folder / "manifest.json").write_text(deep)
    with pytest.raises(RunError, match="nested too deeply"):
        read_runs([folder])
