"""How much memory there is, and errors that say what to do when it runs out."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

import torch

from pathlens.errors import ResourceError

UNKNOWN_MEMORY = 16 * 2**30  # bytes; assumed where the system does not tell
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers


def total_memory() -> int:
    """The bytes of memory of this machine or, where it is less, of the container.

    :data:`UNKNOWN_MEMORY` where the system does not say.
    """
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        sizes = [UNKNOWN_MEMORY]
    for place in _LIMITS:
        with contextlib.suppress(OSError, ValueError), open(place) as file:
            sizes.append(int(file.read()))
    return min((size for size in sizes if size > 0), default=UNKNOWN_MEMORY)


def check_input_fits(shape: tuple[int, ...], batch: int, remedy: str) -> None:
    """Refuse a shape of which a batch would fill the memory, before such a tensor is allocated.

    Activations take many times the memory of the input, so the input may take an eighth of it.

    Args:
        shape: of one example, (C, H, W) or any other, in float32.
        batch: examples.
        remedy: what to give instead, for the message.

    Raises:
        ResourceError: naming the shape.
    """
    size = 4 * batch * math.prod(shape)
    if size > total_memory() // 8:
        raise ResourceError(
            f"input of shape {','.join(map(str, shape))}: {batch} examples take {size / 2**30:.3g} GiB of the "
            f"{total_memory() / 2**30:.3g} GiB of memory; {remedy}"
        )


def ran_out(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; torch has several for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def oom_as_error(batch_size: int | None, option: str = "--batch-size") -> Iterator[None]:
    """Say what to do when a batch does not fit in memory.

    Args:
        batch_size: images in a batch, or None where the caller made the batches.
        option: that sets it.

    Raises:
        ResourceError: the body ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        if batch_size is None:
            raise ResourceError("a batch does not fit in memory; give smaller batches") from error
        raise ResourceError(
            f"a batch of {batch_size} image{'s' if batch_size > 1 else ''} does not fit in memory; "
            f"give a smaller {option if batch_size > 1 else 'image or network, or a larger machine'}"
        ) from error
