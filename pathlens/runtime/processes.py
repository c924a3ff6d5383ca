"""One process or many: how they find each other, and how results and failures come together."""

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

from pathlens.errors import PathlensError, RunError, UsageError

T = TypeVar("T")

#: one process may wait this long for another that has more to do; those that died are noticed at once
_PATIENCE = timedelta(days=7)

_agreements = itertools.count()


class _OtherFailed(Exception):  # noqa: N818 - never seen outside of this module
    """Leaves the body of :meth:`Processes.agreed` in a process that is well itself."""


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
        """Everybody's part, on every process.

        Raises:
            RunError: another process has ended.
        """
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(parts, part)
        except RuntimeError as error:
            raise RunError(
                "another process ended before the work was done; see what it said, and give the same command again"
            ) from error
        return parts

    @contextlib.contextmanager
    def agreed(self) -> Iterator[Callable[[], None]]:
        """All processes raise what one of them raises in the body, so that none waits for one that is gone.

        The body must not communicate by itself.

        Yields:
            A function to call now and then in a long body, which leaves it where another process has failed already.

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
            raise kind(message + where) from mine


def current() -> Processes:
    """The process group that is running, or a single process."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Be in the group that torchrun announces in the environment, if it does, for the length of the body.

    A group that was joined before is used and not left.

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
            f"the processes do not find each other: {' '.join(str(error).split())[:200]}; start them with torchrun"
        ) from error
    try:
        yield current()
    finally:
        if mine:
            dist.destroy_process_group()


def _backend() -> str:
    """What carries results, Python objects of a few kilobytes: gloo on every machine; and gradients: nccl between GPUs.

    nccl wants a GPU for each process; where processes share one, gloo carries gradients too.
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
