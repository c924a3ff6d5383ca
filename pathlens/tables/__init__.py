"""Result tables: named columns with units, provenance, and CSV, Parquet and JSON; and the one way to write a file."""

from __future__ import annotations

from pathlens.tables.disk import SCHEMA_VERSION, check_stem, read_table
from pathlens.tables.files import atomic_path, atomic_write_bytes, disk_error, write_together
from pathlens.tables.locks import lock_run, make_folder
from pathlens.tables.table import Column, Scalar, Table, plain_json

__all__ = [
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
    "plain_json",
    "read_table",
    "write_together",
]
