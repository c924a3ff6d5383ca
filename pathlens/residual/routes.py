"""What runs at each position of a chain: a block as it is, without its branch or shortcut, or another block."""

from __future__ import annotations

from torch import fx

from pathlens.residual.chain import Chain, Link
from pathlens.residual.segments import Piece, Segment, splice, with_updates

Step = tuple[str, int]
"""``run`` (as it is), ``bypass`` (branch deleted) or ``no_skip`` (shortcut deleted), and the block."""

Route = tuple[Step, ...]
"""A step for each position."""


def intact(blocks: int) -> Route:
    """The route of the network as it was trained."""
    return tuple(("run", block) for block in range(blocks))


def path_blocks(route: Route, first: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The blocks at which a path may choose, and those whose branch every path takes.

    With f of the first and m of the second there are C(f, k - m) paths of length k.

    Args:
        route: of the network.
        first: position from which on blocks count.
    """
    free = tuple(block for what, block in route[first:] if what == "run")
    return free, tuple(block for what, block in route[first:] if what == "no_skip")


def remainder(link: Link, what: str) -> fx.Node:
    """What is left of a block's sum under a step."""
    return {"run": link.total, "bypass": link.bypass, "no_skip": link.branch}[what]


def lesioned(chain: Chain, route: Route) -> tuple[Segment, list[str]]:
    """The network on a route, and the buffers that its further results are for."""
    trace = chain.trace
    outputs = tuple(item for item in trace.outputs if isinstance(item, fx.Node))
    links = [(what, chain.links[block]) for what, block in route]
    swap = {link.total: remainder(link, what) for what, link in links if what != "run"}
    pieces = [Piece(trace.source, outputs, swap)]
    if any(block != position for position, (_, block) in enumerate(route)):
        pieces = [
            Piece(trace.source, (chain.boundaries[0],), swap),
            *(Piece(link.start, (link.end,), swap) for _, link in links),
            Piece(chain.boundaries[-1], outputs, swap),
        ]
    pieces, updated = with_updates(trace, chain.discovery.dependent, pieces)
    buffers = [name for part in updated for name in part]
    ends = [*outputs, *(trace.mutations[name] for name in buffers)]
    return splice(trace, pieces, ends), buffers
