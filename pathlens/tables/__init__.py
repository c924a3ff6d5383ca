"""Result tables: named columns with units, provenance, and CSV, Parquet and JSON; and the one way to write a file."""

from __future__ import annotations

from pathlens.tables.disk import LARGEST_TABLE, SCHEMA_VERSION, check_stem, read_table, table_from
from pathlens.tables.files import (
    atomic_path,
    atomic_write_bytes,
    disk_error,
    open_regular,
    read_regular,
    write_together,
)
from pathlens.tables.locks import lock_run, make_folder
from pathlens.tables.table import Column, Scalar, Table, plain_json

__all__ = [
    "LARGEST_TABLE",
    "SCHEMA_VERSION",
    "Column",
    "Scalar",
    "Table",
    "atomic_path",
    "atomic_write_bytes",
    "check_stem",
    "disk_error",
    "lock_run",
    "make_folder",
    "open_regular",
    "plain_json",
    "read_regular",
    "read_table",
    "table_from",
    "write_together",
]
