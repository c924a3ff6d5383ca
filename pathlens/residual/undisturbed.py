"""Everything that is switched off or saved while a module is traced, and restored afterwards."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pathlens.residual.turns import alone
from pathlens.runtime.precision import no_autocast

_CONTAINERS = (list, dict, set, deque)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Switch off hooks, interventions and warnings that would disturb tracing a model, and restore all afterwards."""
    with (
        alone(),
        _quiet(),
        _no_fused_attention_layers(),
        _own_forwards(model),
        attributes_kept(model),
        _observers_off(model),
        no_autocast(),  # whose casts a trace would hold; its operations are cast when they run
        torch.enable_grad(),
    ):
        yield


@contextlib.contextmanager
def _own_forwards(model: nn.Module) -> Iterator[None]:
    """Suspend interventions on the model and its parts, and give export a ``forward`` that is a function."""
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
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass stores on its modules (features, counters): while tracing it holds no real tensors."""
    held = _held(module.__dict__ for module in model.modules())
    saved = [(value, list(value.items()) if isinstance(value, dict) else list(value)) for value in held]
    try:
        yield
    finally:
        for value, before in saved:
            now = list(value.items()) if isinstance(value, dict) else list(value)
            if _identities(now) == _identities(before):
                continue
            value.clear()
            if isinstance(value, (dict, set)):
                value.update(before)
            else:
                value.extend(before)


def _held(attributes: Iterable[dict[str, Any]]) -> list[Any]:
    """All lists, dicts, sets and deques that attributes hold, themselves among them, however deep or in an object."""
    found: dict[int, Any] = {}
    waiting: list[Any] = list(attributes)
    while waiting:
        value = waiting.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, _CONTAINERS):
                waiting.append(part)
            elif _is_plain_object(part):
                waiting.append(vars(part))
    return list(found.values())


def _is_plain_object(value: Any) -> bool:
    """Whether a value is an object that keeps attributes, and neither of torch nor code."""
    keeps = isinstance(getattr(value, "__dict__", None), dict)
    code = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType)
    return keeps and not isinstance(value, code) and type(value).__module__.partition(".")[0] != "torch"


def _identities(parts: list[Any]) -> list[Any]:
    return [tuple(map(id, part)) if type(part) is tuple else id(part) for part in parts]


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
