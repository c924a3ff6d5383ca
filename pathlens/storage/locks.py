"""The lock of a run folder, which keeps two processes apart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pathlens.errors import RunError
from pathlens.storage.files import LEFT, disk_error, make_folder, open_regular

_LOCK = ".lock"


@contextlib.contextmanager
def lock_run(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold a run folder for the body, so that no other process writes to it; makes the folder if it is missing.

    The lock ends with the process, however that ends. Inside the body the same thread may take it again.

    Args:
        out: the run folder.

    Yields:
        The folder.

    Raises:
        ResourceError: the disk is full.
        RunError: another process (or thread) holds the folder, or ``out`` is a file or cannot be written to.
    """
    from filelock import FileLock, Timeout

    folder = make_folder(out)
    path = folder.resolve() / _LOCK
    try:
        os.close(
            open_regular(path, os.O_RDWR | os.O_CREAT)
        )  # refuses a symbolic link, whose target would be overwritten
    except OSError as error:
        raise disk_error(error, folder / _LOCK) from error
    # a singleton for each path, so that the thread that holds it may take it again
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        holder = path.read_text(errors="replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise RunError(f"run folder {folder} is in use by {who}; wait for it or choose another folder") from error
    except OSError as error:
        raise RunError(f"run folder {folder} cannot be locked: {error.strerror}; choose a local folder") from error
    try:
        try:
            path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise disk_error(error, folder / _LOCK) from error
        if lock.lock_counter == 1:
            # what a process that was killed while it wrote has left; nobody else writes here now
            for left in folder.glob(LEFT):
                with contextlib.suppress(OSError):
                    left.unlink()
        yield folder
    finally:
        lock.release()
