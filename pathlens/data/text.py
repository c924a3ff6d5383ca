"""A text as sequences of tokens, each with the tokens that come next."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from pathlens.data.batched import Unnormalised
from pathlens.data.images import NOT_COUNTED
from pathlens.data.published import read_published, tokenizer_in, tokenizer_of
from pathlens.data.tokenizer import Bytes, Tokenizer, read_vocabulary
from pathlens.errors import DataError
from pathlens.storage import read_regular

LENGTH = 256
"""Tokens of a sequence where none is given."""

BYTES = "bytes"
"""The tokenizer whose tokens are bytes."""

LARGEST_TEXT = 2**30
"""Bytes that a text may have."""


@dataclass(frozen=True, eq=False)
class TextData(Unnormalised):
    """Sequences of tokens in a fixed order; sequence ``i`` is the same in every run.

    Sequence i begins ``stride`` tokens after sequence i - 1. Where they overlap, only tokens that no earlier sequence
    has asked for count as targets. What is left at the end and makes no whole sequence is not used.

    Attributes:
        name: for tables.
        split: which part of a data set; a file is one.
        n: sequences in use, after the limit.
        total: sequences of the text.
        length: tokens of a sequence.
        stride: tokens from the beginning of one to that of the next.
        tokenizer: that made the tokens.
        tokens: of the whole text, int64 of shape (tokens,).
    """

    name: str
    split: str
    n: int
    total: int
    length: int
    stride: int
    tokenizer: Tokenizer
    tokens: torch.Tensor = field(repr=False)
    rows_are: ClassVar[str] = "sequences"
    as_they_are: ClassVar[str] = "tokens are not normalised"

    @property
    def channels(self) -> None:
        """Channels of an image, which a text has none of."""
        return None

    @property
    def num_classes(self) -> int:
        """Tokens of the vocabulary."""
        return self.tokenizer.vocabulary

    @property
    def largest(self) -> int:
        """The largest token in use."""
        return int(self.tokens[: (self.n - 1) * self.stride + self.length + 1].max())

    @property
    def normalisation_source(self) -> str:
        """What is said of it."""
        return "none, since tokens have none"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over the tokens of the text, how many sequences are in use, and how they are cut."""
        digest = hashlib.sha256(f"tokens {self.n} {self.length} {self.stride} {self.tokenizer.identity}\n".encode())
        digest.update(self.tokens.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def rows(self, indices: torch.Tensor, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Some sequences in the order asked for, with the tokens that come next.

        Args:
            indices: numbers of sequences, int64 of shape (N,), on the CPU.
            device: where they are put.

        Returns:
            Tokens and next tokens, both int64 of shape (N, length).
        """
        places = torch.arange(self.length, device="cpu")
        at = indices[:, None] * self.stride + places
        targets = self.tokens[at + 1]
        targets[(indices > 0)[:, None] & (places < self.length - self.stride)] = NOT_COUNTED
        return self.tokens[at].to(device), targets.to(device)

    def hold_out(self, sequences: int) -> tuple[TextData, TextData]:
        """Divide the sequences in use into the text's beginning, to train on, and its end, to watch.

        The two share no token, so that a few sequences between them may be lost where sequences overlap.

        Args:
            sequences: how many to hold out.

        Raises:
            DataError: one of the two parts would have no sequence.
        """
        tokens = self.tokens[: (self.n - 1) * self.stride + self.length + 1]
        first = len(tokens) - ((sequences - 1) * self.stride + self.length + 1)
        left = (first - 1 - self.length) // self.stride + 1
        if sequences < 1 or left < 1:
            raise DataError(
                f"{self.name}: {sequences} of {self.n} sequences cannot be held out; give a number that leaves some"
            )

        def part(split: str, count: int, tokens: torch.Tensor) -> TextData:
            return replace(self, split=split, n=count, total=count, tokens=tokens)

        return part("train", left, tokens[:first]), part("validation", sequences, tokens[first:])

    def subset(self, indices: torch.Tensor, split: str) -> TextData:
        """Some sequences as a text of their own, of which all targets count, also those that others have asked for.

        Args:
            indices: numbers of sequences, int64 of shape (N,), in the order wanted.
            split: what to call them.
        """
        span = self.length + 1
        tokens = self.tokens[indices[:, None] * self.stride + torch.arange(span, device="cpu")].flatten()
        return replace(self, split=split, n=len(indices), total=len(indices), stride=span, tokens=tokens)


def open_text(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    length: int | None = None,
    stride: int | None = None,
    split: str = "test",
    limit: int | None = None,
) -> TextData:
    """A text file as sequences of tokens.

    Args:
        path: the file, in UTF-8 or any bytes.
        tokenizer: a file of the tokenizers library (``tokenizer.json``) or a vocabulary of llama2.c; the folder of a
            model that has the former; ``hf:`` and a model's folder or name; or ``bytes``, by default, of which every
            one is a token.
        length: tokens of a sequence (default: ``LENGTH``).
        stride: tokens from the beginning of one sequence to that of the next (default: the length, so that none
            overlap).
        split: what to call it.
        limit: use the first ``limit`` sequences only; more than there are means all.

    Returns:
        The sequences.

    Raises:
        DataError: the file cannot be read, is too large, or is shorter than a sequence; no such tokenizer; numbers
            below 1.
    """
    path = Path(os.path.expanduser(path))
    length = LENGTH if length is None else length
    stride = length if stride is None else stride
    for what, value in (("sequence length", length), ("limit", limit)):
        if value is not None and value < 1:
            raise DataError(f"{what} {value}: give 1 or more")
    if not 1 <= stride <= length:
        raise DataError(f"stride {stride}: give 1 to {length}, the length of a sequence")
    coder = open_tokenizer(tokenizer)
    try:
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise DataError(f"{path}: {size:,} bytes are more than the limit of {LARGEST_TEXT:,}; give a part of it")
        text = read_regular(path, LARGEST_TEXT, follow=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its name and permissions") from error
    tokens = torch.from_numpy(coder.encode(text))
    total = (len(tokens) - 1 - length) // stride + 1
    if total < 1:
        raise DataError(
            f"{path}: {len(tokens)} tokens ({coder.name}) make no sequence of {length} with its next token; give more "
            "text, or a smaller --sequence-length"
        )
    n = total if limit is None else min(limit, total)
    return TextData(path.name, split, n, total, length, stride, coder, tokens)


def open_tokenizer(given: str | os.PathLike[str] | None) -> Tokenizer:
    """A tokenizer by the text that users give; see :func:`open_text`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    text = BYTES if given is None else os.fspath(given)
    if text == BYTES:
        return Bytes()
    name = text.removeprefix("hf:")
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return tokenizer_in(path)
    if name != text:
        return tokenizer_of(name)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path of the tokenizer") from error
    return read_published(path, path.name) if start.lstrip()[:1] == b"{" else read_vocabulary(path)


def check_tokens(data: TextData, vocabulary: int, context: int | None = None) -> None:
    """Check that a model with so many tokens can read a text.

    Args:
        data: the text.
        vocabulary: tokens that the model knows.
        context: tokens of the longest sequence that it takes, or None where that is not known.

    Raises:
        DataError: a token is outside (the message names the largest), or the sequences are longer.
    """
    if context is not None and data.length > context:
        raise DataError(
            f"{data.name}: sequences of {data.length} tokens are longer than the context of the model, {context}; give "
            "a smaller --sequence-length"
        )
    if data.largest >= vocabulary:
        raise DataError(
            f"{data.name}: token {data.largest} of {data.tokenizer.name} is outside the vocabulary of the model, "
            f"{vocabulary} tokens; give the tokenizer that it was trained with (--tokenizer)"
        )
