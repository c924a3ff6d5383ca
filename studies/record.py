"""The tables of a study's folder, and the record of where they come from.

A study first measures, which may take hours, and writes tables. Its page is then made from those tables alone, so that
whatever it says can be recomputed from what is committed: ``python -m studies.NAME --restate`` does only that. The
record says which code, machine and data each of the two steps had, and the trainings before them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathlens.data import ImageData
from pathlens.report import provenance
from pathlens.storage import atomic_write_bytes
from pathlens.tables import Column, Table, read_table

NAME = "record.json"
#: what is said of every step
STEP = ("date", "commit", "versions", "hardware")
#: what is said of every training
TRAINING = ("run", *STEP)


class Tables(Mapping[str, Table]):
    """The tables of a folder by stem. What is read back is what was written, so that a page says nothing else.

    Args:
        folder: of the study's results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Table] = {}

    def put(self, stem: str, table: Table, without: Iterable[str] = ()) -> None:
        """Write a table with complete provenance.

        Args:
            stem: of its files.
            table: the table.
            without: columns to leave out.
        """
        kept = leave_out(table, without)
        Table(kept.columns, kept.rows, _made(**table.provenance)).write(self.folder, stem)
        self._read.pop(stem, None)

    def __getitem__(self, stem: str) -> Table:
        """The table as its CSV file has it.

        Raises:
            KeyError: there is none.
        """
        if stem not in self._read:
            path = self.folder / f"{stem}.csv"
            if not path.is_file():
                raise KeyError(stem)
            self._read[stem] = read_table(path)
        return self._read[stem]

    def __iter__(self) -> Iterator[str]:
        """Stems in alphabetic order."""
        return iter(sorted(path.stem for path in self.folder.glob("*.csv")))

    def __len__(self) -> int:
        """How many there are."""
        return sum(1 for _ in self)


def make_table(columns: Iterable[tuple[str, str, str]], rows: Iterable[Mapping[str, Any]], **facts: Any) -> Table:
    """A table from (name, unit, description) and rows; a row may have more than the columns."""
    chosen = tuple(Column(*column) for column in columns)
    return Table(chosen, tuple({column.name: row[column.name] for column in chosen} for row in rows), facts)


def leave_out(table: Table, names: Iterable[str]) -> Table:
    """A table without the columns of these names, where it has them."""
    left_out = set(names)
    columns = tuple(column for column in table.columns if column.name not in left_out)
    rows = tuple({name: value for name, value in row.items() if name not in left_out} for row in table.rows)
    return Table(columns, rows, table.provenance)


def _made(**facts: Any) -> dict[str, Any]:
    """Provenance, of which the commit says too where a study has been changed since."""
    made = provenance(**facts)
    command = ["git", "-C", str(Path(__file__).parent), "--no-optional-locks", "status", "--porcelain", "--", "."]
    changed = subprocess.run(command, capture_output=True, check=False).stdout.strip()
    if changed and "commit" not in facts and not str(made["commit"]).endswith("-dirty"):
        made["commit"] = f"{made['commit']}-dirty"
    return made


def step(**facts: Any) -> dict[str, Any]:
    """Where the running code comes from and what it runs on."""
    made = _made(**facts)
    return {name: made[name] for name in (*STEP, "command", *facts)}


