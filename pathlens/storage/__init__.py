"""Files on disk: atomic writes, the lock of a run folder, and the journal of finished batches."""

from __future__ import annotations

from pathlens.storage.files import (
    atomic_write_bytes,
    disk_error,
    make_folder,
    open_regular,
    read_regular,
    write_together,
)
from pathlens.storage.locks import lock_run

__all__ = [
    "atomic_write_bytes",
    "disk_error",
    "lock_run",
    "make_folder",
    "open_regular",
    "read_regular",
    "write_together",
]
