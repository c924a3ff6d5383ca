"""Weights files as an attacker writes them: every number and name in them is free."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass
class Storage:
    """What the pickle states of a storage."""

    key: str = "0"
    count: int = 4
    kind: Any = torch.FloatStorage


@dataclass
class Described:
    """A tensor as the pickle describes it, whatever is stored."""

    storage: Storage
    offset: Any = 0
    size: Any = (4,)
    stride: Any = (1,)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, (self.storage, self.offset, self.size, self.stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, value: object) -> tuple[Any, ...] | None:
        if not isinstance(value, Storage):
            return None
        stated = ("storage", value.kind, value.key, "cpu", value.count)
        return (*stated, None) if self.legacy else stated


def pickled(content: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=2)
    pickler.legacy = legacy
    pickler.dump(content)
    return stream.getvalue()


def write_zip(
    path: Path, description: bytes, stored: Iterable[tuple[str, bytes]] = (("0", bytes(16)),), folder: str = "archive"
) -> Path:
    """Write an archive of ``torch.save`` around a pickle; storages may come twice."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", description)
        for key, content in stored:
            archive.writestr(f"{folder}/data/{key}", content)
    return path


def write_legacy(
    path: Path, description: bytes, stored: Iterable[tuple[str, int, bytes]] = (("0", 4, bytes(16)),)
) -> Path:
    """Write the older format: storages come as key, stated length, and bytes."""
    stored = list(stored)
    parts = [pickle.dumps(part, protocol=2) for part in (MAGIC, VERSION, {"little_endian": True})]
    parts += [description, pickle.dumps([key for key, *_ in stored], protocol=2)]
    parts += [struct.pack("<q", count) + content for _, count, content in stored]
    path.write_bytes(b"".join(parts))
    return path


def write_safetensors(path: Path, header: Mapping[str, Any] | bytes, content: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path
