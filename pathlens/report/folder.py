"""A run folder: one verb's tables, figures and manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pathlens.errors import RunError, UsageError
from pathlens.report.environment import provenance
from pathlens.storage import lock_run, make_folder, read_regular, write_together
from pathlens.tables import Table, plain_json

if TYPE_CHECKING:
    from pathlens.figures import Figure

MANIFEST = "manifest.json"
"""Name of the file that describes a run folder."""

Manifest = Mapping[str, Any]
"""Content of that file: the provenance, the verb with its arguments, and the files."""

LARGEST_MANIFEST = 2**24
"""Bytes; a longer one is not read."""

_LARGEST_STALE = 2**30


def check_run_folder(out: str | os.PathLike[str], verb: str) -> Manifest | None:
    """Whether ``verb`` may write its results into ``out``; makes the folder if it is missing.

    To be asked before the work and not after it.

    Args:
        out: the run folder.
        verb: whose results are to be written.

    Returns:
        The manifest of an earlier run of the same verb, or None.

    Raises:
        RunError: ``out`` is a file or cannot be written to, or it holds a manifest of another verb or one that is
            damaged.
    """
    folder = make_folder(out)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {folder}: permission denied; choose a folder that can be written to")
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_regular(path, LARGEST_MANIFEST))
        other = manifest["verb"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; make it readable or choose another folder") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged or not of pathlens; move it away or choose another folder") from error
    if other != verb:
        raise RunError(f"{folder} holds results of {other}, not of {verb}; give {verb} its own folder")
    return cast(Manifest, manifest)


def write_run(
    out: str | os.PathLike[str],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    manifest: Manifest,
) -> list[Path]:
    """Write the results of a verb: per table CSV, Parquet and description, per figure PNG and PDF, and the manifest.

    All files are put on the disk before the first one gets its name, and ``manifest.json``, with the size and SHA-256
    of each, gets its name last. Results of an earlier run of the same verb are replaced; those of its files that this
    run does not have are removed if they are unchanged. Other files in the folder are left alone.

    Args:
        out: the run folder.
        tables: by file stem.
        figures: by file stem.
        manifest: what is to be recorded, with at least ``verb``: arguments, seed, hashes of model and data, wall time
            in seconds. What it lacks of :func:`pathlens.report.provenance` is added.

    Returns:
        The paths written, the manifest last.

    Raises:
        ResourceError: the disk is full; the old results are still there.
        RunError: ``out`` is a file, in use, or cannot be written to, or holds results of another verb.
        UsageError: no ``verb`` in the manifest, or a stem that is not a plain file name.
    """
    verb = manifest.get("verb")
    if not isinstance(verb, str) or not verb:
        raise UsageError("the manifest of a run names no verb; give one, such as delete-blocks")
    contents: dict[str, bytes] = {}
    for stem, table in tables.items():
        contents.update(table.files(stem))
    if figures:
        from pathlens.figures import files  # here, because it loads matplotlib

        for stem, figure in figures.items():
            contents.update(files(figure, stem))
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    record = plain_json({**provenance(), **manifest, "files": listed}, "the manifest")
    contents[MANIFEST] = (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
    with lock_run(out) as folder:
        old = check_run_folder(folder, verb)
        written = write_together({folder / name: data for name, data in contents.items()})
        _remove_stale(folder, (old or {}).get("files"), set(contents))
    return written


def _remove_stale(folder: Path, listed: object, written: set[str]) -> None:
    """Remove what an earlier manifest lists, is not written anew, and has the content that the manifest states."""
    for name, entry in listed.items() if isinstance(listed, dict) else ():
        path = folder / name
        if name in written or path.parent != folder or not isinstance(entry, dict):
            continue
        with contextlib.suppress(OSError, ValueError):  # a null byte in the name
            if hashlib.sha256(read_regular(path, _LARGEST_STALE)).hexdigest() == entry.get("sha256"):
                path.unlink()
