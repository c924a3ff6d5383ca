"""One family of exceptions.

Each message is one line that names the thing, what was found and the remedy. The command line prints it on stderr
and ends with the exit code of its class; the codes are part of the interface (``docs/exit-codes.md``).
"""

from __future__ import annotations


class PathlensError(Exception):
    r"""Base of everything that pathlens raises on purpose. Exit code 1.

    Args:
        message: one line. What cannot be printed in it (a line break or a terminal's control codes in the name of a
            file, say) is written as an escape such as ``\n``, so that it stays one line whatever a file is called.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
        super().__init__("".join(shown))


class UsageError(PathlensError):
    """An argument, a plan or a block index that cannot be carried out. Exit code 2."""

    exit_code = 2


class ModelError(PathlensError):
    """A network that is unknown, cannot be built, traced, or has nothing to study. Exit code 3."""

    exit_code = 3


class NoResidualBlocksError(ModelError):
    """A network in which no addition is a residual block. Exit code 3."""


class CheckpointError(PathlensError):
    """A weights file that is missing, damaged, unsafe, too large, or of another network. Exit code 4."""

    exit_code = 4


class DataError(PathlensError):
    """Images or labels that are missing, undecodable, or do not fit the network. Exit code 5."""

    exit_code = 5


class MissingSplitError(DataError):
    """A data set without the split that was asked for. Exit code 5."""


class NumericsError(PathlensError):
    """A value that is not finite, or two results that should agree and do not. Exit code 6."""

    exit_code = 6


class ResourceError(PathlensError):
    """Memory or disk that ran out. Exit code 7."""

    exit_code = 7


class RunError(PathlensError):
    """A run folder or journal that is in use, damaged, or of another run. Exit code 8."""

    exit_code = 8
