"""Tables: what goes in comes back, bad values are named, and half a file is never seen."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathlens.errors import NumericsError, ResourceError, RunError, UsageError
from pathlens.storage import atomic_write_bytes, write_together
from pathlens.tables import Column, Table, disk, read_table, table_from
from tests.helpers import ROOT

COLUMNS = (
    Column("length", "blocks", "length of a path"),
    Column("n_paths", "paths", "C(n, length), exact"),
    Column("name", "", "a module"),
    Column("error", "fraction"),
    Column("pruned"),
    Column("empty"),
)
ROWS = (
    {"length": 27, "n_paths": comb(54, 27), "name": "layer1.0", "error": 0.1, "pruned": True, "empty": None},
    {"length": 500, "n_paths": comb(1000, 500), "name": "", "error": 1 / 3, "pruned": None, "empty": None},
    {"length": None, "n_paths": None, "name": None, "error": None, "pruned": False, "empty": None},
    {"length": -1, "n_paths": 0, "name": 'Überraschung, "ñ"\n残差 🙂', "error": 5e-324, "pruned": True, "empty": None},
)
PROVENANCE = {"seed": 0, "model": "réseau", "big": comb(100, 50), "path": Path("/x/y"), "shape": (3, 32, 32)}


def table() -> Table:
    return Table(COLUMNS, ROWS, PROVENANCE)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_written_table_comes_back_equal(tmp_path, suffix):
    written = table().write(tmp_path / "new" / "folder", "paths")
    assert sorted(path.name for path in written) == ["paths.csv", "paths.meta.json", "paths.parquet"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in written)
    back = read_table(tmp_path / "new" / "folder" / f"paths.{suffix}")
    assert back == table()
    assert back.rows == ROWS  # and so are the values that were given, type by type
    assert [type(v) for v in back.values("n_paths")] == [int, int, type(None), int]
    assert back.provenance == {"seed": 0, "model": "réseau", "big": comb(100, 50), "path": "/x/y", "shape": [3, 32, 32]}
    assert back.columns == COLUMNS


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_without_rows_comes_back(tmp_path, suffix):
    Table(COLUMNS, ()).write(tmp_path, "none")
    assert read_table(tmp_path / f"none.{suffix}") == Table(COLUMNS, ())


cells = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**80), 2**80)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.text()), min_size=3, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(cells, min_size=1, max_size=3))
def test_any_values_come_back_with_their_types(tmp_path, data):
    names = [f"c{i}" for i in range(len(data))]
    rows = tuple(dict(zip(names, row, strict=True)) for row in zip(*data, strict=True))
    made = Table(tuple(map(Column, names)), rows)
    made.write(tmp_path, "t")
    for suffix in ("csv", "parquet"):
        back = read_table(tmp_path / f"t.{suffix}")
        assert [[(type(v), v) for v in row.values()] for row in back.rows] == [
            [(type(v), v) for v in row.values()] for row in made.rows
        ]


def test_csv_is_plain_for_other_readers():
    found = list(csv.reader(table().to_csv_text().splitlines(keepends=True)))
    assert found[0] == [column.name for column in COLUMNS]
    assert found[1] == ["27", str(comb(54, 27)), "layer1.0", "0.1", "true", ""]
    assert found[2][1] == str(comb(1000, 500))
    assert found[4][2] == ROWS[3]["name"]
    assert float(found[2][3]) == 1 / 3


def test_csv_without_description_is_read_by_inference(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text(f"block,n_paths,error,name,ok\n0,{comb(100, 50)},0.5,a,TRUE\n,1,2e-3,,false\n")
    back = read_table(path)
    assert back.rows == (
        {"block": 0, "n_paths": comb(100, 50), "error": 0.5, "name": "a", "ok": True},
        {"block": None, "n_paths": 1, "error": 0.002, "name": None, "ok": False},
    )
    assert back.provenance == {}


def test_parquet_carries_units_and_provenance(tmp_path):
    table().write(tmp_path, "t")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.field("length").metadata[b"unit"] == b"blocks"
    assert schema.field("n_paths").metadata[b"description"] == b"C(n, length), exact"
    assert schema.field("length").type == pa.int64()
    assert schema.field("n_paths").type == pa.string()  # beyond 64 bits
    stated = json.loads(schema.metadata[b"pathlens"])
    assert stated == json.loads((tmp_path / "t.meta.json").read_text())
    assert stated["schema_version"] == 1
    assert stated["provenance"]["seed"] == 0


def test_frame_dtypes():
    frame = table().to_frame()
    assert str(frame["length"].dtype) == "Int64"
    assert frame["length"].isna().tolist() == [False, False, True, False]
    assert frame["n_paths"][0] == str(comb(54, 27))
    assert str(frame["error"].dtype) == "float64"
    assert math.isnan(frame["error"][2])
    assert str(frame["pruned"].dtype) == "boolean"
    whole = Table((Column("k"),), ({"k": 1}, {"k": 2})).to_frame()
    assert str(whole["k"].dtype) == "int64"


def test_json_object_is_strict_and_exact():
    text = json.dumps(table().to_json_object(), allow_nan=False)
    assert str(comb(1000, 500)) in text
    back = json.loads(text)
    assert set(back) == {"table", "provenance"}
    assert tuple(back["table"]) == ROWS


def test_table_is_a_copy_and_frozen():
    row, facts = {"a": 1}, {"seed": [0]}
    made = Table((Column("a"),), (row,), facts)
    row["a"], facts["seed"][0] = 2, 1
    made.to_json_object()["table"][0]["a"] = 3
    assert made.rows == ({"a": 1},)
    assert made.provenance == {"seed": [0]}
    with pytest.raises(AttributeError):
        made.rows = ()


def test_numpy_scalars_and_mixed_numbers_become_plain():
    made = Table((Column("a"), Column("b")), ({"a": np.int64(3), "b": np.float32(0.5)}, {"a": 2**70, "b": 1}))
    assert made.rows == ({"a": 3, "b": 0.5}, {"a": 2**70, "b": 1.0})
    assert [type(v) for row in made.rows for v in row.values()] == [int, float, int, float]
    assert made.types == {"a": "int", "b": "float"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_not_finite_is_named_by_column_and_row(value):
    with pytest.raises(NumericsError, match="'loss', row 1"):
        Table((Column("loss"),), ({"loss": 0.5}, {"loss": value}))


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ((), (), "without columns"),
        ((Column("a"), Column("a")), (), "'a' is there twice"),
        ((Column("a"),), ({"b": 1},), "row 0 has unknown column 'b'"),
        ((Column("a"), Column("b")), ({"a": 1},), "row 0 has no value for column 'b'"),
        ((Column("a"),), ({"a": 1}, {"a": "x"}), "'a' mixes int and str"),
        ((Column("a"),), ({"a": True}, {"a": 0.5}), "'a' mixes bool and float"),
        ((Column("a"),), ({"a": [1]},), "'a', row 0: a list"),
        ((Column("a"),), ({"a": "\ud800"},), "'a', row 0: the text"),
        ((Column("a"),), ({"a": 0.5}, {"a": 2**60}), "row 1: 1152921504606846976 among floats"),
    ],
)
def test_bad_tables_are_refused(columns, rows, message):
    with pytest.raises(UsageError, match=message):
        Table(columns, rows)


def test_bad_names_values_and_provenance_are_refused():
    with pytest.raises(UsageError, match="'a b' is not a word"):
        Column("a b")
    with pytest.raises(UsageError, match=r"no column 'x'.*length"):
        table().values("x")
    with pytest.raises(NumericsError, match="provenance"):
        Table((Column("a"),), (), {"loss": math.nan})
    with pytest.raises(UsageError, match="provenance holds set"):
        Table((Column("a"),), (), {"blocks": {1}})
    with pytest.raises(NumericsError, match="row 0: an integer"):
        Table((Column("a"),), ({"a": 1 << 100_000},))


@pytest.mark.parametrize("stem", ["", "a/b", "../x", ".hidden", "a\0b", ".."])
def test_stems_that_lead_elsewhere_are_refused(tmp_path, stem):
    with pytest.raises(UsageError, match="plain file name"):
        table().write(tmp_path, stem)
    assert not list(tmp_path.iterdir())


def _newer(tmp_path: Path) -> None:
    table().write(tmp_path, "t")
    content = pq.read_table(tmp_path / "t.parquet")
    stated = json.loads(content.schema.metadata[b"pathlens"]) | {"schema_version": 2}
    pq.write_table(content.replace_schema_metadata({b"pathlens": json.dumps(stated)}), tmp_path / "t.parquet")
    (tmp_path / "t.meta.json").write_text(json.dumps(stated))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_newer_schema_version_is_refused(tmp_path, suffix):
    _newer(tmp_path)
    with pytest.raises(RunError, match=r"version 2, this pathlens reads up to 1; upgrade"):
        read_table(tmp_path / f"t.{suffix}")


def test_what_is_no_table_is_refused(tmp_path):
    files = {
        "text.parquet": b"not parquet",
        "empty.parquet": b"",
        "empty.csv": b"",
        "binary.csv": bytes(range(256)),
        "ragged.csv": b"a,b\n1,2,3\n",
        "words.csv": b"not a name,b\n1,2\n",
        "twice.csv": b"a,a\n1,2\n",
        "other.txt": b"a\n1\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "folder.csv").mkdir()
    for name in [*files, "foreign.parquet", "folder.csv", "missing.csv"]:
        with pytest.raises(RunError, match=name) as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value), name


def test_cut_off_parquet_is_refused(tmp_path):
    table().write(tmp_path, "t")
    whole = (tmp_path / "t.parquet").read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        (tmp_path / "t.parquet").write_bytes(whole[:length])
        with pytest.raises(RunError, match="not a pathlens table"):
            read_table(tmp_path / "t.parquet")


def written(text: str, rows: int) -> bytes:
    return Table((Column("t"),), ({"t": text},) * rows).files("t")["t.parquet"]


def varint(number: int, length: int = 1) -> bytes:
    """A number as a Parquet footer has it, in no fewer bytes than asked for."""
    rest = 2 * number
    groups: list[int] = []
    while rest or len(groups) < length:
        groups.append(rest % 128)
        rest //= 128
    return bytes([*(group + 128 for group in groups[:-1]), groups[-1]])


def forged(content: bytes) -> bytes:
    """The same Parquet file, which says that its cells are one byte when they are unpacked."""
    stated = varint(pq.read_metadata(pa.BufferReader(content)).row_group(0).total_byte_size)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    content = content[:footer] + content[footer:].replace(stated, varint(1, len(stated)))
    assert pq.read_metadata(pa.BufferReader(content)).row_group(0).total_byte_size == 1
    return content


def test_a_parquet_file_that_states_less_than_it_holds_unpacks_a_few_rows_at_a_time(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(forged(written("x" * 50_000, 200)))
    assert (tmp_path / "t.parquet").stat().st_size < 20_000
    unpacked, iter_batches = [], pq.ParquetFile.iter_batches

    def noted(file, **options):
        for batch in iter_batches(file, **options):
            unpacked.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    assert len(read_table(tmp_path / "t.parquet").rows) == 200
    assert sum(unpacked) >= 200 * 50_000
    unpacked.clear()
    monkeypatch.setattr(disk, "_LARGEST_UNPACKED", 2**21)
    with pytest.raises(RunError, match="unpacks to more than 2,097,152 bytes"):
        read_table(tmp_path / "t.parquet")
    assert max(unpacked) < 2**21


def test_a_parquet_file_that_is_read_row_by_row_is_what_it_is(tmp_path, monkeypatch):
    rows = tuple({"t": str(number), "n": number} for number in range(23))
    Table((Column("t"), Column("n")), rows).write(tmp_path, "t")
    whole = read_table(tmp_path / "t.parquet")
    monkeypatch.setattr(disk, "_rows_at_once", lambda *_: 1)
    for together in (5, 23, 100):
        monkeypatch.setattr(disk, "_TOGETHER", together)
        assert read_table(tmp_path / "t.parquet") == whole
    assert whole.rows == rows


def test_a_parquet_file_of_more_packed_bytes_than_a_table_has_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(forged(written(np.random.default_rng(0).bytes(5000).hex(), 1)))
    assert len(table_from(path, Path.read_bytes).rows) == 1
    monkeypatch.setattr(disk, "LARGEST_TABLE", 2**11)
    with pytest.raises(RunError, match="bytes of packed cells, more than 2,048"):
        table_from(path, Path.read_bytes)


def test_a_parquet_file_that_is_packed_in_another_way_is_refused(tmp_path):
    table().write(tmp_path, "t")
    content = pq.read_table(tmp_path / "t.parquet")
    pq.write_table(content, tmp_path / "none.parquet", compression="none")
    assert read_table(tmp_path / "none.parquet") == table()
    pq.write_table(content, tmp_path / "zstd.parquet", compression="zstd")
    with pytest.raises(RunError, match=r"column .length. is packed as ZSTD; write it again"):
        read_table(tmp_path / "zstd.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        lambda stated: stated | {"schema_version": "1"},
        lambda stated: {k: v for k, v in stated.items() if k != "schema_version"},
        lambda stated: stated | {"columns": stated["columns"][1:]},
        lambda stated: stated | {"columns": [{"name": "length"}]},
        lambda stated: [stated],
    ],
)
def test_damaged_description_is_refused(tmp_path, damage):
    table().write(tmp_path, "t")
    stated = json.loads((tmp_path / "t.meta.json").read_text())
    (tmp_path / "t.meta.json").write_text(json.dumps(damage(stated)))
    with pytest.raises(RunError, match="not a pathlens table"):
        read_table(tmp_path / "t.csv")


def test_cell_of_another_type_than_described_is_refused(tmp_path):
    table().write(tmp_path, "t")
    path = tmp_path / "t.csv"
    path.write_text(path.read_text().replace("\n27,", "\ntwentyseven,"))
    with pytest.raises(RunError, match="'length', row 0 holds 'twentyseven', not int"):
        read_table(path)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch, call):
    table().write(tmp_path, "t")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = Table((Column("a"),), ({"a": 1},))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, _full)
        with pytest.raises(ResourceError, match=r"cannot write .*: No space left"):
            other.write(tmp_path, "t")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_full_disk_at_the_last_of_several_files_shows_none(tmp_path, monkeypatch):
    calls = []

    def third_fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            _full()

    monkeypatch.setattr(os, "fsync", third_fails)
    with pytest.raises(ResourceError, match=r"t\.csv"):
        table().write(tmp_path, "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits on file size")
def test_real_size_limit_is_a_resource_error(tmp_path):
    code = (
        "import resource, signal, sys; from pathlens.storage import atomic_write_bytes\n"
        "from pathlens.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: atomic_write_bytes(sys.argv[1], bytes(2000))\n"
        "except ResourceError as error: print('refused:', error)\n"
    )
    done = run(code, tmp_path / "big")
    assert done.stdout.startswith("refused: cannot write")
    assert not list(tmp_path.iterdir())


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )


def test_killed_before_the_rename_leaves_the_old_file(tmp_path):
    (tmp_path / "t").write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlens.storage import atomic_write_bytes\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write_bytes(sys.argv[1], b'new')\n"
    )
    assert run(code, tmp_path / "t").returncode == -9
    assert (tmp_path / "t").read_bytes() == b"old"
    atomic_write_bytes(tmp_path / "t", b"new")
    assert (tmp_path / "t").read_bytes() == b"new"


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "t", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o640


def test_paths_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(RunError, match=f"cannot write {path}"):
            atomic_write_bytes(path, b"x")
    with pytest.raises(RunError, match="folder"):  # the good one of the two is not visible either
        write_together({tmp_path / "good": b"x", tmp_path / "folder": b"x"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_import_is_light_and_torch_is_never_needed(tmp_path):
    code = (
        "import sys, pathlens.tables; print([m for m in ('torch', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert run(code).stdout == "[]\n"
    code = (
        "import sys; from pathlens.tables import Table, Column, read_table\n"
        "Table((Column('a'),), ({'a': 1},)).write(sys.argv[1], 't'); read_table(sys.argv[1] + '/t.csv').to_frame()\n"
        "print('torch' in sys.modules)"
    )
    assert run(code, tmp_path).stdout == "False\n"
