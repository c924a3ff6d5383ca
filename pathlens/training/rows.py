"""Whether a network's blocks have a row for each example, so that each can have blocks or factors of its own."""

from __future__ import annotations

from pathlens.errors import UsageError
from pathlens.residual import ResidualView
from pathlens.residual.discover import same_size
from pathlens.residual.modes import in_mode


def require_rows_of_blocks(view: ResidualView, what: str, remedy: str) -> None:
    """Raise where a sum, or what lies between two blocks, has no row for each example.

    Args:
        view: of the network, whose blocks are a chain.
        what: needs them, in words.
        remedy: in words, which end the message.

    Raises:
        UsageError: pieces of examples are in the batch, or sequences come first; the message names the block.
    """
    with in_mode(view.model):
        chain = view.chain()
    examples = chain.trace.value(chain.trace.source).shape[0]
    for block, link in zip(view, chain.links, strict=True):
        for node in (link.start, link.total, link.end):
            if chain.trace.batch_axis(node) or not same_size(chain.trace.value(node).shape[0], examples):
                raise UsageError(
                    f"{what}: at block {block.index} ({block.name}) the network has no row for each example (pieces of "
                    f"them are in the batch, or sequences come first); {remedy}"
                )
