"""Output shapes of the most common operations.

torch could compute them, but imports torch.compile and sympy to do so, which takes longer than recording most networks.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Shape = tuple[int, ...]

_POINTWISE = frozenset(
    getattr(aten, name).default
    for name in ("relu", "relu6", "leaky_relu", "hardtanh", "hardswish", "gelu", "silu", "sigmoid", "tanh", "elu")
)
_ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}


def shape_of_result(func: Any, args: Any, kwargs: dict[str, Any]) -> Shape | None:
    """Shape of ``func(*args)``, contiguous and of the type of its first operand; None where torch has to be asked.

    Args:
        func: the operation.
        args: its arguments, with tensors of which only shape and type are looked at.
        kwargs: its named arguments.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if not all(item.is_contiguous() for item in args if isinstance(item, Tensor)):
        return None  # other memory layouts propagate to the result, and may decide what is a view
    if func in _POINTWISE:
        return tuple(x.shape)
    if func in _ARITHMETIC:
        return _broadcast(x.shape, args[1].shape) if _of_type(x, args[1:2]) else None
    if kwargs:
        return None
    if func in _CONVOLUTIONS:
        return _convolution(_CONVOLUTIONS[func], *args)
    if func is aten.batch_norm.default:
        return tuple(x.shape) if x.dim() > 1 and _of_type(x, args[1:5], (x.shape[1],)) else None
    if func is aten.layer_norm.default:
        inner = tuple(args[1])
        fits = tuple(x.shape[x.dim() - len(inner) :]) == inner and _of_type(x, args[2:4], inner)
        return tuple(x.shape) if fits else None
    if func is aten.group_norm.default:
        fits = x.dim() > 1 and x.shape[1] % args[1] == 0 and _of_type(x, args[2:4], (x.shape[1],))
        return tuple(x.shape) if fits else None
    if func is aten.linear.default:
        return _linear(*args)
    if func is aten.adaptive_avg_pool2d.default:
        return (*x.shape[:-2], *args[1]) if x.dim() == 4 and len(args[1]) == 2 else None
    return None


def _of_type(x: Tensor, tensors: Any, shape: Shape | None = None) -> bool:
    """Whether operands, where they are given, have the type of another, and a shape."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not all(isinstance(tensor, Tensor) and tensor.dtype == x.dtype for tensor in given):
        return False
    return shape is None or all(tuple(tensor.shape) == shape for tensor in given)


def _broadcast(one: Shape, other: Shape) -> Shape | None:
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    if not all(a == b or 1 in (a, b) for a, b in pairs):
        return None
    return tuple(b if a == 1 else a for a, b in reversed(pairs))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    fits = weight.dim() == 2 and x.dim() > 1 and x.shape[-1] == weight.shape[1] and _of_type(x, [weight])
    return (*x.shape[:-1], weight.shape[0]) if fits and _of_type(x, [bias], (weight.shape[0],)) else None


def _convolution(
    dims: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Shape | None:
    outputs = weight.shape[0]
    if x.dim() != dims + 2 or weight.dim() != dims + 2 or not _of_type(x, [weight]):
        return None
    if x.shape[1] != weight.shape[1] * groups or outputs % groups or not _of_type(x, [bias], (outputs,)):
        return None
    ways = [list(item) * (dims if len(item) == 1 else 1) for item in (stride, padding, dilation)]
    sizes = [
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, spread in zip(x.shape[2:], weight.shape[2:], *ways, strict=True)
    ]
    return (x.shape[0], outputs, *sizes) if min(sizes) > 0 else None
