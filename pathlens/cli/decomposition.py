"""``pathlens decompose`` on the command line."""

from __future__ import annotations

from typing import Annotated, Any

from pathlens.cli import options as o
from pathlens.cli.propagation import Mode, SignalOptions, over_initialisations


@o.takes_objects
def decompose(
    at: Annotated[
        str,
        o.option(
            "What to decompose: sum (of the last block), the number of a block, or output.", "--at", metavar="PLACE"
        ),
    ] = "sum",
    seeds: Annotated[int, o.option("Initialisations of each scheme.", metavar="N")] = 5,
    mode: Annotated[Mode, o.option("train: batch norms with the statistics of the batch.", "--mode")] = Mode.eval,
    *,
    common: SignalOptions,
) -> None:
    """The last sum as stem plus what each block contributes, carried through everything behind it.

    Share of the variance, correlation with the whole and norm of every summand; they are checked to add up. With --at
    output also what each block adds to the logit of the label, and the error with the blocks up to it alone.
    """
    asked: dict[str, Any] = {"at": at, "seeds": seeds, "mode": mode.value}
    over_initialisations("decompose", common, asked)
