"""One forward pass of any module as a functional graph of ATen operations.

The graph comes from :func:`torch.export.export` with a symbolic batch size. It is functional: in-place additions
and activations are ordinary nodes, and updates of buffers (batch-norm statistics) are extra outputs. It refers to
parameters by name only, so it always computes with the tensors that the module holds at the time of the call.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
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
from pathlens.residual.simplify import batch_norm_update, simplify
from pathlens.residual.turns import alone, together

__all__ = ["Trace", "batch_norm_update", "trace"]

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
        with together():
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
    single = example.shape[0] < _MAX_BATCH_PROBE
    probe = example.repeat(_MAX_BATCH_PROBE, *([1] * (example.dim() - 1))) if single else example
    traced = _canonical(model, _export(model, probe))
    if single and traced.static_batch is not None:
        # the module fixes the batch size whatever it is, so take the one that was asked for
        traced = _canonical(model, _export(model, example))
    return traced


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    name = type(model).__name__
    try:
        with (
            alone(),
            _quiet(),
            _no_fused_attention_layers(),
            _own_forwards(model),
            _attributes_kept(model),
            _observers_off(model),
            torch.enable_grad(),
        ):
            program = export(model, (example,), dynamic_shapes=_dynamic_batch(model), strict=False)
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


def _dynamic_batch(model: nn.Module) -> tuple[Any, ...]:
    """The first dimension of the first argument may vary."""
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    batch = {0: Dim.AUTO}
    return ((batch,),) if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL else (batch,)


@contextlib.contextmanager
def _own_forwards(model: nn.Module) -> Iterator[None]:
    """Without the interventions that are active on the model or a part of it, and as functions, as export needs."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            suspended = getattr(module.__dict__.get("forward"), "suspended", None)
            if suspended is not None:
                stack.enter_context(suspended())
        own = model.__dict__.get("forward")
        if own is not None and not hasattr(own, "__code__"):

            def forward(*args: Any, **kwargs: Any) -> Any:
                return own(*args, **kwargs)

            model.forward = forward
            stack.callback(setattr, model, "forward", own)
        yield


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass stores on its modules (features, counters): while tracing it holds no real tensors."""
    saved: list[tuple[Any, Any]] = []
    for module in model.modules():
        attributes = dict(module.__dict__)
        saved.append((module.__dict__, attributes))
        saved += [(value, value.copy()) for value in attributes.values() if isinstance(value, (list, dict))]
    try:
        yield
    finally:
        for value, before in saved:
            if isinstance(value, list):
                value[:] = before
            elif list(map(id, value.values())) != list(map(id, before.values())) or list(value) != list(before):
                value.clear()
                value.update(before)


@contextlib.contextmanager
def _observers_off(model: nn.Module) -> Iterator[None]:
    """Keep the user's forward hooks from tracing: they would be handed tensors without values.

    Hooks of torch's own weight and spectral norms make the weights and stay.
    """
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    before = [dict(hook) for hook in hooks]
    try:
        for hook in hooks:
            for key, call in list(hook.items()):
                if not type(call).__module__.startswith("torch.nn.utils"):
                    del hook[key]
        yield
    finally:
        for hook, calls in zip(hooks, before, strict=True):
            hook.clear()
            hook.update(calls)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporter prints (advice, failed graphs) is about exporting; errors come out as one line instead."""
    names = ("torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
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
    simplify(graph)
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
    # a size that was fixed while tracing may still be dressed as a symbol
    static = shape[0].node.maybe_as_int() if isinstance(shape[0], torch.SymInt) else int(shape[0])
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
