"""Files of ``torch.save``, read without ``torch.load``.

A checkpoint of a stranger may be made to run code, to allocate what it does not hold, or to be read as one thing by
one parser and as another by the next. So its pickle is read once, by an unpickler that knows the names that weights
need and puts something inert in their place: nothing that a file names is ever imported or called. What comes out are
descriptions of tensors, and the bytes of those that are wanted are read afterwards, if they lie in the file.

Both formats are read: the zip archive, and the legacy one (pickles, then the bytes of each storage behind its length).
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pathlens.errors import CheckpointError

# Bytes of the pickle that describes the tensors, about 200 for each tensor. The objects built from it take some fifty
# times its memory, and seconds to build. The directory of an archive may take no more either.
MAX_DESCRIPTION = 16 * 2**20
_AGAIN = "copy or download the weights again"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
_DIRECTORY_SIZE = 5  # in the list that zipfile makes of the end of an archive
# Errors raised by a pickle that torch.save did not write.
_DAMAGE = (
    EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
    RuntimeError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
    "QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32,
}  # fmt: skip
# Names that are accepted beside weights, and whose values are ignored. Any other name would run code in torch.load.
_INERT = re.compile(
    r"argparse\.Namespace|torch\.(device|Tensor|\w+_affine|preserve_format|\w+_last\w*|contiguous_format|_layout)"
    r"|torch\.serialization\._get_layout|torch\.nn\.parameter\.(Parameter|Buffer)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(bytearray|set|frozenset|complex|slice|range)"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
)
_WITHOUT_VALUES = {
    "_rebuild_qtensor": "quantised", "_rebuild_sparse_tensor": "sparse", "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested", "_rebuild_meta_tensor_no_storage": "meta",
}  # fmt: skip


class RefusedError(Exception):
    """A name in a pickle that is not of weights, such as a function to call."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file, as the file describes it: nothing of it is checked before :meth:`read`.

    Attributes:
        without: why it has no plain values (sparse, quantised, ...), or an empty string.
    """

    storage: Any = None
    dtype: Any = None
    offset: Any = None
    size: Any = None
    stride: Any = None
    without: str = ""

    def read(self) -> Tensor:
        """Its values.

        Raises:
            ValueError: the description contradicts itself, or what the file holds; the message says how.
        """
        storage, size, stride = self.storage, self.size, self.stride
        if not isinstance(storage, _Storage) or not isinstance(self.dtype, torch.dtype):
            raise ValueError("it has no storage")
        numbers = (self.offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(size) != len(stride) or len(size) > 64:
            raise ValueError("its shape or strides are no such thing")
        count, width = math.prod(size), self.dtype.itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
        start = storage.start + self.offset * width
        end = storage.start + (last + 1) * width
        if count * width > storage.nbytes or end > storage.nbytes or start % width:
            raise ValueError(f"its {count} values do not lie in the {storage.nbytes} bytes that are stored for it")
        if not count:
            return torch.empty(size, dtype=self.dtype)
        return storage.source.bytes_of(storage)[start:end].view(self.dtype).as_strided(size, stride, start // width)


class _Storage(NamedTuple):
    source: _Source
    key: str
    dtype: torch.dtype
    nbytes: int
    start: int = 0  # first byte, for views of the legacy format


@dataclass
class _Source:
    """Where in a file the storages lie, and those that were read."""

    path: Path
    place: Callable[[str], tuple[int, int]]  # from a storage's key to its first byte and number of bytes
    unread: int  # bytes of the file not read yet; overlapping storages would need more than there are
    read: dict[str, Tensor] = field(default_factory=dict)

    def bytes_of(self, storage: _Storage) -> Tensor:
        """A whole storage; tensors that share one in the file share it in memory."""
        if storage.key not in self.read:
            first, held = self.place(storage.key)
            self.unread -= held
            if self.unread < 0:
                raise ValueError("it shares its bytes in the file with others")
            buffer = bytearray(held)
            with self.path.open("rb") as file:
                file.seek(first)
                if file.readinto(buffer) != held:
                    raise ValueError("the file ends before it")
            self.read[storage.key] = torch.frombuffer(buffer, dtype=torch.uint8) if held else torch.empty(0)
        content = self.read[storage.key]
        if content.numel() != storage.nbytes:
            raise ValueError(f"{storage.nbytes} bytes are stated for it and the file holds {content.numel()}")
        return content


def _is_short(key: Any) -> bool:
    """Whether a key is text or a small number: others may be made to hash alike, or be endless as text."""
    return isinstance(key, str | bytes) or (type(key) is int and abs(key) < 2**60)


class _Table(dict[Any, Any]):
    """A dict of a file, without keys that are neither text nor small numbers: their hashes may be made to collide."""

    _metadata: Any = None  # what a state dict of torch says of its modules, beside its entries

    def __init__(self, pairs: Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__()
        for key, value in pairs.items() if isinstance(pairs, _Table) else pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if _is_short(key):
            super().__setitem__(key, value)


class _Inert:
    """Stands for a value of which nothing is needed: takes all that an unpickler does to it."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setitem__(self, key: Any, value: Any) -> None: ...

    append = add = extend = lambda self, _: None


