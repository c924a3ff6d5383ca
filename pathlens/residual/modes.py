"""Train and eval mode for the length of a body: whatever changes a module's mode puts every submodule's own back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


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
