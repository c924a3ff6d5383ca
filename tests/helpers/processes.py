"""Processes that tests start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.helpers import ROOT

PATIENCE = 240  # seconds until a test that hangs is ended


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def two_processes(module: str, *arguments: str) -> tuple[list[str], list[str]]:
    """Run a module as torchrun would in two processes that find each other; what each printed, and what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=PATIENCE) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], [errors[-3000:] for _, errors in outputs]
    return [printed for printed, _ in outputs], [errors for _, errors in outputs]
