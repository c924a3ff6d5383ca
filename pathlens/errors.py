"""One family of exceptions.

Each message is one line that names the thing, what was found and the remedy. The command line prints it on stderr
and ends with the exit code of its class; the codes are part of the interface (``docs/exit-codes.md``).
"""

from __future__ import annotations

LONGEST = 2000  # characters of a message


def printable(text: object, longest: int | None = None) -> str:
    r"""Escape what is no visible character, so that a terminal prints a text and does nothing else.

    Names of tensors, classes and files, and what metadata states, are chosen by whoever made a file. Control characters
    in them would clear the screen, retitle the window or forge a line, and marks of direction would turn a line round.
    A text that is printable already stays as it is, so that escaping twice does no harm.

    Args:
        text: anything; its ``str`` counts.
        longest: characters, of a longer text the middle is left out; None keeps all.

    Returns:
        One line.

    Examples:
        >>> print(printable("conv1\x1b[2J\nforged"))
        conv1\x1b[2J\nforged
    """
    line = str(text)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if longest is None or len(line) <= longest:
        return line
    return f"{line[: longest * 2 // 3]} ... {line[-longest // 4 :]}"


def one_line(error: object, longest: int | None = None) -> str:
    """The text of another library's error, for use in a message of one line.

    Args:
        error: the exception; its class's name stands in for an empty text.
        longest: characters that are kept; None keeps all.
    """
    return " ".join(str(error).split())[:longest] or type(error).__name__


def described(value: object) -> str:
    """The type of an unexpected value, with the types of its first items where it is a list or tuple.

    Args:
        value: that was found.
    """
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:4]) or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"


class PathlensError(Exception):
    """Base of everything that pathlens raises on purpose. Exit code 1.

    Its text is printable, whatever the file holds that it speaks of (:func:`printable`).
    """

    exit_code = 1
    #: whether all processes of a group end with it, of which one need print it
    is_shared = False

    def __str__(self) -> str:
        return printable(super().__str__(), LONGEST)


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
