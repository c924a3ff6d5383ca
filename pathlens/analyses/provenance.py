"""What a table says of where its numbers come from, each key declared once and in the order in which it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What JSON can hold."""

Stated = Mapping[str, Any]
"""What a caller says besides, such as where the weights are from; anything that JSON can hold."""

_SPREAD = {"spread": True}


class Record:
    """A dataclass whose fields are keys of a provenance.

    Records among its fields, and mappings that are marked so, give keys of their own. A field that holds its default
    is left out.
    """

    def facts(self) -> dict[str, Json]:
        """The keys and what they hold."""
        found: dict[str, Json] = {}
        for key in fields(self):  # type: ignore[arg-type]
            value = getattr(self, key.name)
            if isinstance(value, Record):
                found |= value.facts()
            elif key.metadata.get("spread"):
                found |= value
            elif value != key.default:
                found[key.name] = value
        return found


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """Which images. Of batches that the caller made, little is known.

    Attributes:
        data: name of the data set.
        split: of it.
        images: number of images.
        images_in_split: with those that were left out.
        data_sha256: hash of pixels and labels.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        normalisation: where mean and deviation are from.
        batch_size: images at a time.
    """

    data: str
    split: str | None = None
    images: int | None = None
    images_in_split: int | None = None
    data_sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalisation: str
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineFacts(Record):
    """How the network was run.

    Attributes:
        engine: its name; see :mod:`pathlens.residual.engines`.
        engine_chosen: ``given``, ``default``, ``measured`` or ``resumed``.
        engine_speeds: of those that were measured, relative to the default one.
    """

    engine: str
    engine_chosen: str
    engine_speeds: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """What all analyses say.

    Attributes:
        verb: the analysis.
        network: class of the network.
        blocks: number of its blocks.
        block_names: their names.
        output: which output was studied, where there are several.
        data: which images.
        stated: what the caller says besides.
    """

    verb: str
    network: str
    blocks: int
    block_names: tuple[str, ...] | None = None
    output: str | None
    data: DataFacts
    stated: Stated = field(metadata=_SPREAD)


@dataclass(frozen=True, kw_only=True)
class LesionProvenance(Provenance):
    """What the analyses of lesioned networks say.

    Attributes:
        seed: of the random draws.
        dtype: what was computed with.
        device: where.
        engine: how.
        processes: that shared the work.
        networks_evaluated: the intact one and the lesioned ones.
        largest_relative_logit_difference: between the prepared network and the model itself; None if not finite.
        resumed_batches: that were read from a journal.
        seconds: the analysis took.
        notes: what a reader should know.
        counts: sizes of random sets of blocks.
        swaps: numbers of random exchanges.
        samples: draws of each size.
    """

    seed: int
    dtype: str
    device: str
    engine: EngineFacts
    processes: int
    networks_evaluated: int
    largest_relative_logit_difference: float | None
    resumed_batches: int
    seconds: float
    notes: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    swaps: tuple[int, ...] | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class GradientProvenance(Provenance):
    """What the analyses of gradients say.

    Attributes:
        lesion: what the network was measured under.
        mode: train or eval.
        dtype: what was computed with.
        device: where.
        batch_size: examples at a time.
        notes: what a reader should know.
        at: where the gradient was taken.
        method: how it was resolved by path length.
        blocks_in_paths: that count for lengths.
        seed: of paths and signs.
        share: of the contribution that the effective range holds.
        measured: what the methods say.
        examples: that were measured.
        resumed_units: that were read from a journal.
        processes: that shared the work.
        seconds: the analysis took.
    """

    lesion: Mapping[str, Json] | None = None
    mode: str
    dtype: str
    device: str
    batch_size: int
    notes: tuple[str, ...]
    at: str
    method: str | None = None
    blocks_in_paths: int | None = None
    seed: int | None = None
    share: float | None = None
    measured: Mapping[str, Json] = field(default_factory=dict, metadata=_SPREAD)
    examples: int | None = None
    resumed_units: int | None = None
    processes: int | None = None
    seconds: float
