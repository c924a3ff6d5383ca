"""The policy network: a small residual network with one logit for each block of another network."""

from __future__ import annotations

import json
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

_DEPTH = 8
_LARGEST = 64
"""Pixels of a side beyond which images are averaged down first, so that looking costs little."""
_KEEPS = 2.0
"""Logit of every block at the start: the first choices keep most blocks, whose reward says something."""
_KEY = "pathlens_policy"


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
        nn.init.normal_(self.network.linear.weight, std=0.01)
        nn.init.constant_(self.network.linear.bias, _KEEPS)

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


def fresh(view: ResidualView, seed: int) -> PolicyNetwork:
    """A policy for a network, with the type and on the device of its weights; seeded.

    Args:
        view: of the network.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        policy = PolicyNetwork(len(view), view.input_shape[0])
    own = next(view.model.parameters())
    return policy.to(own.device, own.dtype)


def save(path: Path, policy: PolicyNetwork, view: ResidualView, about: Mapping[str, Any]) -> None:
    """Write a policy as safetensors, with the hash of the network that it belongs to.

    Raises:
        CheckpointError: the file cannot be written.
        ResourceError: the disk is full.
    """
    stated = {**about, "blocks": len(view), "network_sha256": state_sha256(view.model)}
    save_weights(path, policy, {_KEY: json.dumps(stated, sort_keys=True)})


def read(path: Path, view: ResidualView) -> PolicyNetwork:
    """A policy from a file of :func:`save`, for the network that it was trained with.

    Raises:
        CheckpointError: the file is missing or damaged, no policy, or one of another network.
    """
    metadata = read_metadata(path)
    try:
        stated = json.loads(metadata[_KEY])
        blocks, network = int(stated["blocks"]), str(stated["network_sha256"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no policy; give the policy.safetensors of pathlens blockdrop") from error
    own = state_sha256(view.model)
    if blocks != len(view) or network != own:
        raise CheckpointError(
            f"{path} is a policy of another network: of {blocks} blocks and weights {network[:12]}, and this one has "
            f"{len(view)} blocks and weights {own[:12]}; give the network that it was trained with"
        )
    tensors = read_weights_file(path, DEFAULT_MAX_BYTES)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds no policy; give the policy.safetensors of pathlens blockdrop")
    policy = fresh(view, 0)
    load_into(policy, tensors, str(path))
    return policy.eval()
