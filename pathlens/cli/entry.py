"""The entry point: every failure becomes one line on stderr and a documented exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pathlens.cli import gradients, lesions, reporting, structure, training, unravel
from pathlens.cli.blockdrop import blockdrop
from pathlens.cli.decomposition import decompose
from pathlens.cli.propagation import signal_propagation
from pathlens.cli.surface import loss_surface
from pathlens.errors import LONGEST, ModelError, PathlensError, ResourceError, UsageError, one_line, printable
from pathlens.version import __version__

INTERRUPTED = 130
_BROKEN_PIPE = 141
_STOPPED = (
    "interrupted; the same command goes on where this one stopped (train: with --resume, from its checkpoint; "
    "blockdrop: without --out it trains its policy anew)"
)
#: errors of a file that cannot be written: a full disk, a quota, a broken device
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)

app = typer.Typer(
    name="pathlens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"pathlens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Ensemble and path analysis of trained residual networks.

    Exit codes: 0 done, 2 usage, 3 network, 4 weights, 5 data, 6 numbers, 7 memory or disk, 8 run folder,
    130 interrupted.
    """


app.command("blocks", short_help="List the residual blocks of a network.")(structure.blocks)
app.command("delete-blocks", short_help="Error with blocks deleted, one by one or in sets.")(lesions.delete_blocks)
app.command("delete-skips", short_help="Error with shortcuts deleted: the control.")(lesions.delete_skips)
app.command("reorder-blocks", short_help="Error with the blocks in other orders.")(lesions.reorder_blocks)
app.command("path-gradients", short_help="Gradient norms by path length.")(gradients.path_gradients)
app.command("signal-propagation", short_help="Activations and gradients, block by block.")(signal_propagation)
app.command("decompose", short_help="What each block adds to the last sum, or to the logits.")(decompose)
app.command("loss-surface", short_help="The loss around the weights, and its curvature.")(loss_surface)
app.command("blockdrop", short_help="Blocks that a policy chooses for each example.")(blockdrop)
app.command("unravel", short_help="A network as a graph: as it is, all of its paths, or a lattice.")(unravel.unravel)
app.command("train", short_help="Train a network, whole or through some of its paths.")(training.train)
app.command("report", short_help="One HTML page of the results in run folders.")(reporting.report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name (default: those of the process).

    Returns:
        The exit code: 0, or that of the error (see :mod:`pathlens.errors`).
    """
    # a stream that was closed before the start is None
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    try:
        given = None if arguments is None else list(arguments)
        result: Any = app(args=given, prog_name="pathlens", standalone_mode=False)
        sys.stdout.flush()
        if result == INTERRUPTED:  # newer parsers turn Ctrl-C into a result
            raise KeyboardInterrupt
    except PathlensError as error:
        return _fail(error, error.exit_code)
    except MemoryError:
        return _fail("out of memory; give a smaller --batch-size", ResourceError.exit_code)
    except KeyboardInterrupt:
        return _fail(_STOPPED, INTERRUPTED)
    except SystemExit as end:
        if _is_of_the_parser(end):  # which exits only where the reader of a pipe has gone
            return _BROKEN_PIPE if end.code == 1 else int(end.code or 0)
        return _fail(
            f"the network's code ended the program (sys.exit: {end.code}); take that out of its forward",
            ModelError.exit_code,
        )
    except BrokenPipeError:
        # the reader of the pipe has gone, so nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = error.strerror or "it is closed"
        return _fail(f"the output cannot be printed: {reason}; print elsewhere, or give --out", ResourceError.exit_code)
    except Exception as error:
        # errors of the argument parser know their exit code and message; anything else is a bug and keeps its traceback
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message(), file=sys.stderr)
                return error.exit_code
            where = getattr(getattr(error, "ctx", None), "command_path", "pathlens")
            message = error.format_message().replace("Value error, ", "")
            stop = "" if message.endswith((".", "?")) else "."
            return _fail(f"{message}{stop} See {where} --help", error.exit_code)
        if type(error).__name__ == "Abort":
            return _fail(_STOPPED, INTERRUPTED)
        raise
    return result if isinstance(result, int) else 0


def _is_of_the_parser(end: SystemExit) -> bool:
    """Whether the parser exited, and not what it called."""
    step = end.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    module = "" if step is None else str(step.tb_frame.f_globals.get("__name__", ""))
    return module.split(".")[0] in ("typer", "click")


def _fail(error: object, code: int) -> int:
    line = printable(one_line(error), LONGEST)
    world, rank = (os.environ.get(name, usual) for name, usual in (("WORLD_SIZE", "1"), ("RANK", "0")))
    # what all processes end with, the first one prints; options are wrong in all of them
    own = isinstance(error, PathlensError) and not error.is_shared and not isinstance(error, UsageError)
    if world == "1" or rank == "0" or own:
        where = f" (process {rank} of {world})" if own and world != "1" else ""
        print(f"pathlens: error: {line}{where}", file=sys.stderr, flush=True)
    return code
