"""From a model's name and its weights' name to a network that is ready to be studied."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from torch import Tensor, nn

from pathlens.errors import ModelError, UsageError
from pathlens.models import catalogs
from pathlens.models.checkpoints import check_finite, check_values, load_into, load_state_dict_file, state_sha256
from pathlens.models.huggingface import huggingface_entry
from pathlens.models.reading import is_checkpoint, read_metadata
from pathlens.models.registry import DEFAULT_NAME, REFERENCES, packaged_file, reference_names
from pathlens.models.userfile import is_user_spec, load_user_model
from pathlens.runtime.randomness import seeded

_LONGEST_SIDE = (
    100_000  # pixels that metadata may state; whether such an input fits in memory is checked when it is made
)
RANDOM = "random"
PRETRAINED = "pretrained"
_GRAMMAR = "a reference name, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, or FILE.py:CALLABLE"
_GIVE_WEIGHTS = "give --weights FILE, --weights random or --weights pretrained"


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode on the CPU, with what is known about it.

    Attributes:
        model: the network.
        spec: the name it was asked for by.
        weights: where its weights are from, in words.
        trained: False where the weights are known to be untrained.
        sha256: hash of the state dict (:func:`pathlens.models.state_sha256`).
        input_shape: ``(C, H, W)`` the network is made for, or None where it is not known.
        num_classes: logits, or None where they are not known without running it; of a language model, the tokens of its
            vocabulary.
        mean: per-channel mean that the network states for pixels in [0, 1], or None.
        std: per-channel standard deviation likewise.
        normalisation_source: where ``mean`` and ``std`` are stated, or None.
        example: input batch given by the user's callable or, for a language model, by its catalogue, or None.
        context: tokens of the longest sequence, or None where that is not known.
        notes: what was unwrapped, stripped, converted or inferred on the way.
    """

    model: nn.Module
    spec: str
    weights: str
    trained: bool
    sha256: str
    input_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    normalisation_source: str | None = None
    example: Tensor | None = None
    context: int | None = None
    notes: tuple[str, ...] = ()


