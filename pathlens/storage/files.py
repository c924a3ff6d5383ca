"""Writing files atomically (beside the target, synced, then renamed), and reading files that may be untrusted.

A reader never sees half a file, and a set of files that belongs together appears only when all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from pathlens.errors import PathlensError, ResourceError, RunError

LEFT = ".pathlens-*.tmp"
"""Names of files that are being written, which a process that is killed then leaves."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_error(error: OSError, path: Path) -> PathlensError:
    """The error for a failure to write ``path``: a ResourceError for a full disk, else a RunError.

    Args:
        error: what the system said.
        path: the file that was to be written.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return ResourceError(f"cannot write {path}: {reason}; free some space or choose another folder")
    return RunError(f"cannot write {path}: {reason}; choose a folder that can be written to")


def open_regular(path: str | os.PathLike[str], flags: int, *, follow: bool = False) -> int:
    """Open a regular file that somebody else may have put there; a pipe does not make it wait.

    Args:
        path: the file.
        flags: of ``os.open``.
        follow: whether the name may be a symbolic link.

    Returns:
        The file descriptor.

    Raises:
        OSError: as of ``os.open``; also where it is a pipe, a device or a folder, or a link that is not followed.
    """
    more = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags | more | (0 if follow else getattr(os, "O_NOFOLLOW", 0)), 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise OSError(errno.EINVAL, "it is no regular file") from error
        if error.errno == errno.ELOOP and not follow and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


def read_regular(path: str | os.PathLike[str], at_most: int, *, follow: bool = False) -> bytes:
    """The content of a regular file that somebody else may have put there.

    Args:
        path: the file.
        at_most: bytes; a longer file is refused before it is read.
        follow: whether the name may be a symbolic link.

    Raises:
        OSError: as of :func:`open_regular`; also where the file is too long.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY, follow=follow), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > at_most else stream.read(at_most + 1)
    if max(size, len(content)) > at_most:
        raise OSError(errno.EFBIG, f"it is longer than the {at_most:,} bytes that are read of such a file")
    return content


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
        raise RunError(f"{folder} is a file, not a folder; choose another folder") from error
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


def _sync_folder(folder: Path) -> None:
    # Durability of the new name only: the bytes are synced already, and not every file system can sync a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_together(files: Mapping[Path, bytes]) -> list[Path]:
    """Write several files so that none is visible before all of them are on the disk.

    Folders that are missing are made. The files get their names in the order of ``files``, so what describes the
    others (a manifest) goes last.

    Args:
        files: content by path.

    Returns:
        The paths, in the order given.

    Raises:
        ResourceError: the disk is full; nothing of the new content is visible.
        RunError: a path cannot be written, or is a folder.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            staged[path] = path.with_name(LEFT.replace("*", secrets.token_hex(8)))
            with staged[path].open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for path, temporary in staged.items():
            os.replace(temporary, path)
        for folder in dict.fromkeys(path.parent for path in staged):
            _sync_folder(folder)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
    return list(files)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write one file so that readers see the old content or the new, never a part.

    Args:
        path: the file to write or replace.
        data: its content.

    Raises:
        ResourceError: the disk is full.
        RunError: the path cannot be written.
    """
    return write_together({Path(path): data})[0]
