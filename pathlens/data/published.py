"""Tokenizers of published language models: the file ``tokenizer.json`` of the tokenizers library."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathlens.data.tokenizer import LARGEST_FILE
from pathlens.errors import DataError, one_line

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"


@dataclass(frozen=True)
class Published:
    """A tokenizer with all its steps, its special tokens included.

    Attributes:
        name: in words.
        steps: normalisation, splitting, merging and special tokens.
    """

    name: str
    steps: tokenizers.Tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of tokens, added ones included."""
        return self.steps.get_vocab_size()

    @property
    def identity(self) -> str:
        """Hash of all its steps."""
        return hashlib.sha256(self.steps.to_str().encode()).hexdigest()

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens of a text in UTF-8, int64.

        Raises:
            DataError: it is not in UTF-8, or has something that the tokenizer has no token for.
        """
        try:
            characters = text.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte {error.start} of the text is not UTF-8, which {self.name} needs; convert it, or give "
                "--tokenizer bytes"
            ) from error
        with _spoken(f"{self.name}: the text cannot be tokenized"):
            return np.array(self.steps.encode(characters).ids, dtype=np.int64)


def read_published(path: Path, name: str) -> Published:
    """The tokenizer of a file.

    Args:
        path: of ``tokenizer.json``.
        name: what to call it.

    Raises:
        DataError: the tokenizers library is not installed, or the file is missing, too large, or no such file.
    """
    _check_installed(name)
    from tokenizers import Tokenizer

    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path of the tokenizer") from error
    if size > LARGEST_FILE:
        raise DataError(f"{path}: {size:,} bytes are more than a tokenizer has; give a {FILE}")
    with _spoken(f"{path}: no tokenizer of the tokenizers library"):
        steps = Tokenizer.from_file(str(path))
    # a file may say that texts are cut off or filled up to the length of a sequence
    steps.no_truncation()
    steps.no_padding()
    return Published(name, steps)


def tokenizer_in(folder: Path) -> Published:
    """The tokenizer in the folder of a model.

    Raises:
        DataError: there is none.
    """
    if not (folder / FILE).is_file():
        raise DataError(
            f"{folder}: no {FILE} in it, as which fast tokenizers are saved; give a --tokenizer, such as bytes"
        )
    return read_published(folder / FILE, folder.name)


def tokenizer_of(name: str) -> Published:
    """The tokenizer of a model by its name on the Hugging Face hub, out of the cache or downloaded.

    Raises:
        DataError: it is not in the cache and cannot be downloaded.
    """
    _check_installed(name)
    from huggingface_hub import hf_hub_download

    with _spoken(f"{name}: its tokenizer is not in the cache and cannot be downloaded"):
        path = Path(hf_hub_download(name, FILE))
    return read_published(path, name)


def _check_installed(name: str) -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise DataError(
            f'the tokenizer {name} needs transformers, which is not installed; pip install "pathlens[hf]"'
        ) from error


@contextlib.contextmanager
def _spoken(what: str) -> Iterator[None]:
    """Say in a line what the library raises; where its Rust code panics, that is no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise DataError(f"{what} ({one_line(error, 200)}); give another tokenizer (--tokenizer)") from error
