"""Reading weights files that nobody vouches for.

Files are read with ``weights_only=True`` and never retried without it, and sizes are checked before anything is
allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pathlens.errors import CheckpointError, ResourceError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt")
DEFAULT_MAX_BYTES = 16 * 2**30

# torch.save stores without compression, so an honest archive unpacks to about its own size.
_MAX_EXPANSION = 4
_MAX_HEADER = 100_000_000  # of safetensors, as its own reader has it
_AGAIN = "copy or download the weights again"
# What torch's restricted unpickler raises on bytes that no torch.save wrote.
_ON_OTHER_BYTES = (
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    struct.error,
)


def read_weights_file(path: Path, max_bytes: int) -> object:
    """Return what a weights file holds: the tensors of safetensors, or whatever was given to ``torch.save``.

    Raises:
        CheckpointError: if the file is missing, too large, damaged, not a checkpoint, or would run code.
        ResourceError: if its tensors do not fit in memory.
    """
    _check_file(path, max_bytes)
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path, max_bytes)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a ``.safetensors`` file; of other formats, which have none, an empty dict.

    Raises:
        CheckpointError: if the file is missing, or its header is damaged.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    _check_file(path, None)
    metadata = _safetensors_header(path).get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _check_file(path: Path, max_bytes: int | None) -> None:
    """Check what can be known before reading."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path}: a directory: give the weights file inside it")
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file: give a weights file")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file: give the path of a weights file, 'random' or 'pretrained'"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): check the path of the weights") from error
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: not a weights file by its name: give one of {', '.join(SUFFIXES)}")
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty: {_AGAIN}")
    if max_bytes is not None and size > max_bytes:
        raise CheckpointError(
            f"{path}: {_gib(size)} is more than the limit of {_gib(max_bytes)}: is this a weights file?"
        )


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Read and check the header: its length, and that the declared tensors fit in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{path}: truncated or not safetensors: {_AGAIN}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: damaged or not safetensors (its header is no JSON): {_AGAIN}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged or not safetensors (its header is no table): {_AGAIN}")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(isinstance(o, int) for o in offsets)
            or not 0 <= offsets[0] <= offsets[1] <= size - 8 - length
        ):
            raise CheckpointError(f"{path}: truncated or damaged, tensor {name!r} lies outside the file: {_AGAIN}")
    return header


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _safetensors_header(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged safetensors ({_line(error)}): {_AGAIN}") from error
    except (MemoryError, RuntimeError) as error:
        raise _memory_or_damage(path, error) from error


def _read_torch(path: Path, max_bytes: int) -> object:
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path, max_bytes)
    try:
        # Training scripts keep their arguments beside the weights. A Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from error
    except (MemoryError, RuntimeError) as error:
        raise _memory_or_damage(path, error) from error
    except _ON_OTHER_BYTES as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint: {_AGAIN}") from error


def _check_archive(path: Path, max_bytes: int) -> None:
    """Refuse an archive that would unpack to far more than its own size."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({_line(error)}): {_AGAIN}") from error
    size = path.stat().st_size
    if declared > max_bytes or declared > _MAX_EXPANSION * size + 2**20:
        raise CheckpointError(
            f"{path}: refused, because its {size} bytes would unpack to {declared} (torch.save does not compress): "
            "save the weights again with torch.save"
        )


def _refusal(path: Path, error: Exception) -> str:
    """Word a refusal of torch's restricted unpickler, whose own message advises to switch the restriction off."""
    found = re.search(r"[Uu]nsupported (?:global: )?(?:GLOBAL|class) (\S+)", str(error))
    if found is None:
        return f"{path}: not a checkpoint, or damaged: {_AGAIN}, or save model.state_dict() with torch.save"
    return (
        f"{path}: refused, because it holds more than weights and loading it would run code ({found.group(1)}): "
        "save model.state_dict() alone, best as .safetensors"
    )


def _memory_or_damage(path: Path, error: Exception) -> CheckpointError | ResourceError:
    text = _line(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "DefaultCPUAllocator" in text:
        return ResourceError(f"{path}: its tensors do not fit in memory: free memory, or give smaller weights")
    if "TorchScript" in text:
        return CheckpointError(f"{path}: a TorchScript program, not weights: save model.state_dict() instead")
    return CheckpointError(f"{path}: truncated, damaged or not a checkpoint ({text[:160]}): {_AGAIN}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
