"""Finished batches of a sweep on disk, so that a killed sweep takes up where it stopped.

One line of JSON a batch, appended and flushed to the disk. A line that was cut off by the kill is dropped on reading.
The name of the file is a hash of all that the numbers depend on, so another command never reads it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pathlens.errors import RunError
from pathlens.tables import disk_error

Values = Any


def key_of(facts: dict[str, Any]) -> str:
    """Hash of everything that the results of a sweep depend on."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def code_version() -> str:
    """Hash of the package's own source, so that results of another version are never mixed in."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def default_folder() -> Path | None:
    """Where journals lie when no run folder is given: ``$XDG_CACHE_HOME/pathlens`` or ``~/.cache/pathlens``.

    Returns:
        The folder, or None where it cannot be written to.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "pathlens" / "journal"
    existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    usable = folder.is_absolute() and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return folder if usable else None


class Journal:
    """The finished batches of one sweep.

    Args:
        folder: where the journal lies; made if missing.
        key: see :func:`key_of`.
        rank: each process appends to a file of its own and reads all of them.

    Raises:
        RunError: the folder cannot be written, or another process is running the same sweep there.
        ResourceError: the disk is full.
    """

    def __init__(self, folder: Path, key: str, rank: int = 0) -> None:
        self._folder = folder
        self._key = key
        path = folder / f"{key}.{rank}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115 - held open for the whole sweep
        except OSError as error:
            raise disk_error(error, path) from error
        self._path = path
        _lock(self._file.fileno(), path)
        if self._file.tell():
            # so that a line which the kill cut off does not take the next one with it
            self._write(b"\n")
        self.done: dict[int, Values] = {}
        for part in sorted(folder.glob(f"{key}.*.jsonl")):
            self.done.update(_read(part))

    @property
    def key(self) -> str:
        """The hash that names the journal."""
        return self._key

    def add(self, batch: int, values: Values) -> None:
        """Append a finished batch; on the disk when this returns.

        Raises:
            ResourceError: the disk is full; what was finished before is kept.
        """
        self.done[batch] = values
        self._write(json.dumps({"batch": batch, "values": values}).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self._path) from error

    def close(self) -> None:
        """Release the journal and keep what it holds; one that holds nothing is removed, with its folder."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            if not os.fstat(self._file.fileno()).st_size:
                self._path.unlink(missing_ok=True)
        # what a full disk has left in the buffer cannot be written and was reported
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def finish(self) -> None:
        """Remove this process's part, because the table is made."""
        self.close()
        self._path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all parts, also those of earlier runs with more processes."""
        self.finish()
        for part in self._folder.glob(f"{self._key}.*.jsonl"):
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: the same sweep twice at once does the work twice
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system without locks: likewise
        raise RunError(
            f"the same sweep is running already (journal {path}); wait for it or give another --out"
        ) from error


def _read(path: Path) -> Iterable[tuple[int, Values]]:
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
            found.append((int(record["batch"]), record["values"]))
        except (ValueError, KeyError, TypeError):
            continue  # cut off by the kill
    return found
