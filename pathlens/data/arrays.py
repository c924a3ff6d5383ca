"""Numbers with numbers for targets, from a file of numpy arrays."""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import torch

from pathlens.data.batched import Unnormalised
from pathlens.errors import DataError, one_line
from pathlens.storage import open_regular

LARGEST_ARRAY = 2**30
"""Bytes that an array may have."""

_LONGEST_HEADER = 2**16
_INPUTS, _TARGETS = "inputs", "targets"
#: what zipfile and numpy raise for a file that is damaged
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, TypeError, OverflowError, EOFError, NotImplementedError,
    RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ArrayData(Unnormalised):
    """Inputs and targets in the order of the file, as they are.

    Attributes:
        name: for tables.
        split: what the file is called.
        n: examples in use, after the limit.
        total: examples of the file.
        inputs: float32 of shape (n, ...).
        targets: float32 of shape (n, ...).
    """

    name: str
    split: str
    n: int
    total: int
    inputs: torch.Tensor = field(repr=False)
    targets: torch.Tensor = field(repr=False)
    rows_are: ClassVar[str] = "examples"
    as_they_are: ClassVar[str] = "arrays are taken as they are"

    @property
    def channels(self) -> int | None:
        """Channels of inputs that are images, (n, C, H, W)."""
        return self.inputs.shape[1] if self.inputs.dim() == 4 else None

    @property
    def num_classes(self) -> int:
        """Outputs that a network needs: components of the targets."""
        return self.targets.shape[1] if self.targets.dim() > 1 else 1

    @property
    def normalisation_source(self) -> str:
        """What is said of it."""
        return "none, inputs are taken as the file has them"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over inputs and targets in use."""
        digest = hashlib.sha256(f"arrays {self.inputs.shape} {self.targets.shape}\n".encode())
        for array in (self.inputs, self.targets):
            digest.update(array.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def rows(self, indices: torch.Tensor, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some examples in the order asked for.

        Args:
            indices: numbers of examples, int64 of shape (N,), on the CPU.
            device: where they are put.

        Returns:
            Inputs (N, ...) and targets (N, ...), float32.
        """
        return self.inputs[indices].to(device), self.targets[indices].to(device)

    def hold_out(self, examples: int) -> tuple[ArrayData, ArrayData]:
        """Divide the examples in use at random, always in the same way, into those to train on and those to watch.

        Args:
            examples: how many to hold out.

        Raises:
            DataError: one of the two parts would have none.
        """
        if not 0 < examples < self.n:
            raise DataError(
                f"{self.name}: {examples} of {self.n} examples cannot be held out; give a number that leaves some"
            )
        order = torch.randperm(self.n, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        train, watched = (rows.sort().values for rows in (order[examples:], order[:examples]))
        return self.subset(train, "train"), self.subset(watched, "validation")

    def subset(self, indices: torch.Tensor, split: str) -> ArrayData:
        """Some examples as a set of their own.

        Args:
            indices: numbers of examples, int64 of shape (N,), in the order wanted.
            split: what to call them.
        """
        inputs, targets = self.rows(indices)
        return replace(self, split=split, n=len(indices), total=len(indices), inputs=inputs, targets=targets)


def open_arrays(path: str | os.PathLike[str], *, split: str = "test", limit: int | None = None) -> ArrayData:
    """A file of ``numpy.savez`` with the arrays ``inputs`` and ``targets``, for a regression.

    Args:
        path: the file. Nothing in it is run: arrays of Python objects are refused.
        split: what to call it.
        limit: use the first ``limit`` examples only; more than there are means all.

    Returns:
        The examples.

    Raises:
        DataError: the file cannot be read, is no such file, or holds arrays that are not floating, not finite, too
            large, or of different lengths.
    """
    path = Path(os.path.expanduser(path))
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: give 1 or more")
    try:
        handle = open_regular(path, os.O_RDONLY, follow=True)
        with os.fdopen(handle, "rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {name: _read(archive, name, path) for name in (_INPUTS, _TARGETS)}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its name and permissions") from error
    except _DAMAGED as error:
        raise DataError(
            f"{path} is no file of numpy.savez ({one_line(error, 120)}); write one with inputs= and targets="
        ) from error
    inputs, targets = arrays[_INPUTS], arrays[_TARGETS]
    if len(inputs) != len(targets) or not len(inputs):
        raise DataError(f"{path} has {len(inputs)} inputs and {len(targets)} targets; give one or more of both alike")
    n = len(inputs) if limit is None else min(limit, len(inputs))
    return ArrayData(path.name, split, n, len(inputs), inputs[:n], targets[:n])


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> torch.Tensor:
    """An array as float32."""
    if f"{name}.npy" not in archive.namelist():
        there = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist()[:5]) or "nothing"
        raise DataError(
            f"{path} has no array '{name}' (it has {there}); write it with numpy.savez, inputs= and targets="
        )
    # the others unpack as much as there is at once, whatever size is stated
    if archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} is compressed in another way than numpy's; write it with savez_compressed")
    # a header that is longer than any of an array would be read before its length is looked at
    with archive.open(f"{name}.npy") as stream:
        shape, dtype = _header(io.BytesIO(stream.read(_LONGEST_HEADER)))
    # looked at first, because numpy would take the memory for whatever the header says
    if math.prod(shape) * dtype.itemsize > LARGEST_ARRAY:
        raise DataError(
            f"{path}: {name} has {shape}, more than the limit of {LARGEST_ARRAY:,} bytes; give a part of it"
        )
    if dtype.kind != "f" or not shape:
        raise DataError(f"{path}: {name} is {dtype} of shape {shape}; give floating numbers, one or more an example")
    if archive.getinfo(f"{name}.npy").file_size > LARGEST_ARRAY + _LONGEST_HEADER:
        raise DataError(f"{path}: {name} takes more than the limit of {LARGEST_ARRAY:,} bytes; give a part of it")
    with archive.open(f"{name}.npy") as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False).astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {name} holds NaN or infinity, or numbers too large for float32; leave them out")
    return torch.from_numpy(np.ascontiguousarray(array))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an array's header states.

    Raises:
        ValueError: it is no header.
    """
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"array of version {version}")
    shape, _, dtype = read[version](stream)
    return shape, dtype
