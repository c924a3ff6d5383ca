"""Which language models are studied, and on which tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

import pathlens
from pathlens.data import TextData
from pathlens.models import LoadedModel
from pathlens.models.llama import Llama
from studies.common import StudySetting, say
from studies.language import stories
from studies.language.trained import trainings
from studies.record import training


@dataclass(frozen=True)
class Given:
    """A network and a text of a user's own; without them those of the study.

    Attributes:
        model: as ``--model`` of pathlens.
        weights: as ``--weights``.
        text: file, or None.
        tokenizer: of it, or None.
        length: tokens of a sequence.
        sequences: how many are read.
        name: of the network in tables.
    """

    model: str | None = None
    weights: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    length: int = 256
    sequences: int = 128
    name: str = "given"


def given(argv: Sequence[str] | None) -> tuple[Given, list[str]]:
    """The options of a user's own network, and those of every study, which are left."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in ("model", "weights", "text", "tokenizer", "name"):
        parser.add_argument(f"--{option}", default=getattr(Given, option))
    for option in ("length", "sequences"):
        parser.add_argument(f"--{option}", type=int, default=getattr(Given, option))
    mine, rest = parser.parse_known_args(argv)
    if (mine.model is None) != (mine.text is None):
        parser.error("--model and --text belong together; give both or neither")
    if mine.model is not None and not any(option.split("=")[0] == "--out" for option in rest):
        parser.error("--model: the study's own results stay where they are; give --out, a folder for these")
    return Given(**vars(mine)), rest


@dataclass(frozen=True)
class Subject:
    """A network with the sequences that it is studied on.

    Attributes:
        name: of the network; ``-seedN`` at its end says which training of one it is.
        model: the network.
        tokens: shape (sequences, length).
        following: the tokens that come next, of the same shape.
        about: provenance of the tables.
    """

    name: str
    model: nn.Module
    tokens: Tensor
    following: Tensor
    about: dict[str, Any]

    def batches(self, size: int, sequences: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The first sequences in batches."""
        return list(zip(self.tokens[:sequences].split(size), self.following[:sequences].split(size), strict=True))


def subjects(study: StudySetting, own: Given) -> tuple[list[Subject], list[dict[str, Any]]]:
    """The networks in the order of the page, and what the record says of their trainings."""
    if own.model is not None and own.text is not None:
        loaded = pathlens.load_model(own.model, own.weights)
        text = pathlens.open_text(own.text, tokenizer=own.tokenizer, length=own.length, limit=own.sequences)
        subject = _on_text(own.name, loaded, text, text.n, text.name)
        return [replace(subject, about={**subject.about, "data_sha256": text.fingerprint})], []
    made = trainings(study)
    networks = [
        _on_text(
            name,
            pathlens.load_model(made.network, folder / "weights.safetensors"),
            made.held_out,
            study.pick(4, 96, 512),
            "documentation of Python that was held out",
        )
        for name, folder in made.folders.items()
    ]
    return [_stories(study), *networks], [training(name, folder) for name, folder in made.folders.items()]


def _about(loaded: LoadedModel, name: str, data: str, tokens: Tensor) -> dict[str, Any]:
    sequences, length = tokens.shape
    about = {"data": data, "images": sequences, "examples": "sequences", "sequence_length": length}
    return about | {"model": name, "weights": loaded.sha256, "trained": loaded.trained}


def _on_text(name: str, loaded: LoadedModel, text: TextData, sequences: int, data: str) -> Subject:
    batch = text.batch(0, sequences)
    return Subject(name, loaded.model, batch.images, batch.labels, _about(loaded, name, data, batch.images))


def _stories(study: StudySetting) -> Subject:
    loaded = stories.network(study)
    assert isinstance(loaded.model, Llama)
    count, length = study.pick(4, 128, 1024), study.pick(8, 256, 256)
    say(f"{count} stories of {length} tokens")
    tokens = stories.written(loaded.model, count, length, seed=0)
    about = _about(loaded, stories.NETWORK, "stories that the network wrote", tokens[:, 1:])
    return Subject(stories.NETWORK, loaded.model, tokens[:, :-1], tokens[:, 1:], about)
