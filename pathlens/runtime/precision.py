"""The numbers to compute with, by name, and what float32 products are computed in, for the length of an analysis."""

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
#: where torch holds a precision of float32, the outer ones first, from which others inherit
_PLACES = (
    ("generic", "all"),
    *((backend, operation) for operation in ("all", "matmul", "conv", "rnn") for backend in ("cuda", "mkldnn")),
)


@contextlib.contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """The type of a name; ``tf32`` is float32 with TensorFloat-32 products on GPUs that have them.

    What the caller has set otherwise does not count meanwhile: neither autocast nor another precision of float32.

    Raises:
        UsageError: an unknown name.
    """
    if name not in _TYPES:
        raise UsageError(f"dtype {name!r} is unknown; give one of {', '.join(_TYPES)}")
    with no_autocast(), _float32_products("tf32" if name == "tf32" else "ieee"):
        yield _TYPES[name]


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Switch off the caller's autocast on every kind of device."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _float32_products(on_gpus: str) -> Iterator[None]:
    """Compute float32 products on GPUs as said, and exactly on CPUs; afterwards every setting is what it was.

    Torch has two interfaces for that, and refuses to read the older one (``set_float32_matmul_precision``,
    ``allow_tf32``), as its exporter and compilers do, where the newer one says otherwise. So both are set. Not put
    back: convolutions of GPUs, once set by the older one, inherit nothing from ``torch.backends.fp32_precision``.

    Args:
        on_gpus: ``tf32`` or ``ieee``.
    """
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before: dict[tuple[str, str], str] = {}
    for place in _PLACES:  # from the outermost on, so that what is read is a place's own and not inherited
        before[place] = get(*place)
        put(*place, "none")
    matmul, convolutions = torch.get_float32_matmul_precision(), _older_of_convolutions()
    torch.set_float32_matmul_precision("high" if on_gpus == "tf32" else "highest")
    torch._C._set_cudnn_allow_tf32(on_gpus == "tf32")
    for backend, operation in _PLACES[1:]:
        put(backend, operation, on_gpus if backend == "cuda" else "ieee")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(convolutions)
        for place, value in before.items():
            put(*place, value)


def _older_of_convolutions() -> bool:
    """The older interface's setting of cuDNN, of which the newer one says ``none`` now."""
    try:
        return bool(torch._C._get_cudnn_allow_tf32())
    except RuntimeError:  # it is not what the newer one says
        return True
