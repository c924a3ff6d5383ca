"""Engines: how a network is prepared and run. The name of one is kept with the results, which it reproduces exactly.

Which engine is fastest depends on the processor, the network and the batch, so it is measured
(:mod:`pathlens.analyses.tuning`) and not looked up.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from pathlens.errors import UsageError
from pathlens.residual.operations import WEIGHTED

FORMS = ("plain", "folded", "packed")
_NAME = re.compile(r"(plain|folded|packed)(?:-([1-9]\d{0,5})(?:x([1-9]\d{0,2}))?)?")

#: images at a time where nothing was measured; activations of CIFAR networks then stay in the cache
_IMAGES = 64
#: where activations are small, as many images as have this many values, so that call overhead does not dominate
_VALUES = 2**20


@dataclass(frozen=True)
class Engine:
    """A way to compute a network.

    Attributes:
        form: ``plain``, the model's own operations; ``folded``, batch norms folded into convolutions and activations
            channels-last; ``packed``, also convolution, addition and ReLU in one oneDNN call with packed weights.
        images: that run at a time, or None for the whole batch.
        lanes: so many at the same time, each with its share of the threads.
    """

    form: str = "plain"
    images: int | None = None
    lanes: int = 1

    @property
    def name(self) -> str:
        """``packed-32x2`` for two times 32 images side by side in packed form; :func:`named` reads it."""
        if self.images is None:
            return self.form
        return f"{self.form}-{self.images}" + (f"x{self.lanes}" if self.lanes > 1 else "")


def named(name: str, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine of a name.

    Args:
        name: ``plain``, ``folded`` or ``packed``, then images at a time and how many times side by side, as in
            ``folded-64`` or ``packed-32x2``.
        device: where to compute.
        dtype: what to compute with.

    Raises:
        UsageError: no such name, or an engine that this machine does not have.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"engine {name[:40]!r} is unknown; give auto, {', '.join(FORMS)}, or one of these with images at a time "
            "and how many times side by side, such as folded-64 or packed-32x2"
        )
    form, images, lanes = match[1], match[2], match[3]
    if form == "packed" and not packs(device, dtype):
        raise UsageError(f"engine {name!r}: {missing(device, dtype)}; give folded, plain or auto")
    return Engine(form, None if images is None else int(images), int(lanes or 1))


def default(device: torch.device, dtype: torch.dtype, batch_size: int | None, activation: int | None = None) -> Engine:
    """The engine where measuring would take longer than it saves.

    Args:
        device: where to compute.
        dtype: what to compute with.
        batch_size: images in a batch, or None where the caller made the batches.
        activation: values in the largest activation of an image, or None where that is not known.
    """
    form = "packed" if packs(device, dtype) else "folded"
    return Engine(form, None if device.type != "cpu" else _images(batch_size, activation))


def candidates(
    device: torch.device, dtype: torch.dtype, batch_size: int, activation: int | None = None
) -> Sequence[Engine]:
    """The engines worth measuring, the default one first.

    Args:
        device: where to compute.
        dtype: what to compute with.
        batch_size: images in a batch, which bounds the images that are computed at the same time.
        activation: values in the largest activation of an image, or None where that is not known.
    """
    first = default(device, dtype, batch_size, activation)
    if first.images is None:
        return (first,)
    forms = dict.fromkeys((first.form, "folded"))
    ways: list[tuple[int, int]] = [(first.images, 1)]
    lanes = min(torch.get_num_threads(), batch_size)
    if lanes > 1:
        ways.append((min(first.images // 2, batch_size // lanes), lanes))
    return (*(Engine(form, *way) for way in ways for form in forms), Engine("plain"))


def _images(batch_size: int | None, activation: int | None) -> int:
    images = max(_IMAGES, _VALUES // activation) if activation else _IMAGES
    return min(images, batch_size or images)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolution with packed weights can be had for a type on a device."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and _onednn_convolves(dtype)


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions of a half type are computed in float32 and rounded, because the CPU has none of its own."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and not _onednn_convolves(dtype)


def missing(device: torch.device, dtype: torch.dtype) -> str:
    """Message that says why there is no packed form."""
    what = str(dtype).removeprefix("torch.")
    return f"there are no packed convolutions in {what} on this {'CPU' if device.type == 'cpu' else 'device'}"


@cache
def _onednn_convolves(dtype: torch.dtype) -> bool:
    """Tested by running one: builds without oneDNN, and CPUs without support for a type, fail here."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        # some versions fall back to a slow reference kernel instead of failing for an unsupported type
        if dtype == torch.bfloat16 and not (torch.ops.mkldnn._is_mkldnn_bf16_supported() and _multiplies_bfloat16()):
            return False
        if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
            return False
        with torch.inference_mode():
            x = torch.ones(2, 8, 4, 4, dtype=dtype, device="cpu").contiguous(memory_format=torch.channels_last)
            weight = torch.ones(8, 8, 3, 3, dtype=dtype, device="cpu")
            packed = pack(weight, ((1, 1), (1, 1), (1, 1)), 1, x.shape)
            result = torch.ops.mkldnn._convolution_pointwise.default(
                x, packed, None, [1, 1], [1, 1], [1, 1], 1, "relu", [], ""
            )
        return bool(result[0, 0, 1, 1] == 72)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _multiplies_bfloat16() -> bool:
    """Whether a CPU has units for bfloat16; oneDNN convolves without on any AVX-512, four times slower than float32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pack(
    weight: torch.Tensor,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    groups: int,
    shape: Sequence[int] | None,
) -> torch.Tensor:
    """Weights of a two-dimensional convolution in the layout that oneDNN wants.

    Args:
        weight: shape (out channels, in channels / groups, height, width), dense.
        geometry: padding, stride and dilation of the convolution.
        groups: of the convolution.
        shape: of the input (N, C, H, W), as far as it is known: packed for another size, weights are packed anew at
            every call, which can take longer than the convolution.
    """
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    size = None if shape is None else list(shape)
    packed: torch.Tensor = reorder(weight.to_mkldnn(), *map(list, geometry), groups, size)
    return packed


def widen(graph: fx.Graph) -> None:
    """Compute products in float32 on a CPU without units for half types, where they would take 20 times as long."""
    for node in graph.nodes:
        if node.target in WEIGHTED and isinstance(node.args[0], fx.Node) and not node.kwargs:
            node.args = (node.target, *node.args)
            node.target = in_float32


def in_float32(target: Callable[..., torch.Tensor], x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """An operation on half-precision tensors, computed in float32 and rounded, as units for such types do it."""
    wide = [item.float() if isinstance(item, torch.Tensor) and item.dtype == x.dtype else item for item in rest]
    return target(x.float(), *wide).to(x.dtype)
