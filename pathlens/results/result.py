"""What a result table is: its columns, and how it reads on a terminal, in a figure and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args, get_type_hints

from pathlens.results.charts import Chart
from pathlens.results.tasks import further, worded
from pathlens.results.text import summary
from pathlens.tables import Column, Provenance, Table
from pathlens.tables.declared import Row, Rows, Shown, column, formatted

__all__ = ["Headline", "Provenance", "Result", "Row", "Rows", "Shown", "column", "formatted"]

_NUMBER = ("int", "float", "null")
_LARGEST = 2**1000  # of integers where fractions are due: larger ones are no floats


@dataclass(frozen=True)
class Headline:
    """One number of a result.

    Attributes:
        label: what it is.
        value: as text, with its unit.
        detail: what belongs to it.
    """

    label: str
    value: str
    detail: str = ""


class Result:
    """A result table, declared once. What is not overridden says nothing.

    Attributes:
        name: file stem of the table, and the verb where it is a verb's main table.
        row: dataclass of a row, of which each field is a :func:`column`.
        needed: columns without which a table that was read back is not taken for this result.
        shown: columns that a terminal prints, in order.
        bar: column of fractions that a terminal draws as bars; empty for none.
        figure: module and function of :mod:`pathlens.figures` that draw it; empty for none.
        what: was done, to stand behind the name of a network; empty for a table beside another.
    """

    name: str
    row: ClassVar[type]
    needed: ClassVar[tuple[str, ...]]
    shown: ClassVar[Mapping[str, Shown]] = {}
    bar: ClassVar[str] = ""
    figure: str = ""
    what: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Put the columns into the docstring of the row, where ``help`` and the reference read them."""
        lines = [f"{cls.row.__doc__}\n\nAttributes:"]
        for f in fields(cls.row):
            unit = f" ({f.metadata['unit']})" if f.metadata["unit"] else ""
            lines.append(f"    {f.name}: {f.metadata['meaning']}{unit}")
        cls.row.__doc__ = "\n".join(lines)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns with unit and meaning, in order."""
        return tuple(Column(f.name, f.metadata["unit"], f.metadata["meaning"]) for f in fields(self.row))

    def table(self, rows: Rows, provenance: Provenance) -> Table:
        """The rows as a table, with where they came from. A task may have columns beside those that are declared.

        Args:
            rows: with the names of the columns as keys.
            provenance: of the table, or the manifest of its run.

        Raises:
            NumericsError, UsageError: as of :class:`pathlens.tables.Table`.
        """
        declared = worded(self.columns, provenance)
        beside = further(name for name in (rows[0] if rows else ()) if name not in {one.name for one in declared})
        return Table((*declared, *beside), tuple(dict(row) for row in rows), dict(provenance))

    def fits(self, table: Table) -> bool:
        """Whether a table that was read back has what is read of it here.

        The needed columns are there and hold numbers, texts or nothing, as they should; those of an ``int`` hold one in
        each row. Other columns of fractional numbers may be missing, but hold no text.

        Args:
            table: from a file that may hold anything.
        """
        if not table.rows or not set(self.needed) <= table.types.keys():
            return False
        hints = get_type_hints(self.row)
        return all(_holds(table, name, hints[name], name in self.needed) for name in table.types.keys() & hints.keys())

    def printed(self, rows: Rows) -> Mapping[str, Shown]:
        """The columns that a terminal prints, in order.

        Args:
            rows: of the table.
        """
        return self.shown

    def listed(self, rows: Rows) -> Rows:
        """The rows that a terminal prints: all of them, where not so many that nobody would read them.

        Args:
            rows: of the table.
        """
        return rows

    def bars(self, rows: Rows) -> list[float] | None:
        """Fractions that a terminal draws as bars, one for each row. Arguments as :meth:`printed`."""
        return [row[self.bar] for row in rows] if self.bar else None

    @property
    def bars_title(self) -> str:
        """What the bars show."""
        return self.bar

    def notes(self, provenance: Provenance) -> list[str]:
        """Lines under the table on a terminal.

        Args:
            provenance: of the table.
        """
        return [summary(provenance)]

    def figure_options(self, provenance: Provenance) -> dict[str, Any]:
        """What the figure takes beside the table. Arguments as :meth:`notes`."""
        return {}

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """What was done. Arguments as :meth:`table`."""
        return self.what

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The numbers that a reader looks for first. Arguments as :meth:`table`."""
        return []

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """The charts of a page. Arguments as :meth:`table`."""
        return []


def _holds(table: Table, name: str, hint: Any, needed: bool) -> bool:
    kind, values, kinds = table.types[name], table.values(name), {hint, *get_args(hint)}
    if float in kinds and kind == "int":
        return all(abs(value) <= _LARGEST for value in values if isinstance(value, int))
    if needed and hint is int:
        return kind == "int" and None not in values
    if needed and str in kinds:
        return kind in ("str", "null")
    return kind in _NUMBER or not (needed or float in kinds)
