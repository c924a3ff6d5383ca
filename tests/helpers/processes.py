"""Processes that tests start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.helpers import ROOT

PATIENCE = 240  # seconds until a test that hangs is ended


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def forked(run: Callable[[], object], out: Path, err: Path, **variables: str) -> BaseProcess:
    """Start a copy of this process that runs this alone; to start another Python would take seconds.

    Args:
        run: what to do, in one thread. The exit code is 1 where it raises.
        out: file for what it prints.
        err: file for what it says.
        variables: of the environment.
    """

    def child() -> None:
        os.environ.update(variables)
        with (
            out.open("w") as printed,
            err.open("w") as said,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(said),
        ):
            os.dup2(printed.fileno(), 1)  # of processes that it starts
            os.dup2(said.fileno(), 2)
            run()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def two_processes(run: Callable[[], object], folder: Path) -> tuple[list[str], list[str]]:
    """Run a function in two processes that find each other, as torchrun lets them; what each printed and said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = [(folder / f"printed{rank}", folder / f"said{rank}") for rank in range(2)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [forked(run, *files[rank], RANK=str(rank), **common) for rank in range(2)]
    try:
        for worker in workers:
            worker.join(PATIENCE)
    finally:
        for worker in workers:
            worker.kill()
    printed, said = ([file.read_text() for file in kind] for kind in zip(*files, strict=True))
    assert [worker.exitcode for worker in workers] == [0, 0], [errors[-3000:] for errors in said]
    return printed, said
