"""Tokenizers of the tokenizers library, against what it makes of a text itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pathlens.data import open_text
from pathlens.data import published as tokens
from pathlens.data.text import open_tokenizer
from pathlens.errors import DataError
from tests.helpers.published import tiny_tokenizer

pytest.importorskip("tokenizers")


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    """A tokenizer that says that texts are cut off after 3 tokens."""
    (tmp_path / "model").mkdir()
    tiny_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model" / "tokenizer.json"


def test_a_text_is_cut_by_the_tokenizer_of_a_file_or_folder(file: Path, tmp_path: Path) -> None:
    text = "ab ba é\nab" * 5
    (tmp_path / "t.txt").write_text(text)
    steps = tiny_tokenizer()
    assert len(steps.encode(text).ids) == 3
    steps.no_truncation()
    wanted = steps.encode(text).ids
    for given in (file, file.parent, f"hf:{file.parent}"):
        data = open_text(tmp_path / "t.txt", tokenizer=given, length=4)
        assert data.tokens.tolist() == wanted
        assert data.num_classes == 9
        assert data.tokenizer.name == ("tokenizer.json" if given == file else "model")
    assert wanted[0] == 0
    by_bytes = open_text(tmp_path / "t.txt", tokenizer="bytes", length=4)
    assert by_bytes.tokens.tolist() == list(text.encode())
    assert by_bytes.fingerprint != data.fingerprint
    assert open_text(tmp_path / "t.txt", tokenizer=file, length=4).fingerprint == data.fingerprint
    (tmp_path / "t.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"byte 2 of the text is not UTF-8, which model needs.*--tokenizer bytes"):
        open_text(tmp_path / "t.txt", tokenizer=file.parent, length=2)


def test_what_is_no_tokenizer(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: no tokenizer\.json in it"):
        open_tokenizer(tmp_path / "none")
    for content in ("{", '{"version": "1.0"}', '{"model": {"type": "BPE", "vocab": 3}}', "{" * 5000):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json: no tokenizer of the tokenizers library"):
            open_tokenizer(tmp_path / "bad.json")
    without = tiny_tokenizer()
    without.model = type(without.model)({"a": 0}, [], unk_token="?")
    without.save(str(tmp_path / "odd.json"))
    with pytest.raises(DataError, match=r"odd\.json: the text cannot be tokenized"):
        open_tokenizer(tmp_path / "odd.json").encode(b"abc")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"org/gone: its tokenizer is not in the cache and cannot be downloaded"):
        open_tokenizer("hf:org/gone")
    monkeypatch.setattr(tokens, "LARGEST_FILE", 9)
    with pytest.raises(DataError, match="bytes are more than a tokenizer has"):
        open_tokenizer(file)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r'pip install "pathlens\[hf\]"'):
        open_tokenizer(file)
