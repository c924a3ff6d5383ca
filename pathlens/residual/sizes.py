"""Sizes in a traced graph: fixed, or a multiple of the batch size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

#: batch size of the values in a recorded graph: a prime that is no usual layer width, so that its multiples stand out
STAND_IN = 211


def may_follow_batch(size: object) -> bool:
    """Whether a size may depend on the batch: a symbol of the exporter, or a multiple of the stand-in."""
    return isinstance(size, torch.SymInt) or (isinstance(size, int) and size > 0 and size % STAND_IN == 0)


def ratio(size: int | torch.SymInt, other: int | torch.SymInt) -> Fraction | None:
    """How many times as large as another size a size is, where both follow the batch; None where that varies."""
    if isinstance(size, int) and isinstance(other, int):
        return Fraction(size, other)
    import sympy

    symbols: tuple[Any, Any] = size, other
    factor = sympy.simplify(symbols[0].node.expr / symbols[1].node.expr)
    return Fraction(int(factor.p), int(factor.q)) if factor.is_Rational else None


def at_batch(size: int | torch.SymInt, batch: int) -> int:
    """A size that follows the batch, for a batch of so many examples."""
    if isinstance(size, int):
        return size // STAND_IN * batch
    # without asking the symbol itself, which would fix it
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))
