"""State dicts out of files that nobody vouches for."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from pathlens.errors import CheckpointError, ResourceError
from pathlens.models import load_into, load_state_dict_file, save_weights, state_sha256
from pathlens.models.reading import read_metadata
from tests.helpers.model_helpers import Small, one_line


def assert_equal_states(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        assert torch.equal(value, right[name]), name


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".PT"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats(tmp_path: Path, suffix: str, zipped: bool) -> None:
    state = Small().state_dict()
    torch.save(state, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    read, notes = load_state_dict_file(tmp_path / f"w{suffix}")
    assert_equal_states(read, dict(state))
    assert notes == ()


def test_safetensors_round_trip_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, Small(), {"mean": "[0.5]", "z": "é", "a": "1"})
    read, notes = load_state_dict_file(path)
    state = dict(Small().state_dict())
    assert notes == ()
    assert set(read) == set(state)
    assert all(torch.equal(read[k], state[k]) for k in state)
    assert read_metadata(path) == {"mean": "[0.5]", "z": "é", "a": "1"}
    with safetensors.safe_open(path, "pt") as file:  # the library itself agrees with the rewritten header
        assert file.metadata() == {"mean": "[0.5]", "z": "é", "a": "1"}
        assert torch.equal(file.get_tensor("fc.weight"), state["fc.weight"])


WRAPPINGS = {
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.7, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
    "model_ema": lambda s: {"model_ema": s},
    "state_dict_ema": lambda s: {"state_dict_ema": s, "args": argparse.Namespace(lr=0.1, model="x")},
    "net": lambda s: {"net": s, "acc": 95.0},
    "tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.4},
    "beside sizes": lambda s: {"model": {"width": 8}, "model_state_dict": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "_orig_mod": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both ways": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "both ways round": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "repeated": lambda s: {f"module.module.{k}": v for k, v in s.items()},
    "inner": lambda s: {k.replace("bn.", "bn._orig_mod."): v for k, v in s.items()},
    "averaged": lambda s: {"model_ema": {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in s.items()}}},
    "all": lambda s: {"state_dict": {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}, "epoch": 1}},
    "entries": lambda s: {**s, "epoch": 7, "names": ["a"]},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_are_taken_off_and_reported(tmp_path: Path, wrapping: str) -> None:
    state = Small(seed=1).state_dict()
    torch.save(WRAPPINGS[wrapping](dict(state)), tmp_path / "w.pth")
    read, notes = load_state_dict_file(tmp_path / "w.pth")
    assert_equal_states(read, dict(state))
    assert notes, "nothing was reported"
    model = Small(seed=2)
    load_into(model, read, "w.pth")
    assert state_sha256(model) == state_sha256(Small(seed=1))


def test_notes_name_what_was_done(tmp_path: Path) -> None:
    state = {f"module._orig_mod.{k}": v for k, v in Small().state_dict().items()}
    torch.save({"state_dict": {**state, "extra": "x"}, "best_prec1": 1.0}, tmp_path / "w.th")
    notes = load_state_dict_file(tmp_path / "w.th")[1]
    assert notes == (
        "unwrapped state_dict (left aside: best_prec1)",
        "left aside what is no tensor: extra",
        "stripped prefix module.",
        "stripped prefix _orig_mod.",
    )


def test_averaged_weights_come_before_plain_ones(tmp_path: Path) -> None:
    plain, averaged = dict(Small(seed=1).state_dict()), dict(Small(seed=2).state_dict())
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "w.pth")
    read, notes = load_state_dict_file(tmp_path / "w.pth")
    assert_equal_states(read, averaged)
    assert notes == ("unwrapped state_dict_ema (left aside: state_dict)",)


def test_prefix_of_some_names_is_kept(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(load_state_dict_file(tmp_path / "w.pt")[0]) == {"module.a", "b"}


def test_names_that_collide_without_prefix(tmp_path: Path) -> None:
    torch.save({"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="two entries have the same name"):
        load_state_dict_file(tmp_path / "w.pt")


# --- files that would run code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool, wrapped: bool) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": {"a": torch.ones(1), "b": _Evil(marker)}} if wrapped else _Evil(marker)
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        load_state_dict_file(tmp_path / "w.pt")
    text = one_line(caught)
    assert "refused" in text
    assert "posix.system" in text or "nt.system" in text
    assert "weights_only" not in text, "the message must not advise to switch the protection off"
    assert not marker.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)  # the file is armed: without the protection the marker appears
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickle_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(_Evil(marker), protocol=protocol))
    with pytest.raises(CheckpointError) as caught:
        load_state_dict_file(tmp_path / "w.pth")
    one_line(caught)
    assert not marker.exists()


def test_whole_pickled_model_is_refused_with_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*save model\.state_dict\(\)"):
        load_state_dict_file(tmp_path / "w.pt")


def test_nothing_is_allowed_to_torch_meanwhile(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(x=1)}, tmp_path / "w.pt")
    load_state_dict_file(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == set(before)


# --- damaged files and files of something else ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_weights(path, Small(), {})
    else:
        torch.save(Small().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    with pytest.raises(CheckpointError) as caught:
        load_state_dict_file(path)
    assert str(path) in one_line(caught)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"x", b"hello world, this is no checkpoint", b"<!DOCTYPE html>" * 50, b"a,b\n1,2\n", b"\x80\x04."]
)
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_state_dict_file(tmp_path / name)
    assert str(tmp_path / name) in one_line(caught)
    assert ("empty" in str(caught.value)) == (content == b"")


def test_missing_file_directory_and_text(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "w.txt").write_text("x")
    for name, words in (("none.pt", "no such file"), ("folder.pt", "a directory"), ("w.txt", "by its content")):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_state_dict_file(tmp_path / name)
        one_line(caught)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_state_dict_file(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
        ({}, "no tensors"),
        ({"epoch": 3}, r"no tensors among its entries \(epoch\)"),
        ({"state_dict": {"lr": 0.1}}, "no tensors"),
        ({"x": torch.ones(2).to_sparse()}, "x is a tensor without plain values"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_state_dict_file(tmp_path / "w.pt")
    one_line(caught)


def test_state_dict_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="nested without end"):
        load_state_dict_file(tmp_path / "w.pt")


# --- absurd sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_file_over_the_limit_is_not_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(17 * 2**30)  # sparse: takes no disk
    with pytest.raises(CheckpointError, match=r"17 GiB is more than the limit of 16 GiB"):
        load_state_dict_file(tmp_path / name)
    with pytest.raises(CheckpointError, match="more than the limit"):
        load_state_dict_file(tmp_path / name, max_bytes=2**20)


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as honest,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in honest.infolist():
            bomb.writestr(entry.filename, honest.read(entry))
        bomb.writestr("w/data/99", bytes(2**25))
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="it is compressed"):
        load_state_dict_file(tmp_path / "bomb.pt")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_unpack_all_at_once_are_refused(tmp_path: Path, kind: int) -> None:
    torch.save(Small().state_dict(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as honest, zipfile.ZipFile(tmp_path / "odd.pt", "w", kind) as odd:
        for entry in honest.infolist():
            odd.writestr(entry.filename, honest.read(entry))
    with pytest.raises(CheckpointError, match="it is compressed in another way than zip's own"):
        load_state_dict_file(tmp_path / "odd.pt")


def test_declared_size_counts_against_the_limit(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2**10)}, tmp_path / "w.pt")
    size = (tmp_path / "w.pt").stat().st_size
    load_state_dict_file(tmp_path / "w.pt", max_bytes=size)
    with pytest.raises(CheckpointError):
        load_state_dict_file(tmp_path / "w.pt", max_bytes=4096)


@pytest.mark.parametrize("length", [2**63, 2**40, 10_000])
def test_safetensors_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 100)
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        load_state_dict_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("offsets", [[0, 2**50], [-4, 4], [8, 4], [0], "x", [0, None]])
def test_safetensors_offsets_outside_the_file(tmp_path: Path, offsets: object) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="'a' lies outside the file"):
        load_state_dict_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("entry", [{"dtype": "F32", "shape": [2]}, {"dtype": "Q9", "shape": [1]}, {"shape": [1]}])
def test_safetensors_entries_that_contradict_themselves(tmp_path: Path, entry: dict[str, object]) -> None:
    header = json.dumps({"a": {**entry, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="damaged safetensors") as caught:
        load_state_dict_file(tmp_path / "w.safetensors")
    one_line(caught)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage_never_escapes_as_a_foreign_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_weights(path, Small(), {"a": "b"})
    else:
        torch.save({"state_dict": Small().state_dict(), "epoch": 1}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(whole)
        # Most of the file is tensor values, in which any byte is legal: aim at the rest too.
        places = rng.integers(0, len(whole) if rng.random() < 0.3 else min(900, len(whole)), size=3)
        for place in places:
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            load_state_dict_file(path)
        except (CheckpointError, ResourceError) as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)
