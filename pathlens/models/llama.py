"""Llama 2 (Touvron et al. 2023): a language model of attention and gated MLP blocks, and the files of llama2.c.

Every layer adds twice: attention, then the MLP, each after an RMS norm (Zhang and Sennrich 2019), so that a network of
n layers has 2n residual blocks. Positions are rotations of pairs of neighbouring channels (Su et al. 2021), as in the
exports of llama2.c; the layout of other exports, whose pairs are half a head apart, gives other weights.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from pathlens.errors import CheckpointError, ModelError
from pathlens.models.reading import DEFAULT_MAX_BYTES, check_file

_HEADER = struct.Struct("<7i")
_LARGEST = 2**24  # of each number of a header; none of them is so large in any published network


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network.

    Attributes:
        width: of an activation.
        hidden: of the MLPs.
        layers: of attention and MLP each.
        heads: of the queries.
        groups: heads of keys and values, which several heads of queries share.
        vocabulary: tokens.
        context: longest sequence.
    """

    width: int = 64
    hidden: int = 172
    layers: int = 5
    heads: int = 8
    groups: int = 4
    vocabulary: int = 512
    context: int = 512


class Attention(nn.Module):
    """Causal attention with grouped keys and values (Ainslie et al. 2023)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head = sizes.width // sizes.heads
        inner = sizes.groups * self.head
        self.query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.key = nn.Linear(sizes.width, inner, bias=False)
        self.value = nn.Linear(sizes.width, inner, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Shape (N, T, width) to the same."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        query, key = rotated(query, rotation), rotated(key, rotation)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.up = nn.Linear(sizes.width, sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, T, width) to the same."""
        down: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return down


class Layer(nn.Module):
    """Two residual blocks: attention and MLP."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.attention = Attention(sizes)
        self.mlp_norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.mlp = GatedMLP(sizes)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Shape (N, T, width) to the same."""
        x = x + self.attention(self.attention_norm(x), rotation)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Llama(nn.Module):
    """Tokens of shape (N, T) to logits of the next token of shape (N, T, vocabulary).

    Args:
        sizes: of the network.
        tied: whether the logits are products with the embedding.
    """

    def __init__(self, sizes: Sizes, tied: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # as GPT-2's are, those at the end of a branch smaller by the root of the number of blocks
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * sizes.layers) ** 0.5 if last else 0.02)
        if tied:
            self.head.weight = self.embedding.weight
        self.register_buffer("rotation", rotation(sizes.context, sizes.width // sizes.heads), persistent=False)

    @property
    def example(self) -> Tensor:
        """Tokens to trace it with."""
        return torch.zeros(2, min(16, self.sizes.context), dtype=torch.long)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of shape (N, T) to logits.

        Raises:
            ModelError: more tokens than there are positions.
        """
        if tokens.shape[1] > self.sizes.context:
            raise ModelError(
                f"sequences of {tokens.shape[1]} tokens are longer than the context of the network, "
                f"{self.sizes.context}; give a smaller --sequence-length"
            )
        x, turned = self.embedding(tokens), self.get_buffer("rotation")[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, turned)
        logits: Tensor = self.head(self.norm(x))
        return logits


def rotation(context: int, head: int) -> Tensor:
    """Cosine and sine of the angle of each position and pair of channels, shape (context, head / 2, 2)."""
    frequencies = 10000.0 ** -(torch.arange(0, head, 2) / head)
    angles = torch.outer(torch.arange(context), frequencies)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned by the angle of their position; x of shape (N, heads, T, head)."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation.to(x.dtype).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def llama2(num_classes: int = 512, in_channels: int = 0) -> Llama:
    """The network of the stories with 260,000 parameters, with random weights.

    Args:
        num_classes: tokens of the vocabulary.
        in_channels: of images, of which there are none.
    """
    return Llama(Sizes(vocabulary=num_classes))


def llama(layers: int, width: int, num_classes: int = 256, in_channels: int = 0) -> Llama:
    """A network of 2 ``layers`` residual blocks for tokens of a small vocabulary, with random weights.

    Heads are 32 wide, queries share no keys and values, and MLPs are 8/3 as wide as an activation, as those of Llama.

    Args:
        layers: of attention and MLP each.
        width: of an activation, a multiple of 32.
        num_classes: tokens of the vocabulary; bytes are 256.
        in_channels: of images, of which there are none.
    """
    heads = width // 32
    return Llama(Sizes(width, 8 * width // 3, layers, heads, heads, num_classes))


def read_llama2c(path: Path) -> Llama:
    """The network of a file in llama2.c's first format: seven numbers, then the weights in float32.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is missing, or its size is not what its header says.
        ResourceError: it does not fit in memory.
    """
    check_file(path, DEFAULT_MAX_BYTES)
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise _no_llama(path, "it is shorter than a header")
        numbers: tuple[int, ...] = _HEADER.unpack(header)
        # a negative vocabulary says that the head has weights of its own
        width, hidden, layers, heads, groups, vocabulary, context = numbers
        sizes, tied = Sizes(width, hidden, layers, heads, groups, abs(vocabulary), context), vocabulary > 0
        if not all(0 < number <= _LARGEST for number in vars(sizes).values()):
            raise _no_llama(path, f"its header {numbers} holds sizes that are none")
        if sizes.width % sizes.heads or sizes.heads % sizes.groups or sizes.width // sizes.heads % 2:
            raise _no_llama(path, f"width {sizes.width}, {sizes.heads} heads and {sizes.groups} groups do not fit")
        shapes = _shapes(sizes, tied)
        wanted = _HEADER.size + 4 * sum(math.prod(shape) for _, shape in shapes)
        if size != wanted:  # before anything is allocated
            raise _no_llama(path, f"it has {size:,} bytes, and its header says {wanted:,}")
        values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
    state: dict[str, Tensor] = {}
    parts = values.split([math.prod(shape) for _, shape in shapes])
    for (name, shape), part in zip(shapes, parts, strict=True):
        if name:
            state |= {name.format(layer): value for layer, value in enumerate(part.reshape(shape).unbind())}
    model = Llama(sizes, tied)
    if tied:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state)
    return model


def _shapes(sizes: Sizes, tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of a file in their order: shape, and name of the parameter at each place of the first dimension."""
    head = sizes.width // sizes.heads
    inner = sizes.groups * head

    def stacked(name: str, *shape: int) -> tuple[str, tuple[int, ...]]:
        return f"layers.{{}}.{name}.weight", (sizes.layers, *shape)

    own = [] if tied else [("head.weight", (1, sizes.vocabulary, sizes.width))]
    return [
        ("embedding.weight", (1, sizes.vocabulary, sizes.width)),
        stacked("attention_norm", sizes.width),
        stacked("attention.query", sizes.width, sizes.width),
        stacked("attention.key", inner, sizes.width),
        stacked("attention.value", inner, sizes.width),
        stacked("attention.out", sizes.width, sizes.width),
        stacked("mlp_norm", sizes.width),
        stacked("mlp.gate", sizes.hidden, sizes.width),
        stacked("mlp.down", sizes.width, sizes.hidden),
        stacked("mlp.up", sizes.hidden, sizes.width),
        ("norm.weight", (1, sizes.width)),
        # cosines and sines of the rotations, which follow from the sizes
        ("", (sizes.context, head // 2)),
        ("", (sizes.context, head // 2)),
        *own,
    ]


def _no_llama(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: no network of llama2.c: {why}; give a file that its export wrote (version 0)")