class _Call:
    """A function of this module that stands for one that a file names."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    # the argument after the hooks, if any, marks values that would have to be conjugated or negated
    without = "conjugated or negated" if len(more) > 2 and more[2] else ""
    return StoredTensor(storage, getattr(storage, "dtype", None), offset, size, stride, without)


def _rebuild_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> StoredTensor:
    return StoredTensor(storage, dtype, offset, size, stride, "conjugated or negated" if more and more[0] else "")


def _rebuild_by(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    return function(*arguments) if isinstance(function, _Call) and function.function in _REBUILDS else _Inert()


_REBUILDS = (_rebuild, _rebuild_with_dtype)
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_with_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _rebuild_by,
    "torch.Size": lambda size=(): size,
    "collections.OrderedDict": _Table,
    "collections.Counter": lambda *_: _Table(),
    "collections.defaultdict": lambda *_: _Table(),
    **{
        f"torch._utils.{name}": lambda *_, kind=kind: StoredTensor(without=kind)
        for name, kind in _WITHOUT_VALUES.items()
    },
}


class _Unpickler(pickle._Unpickler):
    """Reads the pickle of a checkpoint into tables and descriptions.

    The one in Python: the one in C allocates as much as an index in the file says.
    """

    # attributes that the base class does not declare
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, storage: Callable[..., _Storage] | None = None) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        full = f"{module}.{name}"
        storage = re.fullmatch(r"torch(?:\.cuda|\.storage)?\.(\w+)Storage", full)
        if storage is not None and storage[1] in _DTYPES:
            return _DTYPES[storage[1]]
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if full in _CALLS:
            return _Call(_CALLS[full])
        if _INERT.fullmatch(full):
            return _Inert
        raise RefusedError(full)

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that an identifier describes."""
        if self._storage is None or not isinstance(pid, tuple) or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("a reference to something else than a storage")
        _, dtype, key, _, count, *view = pid
        if not isinstance(dtype, torch.dtype) or type(count) is not int or not 0 <= count < 2**62 or not _is_short(key):
            raise pickle.UnpicklingError("a storage without type, length or name")
        return self._storage(str(key), dtype, count * dtype.itemsize, *view)

    # Replacements for methods of the base class that would build other objects, or modify those on the stack.

    def _build(self) -> None:
        attributes = self.stack.pop()  # of an object; those of a state dict alone are needed
        if isinstance(table := self.stack[-1], _Table) and isinstance(attributes, _Table):
            table._metadata = attributes.get("_metadata")

    def _empty_dict(self) -> None:
        self.append(_Table())

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_Table(zip(items[::2], items[1::2], strict=True)))

    def _set(self) -> None:
        self.append(_Inert())

    def _frozenset(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def _bytearray(self) -> None:
        raise pickle.UnpicklingError("an array of bytes")

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        pickle.EMPTY_DICT[0]: _empty_dict,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_SET[0]: _set,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


def read_torch_file(path: Path) -> Any:
    """What was given to ``torch.save``, with a :class:`StoredTensor` for each tensor.

    Dicts have their entries of text and small numbers as keys; of values other than dicts, lists, tuples, tensors,
    numbers and texts nothing is kept.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or would run code in ``torch.load``.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    try:
        return _read_archive(path) if is_archive else _read_legacy(path)
    except RefusedError as error:
        raise CheckpointError(
            f"{path}: refused, because it holds more than weights and loading it would run code ({error}): "
            "save model.state_dict() alone, best as .safetensors"
        ) from None
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint: {_AGAIN}") from error


def _read_archive(path: Path) -> Any:
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # where ZipFile, too, looks for the directory
    if end is not None:  # before there is an object for each entry
        _check_description(path, end[_DIRECTORY_SIZE], "its list of entries")
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise CheckpointError(f"{path}: refused, because it holds two entries of one name: {_AGAIN}")
        names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise CheckpointError(f"{path}: a zip archive, but not of torch.save: give a weights file")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise CheckpointError(f"{path}: a TorchScript program, not weights: save model.state_dict() instead")
        # the others unpack as much as there is at once, whatever size is stated
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in members.values()):
            raise CheckpointError(f"{path}: refused, because it is compressed in another way than zip's own: {_AGAIN}")
        _check_description(path, members[names[0]].file_size)
        order = members.get(f"{folder}byteorder")
        if order is not None and order.file_size < 16:
            _check_order(path, archive.read(order).decode(errors="replace"))
        description = archive.read(names[0])

    def place(key: str) -> tuple[int, int]:
        entry = members.get(f"{folder}data/{key}")
        if entry is None:
            raise ValueError("the file does not hold it")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, which torch.save does not do")
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        name, extra = struct.unpack("<HH", header[26:30].ljust(4, b"\0"))
        return entry.header_offset + 30 + name + extra, entry.file_size

    source = _Source(path, place, path.stat().st_size)
    return _Unpickler(io.BytesIO(description), lambda key, dtype, nbytes: _Storage(source, key, dtype, nbytes)).load()


def _read_legacy(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_DESCRIPTION))
    dtypes: dict[str, torch.dtype] = {}
    places: dict[str, tuple[int, int]] = {}

    def storage(key: str, dtype: torch.dtype, nbytes: int, view: Any = None) -> _Storage:
        if dtypes.setdefault(key, dtype).itemsize != dtype.itemsize:
            raise pickle.UnpicklingError("a storage of two types")
        start = view[1] if isinstance(view, tuple) else 0
        if type(start) is not int or not 0 <= start < 2**62:
            raise pickle.UnpicklingError("a view that begins nowhere")
        return _Storage(source, key, dtype, nbytes, start * dtype.itemsize)

    source = _Source(path, lambda key: places[key], size)
    try:
        if _Unpickler(stream).load() != _MAGIC or _Unpickler(stream).load() != _VERSION:
            raise pickle.UnpicklingError("not of torch.save")
        system = _Unpickler(stream).load()
        _check_order(path, "little" if system.get("little_endian", True) else "big")
        content = _Unpickler(stream, storage).load()
        keys = _Unpickler(stream).load()
        if not isinstance(keys, list) or not all(map(_is_short, keys)):
            raise pickle.UnpicklingError("storages without names")
    except _DAMAGE:
        if size > MAX_DESCRIPTION and stream.tell() >= MAX_DESCRIPTION:
            _check_description(path, size)
        raise
    position = stream.tell()
    with path.open("rb") as file:
        for key in map(str, keys):
            file.seek(position)
            (count,) = struct.unpack("<q", file.read(8))
            held = count * dtypes[key].itemsize
            position += 8
            if not 0 <= held <= size - position:
                raise EOFError
            places[key] = (position, held)
            position += held
    return content


def _check_description(path: Path, size: int, what: str = "what it says of its tensors") -> None:
    if size > MAX_DESCRIPTION:
        raise CheckpointError(
            f"{path}: refused, because {what} takes more than {MAX_DESCRIPTION // 2**20} MiB: "
            "save model.state_dict() alone"
        )


def _check_order(path: Path, order: str) -> None:
    if order != sys.byteorder:
        raise CheckpointError(f"{path}: written on a machine of another byte order: save it as .safetensors there")
