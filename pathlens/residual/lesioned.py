"""A network on a route: blocks without their branch, without their shortcut, or in another order."""

from __future__ import annotations

from torch import fx

from pathlens.residual.chain import Chain
from pathlens.residual.routes import Part, Route
from pathlens.residual.segments import Piece, UpdatingSegment, splice, with_updates


def lesioned(chain: Chain, route: Route) -> UpdatingSegment:
    """From a batch to all tensors that the network returns.

    Args:
        chain: the network and its blocks.
        route: what runs at each position.

    Raises:
        ModelError: a block that runs elsewhere depends on the input other than through the block before it.
    """
    trace = chain.trace
    outputs = tuple(item for item in trace.outputs if isinstance(item, fx.Node))
    links = [(part, chain.links[block]) for part, block in route]
    swap = {link.total: link.remainder(part) for part, link in links if part is not Part.BLOCK}
    pieces = [Piece(trace.source, outputs, swap)]
    if any(block != position for position, (_, block) in enumerate(route)):
        pieces = [
            Piece(trace.source, (chain.boundaries[0],), swap),
            *(Piece(link.start, (link.end,), swap) for _, link in links),
            Piece(chain.boundaries[-1], outputs, swap),
        ]
    pieces, updated = with_updates(trace, chain.discovery.input_dependent, pieces)
    buffers = tuple(name for names in updated for name in names)
    ends = [*outputs, *(trace.mutations[name] for name in buffers)]
    return UpdatingSegment(splice(trace, pieces, ends), len(outputs), buffers)
