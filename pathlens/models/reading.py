"""Reading weights files from untrusted sources.

The format is recognised by the content. Nothing in it is run, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from pathlens.errors import CheckpointError, ResourceError, one_line
from pathlens.models.torchfile import read_torch_file
from pathlens.runtime.memory import total_memory

DEFAULT_MAX_BYTES = 16 * 2**30

_MAX_HEADER = 16 * 2**20  # bytes, of safetensors; the parsed header takes some twenty times the memory of its text
_AGAIN = "copy or download the weights again"


def read_weights_file(path: Path, max_bytes: int | None) -> object:
    """What a weights file holds: the tensors of safetensors, or whatever was given to ``torch.save``.

    What a file is follows from its content, whatever its name. Of ``torch.save``, tensors come as
    :class:`pathlens.models.torchfile.StoredTensor`.

    Raises:
        CheckpointError: the file is missing, too large, damaged, not a checkpoint, or would run code.
        ResourceError: its tensors do not fit in memory.
    """
    check_file(path, max_bytes)
    try:
        return _read_safetensors(path) if _is_safetensors(path) else read_torch_file(path)
    except MemoryError as error:
        raise no_memory(path) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file; of other formats, which have none, an empty dict.

    Raises:
        CheckpointError: the file is missing, or its header is damaged.
    """
    path = Path(path)
    check_file(path, None)
    if not _is_safetensors(path):
        return {}
    metadata = _safetensors_header(path).get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def check_file(path: Path, max_bytes: int | None) -> None:
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
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: cannot be read ({reason}): check the path of the weights") from error
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty: {_AGAIN}")
    if max_bytes is not None and size > max_bytes:
        raise CheckpointError(
            f"{path}: {_gib(size)} is more than the limit of {_gib(max_bytes)}: is this a weights file?"
        )
    if size > total_memory():
        raise no_memory(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is of safetensors or of ``torch.save``, by how it begins.

    Raises:
        CheckpointError: the file is missing, or cannot be read.
    """
    check_file(path, None)
    return _kind(path) is not None


def _kind(path: Path) -> str | None:
    """``safetensors``, which begin with a length and a JSON object, ``torch``, or None for neither."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return "safetensors"
    # a pickle names its protocol, and the operation that follows is not 0
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[2:3] != b"\0"
    return "torch" if start[:4] == b"PK\x03\x04" or pickled else None


def _is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors, and not of ``torch.save``."""
    kind = _kind(path)
    if kind is not None:
        return kind == "safetensors"
    raise CheckpointError(
        f"{path}: not a checkpoint by its content (neither safetensors nor of torch.save), or damaged: "
        "give a weights file, or copy it again"
    )


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Read and check the header: its length, and that the declared tensors fit in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise CheckpointError(f"{path}: truncated or not safetensors: {_AGAIN}")
        if length > _MAX_HEADER:
            raise CheckpointError(
                f"{path}: refused, because its header takes more than {_MAX_HEADER // 2**20} MiB: "
                "save model.state_dict() alone"
            )
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
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors ({one_line(error)}): {_AGAIN}") from error


def no_memory(path: Path) -> ResourceError:
    """The error for a file whose tensors do not fit in memory."""
    return ResourceError(f"{path}: its tensors do not fit in memory: free memory, or give smaller weights")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
