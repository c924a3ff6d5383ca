"""Tables read back from CSV and Parquet. Integers beyond 64 bits, which are text in both, come back as integers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pathlens.errors import RunError, UsageError, one_line
from pathlens.storage import read_regular
from pathlens.tables.table import PARQUET_KEY, SCHEMA_VERSION, Column, Provenance, Scalar, Table

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LARGEST_TABLE = 2**26
"""Bytes of a table's file; a larger one is refused before it is read."""

_LARGEST_UNPACKED = 2**29
_LARGEST_RATIO = 22  # of unpacked to packed bytes: 64 bytes of Snappy take 3 at least
_TOGETHER = 1000  # batches
_PADDING = 100  # bytes that Arrow reads beyond what is stated of a column, in files of old writers
_MOST_CELLS = 10_000_000
_MOST_COLUMNS = 1000
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE)
_PARSE: dict[str, Callable[[str], Scalar]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": float,
    "str": str,
}


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table that :meth:`Table.write` wrote, from its Parquet or its CSV file.

    A CSV file without its ``.meta.json`` is read too: types are then inferred from the text, and units, descriptions
    and provenance are empty.

    Args:
        path: a ``.parquet`` or ``.csv`` file.

    Raises:
        NumericsError: a cell holds NaN or an infinity.
        RunError: the file is missing, damaged, no table, or of a newer schema version.
    """
    return table_from(Path(path), lambda part: read_regular(part, LARGEST_TABLE, follow=True))


def table_from(path: Path, read: Callable[[Path], bytes]) -> Table:
    """As :func:`read_table`, with the caller's own way of reading a file.

    Args:
        path: a ``.parquet`` or ``.csv`` file.
        read: gives the content of ``path``, and of the description beside a CSV file, or raises ``OSError``.

    Raises:
        NumericsError: a cell holds NaN or an infinity.
        RunError: the file is missing, damaged, no table, too large, or of a newer schema version.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise RunError(f"{path} is not a table; give a .csv or .parquet file")
    try:
        data = read(path)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; give a table that pathlens wrote") from error
    try:
        return _from_parquet(data, path) if path.suffix == ".parquet" else _from_csv(data, path, read)
    except UsageError as error:  # of Table: columns or cells that no table has
        raise RunError(f"{path} is not a pathlens table: {error}") from error


def _damaged(path: Path, reason: object) -> RunError:
    return RunError(f"{path} is not a pathlens table: {one_line(reason)}; write it again")


class _Description(NamedTuple):
    """What is stored beside the cells: columns in order, their types by name, and the provenance."""

    columns: list[Column]
    types: dict[str, str]
    provenance: Provenance


