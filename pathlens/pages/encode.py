"""Tables as JSON for a browser: exact numbers, and small where there are many rows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pathlens.results.lattice import LATTICE
from pathlens.tables import Table

_SAFE = 2**53  # integers beyond are not exact as numbers of JavaScript
_MANY = 2_000  # rows from which floats are packed


def script_json(value: Any) -> str:
    """JSON that can stand inside a ``script`` element: nothing in it can end the element or open another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def encode(table: Table, stem: str) -> dict[str, Any]:
    """One table, column by column.

    A column has ``name``, ``unit``, ``description``, ``type`` (that of the table, or ``bigint`` for integers beyond 53
    bits), and one of:

    - ``values``: a list; of a ``bigint`` column texts.
    - ``f64``: base64 of little-endian doubles, where NaN is a missing value.
    - ``choose``: N, where the number in each row is exactly C(N - max(0, boundary), length).
    """
    total = _choose_from(table)
    columns = []
    for column in table.columns:
        values, kind = table.values(column.name), table.types[column.name]
        coded: dict[str, Any] = {"name": column.name, "unit": column.unit, "description": column.description}
        if column.name == "n_paths" and total is not None and len(values) >= _MANY:
            coded |= {"type": "bigint", "choose": total}
        elif kind == "float" and len(values) >= _MANY:
            packed = np.array([np.nan if value is None else value for value in values], dtype="<f8")
            coded |= {"type": kind, "f64": base64.b64encode(packed.tobytes()).decode()}
        elif kind == "int" and any(abs(value) > _SAFE for value in values if isinstance(value, int)):
            coded |= {"type": "bigint", "values": [None if value is None else str(value) for value in values]}
        else:
            coded |= {"type": kind, "values": list(values)}
        columns.append(coded)
    return {"stem": stem, "rows": len(table.rows), "columns": columns}


def _choose_from(table: Table) -> int | None:
    """The number of blocks N, where each ``n_paths`` is C(N - max(0, boundary), length)."""
    if not LATTICE.fits(table):
        return None
    total = max(boundary for boundary in table.values("boundary") if isinstance(boundary, int))
    for row in table.rows:
        boundary, length = row["boundary"], row["length"]
        if not isinstance(boundary, int) or not isinstance(length, int):
            return None
        after = total - max(0, boundary)
        if not 0 <= length <= after or row["n_paths"] != math.comb(after, length):
            return None
    return total


def binomials(n: int) -> Iterator[int]:
    """C(n, 0), C(n, 1), ..., C(n, n)."""
    count = 1
    for length in range(n + 1):
        yield count
        count = count * (n - length) // (length + 1)
