"""From text to tokens: its bytes, or the vocabulary of a llama2.c file."""

from __future__ import annotations

import hashlib
import heapq
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from pathlens.errors import DataError
from pathlens.storage import read_regular

LARGEST_FILE = 64 * 2**20
"""Bytes that the file of a vocabulary may have."""

_BEGIN = 1  # the token that begins a text
_MERGED = -1  # in the place of a token that is a part of the one before
_BYTES = 3  # that of byte 0; those of the others follow
_BEFORE_SPACE = re.compile(rb"(?<=.)(?= )", re.DOTALL)
_ENTRY = struct.Struct("<fi")


class Tokenizer(Protocol):
    """Text to tokens."""

    @property
    def name(self) -> str:
        """In words."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""

    @property
    def identity(self) -> str:
        """Tells it from others."""

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens of a text, int64."""


class Bytes:
    """Every byte is a token."""

    name = "bytes"
    vocabulary = 256
    identity = "bytes"

    def encode(self, text: bytes) -> np.ndarray:
        """The bytes of a text, int64."""
        return np.frombuffer(text, dtype=np.uint8).astype(np.int64)


@dataclass(frozen=True)
class Merging:
    """Byte pair encoding by scores, as sentencepiece and llama2.c do it (Sennrich et al. 2016; Kudo, Richardson 2018).

    A text begins with the token of beginnings and a space. Its characters are tokens of their own, or their bytes where
    the vocabulary has no such character; then the pair that makes the token of the highest score is merged, the first
    of equals, until no pair makes one.

    Attributes:
        name: of the file.
        tokens: bytes of each token.
        scores: of each token.
    """

    name: str
    tokens: tuple[bytes, ...]
    scores: tuple[float, ...]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @cached_property
    def identity(self) -> str:
        """Hash of tokens and scores."""
        return hashlib.sha256(repr((self.tokens, self.scores)).encode()).hexdigest()

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens of a text in UTF-8, int64; bytes that are none are encoded one by one."""
        text = b" " + text
        # where no token reaches over a space, words are encoded by themselves, and each but once
        words = _BEFORE_SPACE.split(text) if self._ends_at_spaces else [text]
        known = {word: self._merged(word) for word in dict.fromkeys(words)}
        return np.array([_BEGIN, *(number for word in words for number in known[word])], dtype=np.int64)

    @cached_property
    def _number(self) -> dict[bytes, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def _ends_at_spaces(self) -> bool:
        return not any(b" " in token[1:] for token in self.tokens)

    def _merged(self, word: bytes) -> list[int]:
        numbers: list[int] = []
        for character in word.decode(errors="surrogateescape"):
            own = character.encode(errors="surrogateescape")
            numbers += [self._number[own]] if own in self._number else [_BYTES + byte for byte in own]
        count = len(numbers)
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        pairs: list[tuple[float, int, int, int, int]] = []

        def found(index: int) -> None:
            if index >= 0 and after[index] < count:
                one, other = numbers[index], numbers[after[index]]
                made = self._number.get(self.tokens[one] + self.tokens[other])
                if made is not None:
                    heapq.heappush(pairs, (-self.scores[made], index, one, other, made))

        for index in range(count):
            found(index)
        while pairs:
            _, index, one, other, made = heapq.heappop(pairs)
            following = after[index]
            if following == count or (numbers[index], numbers[following]) != (one, other):
                continue  # a part of it was merged since
            numbers[index], numbers[following] = made, _MERGED
            after[index] = after[following]
            if after[index] < count:
                before[after[index]] = index
            found(before[index])
            found(index)
        return [number for number in numbers if number != _MERGED]


def read_vocabulary(path: Path) -> Merging:
    """The vocabulary of a file of llama2.c: the longest length, then score, length and bytes of each token.

    Args:
        path: the file.

    Raises:
        DataError: it is missing, too large, or no such file.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{path}: {size:,} bytes are more than a vocabulary has; give a tokenizer of llama2.c")
        content = read_regular(path, LARGEST_FILE, follow=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path of the tokenizer") from error
    tokens, scores, at = [], [], 4
    while at + _ENTRY.size <= len(content):
        score, length = _ENTRY.unpack_from(content, at)
        at += _ENTRY.size + length
        if length < 0 or at > len(content) or score != score:  # noqa: PLR0124
            break
        tokens.append(content[at - length : at])
        scores.append(score)
    if at != len(content) or len(tokens) < _BYTES + 256:
        raise DataError(f"{path}: no tokenizer of llama2.c by its content; give the file that belongs to the network")
    return Merging(path.name, tuple(tokens), tuple(scores))
