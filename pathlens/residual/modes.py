"""A user's module in another mode, or as a copy: it is left as it is. And what its modules are set to.

Whatever changes a module's mode puts every submodule's own back.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

#: kinds of attributes that a trace holds as they were: numbers, words and switches, and functions to be called
_NUMBERS = (bool, int, float, str, type(None), np.int64, np.float32, np.float64)
_PLAIN = frozenset((*_NUMBERS, FunctionType, BuiltinFunctionType, MethodType, partial))
_CONTAINERS = frozenset((list, tuple, dict))
#: attributes of every module, which say nothing of what it computes, and the place where interventions put a forward
_OF_ALL = (frozenset(nn.Module().__dict__) - {"training"}) | {"forward"}
#: most of the modules of a network -> what they are set to besides their mode
_KNOWN: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    nn.Conv2d: attrgetter("stride", "padding", "dilation", "groups", "padding_mode"),
    **dict.fromkeys((nn.Linear, nn.ReLU, nn.Identity, nn.Sequential, nn.ModuleList), lambda module: ()),
}


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also where a module keeps tensors that it computed, which torch does not copy.

    Such are the weights of ``torch.nn.utils.weight_norm``, and what a forward pass has kept for later; the copy has
    their values.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def settings(model: nn.Module) -> tuple[Any, ...]:
    """The modules of a model and what they are set to: what a trace of it holds as it was, so that it can be compared.

    Numbers, words, switches and functions count, also those in lists, tuples and dicts: rates of dropout, temperatures,
    gates, activations. Modules stand for themselves, since the place in memory of one that is gone may be another's.

    Args:
        model: whose parameters, buffers and other tensors are left out.
    """
    found: list[Any] = []
    for module in model.modules():
        found.append(module)
        if known := _KNOWN.get(type(module)):
            found += [module.training, *known(module)]
            continue
        for name, value in module.__dict__.items():
            kind = type(value)
            if kind in _PLAIN and name not in _OF_ALL:
                found.append(value)
            elif kind in _CONTAINERS and name not in _OF_ALL:
                found += _plain_parts(value)
    return tuple(found)


def _plain_parts(container: Any) -> list[Any]:
    """What is plain in a list, tuple or dict and in those inside it, each with its place: indices and keys."""
    found: list[Any] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), container)]
    seen = {id(container)}
    while waiting:
        place, held = waiting.pop()
        for key, part in list(held.items() if isinstance(held, dict) else enumerate(held)):
            inside = (*place, key if type(key) in _PLAIN else type(key))
            # features that a forward pass keeps there are none of its settings, however many
            if type(part) in _PLAIN:
                found.append((*inside, part))
            elif type(part) in _CONTAINERS and id(part) not in seen:
                seen.add(id(part))
                waiting.append((inside, part))
    return found


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Hold a module in eval (or train) mode; afterwards each of its modules is in the mode that it was in.

    Modules change their mode themselves, by their own ``train``: some add updates of low rank to their weights in eval
    mode, and take them off in train mode.

    Args:
        module: whose mode is changed, with all of its submodules.
        training: train mode and not eval mode.
    """
    before = [(part, part.training) for part in module.modules()]
    module.train() if training else module.eval()
    try:
        yield
    finally:
        try:
            # from the outermost on, because each takes along those inside it
            for part, mode in before:
                if part.training != mode:
                    part.train(mode)
        finally:
            # a module may refuse a mode that its flag was set to
            for part, mode in before:
                part.training = mode
