"""The table of an initialisation: a row for each parameter, and what it was set to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pathlens.results.result import Headline, Provenance, Result, Rows, Shown, column, formatted


@dataclass(frozen=True, kw_only=True)
class InitialisationRow:
    """One parameter."""

    parameter: str = column("", "its name in the model")
    role: str = column("", "stem, transition, branch, shortcut or head; norm, bias or other for what is no weight")
    block: int | None = column("", "index of the block that it lies in, from 0; missing outside of blocks")
    layer: int | None = column("", "position among the weights of its branch, from 0")
    shape: str = column("", "of the parameter")
    distribution: str = column("", "what it was drawn from, constant, or kept where the scheme does not concern it")
    gain: float | None = column("", "variance times fan")
    fan: str | None = column("", "fan-in, fan-out or fan-average")
    std_due: float | None = column("", "standard deviation of the distribution")
    std: float | None = column("", "standard deviation of the values; missing for a single one")
    mean: float = column("", "mean of the values")
    standardised: bool = column("", "each output channel was brought to mean zero and the variance that is due")
    factor: float | None = column("", "number that stands at the end of the branch, times this; missing for none")


class Initialisation(Result):
    """What :func:`pathlens.initialise` set."""

    name = "initialisation"
    row = InitialisationRow
    needed = ("parameter", "role", "distribution", "mean")
    shown: ClassVar[Mapping[str, Shown]] = {
        "parameter": Shown(left=True, folds=True),
        "role": Shown(left=True),
        "block": Shown(text=formatted("d")),
        "distribution": Shown(left=True),
        "gain": Shown(text=formatted(".3g"), gives_way=1),
        "fan": Shown(text=formatted(""), left=True, gives_way=2),
        "std": Shown(text=formatted(".3g")),
        "factor": Shown(text=formatted(".3g")),
    }

    def notes(self, provenance: Provenance) -> list[str]:
        """What the scheme does to gradients, if anything."""
        return [str(note) for note in provenance.get("notes", ())]

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """How many weights were drawn."""
        num_drawn = sum(row["distribution"] not in ("constant", "kept") for row in rows)
        return [Headline("Weights drawn", str(num_drawn), f"scheme {provenance.get('scheme', 'not stated')}")]


INITIALISATION = Initialisation()
