"""Tiny language models and tokenizers in the files of transformers, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def tiny(kind: str, **more: Any) -> Any:
    """A language model with random weights and a context of 32 tokens.

    Args:
        kind: ``model_type`` of its configuration.
        **more: of the configuration.
    """
    transformers = pytest.importorskip("transformers")
    sizes = {**SIZES, **ENDS, "max_position_embeddings": 32, "intermediate_size": 24}
    if kind == "gpt2":
        sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 40, "n_positions": 32, **ENDS}
    if kind == "opt":
        sizes |= {"ffn_dim": 24, "word_embed_proj_dim": 16}
    if kind in {"llama", "qwen2", "gemma2"}:
        sizes |= {"num_key_value_heads": 1, "head_dim": 8}
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tiny_tokenizer() -> Any:
    """Byte pairs over a few letters; a text begins with ``<s>``, and is cut off after 3 tokens by its own account."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<s>", "<unk>", "a", "b", " ", "\n", "ab", "ab ", "é"]
    steps = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: number for number, word in enumerate(words)}, [("a", "b"), ("ab", " ")])
    )
    steps.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    steps.enable_truncation(3)
    return steps


def save_published(folder: Path, kind: str, tokenizer: bool = True, **more: Any) -> Any:
    """Write a model, with its tokenizer, as transformers does, and give it back."""
    model = tiny(kind, **more)
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return model