def load_model(
    spec: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Build a network by name and put weights into it.

    Args:
        spec: None for the embedded default (``digits54``); a reference name (:func:`.reference_names`);
            ``torchvision:NAME``; ``timm:NAME``; ``hf:NAME_OR_FOLDER``, a language model of transformers; or
            ``path/file.py:CALLABLE``, where the callable takes no argument and returns a module, or a pair of module
            and example input ``(N, ...)``. A spec is split at its last colon there, so drive letters do no harm.
            Modules beside the file are imported anew where they have changed.
        weights: a weights file; ``"random"`` for untrained weights drawn with ``seed``; ``"pretrained"`` for the
            weights that torchvision, timm or an ``hf:`` name publish, or that come with the package; None for the
            packaged weights of ``digits54``, for those of an ``hf:`` name or folder, or for a user's model as its
            callable returned it.
        num_classes: hint from the data, used where the weights are random. A weights file decides for itself.
        in_channels: likewise; torchvision networks always have 3.
        seed: seed of random weights. The global random state is as before afterwards.

    Returns:
        The network in eval mode on the CPU and what is known about it.

    Raises:
        UsageError: weights are needed and not given, or do not go with this kind of network.
        ModelError: the network is unknown or cannot be built.
        CheckpointError: the weights cannot be read, downloaded, or are of another network.
        NumericsError: a weight is NaN or infinite.
    """
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"seed {seed}: give an integer of at most 64 bits")
    name = DEFAULT_NAME if spec is None else spec
    with seeded(seed):
        if is_user_spec(name):
            loaded = _load_user(name, weights, seed)
        else:
            loaded = _load_named(name, weights, num_classes, in_channels, seed)
    check_values(loaded.model, name)
    loaded.model.eval().cpu()
    check_finite(loaded.model, loaded.weights if weights is not None else name)
    return replace(loaded, sha256=state_sha256(loaded.model))


def _load_user(spec: str, weights: str | os.PathLike[str] | None, seed: int) -> LoadedModel:
    if weights == PRETRAINED:
        raise UsageError(
            f"--weights {PRETRAINED} goes with torchvision:, timm: and hf: networks, not with {spec}: give a file"
        )
    model, example, notes = load_user_model(spec)
    shape = None
    if example is not None and example.ndim == 4:
        shape = (int(example.shape[1]), int(example.shape[2]), int(example.shape[3]))
    description, trained = f"as returned by {spec}", True
    if weights == RANDOM:
        description, trained = f"random (as built by {spec} under seed {seed}): untrained", False
        notes += ("random: weights that the callable loads itself are kept",)
    loaded = LoadedModel(model, spec, description, trained, "", input_shape=shape, example=example, notes=notes)
    if weights is None or weights == RANDOM:
        return loaded
    state, file_notes = load_state_dict_file(weights)
    file_notes += load_into(model, state, str(weights))
    return _with_file(replace(loaded, notes=notes + file_notes), Path(weights))


def _load_named(
    name: str,
    weights: str | os.PathLike[str] | None,
    num_classes: int | None,
    in_channels: int | None,
    seed: int,
) -> LoadedModel:
    entry = _find(name)
    if weights is None and entry.packaged is None and not entry.names_weights:
        raise UsageError(f"{name} has no weights of its own: {_GIVE_WEIGHTS}")
    if weights == RANDOM:
        model = entry.build(num_classes, in_channels)
        return _described(entry, model, f"random (seed {seed}): untrained", trained=False)
    if weights is None or weights == PRETRAINED:
        if entry.packaged is not None:
            with resources.as_file(packaged_file(entry.packaged)) as path:
                loaded = _load_file(entry, path)
            return replace(loaded, weights=f"{entry.packaged} (comes with pathlens)")
        if entry.pretrained is None:
            raise UsageError(f"no published weights are known for {name}: give --weights FILE or --weights {RANDOM}")
        model, label = entry.pretrained()
        return _described(entry, model, label, trained=True)
    return _load_file(entry, Path(weights))


def _find(name: str) -> catalogs.Entry:
    """Look a name up in the catalogues."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "torchvision":
        return catalogs.torchvision_entry(rest)
    if colon and kind == "timm":
        return catalogs.timm_entry(rest)
    if colon and kind == "hf":
        return huggingface_entry(rest)
    if name in REFERENCES:
        return catalogs.reference_entry(name)
    close = difflib.get_close_matches(name, reference_names(), n=3)
    if catalogs.in_torchvision(name):
        close.insert(0, f"torchvision:{name}")
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ModelError(f"unknown model {name!r}: {hint}Give {_GRAMMAR} (reference names: {', '.join(reference_names())})")


def _load_file(entry: catalogs.Entry, path: Path) -> LoadedModel:
    """Build the network with the classes and channels that the file has, and load it."""
    if entry.read is not None and not is_checkpoint(path):
        return _described(entry, entry.read(path), path.name, trained=True)
    state, notes = load_state_dict_file(path)
    model = entry.build(None, None)
    classes, channels = _shape_of_ends(model, state, entry.takes_channels)
    if classes is not None or channels is not None:
        model = entry.build(classes, channels)
        notes += tuple(
            f"{what} taken from the weights: {value}"
            for what, value in (("num_classes", classes), ("in_channels", channels))
            if value is not None
        )
    notes += load_into(model, state, str(path))
    described = replace(_described(entry, model, path.name, trained=True), notes=notes)
    return _with_file(described, path)


def _shape_of_ends(
    model: nn.Module, state: Mapping[str, Tensor], takes_channels: bool
) -> tuple[int | None, int | None]:
    """The classes and input channels of a state dict where they alone differ from the model's."""

    def differing(layer: tuple[str, nn.Module] | None, axis: int) -> int | None:
        if layer is None or (weight := state.get(f"{layer[0]}.weight")) is None:
            return None
        own = list(layer[1].get_parameter("weight").shape)
        theirs = list(weight.shape)
        if len(own) != len(theirs) or own[axis] == theirs[axis] or own[axis + 1 :] != theirs[axis + 1 :]:
            return None
        return theirs[axis] if own[:axis] == theirs[:axis] else None

    layers = [(k, m) for k, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    first = next(((k, m) for k, m in layers if isinstance(m, nn.Conv2d) and m.groups == 1), None)
    classes = differing(layers[-1] if layers else None, 0)
    return classes, differing(first, 1) if takes_channels else None


def _described(entry: catalogs.Entry, model: nn.Module, weights: str, *, trained: bool) -> LoadedModel:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = layers[-1] if layers else None
    classes = last.out_features if isinstance(last, nn.Linear) else last.out_channels if last is not None else None
    spec = entry.input_spec(model, weights if trained else None)
    return LoadedModel(
        model,
        entry.spec,
        weights,
        trained,
        "",
        input_shape=spec.input_shape,
        num_classes=classes if spec.vocabulary is None else spec.vocabulary,
        mean=spec.mean,
        std=spec.std,
        normalisation_source=spec.source,
        example=getattr(model, "example", None) if spec.example is None else spec.example,
        context=spec.context,
    )


def _with_file(loaded: LoadedModel, path: Path) -> LoadedModel:
    """Add what the metadata of a weights file states."""
    metadata = read_metadata(path)
    notes = list(loaded.notes)
    if metadata.get("mean") == metadata.get("std") == "[]":  # of weights trained on what is not normalised, as texts
        del metadata["mean"], metadata["std"]
        loaded = replace(loaded, mean=None, std=None, normalisation_source=None)

    def numbers(key: str, valid: Callable[[float], bool]) -> tuple[float, ...] | None:
        if key not in metadata:
            return None
        try:
            values = json.loads(metadata[key])
            if isinstance(values, list) and values and all(type(v) in (int, float) and valid(v) for v in values):
                return tuple(values)
        except (ValueError, ArithmeticError, RecursionError):
            pass
        notes.append(f"metadata {key!r} is not understood: left aside")
        return None

    mean, std = numbers("mean", math.isfinite), numbers("std", lambda v: math.isfinite(v) and v > 0)
    shape = numbers("input_shape", lambda v: isinstance(v, int) and 0 < v <= _LONGEST_SIDE)
    if "test_error" in metadata:
        notes.append(f"test error stated by the file: {metadata['test_error'][:40]}")
    loaded = replace(loaded, weights=path.name, trained=True, notes=tuple(notes))
    if mean is not None and std is not None and len(mean) == len(std):
        loaded = replace(
            loaded,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            normalisation_source=f"metadata of {path.name}",
        )
    if shape is not None and len(shape) == 3:
        loaded = replace(loaded, input_shape=(int(shape[0]), int(shape[1]), int(shape[2])))
    return loaded