def _described(text: str | bytes, path: Path) -> _Description:
    """Check a description that was read back, version first."""
    try:
        description = json.loads(text)
        version = description["schema_version"]
        if not isinstance(version, int) or version < 1:
            raise _damaged(path, f"schema version {version!r}")
        if version > SCHEMA_VERSION:
            known = f"this pathlens reads up to {SCHEMA_VERSION}"
            raise RunError(f"{path} has table schema version {version}, {known}; upgrade pathlens")
        columns = [Column(c["name"], c["unit"], c["description"]) for c in description["columns"]]
        if not all(isinstance(text, str) for c in columns for text in (c.name, c.unit, c.description)):
            raise _damaged(path, "a column is described by something else than text")
        types = {c["name"]: str(c["type"]) for c in description["columns"]}
        return _Description(columns, types, dict(description["provenance"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its description is damaged ({error})") from error


def _from_parquet(data: bytes, path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        described = (file.schema_arrow.metadata or {}).get(PARQUET_KEY)
        if described is None:
            raise _damaged(path, "a Parquet file without the description of a table")
        content = _unpacked(file, path)
        cells = {name: column.to_pylist() for name, column in zip(content.column_names, content.columns, strict=True)}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    if len(set(content.column_names)) < len(content.column_names):
        raise _damaged(path, "two columns of the same name")
    description = _described(described, path)
    for name, kind in description.types.items():
        if kind == "int" and name in cells and content.schema.field(name).type == pa.string():
            cells[name] = _parsed(cells[name], "int", name, path)
    return _assemble(cells, description, path)


def _unpacked(file: pq.ParquetFile, path: Path) -> pa.Table:
    """All rows, unless they take more memory than a table may: a few bytes of Parquet can encode any number of rows."""
    import pyarrow as pa

    schema, metadata = file.schema_arrow, file.metadata
    # what a table is written as; values of other types may take any memory for their few bytes
    other = next((field for field in schema if not any(is_kind(field.type) for is_kind in _kinds())), None)
    if other is not None:
        raise _damaged(path, f"column {other.name!r} is of type {other.type}")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    stated = sum(max(0, group.total_byte_size) for group in groups)
    if stated > LARGEST_TABLE:
        raise RunError(f"{path} states {stated:,} bytes of cells, more than {LARGEST_TABLE:,}; check where it is from")
    _check_size(metadata.num_rows, len(schema), path)
    parts, batches, nbytes = [], [], 0
    for batch in file.iter_batches(batch_size=_rows_at_once(metadata, path)):
        nbytes += batch.nbytes
        if nbytes > _LARGEST_UNPACKED:
            raise RunError(f"{path} unpacks to more than {_LARGEST_UNPACKED:,} bytes; check where it is from")
        batches.append(batch)
        if len(batches) == _TOGETHER:  # each takes memory beside its cells
            parts.append(pa.Table.from_batches(batches, schema).combine_chunks())
            batches = []
    return pa.concat_tables([*parts, pa.Table.from_batches(batches, schema)])


def _rows_at_once(metadata: pq.FileMetaData, path: Path) -> int:
    """Of how many rows a batch stays below the limit by itself.

    A dictionary may give its longest text to every row. What a file states of unpacked sizes may be wrong; but no text
    is longer than all that unpacks from its column of a row group, of which no byte is read beyond those stated. One
    row is read in any case.
    """
    is_text = [metadata.schema.column(index).physical_type == "BYTE_ARRAY" for index in range(metadata.num_columns)]
    longest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(min(group.num_columns, len(is_text)))]
        other = next((column for column in columns if column.compression not in ("UNCOMPRESSED", "SNAPPY")), None)
        if other is not None:
            raise _damaged(path, f"column {other.path_in_schema!r} is packed as {other.compression}")
        sizes = [max(0, column.total_compressed_size) + _PADDING for column in columns]
        if sum(sizes) > LARGEST_TABLE:  # columns may share their bytes
            packed = f"{sum(sizes):,} bytes of packed cells"
            raise RunError(f"{path} states {packed}, more than {LARGEST_TABLE:,}; check where it is from")
        longest = max(longest, sum(compress(sizes, is_text)))
    return max(1, min(2**16, _LARGEST_UNPACKED // (_LARGEST_RATIO * longest)))


def _kinds() -> tuple[Callable[[pa.DataType], bool], ...]:
    from pyarrow import types

    return types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string


def _check_size(rows: int, columns: int, path: Path) -> None:
    if columns > _MOST_COLUMNS or rows * columns > _MOST_CELLS:
        raise RunError(
            f"{path} has {rows:,} rows of {columns:,} columns, and a table has {_MOST_COLUMNS:,} columns and "
            f"{_MOST_CELLS:,} cells at most; check where it is from"
        )


def _from_csv(data: bytes, path: Path, read: Callable[[Path], bytes]) -> Table:
    import pyarrow as pa
    from pyarrow import csv

    _check_size(0, data.partition(b"\n")[0].count(b",") + 1, path)
    try:
        parse = csv.ParseOptions(newlines_in_values=True)
        names = csv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names
        parse.ignore_empty_lines = len(names) > 1  # in a table of one column, an empty line is a missing value
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        content = csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    _check_size(content.num_rows, len(names), path)
    texts = dict(zip(names, (column.to_pylist() for column in content.columns), strict=True))
    if len(texts) < len(names):
        raise _damaged(path, "two columns of the same name")
    beside = path.with_suffix(".meta.json")
    try:
        description = _described(read(beside), beside)
    except FileNotFoundError:
        types = {name: _inferred(texts[name]) for name in names}
        description = _Description([Column(name) for name in names], types, {})
    except OSError as error:
        raise RunError(f"cannot read {beside}: {error.strerror}; make it readable or remove it") from error
    cells = {name: _parsed(text, description.types.get(name, "str"), name, path) for name, text in texts.items()}
    return _assemble(cells, description, path)


def _inferred(texts: list[str | None]) -> str:
    present = [text for text in texts if text is not None]
    if not present:
        return "null"
    if all(_INTEGER.fullmatch(text) for text in present):
        return "int"
    if all(_NUMBER.fullmatch(text) for text in present):
        return "float"
    return "bool" if all(text.lower() in ("true", "false") for text in present) else "str"


def _parsed(texts: list[str | None], kind: str, name: str, path: Path) -> list[Scalar]:
    parse = _PARSE.get(kind, str)
    cells: list[Scalar] = []
    for number, text in enumerate(texts):
        try:
            cells.append(None if text is None else parse(text))
        except (ValueError, KeyError) as error:
            raise _damaged(path, f"column {name!r}, row {number} holds {text!r}, not {kind}") from error
    return cells


def _assemble(cells: dict[str, list[Any]], description: _Description, path: Path) -> Table:
    names = [column.name for column in description.columns]
    if sorted(names) != sorted(cells):
        raise _damaged(path, f"its columns are {', '.join(cells)}, its description says {', '.join(names)}")
    rows = tuple(dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True))
    return Table(tuple(description.columns), rows, description.provenance)
