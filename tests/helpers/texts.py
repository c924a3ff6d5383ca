"""Vocabularies and small language models in the files of llama2.c."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from pathlens.models.llama import Llama, Sizes

#: three special tokens, the bytes, and some characters
BASE = (
    b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{byte:02X}>".encode() for byte in range(256)), b"a", b"b", b" ",
    "\u00e9".encode(),
)  # fmt: skip


def vocabulary_file(path: Path, more: Mapping[bytes, float]) -> Path:
    """A vocabulary of ``BASE`` and some tokens with their scores."""
    tokens = {**dict.fromkeys(BASE, 0.0), **more}
    entries = (struct.pack("<fi", score, len(token)) + token for token, score in tokens.items())
    path.write_bytes(struct.pack("<i", max(map(len, tokens))) + b"".join(entries))
    return path


def llama_file(path: Path, sizes: Sizes, tied: bool = True, seed: int = 0) -> Llama:
    """Write a network with random weights in llama2.c's first format, and give it back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Llama(sizes, tied).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    state = model.state_dict()
    half = sizes.context * (sizes.width // sizes.heads // 2)

    def layers(name: str) -> list[torch.Tensor]:
        return [state[f"layers.{layer}.{name}.weight"] for layer in range(sizes.layers)]

    parts = [state["embedding.weight"], *layers("attention_norm")]
    for name in ("query", "key", "value", "out"):
        parts += layers(f"attention.{name}")
    parts += layers("mlp_norm")
    for name in ("gate", "down", "up"):
        parts += layers(f"mlp.{name}")
    parts += [state["norm.weight"], torch.zeros(2 * half), *([] if tied else [state["head.weight"]])]
    numbers = [sizes.width, sizes.hidden, sizes.layers, sizes.heads, sizes.groups, sizes.vocabulary, sizes.context]
    numbers[5] *= 1 if tied else -1
    path.write_bytes(struct.pack("<7i", *numbers) + b"".join(part.numpy().tobytes() for part in parts))
    return model
