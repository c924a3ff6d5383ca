"""Memory that ran out, in one line that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pathlens.errors import ResourceError


def ran_out(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; torch has several for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def memory_named(batch_size: int | None) -> Iterator[None]:
    """Say what to do when a batch does not fit in memory.

    Args:
        batch_size: images in a batch, or None where the caller made the batches.

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
            f"give a smaller {'--batch-size' if batch_size > 1 else 'image or network, or a larger machine'}"
        ) from error
