"""The network, and the stories that it is studied on, which it writes itself."""

from __future__ import annotations

import torch
from torch import Tensor

import pathlens
from pathlens.models import LoadedModel
from pathlens.models.llama import Llama
from studies.common import StudySetting
from studies.subjects import place

BEGIN = 1
"""Token that begins a story."""

NETWORK = "stories260K"

FILE = "llama2/stories260K.bin"
"""In the folder that PATHLENS_MODELS names."""


def network(study: StudySetting) -> LoadedModel:
    """The published network; for tests one with random weights.

    Raises:
        DataError: PATHLENS_MODELS is not set.
        CheckpointError: it does not hold the file.
    """
    if study.scale == "smoke":
        return pathlens.load_model("llama2", "random", num_classes=32, seed=0)
    return pathlens.load_model("llama2", place("PATHLENS_MODELS", FILE))


@torch.no_grad()
def written(model: Llama, stories: int, length: int, seed: int) -> Tensor:
    """Stories that the network writes, drawn token by token from what it predicts.

    Args:
        model: the network.
        stories: how many.
        length: tokens of each, without the one that begins it.
        seed: of the draws.

    Returns:
        Tokens of shape (stories, length + 1). A story that ends is followed by the next in the same row, since the
        network itself goes on with a token that begins one.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((stories, 1), BEGIN)
    for _ in range(length):
        probabilities = model(tokens)[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return tokens
