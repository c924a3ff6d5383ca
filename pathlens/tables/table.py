"""Result tables: named columns with units, plain values, and where they came from; and their files.

The description of a table (schema version, columns with units and types, provenance) is one JSON object. It stands in
the metadata of the Parquet schema and, for CSV, in ``stem.meta.json`` beside it. Integers beyond 64 bits are stored as
text in both formats.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathlens.errors import NumericsError, UsageError
from pathlens.storage import write_together

if TYPE_CHECKING:
    import pandas
    import pyarrow as pa

Scalar = bool | int | float | str | None
"""What a cell may hold; ``int`` of any size, ``float`` always finite, ``None`` for "does not apply"."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What JSON can hold."""

Provenance = Mapping[str, Any]
"""Where the numbers of a table come from, as a JSON object. Read back from a file, it may say anything."""

SCHEMA_VERSION = 1
"""Of the description of a table; a reader refuses newer ones."""

PARQUET_KEY = b"pathlens"
"""Under which the description stands in the metadata of a Parquet schema."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: in snake_case.
        unit: of its numbers; empty for none.
        description: one sentence on what it holds.
    """

    name: str
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise UsageError(f"column name {self.name!r} is not a word; use letters, digits and underscores")


@dataclass(frozen=True)
class Table:
    """A result table in long format, one row per measurement. It does not change after it was made.

    Values are copied and checked on construction: numpy scalars become Python's, a column that mixes integers and
    floats becomes floats, and the provenance becomes plain JSON (paths as text, tuples as lists).

    Args:
        columns: the columns in order.
        rows: one mapping per row, with exactly the columns' names as keys.
        provenance: where the numbers came from; anything that JSON can hold.

    Raises:
        NumericsError: a value that is NaN or infinite, or an integer too long to write out; names column and row.
        UsageError: no columns or the same name twice, a row with missing or unknown columns, a value that is no
            scalar, text beside numbers in one column.
    """

    columns: tuple[Column, ...]
    rows: tuple[dict[str, Scalar], ...]
    provenance: Provenance = field(default_factory=dict)
    types: dict[str, str] = field(init=False, repr=False, compare=False)
    """Type by column: ``bool``, ``int``, ``float``, ``str``, or ``null`` where no row has a value."""

    def __post_init__(self) -> None:
        columns = tuple(self.columns)
        names = [column.name for column in columns]
        if not names:
            raise UsageError("a table without columns was given; name at least one column")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"column {twice!r} is there twice; give each column its own name")
        rows = tuple(_checked_row(row, names, number) for number, row in enumerate(self.rows))
        types = {name: _unify(rows, name) for name in names}
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "provenance", plain_json(self.provenance, "provenance"))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names in order."""
        return tuple(column.name for column in self.columns)

    def values(self, name: str) -> tuple[Scalar, ...]:
        """One column as a tuple, in the order of the rows.

        Args:
            name: of the column.

        Raises:
            UsageError: there is no such column.
        """
        if name not in self.types:
            raise UsageError(f"no column {name!r} in the table; it has {', '.join(self.names)}")
        return tuple(row[name] for row in self.rows)

    def to_frame(self) -> pandas.DataFrame:
        """The table as a pandas frame.

        Integers with gaps are ``Int64``, truth values with gaps ``boolean``, columns with an integer beyond 64 bits are
        text, and missing floats are NaN.
        """
        import pandas as pd

        frame = pd.DataFrame(index=range(len(self.rows)))
        for name in self.names:
            values: Sequence[Scalar] = self.values(name)
            gaps = None in values
            dtype: str | None = {"int": "int64", "float": "float64", "bool": "bool"}.get(self.types[name])
            if self.types[name] == "int" and not fits_64_bits(values):
                values, dtype = [None if value is None else str(value) for value in values], None
            elif gaps and dtype in ("int64", "bool"):
                dtype = {"int64": "Int64", "bool": "boolean"}[dtype]
            elif self.types[name] == "null":
                dtype = "object"
            frame[name] = pd.Series(list(values), dtype=dtype)
        return frame

    def to_json_object(self) -> dict[str, Any]:
        """``{"table": [rows], "provenance": {...}}``, fit for strict JSON: no NaN, integers exact at any size."""
        return {"table": [dict(row) for row in self.rows], "provenance": plain_json(self.provenance, "provenance")}

    def to_csv_text(self) -> str:
        """The table as CSV: a header line, numbers bare, text quoted, and nothing between the commas for ``None``."""
        from pyarrow import csv

        stream = io.BytesIO()
        csv.write_csv(self._arrow(), stream)  # quotes text, so that an empty text and a missing value stay apart
        return stream.getvalue().decode()

    def _description(self) -> dict[str, Any]:
        """What the cells alone do not say: schema version, columns with unit, description and type, provenance."""
        columns = [
            {"name": c.name, "unit": c.unit, "description": c.description, "type": self.types[c.name]}
            for c in self.columns
        ]
        return {"schema_version": SCHEMA_VERSION, "columns": columns, "provenance": self.provenance}

    def _arrow(self) -> pa.Table:
        import pyarrow as pa

        arrays, fields = [], []
        for column in self.columns:
            values: list[Scalar] = list(self.values(column.name))
            kind = self.types[column.name]
            arrow_type = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}.get(kind)
            if kind == "int" and not fits_64_bits(values):
                values, arrow_type = [None if value is None else str(value) for value in values], pa.string()
            arrays.append(pa.array(values, arrow_type or pa.null()))
            metadata = {"unit": column.unit, "description": column.description, "type": kind}
            fields.append(pa.field(column.name, arrays[-1].type, metadata=metadata))
        described = {PARQUET_KEY: json.dumps(self._description())}
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=described))

    def files(self, stem: str) -> dict[str, bytes]:
        """What :meth:`write` writes: content by file name.

        Args:
            stem: of the file names.

        Raises:
            UsageError: ``stem`` is not a plain file name.
        """
        from pyarrow import parquet

        check_stem(stem)
        stream = io.BytesIO()
        parquet.write_table(self._arrow(), stream)
        return {
            f"{stem}.parquet": stream.getvalue(),
            f"{stem}.meta.json": (json.dumps(self._description(), indent=2, allow_nan=False) + "\n").encode(),
            f"{stem}.csv": self.to_csv_text().encode(),
        }

    def write(self, folder: str | os.PathLike[str], stem: str) -> list[Path]:
        """Write ``stem.csv``, ``stem.parquet`` and ``stem.meta.json`` (columns, units, provenance) into ``folder``.

        All three appear together or not at all, and old ones are replaced.

        Args:
            folder: where to; made if it is missing.
            stem: of the file names.

        Returns:
            The paths written.

        Raises:
            ResourceError: the disk is full; nothing of the new table is visible.
            RunError: the folder cannot be written to.
            UsageError: ``stem`` is not a plain file name.
        """
        return write_together({Path(folder) / name: data for name, data in self.files(stem).items()})


def fits_64_bits(values: Sequence[Scalar]) -> bool:
    """Whether every integer among ``values`` fits a signed 64-bit word."""
    return all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))


def check_stem(stem: str) -> None:
    """Refuse a file stem that would lead out of its folder or make a hidden file.

    Args:
        stem: of file names.

    Raises:
        UsageError: naming the stem.
    """
    if not stem or stem.startswith(".") or "\0" in stem or Path(stem).name != stem:
        raise UsageError(f"{stem!r} is not a plain file name; give a name without folders")


def plain_json(value: Any, what: str) -> Any:
    """A copy of ``value`` that is plain JSON: paths as text, tuples as lists, numpy scalars as Python's.

    Args:
        value: anything.
        what: what to call it in messages.

    Raises:
        NumericsError: it holds a number that is not finite.
        UsageError: it holds something that JSON has no form for.
    """

    def unusual(item: Any) -> Any:
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        if type(item).__module__ == "numpy":
            return item.tolist()
        raise TypeError(f"{type(item).__name__} {item!r}")

    try:
        return json.loads(json.dumps(value, allow_nan=False, default=unusual))
    except TypeError as error:
        raise UsageError(f"{what} holds {error}; use text, numbers, lists and mappings") from error
    except ValueError as error:
        raise NumericsError(f"{what} holds a number that cannot be written ({error}); use finite numbers") from error


def _checked_row(row: Mapping[str, Any], names: list[str], number: int) -> dict[str, Scalar]:
    unknown, missing = [key for key in row if key not in names], [name for name in names if name not in row]
    if unknown or missing:
        problem = f"unknown column {unknown[0]!r}" if unknown else f"no value for column {missing[0]!r}"
        raise UsageError(f"row {number} has {problem}; give exactly the columns {', '.join(names)}")
    return {name: _checked_value(row[name], name, number) for name in names}


def _checked_value(value: Any, name: str, number: int) -> Scalar:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    where = f"column {name!r}, row {number}"
    if isinstance(value, float) and not math.isfinite(value):
        raise NumericsError(f"{where}: the value is {value}; a table holds finite numbers or None")
    if isinstance(value, int) and not isinstance(value, bool):
        digits = sys.get_int_max_str_digits()
        if digits and value.bit_length() > 3.3 * digits:
            raise NumericsError(f"{where}: an integer of {value.bit_length()} bits; store its logarithm instead")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{where}: the text {value!a} is not valid Unicode; replace it") from error
    if value is not None and not isinstance(value, bool | int | float | str):
        raise UsageError(f"{where}: a {type(value).__name__} was given; a cell holds a number, text or None")
    return value


def _unify(rows: tuple[dict[str, Scalar], ...], name: str) -> str:
    """The type of one column; where integers stand among floats, they are made floats in place."""
    kinds = {type(row[name]).__name__ for row in rows} - {"NoneType"}
    if kinds == {"int", "float"}:
        for number, row in enumerate(rows):
            value = row[name]
            if isinstance(value, int):
                if abs(value) > 2**53:
                    raise UsageError(f"column {name!r}, row {number}: {value} among floats would lose digits")
                row[name] = float(value)
        return "float"
    if len(kinds) > 1:
        raise UsageError(f"column {name!r} mixes {' and '.join(sorted(kinds))}; give a column one type")
    return kinds.pop() if kinds else "null"
