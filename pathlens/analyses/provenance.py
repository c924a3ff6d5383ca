"""What a table says of where its numbers come from, each key declared once and in the order in which it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from pathlens.tables import Json, Provenance

_SPREAD = {"spread": True}


class Record:
    """A dataclass whose fields are keys of a provenance.

    Records among its fields, and mappings that are marked so, give keys of their own. A field that holds its default
    is left out.
    """

    def entries(self) -> dict[str, Json]:
        """The keys and what they hold."""
        entries: dict[str, Json] = {}
        for key in fields(self):  # type: ignore[arg-type]
            value = getattr(self, key.name)
            if isinstance(value, Record):
                entries |= value.entries()
            elif key.metadata.get("spread"):
                entries |= value
            elif value != key.default:
                entries[key.name] = value
        return entries


@dataclass(frozen=True, kw_only=True)
class DataProvenance(Record):
    """Which images; of batches that the caller made, little is known. Mean and deviation are of pixels in [0, 1].

    ``examples`` says what the ``images`` are where they are none: sequences of so many tokens by a tokenizer.
    """

    data: str
    split: str | None = None
    images: int | None = None
    images_in_split: int | None = None
    examples: str | None = None
    sequence_length: int | None = None
    stride: int | None = None
    tokenizer: str | None = None
    data_sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalisation: str
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineProvenance(Record):
    """How a network was run, and whether that was ``given``, ``default``, ``measured`` or ``resumed``.

    Speeds are of the engines that were measured, relative to the default one.
    """

    engine: str
    engine_chosen: str
    engine_speeds: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AnalysisProvenance(Record):
    """What all analyses say; ``stated`` is what the caller adds, such as where the weights are from.

    ``additions`` says which are blocks where that is not the trunk's, and whether concatenations are too.
    """

    verb: str
    network: str
    blocks: int
    block_names: tuple[str, ...] | None = None
    additions: str = "trunk"
    concatenations_are_blocks: bool = False
    concatenations_are_choices: bool = False
    output: str | None
    data: DataProvenance
    stated: Provenance = field(metadata=_SPREAD)


@dataclass(frozen=True, kw_only=True)
class LesionProvenance(AnalysisProvenance):
    """What the analyses of lesioned networks say.

    The logits of the prepared network are compared with the model's own; ``comparison`` says how the lesioned networks
    were compared with the intact one; ``counts``, ``swaps`` and ``samples`` are of random lesions, and ``few`` says of
    which sizes no more exist; ``replace`` says what stands in the place of a deleted branch, ``runs`` how runs of
    neighbours were carried out, and ``times`` how often.
    """

    task: str = "classification"
    loss: str = "cross-entropy"
    seed: int
    dtype: str
    device: str
    engine: EngineProvenance
    processes: int
    networks_evaluated: int
    largest_relative_logit_difference: float | None
    resumed_batches: int
    seconds: float
    comparison: Mapping[str, Json] | None = None
    notes: tuple[str, ...]
    group: str = "block"
    contiguous: bool = False
    replace: str = "zero"
    runs: str | None = None
    times: int | None = None
    counts: tuple[int, ...] | None = None
    swaps: tuple[int, ...] | None = None
    samples: int | None = None
    few: str | None = None


@dataclass(frozen=True, kw_only=True)
class GradientProvenance(AnalysisProvenance):
    """What the analyses of gradients say; ``measured`` is what the estimators do."""

    lesion: Mapping[str, Json] | None = None
    loss: str = "cross-entropy"
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


@dataclass(frozen=True, kw_only=True)
class SurfaceProvenance(AnalysisProvenance):
    """What the loss surface says.

    ``directions`` says of each axis what it is, ``one_dimensional`` what biases and norms did, ``batch_norm`` whether
    running statistics were ``kept``, ``re-estimated`` from the same images at each point, or that there are ``none``.
    ``curvature`` holds that of the network itself, and ``curvature_of`` says on what it rests.
    """

    task: str = "classification"
    loss: str = "cross-entropy"
    lesion: Mapping[str, Json] | None = None
    directions: tuple[str, ...]
    one_dimensional: str
    batch_norm: str
    points: int
    span: float
    draws: int
    seed: int
    dtype: str
    device: str
    engine: EngineProvenance
    processes: int
    largest_relative_logit_difference: float | None
    curvature_of: str | None = None
    curvature: Mapping[str, Json] | None = None
    warnings: tuple[str, ...] = ()
    resumed_units: int
    seconds: float
    notes: tuple[str, ...]
