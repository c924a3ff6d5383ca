"""Checkpoints of a training run: one file with all that is needed to resume it, and the one before.

The format is safetensors, which cannot hold code. Random numbers depend only on the run's seed and the number of the
step, so there is no state of a generator to save.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pathlens.errors import CheckpointError, ModelError, RunError
from pathlens.models import load_into, state_sha256
from pathlens.models.reading import read_metadata, read_weights_file
from pathlens.results.result import Row
from pathlens.storage import atomic_write_bytes, disk_error
from pathlens.tables import Provenance

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"
_KEY = "pathlens_training"
_VERSION = 3
#: what a record holds
_FIELDS = {
    "step": int, "sums": list, "history": list, "arguments": dict, "calls": list, "scalars": dict, "sha256": str,
}  # fmt: skip


@dataclass
class TrainState:
    """How far a run has come.

    Attributes:
        step: steps done.
        sums: over the steps of the present epoch: images, loss, correct, blocks, and seconds spent in earlier calls.
        history: rows of the epochs that are done.
        arguments: with which the run was started (:meth:`Configuration.arguments`).
        calls: that made the run, in their order: what is known of code and machine, and ``from_step``, the steps that
            were done before; empty where that was not written down.
    """

    step: int
    sums: list[float]
    history: list[Row]
    arguments: Provenance
    calls: list[dict[str, Any]] = field(default_factory=list)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: TrainState) -> None:
    """Write the checkpoint; the one before it is kept under another name.

    Raises:
        ResourceError: the disk is full; the checkpoint that was there is there still.
        RunError: the folder cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    kept = model.state_dict()
    tensors |= {f"model/{name}": value for name, value in kept.items()}
    # what a training changes and weights do not need
    tensors |= {f"buffers/{name}": value for name, value in model.named_buffers() if name not in kept}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                scalars.setdefault(str(index), {})[key] = value
    # copies, because safetensors refuses tensors that share memory
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    record = {
        "version": _VERSION,
        "step": position.step,
        "sums": position.sums,
        "history": position.history,
        "arguments": position.arguments,
        "calls": position.calls,
        "scalars": scalars,
        "sha256": state_sha256(flat),
    }
    record["record_sha256"] = _digest_of_record(record)
    data = safetensors.torch.save(flat, {_KEY: json.dumps(record)})
    path, previous = folder / CHECKPOINT, folder / PREVIOUS
    fresh = folder / f".{CHECKPOINT}"
    atomic_write_bytes(fresh, data)
    try:
        if path.exists():
            os.replace(path, previous)
        os.replace(fresh, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def check_kept(model: nn.Module) -> None:
    """Refuse a network whose state a checkpoint cannot hold.

    Raises:
        ModelError: it keeps other things than tensors.
    """
    other = next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise ModelError(
            f"{type(model).__name__} keeps {other}, which is no tensor and which a checkpoint cannot hold; keep it in "
            "a buffer, or train without a folder"
        )


def find(folder: Path) -> Path | None:
    """The checkpoint to resume from, or None; the previous one where a run was killed between the two renamings."""
    return next((path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()), None)


def peek(path: Path) -> TrainState:
    """The position that a checkpoint states, without its tensors.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of a training run.
    """
    record = _record(path)
    return TrainState(record["step"], record["sums"], record["history"], record["arguments"], record["calls"])


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model and optimizer into the state of a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    record = _record(path)
    try:
        # of any size, because a run of this one network wrote it; what does not fit in memory is refused
        tensors = read_weights_file(path, None)
    except CheckpointError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(tensors, dict) or state_sha256(tensors) != record["sha256"]:
        raise _damaged(path, "its contents do not have the checksum that it states")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "buffers": {}}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    try:
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        entries |= {int(index): dict(entry) for index, entry in record["scalars"].items()}
        for name, value in parts["optimizer"].items():
            number, _, key = name.partition("/")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape and value.is_floating_point():
                # in the parameter's memory layout, because fused optimizers update both in one kernel
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)  # noqa: PLW2901
            entries.setdefault(int(number), {})[key] = value
        buffers = dict(model.named_buffers())
        if not all(buffers[name].shape == value.shape for name, value in parts["buffers"].items()):
            raise ValueError("a buffer of another shape")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "it holds what no training run keeps") from error
    load_into(model, parts["model"], str(path))
    for name, value in parts["buffers"].items():
        buffers[name].copy_(value)
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def check_position(position: TrainState, sums: int, steps: int, path: Path) -> None:
    """Refuse a position that the run cannot have.

    Args:
        position: that a checkpoint states.
        sums: how many there are.
        steps: of the whole run.
        path: of the checkpoint.

    Raises:
        CheckpointError: it is damaged.
    """
    if len(position.sums) != sums or position.step > steps:
        raise _damaged(path, f"it stands at step {position.step} of {steps} with {len(position.sums)} of {sums} sums")


def check_arguments(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other arguments than a run was started with.

    Raises:
        RunError: naming those that differ.
    """
    plain = json.loads(json.dumps(dict(now)))
    differing = [
        f"{name} was {json.dumps(then.get(name))} and is {json.dumps(plain.get(name))}"
        for name in dict.fromkeys([*then, *plain])
        if then.get(name) != plain.get(name)
    ]
    if differing:
        raise RunError(
            f"the run in {folder} was started with other arguments ({'; '.join(differing)}); "
            "give those, or start another run in another folder"
        )


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_metadata(path)[_KEY])
        version, stated = record["version"], record.pop("record_sha256")
    except (
        CheckpointError, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError,
    ) as error:  # fmt: skip
        raise _damaged(path, "it does not say where the run stands") from error
    if stated != _digest_of_record(record):
        raise _damaged(path, "what it says of the run does not have the checksum that it states")
    if version != _VERSION:
        raise CheckpointError(
            f"{path} has format {version} and this version of pathlens writes {_VERSION}; "
            "go on with the version that wrote it"
        )
    record.setdefault("calls", [])  # earlier checkpoints of this format do not have them
    if not all(isinstance(record.get(name), kind) for name, kind in _FIELDS.items()) or not _is_position(record):
        raise _damaged(path, "it does not say all that a run has to know of itself")
    return dict(record)


def _is_position(record: Mapping[str, Any]) -> bool:
    """Whether numbers and rows of a record are such, as far as that is known without the run."""
    try:
        sums = all(isinstance(value, int | float) and math.isfinite(value) for value in record["sums"])
    except ArithmeticError:  # a whole number beyond those of a float
        return False
    return sums and record["step"] >= 0 and all(isinstance(row, dict) for row in (*record["history"], *record["calls"]))


def _damaged(path: Path, reason: str) -> CheckpointError:
    other = path.with_name(PREVIOUS)
    remedy = (
        f"move it away, and --resume goes on from {other.name}"
        if path.name == CHECKPOINT and other.exists()
        else "start the run anew in another folder"
    )
    return CheckpointError(f"{path} is damaged ({reason}); {remedy}")


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
