"""Parquet files in the layout of Hugging Face image data sets: a struct of ``bytes`` and ``path``, and a label."""

from __future__ import annotations

import bisect
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pathlens.data.cifar import CIFAR10, CIFAR100
from pathlens.data.decode import GREY_MODES, image_warnings, open_image
from pathlens.data.images import ImageData
from pathlens.data.sources import EncodedSource
from pathlens.data.splits import SPLITS, folder_name, split_of
from pathlens.errors import DataError, MissingSplitError, one_line

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")

# What pyarrow raises on damaged files: names of columns may be no UTF-8.
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
_ROWS_AT_ONCE = 256  # rows of encoded images in memory, however large a row group is
_BYTES_AT_ONCE = 2**28  # and their bytes, as far as the file states them
_LARGEST_FETCH = 2**32  # bytes of the encoded images of a batch
_LARGEST_RATIO = 100  # of unpacked to packed bytes of a column above _BYTES_AT_ONCE; encoded images hardly compress
LARGEST_LABEL = 2**24
_KNOWN = {"cifar10": (CIFAR10, 10), "cifar10-jpeg": (CIFAR10, 10), "cifar100": (CIFAR100, 100)}


def open_parquet(path: Path, split: str, limit: int | None, image_size: int | None) -> ImageData:
    """Images and labels of a parquet file, or of the split's files in a folder.

    A folder may hold ``test.parquet``, shards (``test-00000-of-00002.parquet``) or a folder ``test``, itself or in
    its subfolder ``data``. A file says by its name which split it is. The data set is called after the folder that
    holds the files. Images keep their size unless ``image_size`` is given; grey images keep their one channel where
    all images of the split are grey, and become RGB otherwise.

    Raises:
        DataError: a file is missing, not parquet, lacks the columns, or has labels or images that cannot be used.
    """
    files, split = find_files(path, split)
    rows = ParquetRows(files)
    labels = rows.labels()
    n = rows.total if limit is None else min(limit, rows.total)
    names = rows.class_names
    if names is not None and labels.max() >= len(names):
        row = int((labels >= len(names)).argmax())
        raise DataError(
            f"{rows.where(row)}: label {labels[row]} is outside the {len(names)} classes that the file names; mend it"
        )
    source = EncodedSource(
        fetch=rows.encoded,
        where=rows.where,
        channels=_channels(rows, n),
        image_size=image_size,
        identity=rows.encoded,
    )
    name = folder_name(files[0].parent)
    num_classes = len(names) if names is not None else int(labels.max()) + 1
    constants, classes = _KNOWN.get(name, (None, 0))
    return ImageData(
        name=name,
        split=split,
        n=n,
        total=rows.total,
        num_classes=num_classes,
        class_names=names,
        labels=torch.from_numpy(labels[:n].copy()),
        _source=source,
        _normalisation=constants if num_classes == classes and source.shape[0] == 3 else None,
    )


def find_files(path: Path, split: str) -> tuple[list[Path], str]:
    """The parquet files of a split in order, and the split that they are.

    Raises:
        MissingSplitError: there are none, or a single file is of another split than the one asked for.
        DataError: the path does not exist, or a shard is missing.
    """
    if path.is_file():
        stated = split_of(path.name)
        # "test" may be the default, and then the file decides; any other split was given explicitly.
        if stated is not None and split not in (stated, "test"):
            raise MissingSplitError(
                f"{path} is of the split '{stated}' and '{split}' is asked for; give that split's file"
            )
        return [path], stated or split
    if not path.is_dir():
        what = "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; give parquet: a parquet file, or a folder that holds them")
    for folder in (path, path / "data"):
        for alias in SPLITS[split]:
            whole = folder / f"{alias}.parquet"
            files = [whole] if whole.is_file() else _natural([*folder.glob(f"{alias}[-_.]*.parquet")])
            files = files or _natural([*(folder / alias).glob("*.parquet")])
            if files:
                _check_shards(files)
                return files, split
    near = (file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern))
    others = sorted(file.relative_to(path).as_posix() for file in near)
    held = f"only {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}" if others else "no parquet file at all"
    raise MissingSplitError(
        f"{path} has no file of the split '{split}' ({split}.parquet), {held}; give one file by its path"
    )


class _Group(NamedTuple):
    """A row group: the rows from ``first`` on, in the order of the files, of which so many may be unpacked at once."""

    first: int
    rows: int
    file: int
    number: int
    at_once: int


