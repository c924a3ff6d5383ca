"""Texts: windows of tokens counted by hand, byte pair encoding by an obviously right loop, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.data import check_tokens, open_data, open_text
from pathlens.data import text as texts
from pathlens.data.text import NOT_COUNTED
from pathlens.data.tokenizer import Merging, read_vocabulary
from pathlens.errors import DataError
from tests.helpers.texts import BASE, vocabulary_file


@pytest.mark.parametrize(("length", "stride", "count"), [(4, None, 2), (4, 4, 2), (4, 3, 3), (4, 1, 7), (10, None, 1)])
def test_sequences_and_what_comes_next(tmp_path: Path, length: int, stride: int | None, count: int) -> None:
    (tmp_path / "t.txt").write_bytes(text := bytes(range(50, 61)))
    data = open_text(tmp_path / "t.txt", length=length, stride=stride)
    assert (data.n, data.total, data.num_classes, data.num_batches(2)) == (count, count, 256, -(-count // 2))
    asked = []
    for number in range(data.num_batches(2)):
        batch = data.batch(number, 2)
        for row, (tokens, targets) in enumerate(zip(batch.images.tolist(), batch.labels.tolist(), strict=True)):
            start = (2 * number + row) * (stride or length)
            assert bytes(tokens) == text[start : start + length]
            counted = [(start + at + 1, target) for at, target in enumerate(targets) if target != NOT_COUNTED]
            assert all(text[place] == target for place, target in counted)
            asked += [place for place, _ in counted]
    assert asked == list(range(1, asked[-1] + 1))  # each token but the first is asked for once


def test_a_limit_and_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"a text of some length")
    whole, part = (open_text(tmp_path / "t.txt", length=3, limit=limit) for limit in (None, 2))
    assert (part.n, part.total) == (2, whole.total)
    (tmp_path / "o.txt").write_bytes(b"another text of a length")
    others = [part, open_text(tmp_path / "t.txt", length=3, stride=2), open_text(tmp_path / "o.txt", length=3)]
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert open_text(tmp_path / "t.txt", length=3).fingerprint == whole.fingerprint
    with pytest.raises(DataError, match=r"batch 7 does not exist"):
        whole.batch(7, 3)
    with pytest.raises(DataError, match="batch size 0"):
        whole.num_batches(0)
    with pytest.raises(DataError, match="tokens are not normalised"):
        whole.batch(0, 1, mean=(0.5,))


def merged(coder: Merging, text: bytes) -> list[int]:
    """As llama2.c does it: look at all pairs of the whole text, and merge the best, again and again."""
    tokens, scores = list(coder.tokens), coder.scores
    numbers = []
    for character in (b" " + text).decode(errors="surrogateescape"):
        own = character.encode(errors="surrogateescape")
        numbers += [tokens.index(own)] if own in tokens else [3 + byte for byte in own]
    while True:
        best, at, new = -1e10, -1, -1
        for place in range(len(numbers) - 1):
            pair = tokens[numbers[place]] + tokens[numbers[place + 1]]
            if pair in tokens and scores[tokens.index(pair)] > best:
                best, at, new = scores[tokens.index(pair)], place, tokens.index(pair)
        if at < 0:
            return [1, *numbers]
        numbers[at : at + 2] = [new]


@given(
    text=st.text(alphabet="ab \n\u00e9\u4e2d", max_size=12).map(str.encode) | st.binary(max_size=6),
    more=st.lists(st.sampled_from([b"ab", b" a", b"abb", b"bb", b"a b", b" ab", b"  ", b"ba"]), unique=True),
    scores=st.lists(st.integers(-9, 9), min_size=8, max_size=8),
)
def test_byte_pairs_are_merged_by_score(text: bytes, more: list[bytes], scores: list[int]) -> None:
    coder = Merging("made up", (*BASE, *more), (*[0.0] * len(BASE), *map(float, scores[: len(more)])))
    assert coder.encode(text).tolist() == merged(coder, text)


def test_a_long_text_without_spaces_is_merged_in_the_time_of_its_length() -> None:
    """Where all pairs of a text were looked at for each merge, this would take minutes."""
    coder = Merging("made up", (*BASE, b"ab", b"abab", b"  "), (*[0.0] * len(BASE), 1.0, 2.0, 3.0))
    assert coder.encode(b"ab" * 50_000).tolist() == [1, BASE.index(b" "), *[len(BASE) + 1] * 25_000]


def test_a_vocabulary_is_read(tmp_path: Path) -> None:
    path = vocabulary_file(tmp_path / "v.bin", {b"ab": -1.0, b" a": -2.0})
    coder = read_vocabulary(path)
    assert (coder.name, coder.vocabulary, coder.tokens) == ("v.bin", len(BASE) + 2, (*BASE, b"ab", b" a"))
    assert coder.encode(b"ab").tolist() == [1, BASE.index(b" "), len(BASE)]
    (tmp_path / "t.txt").write_bytes(b"abab" * 4)
    data = open_text(tmp_path / "t.txt", tokenizer=path, length=2)
    assert data.tokens.tolist() == [1, BASE.index(b" "), *[len(BASE)] * 8]
    check_tokens(data, len(BASE) + 1)
    with pytest.raises(
        DataError, match=rf"token {len(BASE)} of v.bin is outside the vocabulary of the model, 9 tokens"
    ):
        check_tokens(data, 9)


def test_the_tokens_of_the_published_network(shared_models: Path) -> None:
    coder = read_vocabulary(shared_models / "llama2" / "tok512.bin")
    # what that network says of itself when it begins a story
    assert coder.encode(b"Once upon a time")[:5].tolist() == [1, 403, 407, 261, 378]
    story = "One day, a girl called Zo\u00eb saw a \u732b.\n".encode()
    numbers = coder.encode(story).tolist()
    assert numbers == merged(coder, story)
    spelled = b"".join(bytes([number - 3]) if 3 <= number < 259 else coder.tokens[number] for number in numbers[1:])
    assert spelled == b" " + story


def test_what_is_no_text_or_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text := tmp_path / "t.txt").write_bytes(b"short")
    with pytest.raises(DataError, match=r"t.txt: 5 tokens \(bytes\) make no sequence of 256 with its next token; give"):
        open_text(text)
    with pytest.raises(DataError, match=r"gone.txt cannot be read"):
        open_text(tmp_path / "gone.txt")
    for options, said in (
        ({"length": 0}, "sequence length 0: give 1 or more"),
        ({"limit": 0}, "limit 0"),
        ({"length": 2, "stride": 3}, "stride 3: give 1 to 2"),
        ({"length": 2, "stride": 0}, "stride 0"),
        ({"tokenizer": tmp_path / "gone.bin"}, "gone.bin: cannot be read"),
    ):
        with pytest.raises(DataError, match=said):
            open_text(text, **options)
    whole = vocabulary_file(tmp_path / "v.bin", {}).read_bytes()
    for content in (b"", whole[:-1], whole[:400], whole + b"x", whole[:4] + struct.pack("<fi", 0.0, -5) + whole[12:]):
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"bad.bin: no tokenizer of llama2.c by its content"):
            read_vocabulary(tmp_path / "bad.bin")
    monkeypatch.setattr(texts, "LARGEST_TEXT", 4)
    with pytest.raises(DataError, match="5 bytes are more than the limit of 4"):
        open_text(text)
    with pytest.raises(DataError, match=r"is a text, and images are wanted here"):
        open_data(f"text:{text}")


def test_a_subset_has_the_sequences_that_were_picked(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(60)))
    data = open_text(tmp_path / "text", length=8, stride=5)
    picked = torch.tensor([4, 1, 9])
    part = data.subset(picked, "train")
    assert (part.n, part.split) == (3, "train")
    tokens, targets = part.rows(torch.arange(3))
    assert tokens.equal(data.rows(picked)[0])
    assert targets.equal(tokens + 1)  # also where an earlier sequence of the whole text asks for the same


def test_the_default_device_of_torch_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(60)))
    wanted = open_text(tmp_path / "text", length=8, stride=5).batch(1, 2)
    with torch.device("meta"):
        data = open_text(tmp_path / "text", length=8, stride=5)
        found = data.batch(1, 2)
    assert found.images.equal(wanted.images)
    assert found.labels.equal(wanted.labels)
    with torch.device("meta"):
        part = data.subset(torch.tensor([2, 3], device="cpu"), "train")
    assert part.batch(0, 2).images.equal(wanted.images)
