"""The numbers to compute with, by name, and TF32 for the length of an analysis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pathlens.errors import UsageError

_TYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@contextlib.contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The type of a name; ``tf32`` is float32 with TensorFloat-32 products on GPUs that have them.

    Raises:
        UsageError: an unknown name.
    """
    if name not in _TYPES:
        raise UsageError(f"dtype {name!r} is unknown; give one of {', '.join(_TYPES)}")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield _TYPES[name]
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