class ParquetRows:
    """Rows of parquet files in order, read a few at a time.

    Args:
        files: the files, of one layout.

    Raises:
        DataError: a file is no parquet file, lacks a column, or there are no rows.
    """

    def __init__(self, files: list[Path]):
        self._files = files
        self._parquet: list[pq.ParquetFile] = []
        self._columns: list[tuple[str, str]] = []
        self._groups: list[_Group] = []
        self._first_row: list[int] = []  # of each file
        self.total = 0
        for number, file in enumerate(files):
            if not file.is_file():  # a pipe would never end
                raise DataError(f"{file} is no regular file; remove it or give one file by its path")
            try:
                # With these two options pyarrow streams; otherwise it reads the whole column of a row group.
                parquet = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
                columns = _find_columns(parquet.schema_arrow, file)
            except _DAMAGE as error:
                raise DataError(
                    f"{file} is not a readable parquet file ({one_line(error, 200)}); write it anew"
                ) from error
            self._parquet.append(parquet)
            self._columns.append(columns)
            self._first_row.append(self.total)
            self._add_groups(number, file)
        if not self.total:
            raise DataError(f"{files[0]} has no rows; give a file with images")
        self._starts = [group.first for group in self._groups]
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._current: _Group | None = None
        self._chunk: pa.Array = pa.array([], pa.binary())
        self._chunk_first = 0
        self._lock = threading.Lock()  # which all of them share: one place in one file

    def _add_groups(self, number: int, file: Path) -> None:
        """Note the row groups of a file, if what they state can be: a few bytes can stand for any number of rows."""
        metadata, packed = self._parquet[number].metadata, file.stat().st_size
        leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        leaf = leaves.index(self._columns[number][0])
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            column = group.column(leaf)
            rows, size, stored = group.num_rows, column.total_uncompressed_size, column.total_compressed_size
            if not 0 <= rows <= packed - self.total + self._first_row[number]:
                raise DataError(
                    f"{file} states {rows:,} rows in row group {index} and has {packed:,} bytes; write it anew"
                )
            if size > max(_BYTES_AT_ONCE, _LARGEST_RATIO * stored):
                raise DataError(
                    f"{file} states {size:,} bytes of images in row group {index}, packed into {stored:,}; "
                    "images do not shrink so far: check where it is from"
                )
            if rows:
                # With dictionary encoding, every row may have the longest value, which is at most the stated size.
                at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, size)))
                self._groups.append(_Group(self.total, rows, number, index, at_once))
                self.total += rows

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names from the Hugging Face metadata of the schema, where present."""
        metadata = self._parquet[0].schema_arrow.metadata or {}
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            names = features[self._columns[0][1]]["names"]
        except (ValueError, KeyError, TypeError, RecursionError):  # class names are optional
            return None
        return tuple(map(str, names)) if isinstance(names, list) and names else None

    def labels(self) -> np.ndarray:
        """All labels, int64 of shape (total,).

        Raises:
            DataError: a label is missing, negative or not a whole number.
        """
        parts = []
        for file, parquet, (_, column) in zip(self._files, self._parquet, self._columns, strict=True):
            kind = parquet.schema_arrow.types[parquet.schema_arrow.names.index(column)]
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not pa.types.is_integer(kind):  # checked before reading, because other types may unpack to any size
                raise DataError(f"{file}: column '{column}' is of type {kind}; write labels as whole numbers")
            try:
                array = parquet.read(columns=[column]).column(0).combine_chunks()
                if pa.types.is_dictionary(array.type):
                    array = array.dictionary_decode()
                if array.null_count:
                    row = pc.index(array.is_null(), True).as_py()
                    raise DataError(f"{file}: row {row} has no label; remove the row or fill in '{column}'")
                if pa.types.is_uint64(array.type):
                    array = pc.min_element_wise(
                        array, pa.scalar(2**63 - 1, pa.uint64())
                    )  # also above LARGEST_LABEL, but representable
                parts.append(array.cast(pa.int64()).to_numpy(zero_copy_only=False))
            except _DAMAGE as error:
                raise DataError(f"{file}: column '{column}' cannot be read ({one_line(error, 200)})") from error
        labels = np.concatenate(parts)
        if len(labels) != self.total:
            raise DataError(
                f"{self._files[0]} has {len(labels)} labels of {self.total} rows; it is damaged, write it anew"
            )
        if labels.min() < 0:
            row = int((labels < 0).argmax())
            raise DataError(f"{self.where(row)}: label {labels[row]} is negative; give a split that has labels")
        if labels.max() >= LARGEST_LABEL:
            row = int((labels >= LARGEST_LABEL).argmax())
            raise DataError(
                f"{self.where(row)}: label {labels[row]} is outside the classes of any network (at most "
                f"{LARGEST_LABEL:,}); number the classes from 0"
            )
        return labels

    def encoded(self, start: int, stop: int) -> list[bytes]:
        """The encoded images of rows ``start`` to ``stop`` (exclusive), for one thread at a time.

        Raises:
            DataError: a row has no bytes, or the file is damaged.
        """
        with self._lock:
            return self._encoded(start, stop)

    def _encoded(self, start: int, stop: int) -> list[bytes]:
        items: list[bytes] = []
        nbytes = 0
        while start + len(items) < stop:
            row = start + len(items)
            self._read_to(row)
            part = self._chunk.slice(row - self._chunk_first, stop - row)
            nbytes += part.nbytes
            if nbytes > _LARGEST_FETCH:
                raise DataError(
                    f"{self.where(start)} and those up to row {row} hold more than {_LARGEST_FETCH:,} bytes; "
                    "give a smaller batch size"
                )
            items += part.to_pylist()
        for number, item in enumerate(items):
            if item is None:
                raise DataError(f"{self.where(start + number)}: the row holds no image bytes; write them into the file")
        return items

    def where(self, row: int) -> str:
        """Name of a row in messages: its number in its own file."""
        file = self._group(row).file
        return f"row {row - self._first_row[file]} of {self._files[file]}"

    def _group(self, row: int) -> _Group:
        return self._groups[bisect.bisect_right(self._starts, row) - 1]

    def _read_to(self, row: int) -> None:
        """Make ``_chunk`` the one that holds ``row``: read on in the same row group, else start on the row's own."""
        group = self._group(row)
        file = self._files[group.file]
        column = self._columns[group.file][0]
        try:
            if group != self._current or row < self._chunk_first:
                self._batches = self._parquet[group.file].iter_batches(
                    batch_size=group.at_once, row_groups=[group.number], columns=[column]
                )
                self._current, self._chunk, self._chunk_first = group, self._chunk[:0], group.first
            while row >= self._chunk_first + len(self._chunk):
                batch = next(self._batches, None)
                if batch is None:
                    raise DataError(f"{file} has fewer rows than it states; it is damaged, write it anew")
                self._chunk_first += len(self._chunk)
                array = batch.column(0)
                self._chunk = pc.struct_field(array, "bytes") if pa.types.is_struct(array.type) else array
        except _DAMAGE as error:
            self._current = None
            raise DataError(
                f"{file}: column '{column}' cannot be read ({one_line(error, 200)}); write it anew"
            ) from error