def training(run: str, folder: Path) -> dict[str, Any]:
    """What the run folder of a training says of it, and where the manifest names them, of the calls that made it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    of_images = ("train_images", "train_sha256", "validation_images", "test_sha256")
    kept = ("recipe", "rule", "seed", "dtype", "device", "data", *of_images)
    model = manifest.get("model")  # of a study's own file only its place in the repository
    named = model and re.sub(r"^.*/(studies/)", r"\1", model)
    calls = {"calls": manifest["calls"]} if "calls" in manifest else {}
    return {"run": run, **{name: manifest.get(name) for name in (*STEP, *kept)}, "model": named, **calls}


def gaps(trainings: Sequence[Mapping[str, Any]]) -> str:
    """What the record lacks of trainings, in sentences with a blank before each; nothing where it is complete.

    Args:
        trainings: of the record.
    """
    alike: dict[tuple[str, str], int] = {}
    for one in trainings:
        if missing := [name for name in STEP if not one.get(name)]:
            what = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            lacks = (what, one.get("note") or "no reason is recorded")
            alike[lacks] = alike.get(lacks, 0) + 1
    return "".join(
        f" Provenance is incomplete: the record lacks {what} of {count} of {len(trainings)} trainings ({why})."
        for (what, why), count in alike.items()
    )


def images(data: ImageData) -> dict[str, Any]:
    """What provenance says of images where no analysis says it."""
    return {"data": data.name, "split": data.split, "images": data.n, "data_sha256": data.fingerprint}


def write(folder: Path, **parts: Any) -> Path:
    """Write the record: given parts replace those that are there, and every file of the folder has its SHA-256.

    Args:
        folder: of the study's results.
        **parts: ``study``, ``scale``, ``protocol``, ``measured``, ``page``, ``trainings``; ``apart``: part of the study
            that was measured alone -> its ``measured`` and ``trainings``.
    """
    record = {**read(folder), **parts}
    tables = Tables(folder)
    named = (
        "data",
        "split",
        "images",
        "data_sha256",
        "batch_size",
        "dtype",
        "mode",
        "samples",
        "max_samples",
        "draws",
        "taken_from",
    )
    record["tables"] = {
        stem: {
            **{name: facts[name] for name in ("date", "commit", *named) if name in facts},
            "cpu": (facts.get("hardware") or {}).get("cpu"),
        }
        for stem in tables
        for facts in [tables[stem].provenance]
    }
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (NAME, "README.md") and not path.name.startswith(".")
    )
    record["files"] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return atomic_write_bytes(folder / NAME, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """The record of a folder; empty where there is none."""
    path = folder / NAME
    return json.loads(path.read_text()) if path.is_file() else {}


def protocol_of(table: Table) -> str:
    """Images, batch, paths and mode of a measurement, in words, from the provenance of its table."""
    facts = table.provenance
    said = []
    if "images" in facts:
        where = f" ({facts['split']})" if facts.get("split") else ""
        said.append(f"{facts['images']:,} {facts.get('examples', 'images')} of {facts['data']}{where}")
    if "batch_size" in facts:
        said.append(f"batches of {facts['batch_size']}")
    # an engine runs networks in eval mode; only a loss surface may estimate the statistics of batch norms anew
    in_eval = "engine" in facts and facts.get("batch_norm", "kept") == "kept"
    if mode := facts.get("mode") or ("eval" if in_eval else None):
        said.append(f"{'batch norms in ' if facts.get('examples', 'images') == 'images' else ''}{mode} mode")
    if facts.get("verb") == "path-gradients":
        samples = [row["samples"] for row in table.rows if row.get("samples")]
        if samples:
            said.append(f"{min(samples):,} to {max(samples):,} sampled paths a length{_spread(facts)}")
        if facts.get("draws"):
            said.append(f"{facts['draws']} draws of signs")
    elif facts.get("samples") and facts.get("verb") != "blockdrop":  # whose sets are of one size
        said.append(f"{facts['samples']} drawn at each size")
    if facts.get("dtype"):
        said.append(str(facts["dtype"]))
    return ", ".join(said) + "."


def _spread(facts: Mapping[str, Any]) -> str:
    """Over how many batches the sampled paths are spread, in words; nothing where that is one, or not known."""
    batches = math.ceil(facts["images"] / facts["batch_size"]) if {"images", "batch_size"} <= facts.keys() else 1
    return f" (each for one of the {batches} batches; a path of two batches counts twice)" if batches > 1 else ""
