"""The lock of a run folder, which keeps two processes apart."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pathlens.errors import RunError
from pathlens.tables.files import disk_error, open_regular

_LOCK = ".lock"
# Folders that a thread of this process holds: flock would refuse the holder itself a second time.
_held: set[tuple[Path, int]] = set()


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
    folder = make_folder(out)
    key = (folder.resolve(), threading.get_ident())
    if key in _held:
        yield folder
        return
    try:
        handle = open_regular(folder / _LOCK, os.O_RDWR | os.O_CREAT)  # a link would have its target overwritten
    except OSError as error:
        raise disk_error(error, folder / _LOCK) from error
    try:
        _flock(handle, folder)
        _held.add(key)
        yield folder
    finally:
        _held.discard(key)
        os.close(handle)  # which also ends the lock; the file stays, for removing it would race


def _flock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: files still appear whole, but two runs are not kept apart
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunError(f"run folder {folder} cannot be locked: {error.strerror}; choose a local folder") from error
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise RunError(f"run folder {folder} is in use by {who}; wait for it or choose another folder") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def make_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made if it is missing.

    Args:
        out: the folder.

    Raises:
        ResourceError: the disk is full.
        RunError: ``out`` is a file, or cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise RunError(f"{folder} is a file, not a run folder; choose another folder") from error
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder
