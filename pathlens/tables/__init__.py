"""Result tables: named columns with units, provenance, and CSV, Parquet and JSON."""

from __future__ import annotations

from pathlens.tables.disk import LARGEST_TABLE, read_table, table_from
from pathlens.tables.table import SCHEMA_VERSION, Column, Json, Provenance, Scalar, Table, check_stem, plain_json

__all__ = [
    "LARGEST_TABLE",
    "SCHEMA_VERSION",
    "Column",
    "Json",
    "Provenance",
    "Scalar",
    "Table",
    "check_stem",
    "plain_json",
    "read_table",
    "table_from",
]
