"""Result tables, each declared once in a file of its own: columns, terminal, headlines, figure and charts."""

from __future__ import annotations

from pathlens.errors import UsageError
from pathlens.results.blockdrop import BLOCKDROP, CHOICES, CLASSES, LEARNING
from pathlens.results.decomposition import DECOMPOSE
from pathlens.results.initialisation import INITIALISATION
from pathlens.results.lattice import LATTICE
from pathlens.results.lesions import DELETE_BLOCKS, DELETE_SKIPS
from pathlens.results.path_profile import PATH_GRADIENTS
from pathlens.results.reordering import REORDER_BLOCKS
from pathlens.results.result import Headline, Result, Shown, column
from pathlens.results.runs import RUNS
from pathlens.results.searches import EXHAUSTIVE, GREEDY, INFLUENCE
from pathlens.results.signal import SIGNAL_PROPAGATION
from pathlens.results.structure import BLOCKS
from pathlens.results.surface import LOSS_SURFACE
from pathlens.results.training import EVALUATION, HISTORY
from pathlens.tables import Table

RESULTS: dict[str, Result] = {
    result.name: result
    for result in (
        DELETE_BLOCKS,
        DELETE_SKIPS,
        GREEDY,
        INFLUENCE,
        EXHAUSTIVE,
        REORDER_BLOCKS,
        RUNS,
        PATH_GRADIENTS,
        LATTICE,
        HISTORY,
        EVALUATION,
        BLOCKS,
        INITIALISATION,
        SIGNAL_PROPAGATION,
        LOSS_SURFACE,
        BLOCKDROP,
        CHOICES,
        CLASSES,
        LEARNING,
        DECOMPOSE,
    )
}
"""Every result by the file stem of its table."""

__all__ = ["RESULTS", "Headline", "Result", "Shown", "column", "find", "named"]


def named(name: str) -> Result:
    """The declaration of a table that a verb just made.

    Args:
        name: of the table.

    Raises:
        UsageError: no result has this name.
    """
    if name not in RESULTS:
        raise UsageError(f"no result is called {name!r}; there are {', '.join(RESULTS)}")
    return RESULTS[name]


def find(table: Table, *names: str) -> Result | None:
    """The declaration that fits a table that was read back: the one of a name, else any.

    Args:
        table: from a file that may hold anything.
        *names: that it may have, such as those of the file and the verb.
    """
    called = [RESULTS[name] for name in names if name in RESULTS]
    return next((result for result in (*called, *RESULTS.values()) if result.fits(table)), None)
