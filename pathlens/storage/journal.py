"""Finished batches of an analysis on disk, so that a killed one can be resumed.

One line of JSON a batch, appended and flushed to the disk. A line that was cut off by the kill, or that does not have
the checksum it states, is dropped on reading. The name of the file is a hash of all that the numbers depend on, so
another command never reads it.

In the default folder a journal is optional: where it cannot be written, the work goes on without it. Journals there
that were not written to for KEEP_DAYS are removed when the next one is opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from pathlens.errors import RunError
from pathlens.storage.files import disk_error, open_regular

KEEP_DAYS = 30
"""Journals of the default folder that were not written to for so long are removed."""

Values = Any


def key_of(depends_on: Mapping[str, object]) -> str:
    """Hash of everything that the results of a sweep depend on."""
    text = json.dumps(depends_on, sort_keys=True, default=str)
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
        In the default folder, neither for what cannot be written: that is said on stderr, and nothing is kept.
    """

    def __init__(self, folder: Path, key: str, rank: int = 0) -> None:
        self._folder = folder
        self._key = key
        self._rank = rank
        self._optional = folder == default_folder()
        self._path = folder / f"{key}.{rank}.jsonl"
        self._file: IO[bytes] | None = None
        self.done: dict[int, Values] = {}
        if self._optional:
            _remove_old(folder, key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        except OSError as error:
            self._failed(error)
            return
        try:
            _lock(self._file.fileno())
        except BlockingIOError:
            self._file.close()
            raise RunError(
                f"the same sweep is running already (journal {self._path}); wait for it or give another --out"
            ) from None
        except OSError:
            pass  # where files cannot be locked, two equal sweeps just do the work twice
        if self._file.tell():
            # so that the next line does not continue one that was cut off by a kill
            self._write(b"\n")
        for part in sorted(folder.glob(f"{key}.*.jsonl")):
            self.done.update(_read(part, key))

    def add(self, batch: int, values: Values) -> None:
        """Append a finished batch; on the disk when this returns.

        Raises:
            ResourceError: the disk is full; what was finished before is kept.
        """
        self.done[batch] = values
        record = {"batch": batch, "values": values, "check": _check(self._key, batch, values)}
        self._write(json.dumps(record).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._optional:
            raise disk_error(error, self._path) from error
        self.close()
        self._file = None
        if self._rank == 0:
            _say_once(
                f"{self._folder} cannot be written ({error.strerror or error}): if this is killed, it starts anew"
            )

    def close(self) -> None:
        """Release the journal and keep what it holds; one that holds nothing is removed, with its folder."""
        if self._file is None or self._file.closed:
            return
        with contextlib.suppress(OSError):
            if not os.fstat(self._file.fileno()).st_size:
                self._path.unlink(missing_ok=True)
        # closing flushes what a full disk could not take, which was reported already
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def finish(self) -> None:
        """The analysis is complete: remove the journal, inside :func:`results_unsaved` only when that is told to."""
        unsaved = _UNSAVED.get()
        if unsaved is None:
            self.clear()
        else:
            self.close()
            unsaved.append(self)

    def clear(self) -> None:
        """Remove all parts, also those of earlier runs with more processes."""
        self.close()
        for part in self._folder.glob(f"{self._key}.*.jsonl"):
            with contextlib.suppress(OSError):
                part.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


_UNSAVED: ContextVar[list[Journal] | None] = ContextVar("_UNSAVED", default=None)


@contextlib.contextmanager
def results_unsaved() -> Iterator[Callable[[], None]]:
    """Keep the journals of analyses that end in the body, because their results may still be lost.

    Yields:
        What removes them, to be called once the results are written and printed.
    """
    journals: list[Journal] = []

    def saved() -> None:
        for journal in journals:
            journal.clear()

    token = _UNSAVED.set(journals)
    try:
        yield saved
    finally:
        _UNSAVED.reset(token)


@functools.cache
def _say_once(note: str) -> None:
    """Print a note once, because all journals of an analysis fail for the same reason."""
    print(f"pathlens: {note}; see --out", file=sys.stderr, flush=True)


def _remove_old(folder: Path, key: str) -> None:
    """Remove journals of other keys that nobody has written to for KEEP_DAYS and that are not in use."""
    oldest = time.time() - KEEP_DAYS * 24 * 3600
    for path in folder.glob("*.jsonl"):
        if path.name.startswith(f"{key}."):
            continue
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime >= oldest:
                continue
            opened = open_regular(path, os.O_WRONLY)  # a link or a pipe is no journal
            try:
                _lock(opened)
                path.unlink()
            finally:
                os.close(opened)


def _lock(opened: int) -> None:
    """Lock a journal until it is closed, or its process ends.

    A journal is its own lock, for which filelock is not: some of its versions empty the file that they lock.

    Raises:
        BlockingIOError: another has locked it.
        OSError: files cannot be locked here.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("no file locks") from error
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check(key: str, batch: int, values: Values) -> str:
    return hashlib.sha256(json.dumps([key, batch, values]).encode()).hexdigest()[:16]


def _read(path: Path, key: str) -> Iterable[tuple[int, Values]]:
    batches: list[tuple[int, Values]] = []
    try:
        stream = os.fdopen(open_regular(path, os.O_RDONLY), "rb")
    except OSError:  # a link or a pipe is no journal
        return batches
    with stream:
        for line in stream:
            try:
                record = json.loads(line)
                batch, values = record["batch"], record["values"]
                if type(batch) is int and record["check"] == _check(key, batch, values):
                    batches.append((batch, values))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # cut off by the kill
    return batches
