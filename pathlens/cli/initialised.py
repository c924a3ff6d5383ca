"""``--init``: random weights by a published scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from pathlens.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pathlens.models import LoadedModel
    from pathlens.tables import Table


class Asked(Protocol):
    """Options of a verb that names a network."""

    @property
    def init(self) -> str | None: ...  # noqa: D102
    @property
    def standardise(self) -> bool: ...  # noqa: D102


def check_init(asked: Asked, weights: str | None) -> None:
    """Refuse a scheme for weights that come from elsewhere.

    Args:
        asked: the options.
        weights: what ``--weights`` means here.

    Raises:
        UsageError: they do not go together.
    """
    if asked.init is not None and weights != "random":
        raise UsageError(f"--init {asked.init} draws random weights; give --weights random with it")
    if asked.standardise and asked.init is None:
        raise UsageError("--standardise belongs to --init; give both or neither")


def initialised(
    loaded: LoadedModel, asked: Asked, example: torch.Tensor, seed: int, output: str | None = None
) -> tuple[LoadedModel, Table | None]:
    """The network with the weights that ``--init`` asks for, and what was set where; as it is without the option.

    Args:
        loaded: with random weights, which are replaced.
        asked: the options.
        example: an input, shape (N, ...).
        seed: of the draws.
        output: which output is studied, where the network returns several.

    Raises:
        UsageError: an unknown scheme.
        ModelError: one that does not fit the network.
    """
    if asked.init is None:
        return loaded, None
    import torch

    from pathlens.analyses import view_of
    from pathlens.initialisation import initialise
    from pathlens.models import state_sha256

    view = view_of(loaded.model, example, output)
    generator = torch.Generator().manual_seed(seed)
    table = initialise(view, asked.init, standardise=asked.standardise, generator=generator)
    how = f"{asked.init}, standardised" if asked.standardise else asked.init
    notes = (*loaded.notes, *(f"{asked.init}: {note}" for note in table.provenance["notes"]))
    described = f"random ({how}, seed {seed}): untrained"
    return replace(loaded, weights=described, sha256=state_sha256(loaded.model), notes=notes), table
