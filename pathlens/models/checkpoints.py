"""State dicts: out of files and their wrappings, into networks, and back to disk.

What was unwrapped, stripped or left aside on the way is reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pathlens.errors import CheckpointError, ModelError, NumericsError, RunError, one_line
from pathlens.models.reading import DEFAULT_MAX_BYTES, no_memory, read_weights_file
from pathlens.models.torchfile import StoredTensor
from pathlens.storage import atomic_write_bytes

# Wrappers of state dicts, those of averaged weights first: where a file holds both, the averaged ones are what its
# author evaluated.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_SHOWN = 3  # names in a message
_LONGEST = 120  # characters of each


def load_state_dict_file(
    path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read a state dict from a file of safetensors or of ``torch.save``, whatever its name.

    Wrappers (``state_dict``, ``model_state_dict``, ``model``, ``model_ema``, ``state_dict_ema``, ``net``, in any
    nesting; averaged weights first) and prefixes (``module.`` where all names have it, ``_orig_mod.`` anywhere) are
    removed; entries that are no tensors are left aside.

    Args:
        path: the file.
        max_bytes: largest size of the file. No more is allocated for tensors than the file holds.

    Returns:
        The tensors by name, on the CPU, with the versions that the file states of its modules where torch keeps them
        (``_metadata``), and one note for each thing that was unwrapped or left aside.

    Raises:
        CheckpointError: the file is missing, too large, damaged, not a checkpoint, or would run code.
        ResourceError: its tensors do not fit in memory.
    """
    path = Path(path)
    content = read_weights_file(path, max_bytes)
    notes: list[str] = []
    return _tensors_of(_unwrap(content, path, notes), path, notes), tuple(notes)


