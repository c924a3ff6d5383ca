"""Policy networks: from what a network looks at to one logit for each of its blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.errors import CheckpointError
from pathlens.models import load_into, save_weights, state_sha256
from pathlens.models.reading import DEFAULT_MAX_BYTES, read_metadata, read_weights_file
from pathlens.models.resnet_cifar import resnet
from pathlens.residual import ResidualView
from pathlens.runtime.randomness import seeded

_DEPTH = 8
_LARGEST = 64
"""Pixels of a side beyond which images are averaged down first, so that looking costs little."""
_WIDTH = 64
"""Features of the policies of tokens and vectors."""
_KEEPS = 2.0
"""Logit of every block at the start: the first choices keep most blocks, whose reward says something."""
_KEY = "pathlens_policy"

IMAGES, TOKENS, VECTORS = "images", "tokens", "vectors"


class PolicyNetwork(nn.Module):
    """A residual network of 8 layers and 16, 32 and 64 channels: images of any size to one logit for each block.

    Shapes: ``(N, channels, H, W)`` to ``(N, blocks)``.

    Args:
        blocks: of the network that is chosen from.
        channels: of the images.

    Wu et al. 2018 use a residual network of 8 layers for CIFAR too. That images larger than 64 pixels are averaged
    down, and that all blocks are probable at the start, is ours.
    """

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.network = resnet(_DEPTH, blocks, channels)
        _keep_most(self.network.linear)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the blocks to run.

        Args:
            images: shape (N, C, H, W).
        """
        height, width = (min(side, _LARGEST) for side in images.shape[2:])
        if (height, width) != tuple(images.shape[2:]):
            images = F.adaptive_avg_pool2d(images, (height, width))
        logits: Tensor = self.network(images)
        return logits


class TokenPolicy(nn.Module):
    """An embedding, two convolutions over the sequence, and their mean over all tokens, to one logit for each block.

    Shapes: ``(N, T)`` to ``(N, blocks)``. It sees the whole sequence, later tokens too. Ours.

    Args:
        blocks: of the network that is chosen from.
        vocabulary: tokens that there are.
    """

    def __init__(self, blocks: int, vocabulary: int) -> None:
        super().__init__()
        half = _WIDTH // 2
        self.embedding = nn.Embedding(vocabulary, half)
        self.first, self.second = nn.Conv1d(half, _WIDTH, 3, padding=1), nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1)
        self.linear = nn.Linear(_WIDTH, blocks)
        _keep_most(self.linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the blocks to run.

        Args:
            tokens: whole numbers, shape (N, T).
        """
        features = F.relu(self.second(F.relu(self.first(self.embedding(tokens).transpose(1, 2)))))
        logits: Tensor = self.linear(features.mean(2))
        return logits


class VectorPolicy(nn.Module):
    """Two hidden layers, after a batch norm that brings numbers of any unit to one scale, to one logit for each block.

    Shapes: ``(N, ...)`` to ``(N, blocks)``. Ours.

    Args:
        blocks: of the network that is chosen from.
        numbers: of an example.
    """

    def __init__(self, blocks: int, numbers: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(numbers)
        self.first, self.second = nn.Linear(numbers, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.linear = nn.Linear(_WIDTH, blocks)
        _keep_most(self.linear)

    def forward(self, numbers: Tensor) -> Tensor:
        """Logits of the blocks to run.

        Args:
            numbers: shape (N, ...).
        """
        logits: Tensor = self.linear(F.relu(self.second(F.relu(self.first(self.norm(numbers.flatten(1)))))))
        return logits


def _keep_most(last: nn.Linear) -> None:
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, _KEEPS)


def kind_of(view: ResidualView) -> str:
    """What a network looks at: ``images``, ``tokens`` or ``vectors``.

    Args:
        view: of the network.
    """
    if not view.input_dtype.is_floating_point:
        return TOKENS
    return IMAGES if len(view.input_shape) == 3 else VECTORS


def fresh(view: ResidualView, seed: int) -> nn.Module:
    """A policy that looks at what a network looks at, on the device of its weights; seeded.

    Its numbers are of the network's type, and in single precision where those are in half.

    Args:
        view: of the network; one of tokens gives logits of its vocabulary.
        seed: of the weights.
    """
    with seeded(seed % 2**63):
        policy = _built(view, kind_of(view))
    own = next(view.model.parameters())
    return policy.to(own.device, torch.promote_types(own.dtype, torch.float32))


def logits_of(policy: nn.Module, examples: Tensor) -> Tensor:
    """What a policy says of examples, which are brought to its device and, where they are floats, to its type.

    Args:
        policy: in any mode.
        examples: as the network takes them, shape (N, ...).

    Returns:
        Shape (N, K).
    """
    own = next(policy.parameters())
    dtype = own.dtype if examples.is_floating_point() else examples.dtype
    logits: Tensor = policy(examples.to(own.device, dtype))
    return logits


def _built(view: ResidualView, kind: str) -> nn.Module:
    if kind == IMAGES:
        return PolicyNetwork(len(view), view.input_shape[0])
    if kind == VECTORS:
        return VectorPolicy(len(view), math.prod(view.input_shape))
    return TokenPolicy(len(view), output_shape(view)[-1])


def output_shape(view: ResidualView) -> tuple[int, ...]:
    """Shape of a network's outputs for a batch.

    Args:
        view: of the network.
    """
    trace = view.chain().trace
    return tuple(trace.shape(trace.main))


def save(path: Path, policy: nn.Module, view: ResidualView, about: Mapping[str, Any]) -> None:
    """Write a policy as safetensors, with its kind and the hash of the network that it belongs to.

    Raises:
        CheckpointError: the file cannot be written.
        ResourceError: the disk is full.
    """
    stated = {**about, "kind": kind_of(view), "blocks": len(view), "network_sha256": state_sha256(view.model)}
    save_weights(path, policy, {_KEY: json.dumps(stated, sort_keys=True)})


def read(path: Path, view: ResidualView) -> nn.Module:
    """A policy from a file of :func:`save`, for the network that it was trained with.

    Raises:
        CheckpointError: the file is missing or damaged, no policy, or one of another network.
    """
    metadata = read_metadata(path)
    try:
        stated = json.loads(metadata[_KEY])
        blocks, network = int(stated["blocks"]), str(stated["network_sha256"])
        kind = str(stated.get("kind", IMAGES))  # files of earlier versions, which knew images alone, do not say
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no policy; give the policy.safetensors of pathlens blockdrop") from error
    own = state_sha256(view.model)
    if blocks != len(view) or network != own:
        raise CheckpointError(
            f"{path} is a policy of another network: of {blocks} blocks and weights {network[:12]}, and this one has "
            f"{len(view)} blocks and weights {own[:12]}; give the network that it was trained with"
        )
    if kind != kind_of(view):
        raise CheckpointError(
            f"{path} is a policy that looks at {kind[:20]}, and the network looks at {kind_of(view)}; give the data of "
            "the kind that it was trained with"
        )
    tensors = read_weights_file(path, DEFAULT_MAX_BYTES)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds no policy; give the policy.safetensors of pathlens blockdrop")
    policy = fresh(view, 0)
    load_into(policy, tensors, str(path))
    return policy.eval()
