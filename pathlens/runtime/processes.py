"""Process groups: joining one, gathering results and agreeing on errors; and the choice of a device."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from pathlens.errors import PathlensError, RunError, UsageError, one_line

T = TypeVar("T")

#: longest time that a process waits for a slower one; a process that has died is noticed at once
_PATIENCE = timedelta(days=7)

_agreements = itertools.count()

_ENDED = "another process ended before the work was done; see what it said, and give the same command again"


class _OtherFailed(Exception):  # noqa: N818 - never seen outside of this module
    """Ends the body of :meth:`Processes.agreed` in a process without an error, because another process has one."""


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def gather(self, part: T) -> list[T]:
        """The parts of all processes, by rank, on every process.

        Raises:
            RunError: another process has ended.
        """
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(parts, part)
        except RuntimeError as error:
            raise RunError(_ENDED) from error
        return parts

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Say what it means where the body communicates and another process is gone.

        Raises:
            RunError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not is_lost(error):
                raise
            raise RunError(_ENDED) from error

    @contextlib.contextmanager
    def agreed(self) -> Iterator[Callable[[], None]]:
        """Let all processes raise the error that one of them raises in the body, so that none waits for it forever.

        The body must not communicate by itself.

        Yields:
            A function to call repeatedly in a long body; it ends the body if another process has failed.

        Raises:
            PathlensError: of the first process that failed; it says which one where not all did.
            RunError: another process has ended without saying why.
        """
        if self.world == 1:
            yield lambda: None
            return
        store = dist.distributed_c10d._get_default_store()
        mark = f"pathlens/failed/{next(_agreements)}"

        def look() -> None:
            if store.check([mark]):
                raise _OtherFailed

        mine: BaseException | None = None
        try:
            yield look
        except _OtherFailed:
            pass
        except (PathlensError, MemoryError) as error:
            mine = error
            store.set(mark, "1")
        errors = self.gather(None if mine is None else (type(mine), str(mine)))
        failed = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if failed:
            rank, (kind, message) = failed[0]
            where = "" if len(failed) == self.world else f" (in process {rank} of {self.world})"
            shared = kind(message + where)
            if isinstance(shared, PathlensError):
                shared.is_shared = True
            raise shared from mine


def is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; of gloo only the text says so."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def current() -> Processes:
    """The process group that is running, or a single process."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join, for the length of the body, the process group that torchrun announces in the environment, if any.

    A group that the process is in already is used, and not left at the end.

    Raises:
        RunError: the processes do not find each other.
    """
    mine = False
    try:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1 and not dist.is_initialized():
            dist.init_process_group(_backend(), timeout=_PATIENCE)
            mine = True
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the processes do not find each other: {one_line(error, 200)}; start them with torchrun"
        ) from error
    try:
        yield current()
    finally:
        if mine:
            dist.destroy_process_group()


def _backend() -> str:
    """Backends of torch.distributed: gloo for results, which are small Python objects, and nccl for gradients on GPUs.

    nccl needs a GPU for each process; where processes share one, gloo is used for gradients too.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    enough = dist.is_nccl_available() and torch.cuda.is_available() and torch.cuda.device_count() >= here
    return "cpu:gloo,cuda:nccl" if enough else "gloo"


def pick_device(name: str = "auto") -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or any torch device; under torchrun each process takes its own GPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:INDEX") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name!r}: this machine has no usable GPU; give --device cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        elif device.index >= torch.cuda.device_count():
            raise UsageError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def device_of(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """The device of a name; where the model is for None.

    Raises:
        UsageError: no such device here.
    """
    if device is None:
        return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return pick_device(str(device))


def device_name(device: torch.device) -> str:
    """The device with the GPU's name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
