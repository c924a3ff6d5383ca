"""Convolutions of 3x3 on a CPU without bfloat16 by F(4x4, 3x3): a quarter of the multiplications, the same gradient.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (section 4.3). The networks of
``preresnet110`` hold hardly anything but such convolutions, and training them is most of this study's time. The
kernel is in C++, is compiled on first use, and asks for AVX-512 or AVX2, a compiler and torch's own OpenMP; without
them, and for any other convolution, torch computes as always. What is measured is always measured with torch's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: what the record says of trainings that were computed so
NAME = "F(4x4, 3x3), float32"
#: of the compiler, by what torch says of the CPU
_INSTRUCTIONS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f",)}
_SOURCE = Path(__file__).with_name("winograd.cpp")
#: channels that the kernel has room for, and multiples of them, and of height and width, that it takes
_LARGEST, _CHANNELS, _TILE = 64, 16, 4
#: stride, padding, dilation, whether transposed, padding of the output, groups
_HOW = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None where this machine has not what it needs."""
    compiler = shutil.which("c++")
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if compiler is None or not openmp or instructions is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = Path(folder, "winograd.o"), Path(folder, "winograd.so")
        # linked apart and without -fopenmp, so that it takes its threads from torch's OpenMP and not from a second one
        options = ["-std=c++17", "-O3", *instructions, "-fopenmp", "-fPIC", "-c"]
        for command in (
            [compiler, *options, str(_SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(library)],
        ):
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                return None
        try:
            ctypes.CDLL(str(openmp[0]), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
        except OSError:
            return None


@contextlib.contextmanager
def winograd() -> Iterator[bool]:
    """Compute convolutions of training steps with the kernel where it takes them; yields whether this machine has it.

    It stands in for torch's own at the dispatcher, so that it serves models and the graphs that are traced of them.
    """
    if kernel() is None:
        yield False
        return
    stock = torch.library.get_kernel("aten::convolution", "AutogradCPU")

    def convolution(keys: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        if _takes(x, weight, bias, *how):
            return _Convolution.apply(x, weight)
        result: Tensor = stock.call_boxed(keys, x, weight, bias, *how)
        return result

    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("convolution", convolution, "AutogradCPU", with_keyset=True)
        yield True
    finally:
        library._destroy()


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
    return (
        how == _HOW
        and bias is None
        and weight.requires_grad
        and torch.is_grad_enabled()
        and type(x) is Tensor
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and len(x) > 0
        and all(n % _CHANNELS == 0 and n <= _LARGEST for n in weight.shape[:2])
        and all(n % _TILE == 0 for n in x.shape[2:])
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        shape = (len(x), len(weight), *x.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        inputs_first = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        _call("forward", (x, inputs_first, out), x, len(weight))
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        weight = weight.contiguous(memory_format=torch.channels_last)
        cotangent = cotangents[0].contiguous(memory_format=torch.channels_last)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight)
        _call("backward", (x, weight, cotangent, of_x, of_weight), x, len(weight))
        return of_x, of_weight


def _call(name: str, tensors: tuple[Tensor | None, ...], x: Tensor, channels: int) -> None:
    found = kernel()
    assert found is not None
    images, inputs, height, width = x.shape
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    found[name](*pointers, images, height, width, inputs, channels, torch.get_num_threads())
