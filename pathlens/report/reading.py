"""Run folders read back: the manifest, the tables and the pictures of one verb."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pathlens.errors import RunError, UsageError, one_line
from pathlens.report.folder import LARGEST_MANIFEST, MANIFEST, Manifest
from pathlens.storage import read_regular
from pathlens.tables import LARGEST_TABLE, Table, table_from

_PICTURES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
}  # of several pictures of a figure, the first in this order is shown
_LARGEST_SVG = 2_000_000
_LARGEST_PICTURES = 2**26  # bytes of all figures of a run
_DEEPEST = 50  # levels of nesting that a manifest may have


@dataclass(frozen=True)
class Picture:
    """A figure that the run wrote: file name, MIME type, content."""

    name: str
    mime: str
    data: bytes


@dataclass(frozen=True)
class Run:
    """What one folder holds.

    Attributes:
        folder: as it was given.
        label: the shortest end of its path that no other run of the page has.
        verb: what made it.
        manifest: all of ``manifest.json``.
        tables: by file stem, in the order of the manifest.
        pictures: its figures.
        warnings: what a reader should know of the files.
    """

    folder: Path
    label: str
    verb: str
    manifest: Manifest
    tables: dict[str, Table]
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The options of the run; none where the manifest has no mapping of them."""
        arguments = self.manifest.get("arguments")
        return arguments if isinstance(arguments, dict) else {}


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read run folders; one that is given twice is read once.

    Raises:
        NumericsError: a table holds NaN or an infinity.
        RunError: a folder is missing, has no manifest or no tables, or one that is damaged or of a newer version.
        UsageError: no folders.
    """
    paths = list({os.path.realpath(folder): Path(folder) for folder in folders}.values())
    if not paths:
        raise UsageError("no run was given; give folders that a verb wrote with --out")
    return [_read_run(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: list[Path]) -> list[str]:
    parts = [Path(os.path.realpath(path)).parts[1:] or (str(path),) for path in paths]
    labels = []
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        labels.append("/".join(own[-count:]))
    return labels


def _read_run(folder: Path, label: str) -> Run:
    manifest = _read_manifest(folder)
    warnings: list[str] = []
    tables = {}
    for stem in dict.fromkeys(
        name.rpartition(".")[0] for name in manifest["files"] if name.endswith((".parquet", ".csv"))
    ):
        name = next(name for name in (f"{stem}.parquet", f"{stem}.csv") if name in manifest["files"])
        tables[stem] = table_from(folder / name, lambda path: _listed(path, manifest, LARGEST_TABLE))
    if not tables:
        raise RunError(f"{folder} has a manifest of {manifest['verb']} but no tables; give a folder with results")
    pictures = _read_pictures(folder, manifest, warnings)
    return Run(folder, label, manifest["verb"], manifest, tables, tuple(pictures), tuple(warnings))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST

    def damaged(reason: object) -> NoReturn:
        raise RunError(f"{path} is damaged or not of pathlens ({reason}); run the verb again")

    try:
        text = read_regular(path, LARGEST_MANIFEST)
        manifest = json.loads(text, parse_constant=lambda name: damaged(f"it holds {name}"))
    except FileNotFoundError:
        missing = "does not exist" if not folder.exists() else f"is no run folder: it has no {MANIFEST}"
        raise RunError(f"{folder} {missing}; give a folder that a verb wrote with --out") from None
    except NotADirectoryError:
        raise RunError(f"{folder} is a file, not a run folder; give a folder that a verb wrote with --out") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; make it readable") from error
    except RecursionError:
        damaged("it is nested too deeply")
    except ValueError as error:
        damaged(one_line(error))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("verb"), str):
        damaged("it names no verb")
    names = manifest.get("files")
    if not isinstance(names, dict):
        damaged("it lists no files")
    for name in names:
        if Path(name).name != name or "\0" in name or not _is_encodable(name):
            damaged(f"it lists {name!r}, which is not a file of the folder")
    if _depth_exceeds(manifest, _DEEPEST):
        damaged("it is nested too deeply")
    return manifest


def _is_encodable(name: str) -> bool:
    """Whether a file may have the name: half a surrogate pair may not."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
    return bool(level)


def _read_pictures(folder: Path, manifest: Manifest, warnings: list[str]) -> list[Picture]:
    pictures: dict[str, Picture] = {}
    room = _LARGEST_PICTURES
    for suffix, mime in _PICTURES.items():
        for name in (name for name in manifest["files"] if name.endswith(suffix)):
            stem = name.removesuffix(suffix)
            try:
                data = _listed(folder / name, manifest, room)
            except RunError as error:
                warnings.append(f"The figure {name} is not shown: {error}.")
                continue
            if stem not in pictures and (suffix != ".svg" or len(data) <= _LARGEST_SVG):
                pictures[stem] = Picture(name, mime, data)
                room -= len(data)
    return list(pictures.values())


def _listed(path: Path, manifest: Manifest, at_most: int) -> bytes:
    """A file with the content that the manifest states: nothing else gets onto a page that is handed on.

    Raises:
        FileNotFoundError: the manifest does not list it.
        RunError: it is not there, no regular file, too long, or was changed after the run.
    """
    if path.name not in manifest["files"]:
        raise FileNotFoundError(path)
    entry = manifest["files"][path.name]
    stated = entry.get("sha256") if isinstance(entry, dict) else None
    try:
        data = read_regular(path, at_most)
        if hashlib.sha256(data).hexdigest() == stated:
            return data
        reason = "is not the file that the manifest lists: its SHA-256 is another"
    except FileNotFoundError:
        reason = "is missing, but the manifest lists it"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise RunError(f"{path} {reason}; run {manifest['verb']} again")