def _read(value: Tensor | StoredTensor, name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return value.read()
    except (ValueError, LookupError, RuntimeError, OSError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged, tensor {_some([name])}: {error}: copy or download the weights again"
        ) from error
    except MemoryError as error:
        raise no_memory(path) from error


def load_into(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
    """Copy a state dict into a model, strictly: every name and shape must fit.

    Weights that are refused for a name, shape or value leave the model as it was.
    ``module.`` and ``_orig_mod.`` are ignored on both sides. Of the names of one and the same weight, one is enough.
    Missing ``num_batches_tracked`` counters (files written before they existed) keep the model's value; no result in
    eval mode depends on them.
    Modules that convert weights of their earlier versions are told the versions that the state dict states, as by
    torch; where it states none, as in files of safetensors, the weights are of the present version.

    Args:
        model: the network, changed in place.
        state_dict: tensors by name.
        source: what to call the weights in messages, such as the file's name.

    Returns:
        Notes about what was converted.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ, or values of one and the same weight, or a module
            does not know the stated version; the message says which.
        ModelError: the network has weights without values.
        NumericsError: a weight is NaN or infinite.
    """
    check_values(model, type(model).__name__)
    present = model.state_dict()
    own: dict[str, Tensor] = {k: v for k, v in present.items() if isinstance(v, Tensor)}
    theirs = _by_plain_name(state_dict)
    names = {name: key for key, name in zip(own, _plain_names(own), strict=True)}
    # of weights that are one tensor in the network, such as an embedding and the head, many files hold one name only
    places = {name: (own[key].data_ptr(), own[key].shape) for name, key in names.items() if own[key].numel()}
    shared = {place: name for name, place in places.items() if name in theirs}
    for name, place in places.items():
        if name not in theirs and (same := shared.get(place)):
            theirs[name] = theirs[same]
    missing = [n for n in names if n not in theirs and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in theirs if n not in names]
    shapes = [
        f"{n} is {tuple(theirs[n].shape)} in the file and {tuple(own[k].shape)} in the network"
        for n, k in names.items()
        if n in theirs and theirs[n].shape != own[k].shape
    ]
    differences = [
        f"{len(items)} {what}: {_some(items)}"
        for what, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if differences:
        raise CheckpointError(
            f"{source}: weights of another network than {type(model).__name__} ({'; '.join(differences)}): "
            "give the network that these weights were trained with"
        )
    for name, place in places.items():
        same = shared.get(place, name)
        if same != name and not torch.equal(theirs[same], theirs[name]):
            raise CheckpointError(
                f"{source}: {name} and {same} differ in the file and are one weight in {type(model).__name__}: "
                "give the network that these weights were trained with"
            )
    converted: dict[str, Tensor] = {}
    casts: set[str] = set()
    for name, key in names.items():
        if name not in theirs:
            converted[key] = own[key]
            continue
        value, target = theirs[name], own[key]
        if value.is_floating_point() != target.is_floating_point() or value.is_complex() != target.is_complex():
            raise CheckpointError(
                f"{source}: {name} holds {_dtype(value)} where the network holds {_dtype(target)}: "
                "give weights that are not quantised"
            )
        if value.dtype != target.dtype and value.is_floating_point():
            casts.add(f"converted {_dtype(value)} to {_dtype(target)}")
        converted[key] = value.to(target.dtype)
    _check_finite(converted, {key for key, _ in model.named_parameters(remove_duplicate=False)}, source)
    # Names and shapes are checked; whatever else a state dict holds (extra state of modules) is not in these files.
    metadata, stated = getattr(present, "_metadata", {}), _versions(state_dict, state_dict)
    for plain, module in _plain_modules(metadata, own).items():
        if plain in stated:
            metadata[module]["version"] = stated[plain]
    try:
        model.load_state_dict(_with_metadata(converted, metadata), strict=False)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: {type(model).__name__} does not take these weights ({one_line(error, 300)}): "
            "give the network that these weights were trained with"
        ) from error
    return tuple(sorted(casts))


def check_values(model: nn.Module, name: str) -> None:
    """Refuse a model whose tensors have no values.

    Args:
        model: to be looked at.
        name: what it is called.

    Raises:
        ModelError: a tensor is lazy or on the device ``meta``.
    """
    for tensor_name, tensor in model.state_dict().items():
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer) or getattr(tensor, "is_meta", False):
            raise ModelError(f"{name}: {tensor_name} has no values yet (lazy or meta): run the network once first")


def check_finite(model: nn.Module, source: str) -> None:
    """Refuse a model with NaN or infinite weights.

    Infinite values are allowed in buffers that are no batch-norm statistics (attention masks hold them).

    Raises:
        NumericsError: naming the first such tensor.
    """
    tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    _check_finite(tensors, {key for key, _ in model.named_parameters(remove_duplicate=False)}, source)


def state_sha256(model_or_state: nn.Module | Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state dict: of the name, dtype, shape and bytes of every tensor, in order of name.

    Args:
        model_or_state: a network, or tensors by name.
    """
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {_dtype(value)} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: str | os.PathLike[str], model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a model's state dict as safetensors; the file is never visible half-written.

    Equal weights and metadata give equal bytes.

    Args:
        path: the file to write or replace.
        model: the network. Weights that an initialisation of pathlens computes are written as what they are computed
            to, so that the file fits the network without it; parametrizations of its own stay.
        metadata: strings to keep in the header. ``mean``, ``std`` and ``input_shape`` (JSON lists) are
            understood when the file is loaded; empty lists of the first two say that there is no normalisation.

    Raises:
        CheckpointError: the file cannot be written.
        ResourceError: the disk is full.
    """
    path = Path(path)
    # Copies, because safetensors refuses tensors that share memory (tied weights).
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in _plain_state(model).items()}
    data = _with_sorted_metadata(safetensors.torch.save(tensors, dict(metadata)))
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write weights to {path}: there is no folder {path.parent}: give another path")
    try:
        atomic_write_bytes(path, data)
    except RunError as error:
        raise CheckpointError(str(error).replace("cannot write", "cannot write weights to", 1)) from error


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, with those that an initialisation computes as what they are computed to.

    Parametrizations of the user's own stay, because they are in the network that the file is for.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for owner, module in model.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module):
            continue
        parametrized: Any = module.parametrizations
        for leaf, parts in parametrized.items():
            if all(getattr(part, "is_written_out", False) for part in parts):
                place = f"{owner}." if owner else ""
                inside = f"{place}parametrizations.{leaf}."
                state = {name: value for name, value in state.items() if not name.startswith(inside)}
                state[f"{place}{leaf}"] = getattr(module, leaf)
    return state


def _unwrap(content: object, path: Path, notes: list[str]) -> Mapping[Any, Any]:
    for _ in range(16):  # real checkpoints nest less deeply, and a file can hold a dict that contains itself
        if not isinstance(content, Mapping):
            kind = "Tensor" if isinstance(content, StoredTensor) else type(content).__name__.lstrip("_")
            raise CheckpointError(f"{path}: holds a {kind}, not a state dict: save model.state_dict()")
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            return content
        beside = [str(k) for k in content if k != key]
        notes.append(f"unwrapped {key}" + (f" (left aside: {_some(beside, 6)})" if beside else ""))
        content = content[key]
    raise CheckpointError(f"{path}: its state dict is nested without end: save model.state_dict()")


def _tensors_of(content: Mapping[Any, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor | StoredTensor)}
    others = [str(k) for k in content if k not in tensors]
    if not tensors:
        raise CheckpointError(
            f"{path}: no tensors among its entries ({_some(others, 6) or 'there are none'}): save model.state_dict()"
        )
    odd = next(((k, v.without) for k, v in tensors.items() if isinstance(v, StoredTensor) and v.without), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {_some([odd[0]])} is a tensor without plain values ({odd[1]}): densify it")
    if others:
        notes.append(f"left aside what is no tensor: {_some(others, 6)}")
    # Averaged copies (torch.optim.swa_utils) count their updates in an entry of their own.
    if "n_averaged" in tensors and all(k.startswith("module.") for k in tensors if k != "n_averaged"):
        del tensors["n_averaged"]
        notes.append("left aside n_averaged")
    plain = _plain_names(tensors)
    if len(set(plain)) < len(plain):
        raise CheckpointError(f"{path}: two entries have the same name but for prefixes: save model.state_dict() alone")
    for prefix in ("module.", "_orig_mod."):
        if any(_count(old, prefix) > _count(new, prefix) for old, new in zip(tensors, plain, strict=True)):
            notes.append(f"stripped prefix {prefix}")
    read = {name: _read(value, name, path) for name, value in zip(plain, tensors.values(), strict=True)}
    return _with_metadata(read, {name: {"version": stated} for name, stated in _versions(content, tensors).items()})


def _plain_names(names: Iterable[str]) -> list[str]:
    """Strip ``_orig_mod.`` anywhere, and ``module.`` as often as all names begin with it."""
    plain = [_uncompiled(name) for name in names]
    # all prefixes at once, because removing them one by one takes quadratic time
    shared = len(_shared_prefix(plain))
    return [name[shared:] for name in plain]


def _uncompiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _shared_prefix(names: Iterable[str]) -> str:
    """``module.`` as often as all names begin with it."""
    found = (match[0] for name in names if (match := re.match(r"(?:module\.)*", name)))
    return min(found, key=len, default="")


def _plain_modules(modules: Iterable[str], tensors: Iterable[str]) -> dict[str, str]:
    """Names of modules by their plain names, from which is stripped what is stripped from the names of the tensors."""
    shared = _shared_prefix(map(_uncompiled, tensors))
    places = ((name, _uncompiled(f"{name}.")) for name in modules)
    # a wrapper has no plain name, or that of the network in it, which comes after it
    return {place[len(shared) :].removesuffix("."): name for name, place in places if place.startswith(shared)}


def _versions(state: Mapping[Any, Any], tensors: Iterable[str]) -> dict[str, int]:
    """The versions that a state dict states of its modules, by plain names."""
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    stated = {
        name: about["version"]
        for name, about in metadata.items()
        if isinstance(name, str) and isinstance(about, Mapping) and type(about.get("version")) is int
    }
    return {plain: stated[name] for plain, name in _plain_modules(stated, tensors).items()}


def _with_metadata(tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> OrderedDict[str, Tensor]:
    """A state dict that says of its modules what torch keeps beside the tensors, such as the version of each."""
    state = OrderedDict(tensors)
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def _by_plain_name(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(_plain_names(state), state.values(), strict=True))


def _count(name: str, prefix: str) -> int:
    return name.split(".").count(prefix.rstrip("."))


def _check_finite(tensors: Mapping[str, Tensor], parameters: set[str], source: str) -> None:
    for name, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        strict = name in parameters or name.endswith(("running_mean", "running_var"))
        bad = ~torch.isfinite(value) if strict else torch.isnan(value)
        if bad.any():
            count = int(bad.sum())
            what = "NaN" if torch.isnan(value).any() else "infinite"
            raise NumericsError(
                f"{source}: {name} holds {what} values ({count} of {value.numel()}): "
                "give weights of a run that did not diverge"
            )


def _with_sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata in a safetensors header, which the library writes in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _some(items: list[str], shown: int = _SHOWN) -> str:
    names = (item if len(item) <= _LONGEST else f"{item[:_LONGEST]}..." for item in items[:shown])
    return ", ".join(names) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
