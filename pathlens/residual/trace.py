"""One forward pass of any module as a functional graph of ATen operations.

The graph comes from :func:`torch.export.export` with a symbolic batch size. It is functional: in-place additions
and activations are ordinary nodes, and updates of buffers (batch-norm statistics) are extra outputs. It refers to
parameters by name only, so it always computes with the tensors that the module holds at the time of the call.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from pathlens.errors import ModelError, PathlensError

aten = torch.ops.aten

_MAX_BATCH_PROBE = 2


@dataclass(frozen=True, eq=False)
class Trace:
    """A functional graph of one forward pass.

    Attributes:
        graph: nodes in execution order; parameters, buffers and constants are placeholders.
        source: the placeholder that stands for the input.
        tensors: placeholder name -> ``("parameter" | "buffer" | "constant", qualified name or tensor)``.
        outputs: output nodes (or constants) in the order of the flattened return value.
        out_spec: how to put the flat outputs back into what the module returns.
        main: the output that the residual trunk leads to.
        mutations: buffer name -> node with its new value, in train mode.
        static_batch: the batch size when the module fixed it while tracing, else None.
        input_shape: shape of the input without the batch dimension.
    """

    graph: fx.Graph
    source: fx.Node
    tensors: dict[str, tuple[str, Any]]
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    main: fx.Node
    mutations: dict[str, fx.Node]
    static_batch: int | None
    input_shape: tuple[int, ...]
    _lookups: dict[str, Callable[[], Tensor]] = field(repr=False)

    def fetch(self, names: tuple[str, ...]) -> list[Tensor]:
        """The tensors behind placeholders, as the module holds them now."""
        return [self._lookups[name]() for name in names]

    def value(self, node: fx.Node) -> Any:
        """Shape-carrying stand-in that the exporter recorded for a node (a fake tensor, SymInt or tuple)."""
        return node.meta.get("val")


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Trace ``model`` in its present train/eval mode.

    Args:
        model: the module; its parameters, buffers, modes and hooks are left as they are.
        example: an input, shape (N, ...). A single example is doubled, because a batch of one would be taken for
            a constant.

    Returns:
        The functional graph.

    Raises:
        ModelError: the module cannot be traced, or does not take or return tensors.
    """
    if example.dim() < 1 or example.shape[0] < 1:
        raise ModelError(f"example input of shape {tuple(example.shape)} has no batch; give one of shape (N, ...)")
    if example.shape[0] < _MAX_BATCH_PROBE:
        example = example.repeat(_MAX_BATCH_PROBE, *([1] * (example.dim() - 1)))
    program = _export(model, example)
    return _canonical(model, program)


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    name = type(model).__name__
    try:
        with _quiet(), _no_fused_attention_layers(), torch.enable_grad():
            program = export(model, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
            return program.run_decompositions({})
    except PathlensError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # The exporter reports whatever the user's own forward raised, so every class is possible here.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{name} cannot be traced with an input of shape {tuple(example.shape)}: {type(error).__name__}: {reason}; "
            "check the input shape, and remove control flow that depends on tensor values"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice (static dimensions, pytree registrations) is about exporting, not about the study."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _no_fused_attention_layers() -> Iterator[None]:
    """The fast path of ``nn.TransformerEncoderLayer`` is one opaque operation that hides its two additions."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _canonical(model: nn.Module, program: torch.export.ExportedProgram) -> Trace:
    graph = program.graph_module.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    tensors: dict[str, tuple[str, Any]] = {}
    source: fx.Node | None = None
    constants = program.constants
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            source = placeholders.get(name, source)
        elif spec.kind == InputKind.PARAMETER:
            tensors[name] = ("parameter", spec.target)
        elif spec.kind == InputKind.BUFFER:
            tensors[name] = ("buffer", spec.target)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            assert spec.target is not None
            tensors[name] = ("constant", constants[spec.target])
        else:
            raise ModelError(
                f"{type(model).__name__} takes an input of kind {spec.kind.name}; wrap it in a module of one tensor"
            )
    _simplify(graph)
    (output,) = [node for node in graph.nodes if node.op == "output"]
    flat = output.args[0]
    mutations: dict[str, fx.Node] = {}
    results: list[Any] = []
    for value, out in zip(flat, program.graph_signature.output_specs, strict=True):
        if out.kind == OutputKind.BUFFER_MUTATION:
            assert out.target is not None
            mutations[out.target] = value
        elif out.kind == OutputKind.USER_OUTPUT:
            results.append(value)
    main = next(
        (value for value in results if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)), None
    )
    if source is None or main is None:
        raise ModelError(f"{type(model).__name__} does not turn its input tensor into an output tensor")
    shape = source.meta["val"].shape
    static = None if isinstance(shape[0], torch.SymInt) else int(shape[0])
    return Trace(
        graph=graph,
        source=source,
        tensors=tensors,
        outputs=tuple(results),
        out_spec=program.call_spec.out_spec,
        main=main,
        mutations=mutations,
        static_batch=static,
        input_shape=tuple(int(size) for size in shape[1:]),
        _lookups={name: _lookup(model, kind, target) for name, (kind, target) in tensors.items()},
    )


def _lookup(model: nn.Module, kind: str, target: Any) -> Callable[[], Tensor]:
    if kind == "constant":
        return lambda: target
    owner_name, _, leaf = target.rpartition(".")
    owner = model.get_submodule(owner_name)
    # ``getattr`` at call time: a parameter that the user replaces between calls is the one that is used.
    return lambda: getattr(owner, leaf)


def batch_norm_update(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with batch statistics: the output, and the updated running mean and variance as new tensors."""
    mean, variance = mean.detach().clone(), variance.detach().clone()
    out = torch.batch_norm(x, weight, bias, mean, variance, True, momentum, eps, torch.backends.cudnn.enabled)
    return out, mean, variance


def _simplify(graph: fx.Graph) -> None:
    """Undo what functionalisation spelled out, so that operations with fast kernels and gradients stay whole."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._native_batch_norm_legit_no_training.default:
            _collapse_batch_norm_eval(graph, node)
        elif node.target is aten._native_batch_norm_legit_functional.default:
            x, weight, bias, mean, variance, _training, momentum, eps = node.args
            node.target = batch_norm_update
            node.args = (x, weight, bias, mean, variance, momentum, eps)
            for user in list(node.users):
                position = user.args[1]
                # saved mean and inverse deviation (1, 2) are for the backward pass alone
                if position >= 3:
                    user.args = (node, position - 2)
        elif node.target is aten.native_dropout.default:
            _collapse_first(graph, node, aten.dropout.default)
        elif node.target is aten.view.default:
            # a view fails on channels-last activations, where a reshape does what the author meant
            node.target = aten.reshape.default
        elif node.target is aten.add.Tensor and node.args[1] == 0 and isinstance(node.args[0], fx.Node):
            # the zero that Python's sum() starts from
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.addcmul.default:
            _split_addcmul(graph, node)
        elif node.target in (aten.slice.Tensor, aten.slice_scatter.default):
            _collapse_slice(graph, node)
    graph.lint()


def _collapse_batch_norm_eval(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, eps = node.args
    with graph.inserting_before(node):
        whole = graph.call_function(
            aten.batch_norm.default,
            (x, weight, bias, mean, variance, False, momentum, eps, torch.backends.cudnn.enabled),
        )
    _replace_first(graph, node, whole)


def _collapse_first(graph: fx.Graph, node: fx.Node, target: Any) -> None:
    with graph.inserting_before(node):
        whole = graph.call_function(target, node.args)
    _replace_first(graph, node, whole)


def _replace_first(graph: fx.Graph, node: fx.Node, whole: fx.Node) -> None:
    """Replace a tuple-valued node, of which only the first element is used, by a tensor-valued one."""
    whole.meta = dict(node.meta)
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        whole.meta["val"] = value[0]
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(whole)
        if not user.users:
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)


def _split_addcmul(graph: fx.Graph, node: fx.Node) -> None:
    """``x + value * a * b`` as an addition, which is what a layer-scaled residual block is."""
    x, a, b = node.args
    value = node.kwargs.get("value", 1)
    with graph.inserting_before(node):
        product = graph.call_function(aten.mul.Tensor, (a, b))
        if value != 1:
            product.meta = dict(node.meta)
            product = graph.call_function(aten.mul.Tensor, (product, value))
        total = graph.call_function(aten.add.Tensor, (x, product))
    product.meta = dict(node.meta)
    total.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _collapse_slice(graph: fx.Graph, node: fx.Node) -> None:
    """Drop slices of everything, and read what was just written: how ``out[:, :c] += x`` looks when functional."""
    given = 1 if node.target is aten.slice.Tensor else 2
    base, window = node.args[0], _window(node, given)
    assert isinstance(base, fx.Node)
    same: object = None
    if _is_whole(base, window):
        same = node.args[given - 1]
    elif given == 1 and base.target is aten.slice_scatter.default and _window(base, 2) == window:
        same = base.args[1]
    if isinstance(same, fx.Node):
        node.replace_all_uses_with(same)
        graph.erase_node(node)


def _window(node: fx.Node, skip: int) -> tuple[Any, ...]:
    given = list(node.args[skip:]) + [None] * 4
    dim, start, end, step = (node.kwargs.get(name, given[i]) for i, name in enumerate(("dim", "start", "end", "step")))
    return (dim or 0, start or 0, end, step or 1)


def _is_whole(base: fx.Node, window: tuple[Any, ...]) -> bool:
    dim, start, end, step = window
    if start != 0 or step != 1:
        return False
    if end is None or (isinstance(end, int) and end == sys.maxsize):
        return True
    size = base.meta["val"].shape[dim]
    return isinstance(end, int) and isinstance(size, int) and end >= size