def _channels(rows: ParquetRows, n: int) -> int:
    """1 where all images of the split are grey, else 3; reads headers until the first colour image."""
    for start in range(0, rows.total, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, rows.total)
        with image_warnings():
            for row, item in enumerate(rows.encoded(start, stop), start):
                try:
                    with open_image(item, rows.where(row)) as image:
                        if image.mode not in GREY_MODES:
                            return 3
                except DataError:
                    if row < n:  # rows past the limit are not used
                        raise
    return 1


def _find_columns(schema: pa.Schema, file: Path) -> tuple[str, str]:
    """Names of the column that holds the images' bytes (of a struct that field alone) and of the labels."""
    images = [name for name, kind in zip(schema.names, schema.types, strict=True) if _holds_images(name, kind)]
    usual = [name for name in IMAGE_COLUMNS if name in images]
    columns = ", ".join(f"{name} ({kind})" for name, kind in zip(schema.names, schema.types, strict=True)) or "none"
    columns = columns if len(columns) <= 300 else columns[:300] + " ..."
    if not usual and len(images) != 1:
        how_many = "several columns" if images else "no column"
        raise DataError(
            f"{file} has {how_many} of images (a struct with 'bytes'); call one 'img' or 'image'; columns: {columns}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label is None:
        raise DataError(f"{file} has no label column ({', '.join(LABEL_COLUMNS)}); columns: {columns}")
    name = (usual or images)[0]
    twice = next((used for used in (name, label) if schema.names.count(used) > 1), None)
    if twice is not None:
        raise DataError(f"{file} has two columns called '{twice}'; rename one; columns: {columns}")
    return f"{name}.bytes" if pa.types.is_struct(schema.types[schema.names.index(name)]) else name, label


def _holds_images(name: str, kind: pa.DataType) -> bool:
    def binary(leaf: pa.DataType) -> bool:
        return pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf)

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and binary(field.type) for field in kind)
    return name in IMAGE_COLUMNS and binary(kind)


def _natural(files: list[Path]) -> list[Path]:
    """Sorted with numbers by value, so that shard 10 comes after shard 9."""
    return sorted(files, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def _check_shards(files: list[Path]) -> None:
    numbers = [re.search(r"-(\d+)-of-(\d+)", file.name) for file in files]
    stated = [(int(match[1]), int(match[2])) for match in numbers if match]
    if not stated:
        return
    count = stated[0][1]
    if not len(stated) == len(files) == count or sorted(stated) != [(shard, count) for shard in range(count)]:
        raise DataError(
            f"{files[0].parent} holds {len(files)} of the {count} shards that {files[0].name} speaks of; "
            "give a folder with each of them once"
        )
