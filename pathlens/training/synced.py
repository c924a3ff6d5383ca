"""Batch norm over the images of all processes, on any device.

``torch.nn.SyncBatchNorm`` works on GPUs alone and needs other modules; this leaves the model as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SyncedBatchNorm(TorchFunctionMode):
    """While it is active, batch norms in train mode use the statistics of the images of all processes.

    Args:
        group: the processes; one of their own, so that nothing comes between (None for all).
    """

    def __init__(self, group: Any = None) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace batch norms in train mode; all other functions run unchanged."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            given = _bound(_FUNCTIONAL, args, kwargs)
        elif func is torch.batch_norm:
            given = _bound(_TORCH, args, kwargs)
        else:
            return func(*args, **kwargs)
        if not given.get("training"):
            return func(*args, **kwargs)
        momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
        out, mean, variance, count = _Synced.apply(given["input"], given["weight"], given["bias"], eps, self._group)
        running_mean, running_var = given["running_mean"], given["running_var"]
        if running_mean is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return out


_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TORCH = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")


def _bound(names: tuple[str, ...], args: Any, kwargs: Any) -> dict[str, Any]:
    return {"weight": None, "bias": None, **dict(zip(names, args, strict=False)), **kwargs}


def _sum_over(x: Tensor) -> Tensor:
    return x.sum([axis for axis in range(x.dim()) if axis != 1])


def _broad(channels: Tensor, like: Tensor) -> Tensor:
    return channels.reshape(1, -1, *([1] * (like.dim() - 2)))


class _Synced(torch.autograd.Function):
    """Ioffe and Szegedy 2015, algorithm 1, with the sums taken over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        working = torch.float64 if x.dtype == torch.float64 else torch.float32
        wide = x.to(working)
        count = torch.tensor([x.numel() // x.shape[1]], dtype=working, device=x.device)
        sums = torch.cat([_sum_over(wide), count])
        dist.all_reduce(sums, group=group)
        count = sums[-1:]
        mean = sums[:-1] / count
        centred = wide - _broad(mean, x)
        variance = _sum_over(centred.square())
        dist.all_reduce(variance, group=group)
        variance /= count
        inverse = torch.rsqrt(variance + eps)
        normal = centred * _broad(inverse, x)
        out = normal if weight is None else normal * _broad(weight.to(working), x)
        out = out if bias is None else out + _broad(bias.to(working), x)
        ctx.save_for_backward(normal, inverse, weight, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, seed: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        normal, inverse, weight, count = ctx.saved_tensors
        wide = seed.to(normal.dtype)
        of_bias, of_weight = _sum_over(wide), _sum_over(wide * normal)
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums, group=ctx.group)
        sums /= count
        back = wide - _broad(sums[0], wide) - normal * _broad(sums[1], wide)
        scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
        back = (back * _broad(scale, wide)).to(seed.dtype)
        kind = None if weight is None else weight.dtype
        return (
            back,
            None if weight is None else of_weight.to(kind),
            None if weight is None else of_bias.to(kind),
            None,
            None,
        )
