"""What each operation of a traced graph costs, from the shapes of its operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pathlens.residual import operations as ops
from pathlens.residual.trace import Trace

aten = torch.ops.aten

_PROBE = 2
_FLOPS_PER_MULTIPLY_ADD = 2
_PLAIN_CONVOLUTIONS = frozenset(
    getattr(getattr(aten, f"conv{n}d"), kind) for n in (1, 2, 3) for kind in ("default", "padding")
)
_ATTENTION = aten.scaled_dot_product_attention.default


def multiply_adds(trace: Trace) -> dict[fx.Node, int]:
    """Multiply-adds of each node for one example, as torch.utils.flop_counter counts them."""
    batch = trace.static_batch or _PROBE
    counts: dict[fx.Node, int] = {}
    for node in trace.graph.nodes:
        if node.op != "call_function" or not _may_multiply(node):
            continue

        def stand_in(operand: fx.Node) -> Any:
            return trace.at_batch(trace.value(operand), batch)

        args = fx.node.map_arg(node.args, stand_in)
        out = stand_in(node)
        cost = _known(node.target, args, out)
        if cost is None:
            cost = _counted(node.target, args, fx.node.map_arg(node.kwargs, stand_in))
        if cost:
            counts[node] = cost // batch
    return counts


def _may_multiply(node: fx.Node) -> bool:
    """Whether an operation may hold convolutions or matrix products, which are all that is counted."""
    if node.target in ops.WEIGHTED or node.target is _ATTENTION:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or ops.is_norm(node) or ops.is_rearranging(node):
        return False
    if node.target is aten.sym_size.int:
        return False
    composite = node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return (composite and node.target not in ops.ACTIVATIONS) or _is_registered(node.target)


def _is_registered(target: torch._ops.OpOverload) -> bool:
    name = target._schema.name
    return "scaled_dot_product" in name or "convolution" in name or name.endswith("mm")


def _known(target: Any, args: Any, out: Any) -> int | None:
    """Multiply-adds of the usual operations on operands of the usual shapes."""
    if target in _PLAIN_CONVOLUTIONS or target in ops.TRANSPOSED:
        x, weight = args[:2]
        if x.dim() != weight.dim():
            return None
        places = x if target in ops.TRANSPOSED else out
        return int(places.shape[0] * places.shape[2:].numel() * weight.numel())
    if target is aten.linear.default and args[0].dim() > 1 and args[1].dim() == 2:
        return int(out.numel() * args[1].shape[1])
    if target in (aten.matmul.default, aten.mm.default, aten.bmm.default) and min(a.dim() for a in args) > 1:
        return int(out.numel() * args[0].shape[-1])
    if target is _ATTENTION:
        query, key, value = args[:3]
        return int(out.numel() // value.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    return None


def _counted(target: Any, args: Any, kwargs: Any) -> int:
    """Multiply-adds of an operation, counted while it runs on tensors without memory."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def on_meta(item: Any) -> Any:
        return torch.device("meta") if isinstance(item, torch.device) else item

    kwargs = {name: on_meta(item) for name, item in kwargs.items()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        target(*args, **kwargs)
    return counter.get_total_flops() // _FLOPS_PER_MULTIPLY_ADD
