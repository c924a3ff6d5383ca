"""The table of the lattice: a norm for each place of a network and path length."""

from __future__ import annotations

from dataclasses import dataclass

from pathlens.estimators.estimator import NORM
from pathlens.results.result import Result, column
from pathlens.tables import Table

_EXACT = 2**53  # from here on whole numbers of a browser have gaps


@dataclass(frozen=True, kw_only=True)
class LatticeRow:
    """All paths of one length from the loss to one place."""

    boundary: int = column(
        "", "i for the gradient at x_i, where blocks are no chain at block i's branch point; -1: input"
    )
    length: int = column("blocks", "branches between the loss and there")
    n_paths: int = column("", "paths of that length from the loss to there, exact")
    norm: float = column(NORM, "norm of the summed gradient, mean over examples")
    share: float | None = column(
        "fraction", "norm over the sum of norms at this boundary; missing where max_length leaves lengths out"
    )


class Lattice(Result):
    """The lattice, which a page draws in its own way."""

    name = "lattice"
    row = LatticeRow
    needed = ("boundary", "length", "n_paths", "norm")
    figure = "paths.lattice"

    def fits(self, table: Table) -> bool:
        """Whether the columns are those of a lattice, and most of its cells are there."""
        if table.types.get("norm") != "float" or not super().fits(table):
            return False
        places, lengths = (
            [value for value in table.values(name) if isinstance(value, int)] for name in ("boundary", "length")
        )
        if max(map(abs, places)) >= _EXACT:
            return False
        # half of the cells of a lattice exist; a table with a few rows far apart would be mostly holes
        return min(lengths) >= 0 and (max(places) - min(places) + 1) * (max(lengths) + 1) <= 4 * len(lengths) + 1000


LATTICE = Lattice()
