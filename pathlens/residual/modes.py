"""A user's module in another mode, or as a copy: it is left as it is.

Whatever changes a module's mode puts every submodule's own back.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


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


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Hold a module in eval (or train) mode; afterwards each of its modules is in the mode that it was in.

    Args:
        module: whose mode is changed, with all of its submodules.
        training: train mode and not eval mode.
    """
    before = [(part, part.training) for part in module.modules()]
    module.train() if training else module.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
