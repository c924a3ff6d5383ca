"""A network whose blocks run side by side, or several times."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from pathlens.errors import UsageError
from pathlens.residual.chain import Chain
from pathlens.residual.routes import Part, Schedule
from pathlens.residual.segments import cut


def scheduled(chain: Chain, schedule: Schedule) -> Callable[[Tensor], list[Tensor]]:
    """From a batch to all tensors that the network returns.

    Args:
        chain: the network and its blocks.
        schedule: what runs.

    Raises:
        UsageError: the network is in train mode and counts statistics, of which there would be several for one block.
        ModelError: it returns something that does not come from the last block.
    """
    if chain.trace.mutations:
        raise UsageError(
            "blocks that run side by side or several times have no running statistics of their own to update; call "
            "model.eval() before"
        )
    outputs = [item for item in chain.trace.outputs if isinstance(item, fx.Node)]
    head = cut(chain.trace, chain.boundaries[-1], outputs)

    def step(part: Part, block: int) -> Callable[[Tensor], Tensor]:
        piece = chain.step(part, block)
        return lambda x: piece(x)[0]

    return lambda images: list(head(schedule.run(step, chain.stem(images)[0])))
