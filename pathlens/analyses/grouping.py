"""What is deleted together: each block by itself, or the blocks of one layer."""

from __future__ import annotations

from itertools import groupby

from pathlens.errors import UsageError
from pathlens.residual import ResidualView

GROUPS = ("block", "layer")
"""What blocks may be grouped by."""


def units_of(view: ResidualView, group: str) -> list[tuple[int, ...]]:
    """The blocks that are deleted together.

    A layer is a run of blocks whose sums one module makes: the attention and the MLP of a transformer's layer are two.

    Args:
        view: the network's blocks.
        group: ``block`` or ``layer``.

    Raises:
        UsageError: another word, or a network whose sums are all made by one module.
    """
    if group not in GROUPS:
        raise UsageError(f"group {group!r} is unknown; give {' or '.join(GROUPS)}")
    if group == "block":
        return [(block.index,) for block in view]
    layers = [tuple(block.index for block in run) for _, run in groupby(view, key=lambda block: block.module)]
    if len(layers) == 1 and len(view) > 1:
        raise UsageError(
            f"{type(view.model).__name__} makes the sums of all its {len(view)} blocks in one module, so that layers "
            "cannot be told apart; leave --group out"
        )
    return layers


def name_of(view: ResidualView, unit: tuple[int, ...]) -> str:
    """The name of a block, or the module of a layer."""
    return view[unit[0]].name if len(unit) == 1 else view[unit[0]].module
