"""Files of numpy arrays with numbers for targets, and what is wrong with some of them."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import pathlens
from pathlens.errors import DataError


def written(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return written(tmp_path / "few.npz", inputs=rng.normal(size=(7, 3, 4, 4)), targets=rng.normal(size=(7, 2)))


def test_batches_are_the_rows_of_the_file(file: Path) -> None:
    data = pathlens.open_arrays(file, limit=5)
    assert (data.name, data.n, data.total, data.channels, data.num_classes) == ("few.npz", 5, 7, 3, 2)
    arrays = np.load(file)
    batch = data.batch(1, 3)
    torch.testing.assert_close(batch.images, torch.from_numpy(arrays["inputs"][3:5]).float())
    torch.testing.assert_close(batch.labels, torch.from_numpy(arrays["targets"][3:5]).float())
    assert data.fingerprint == pathlens.open_arrays(file, limit=5).fingerprint
    assert data.fingerprint != pathlens.open_arrays(file, limit=4).fingerprint
    with pytest.raises(DataError, match="arrays are taken as they are; leave mean and std out"):
        data.batch(0, 3, mean=(0.5,), std=(0.5,))


def test_the_default_device_of_torch_does_not_count(file: Path) -> None:
    wanted = pathlens.open_arrays(file).batch(1, 3)
    with torch.device("meta"):
        found = pathlens.open_arrays(file).batch(1, 3)
    assert found.images.equal(wanted.images)
    assert found.labels.equal(wanted.labels)


def with_header(path: Path, header: bytes) -> Path:
    """A file whose inputs have a header of somebody's own, and nothing behind it."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("targets.npy", stream.getvalue())
        archive.writestr("inputs.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return path


def test_a_header_that_never_ends(tmp_path: Path) -> None:
    """A few kilobytes of file whose header states four gigabytes: not read on to be refused."""
    with zipfile.ZipFile(tmp_path / "long.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("targets.npy", b"")
        archive.writestr("inputs.npy", b"\x93NUMPY\x02\x00" + (2**32 - 16).to_bytes(4, "little") + b" " * 2**26)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is no file of numpy"):
            pathlens.open_arrays(tmp_path / "long.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_unpack_all_at_once_are_refused(tmp_path: Path, kind: int) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(2))
    with zipfile.ZipFile(tmp_path / "odd.npz", "w", kind) as archive:
        for name in ("inputs", "targets"):
            archive.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(DataError, match="inputs is compressed in another way than numpy's"):
        pathlens.open_arrays(tmp_path / "odd.npz")


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    numbers = np.zeros((3, 2))
    cases = {
        "no array 'inputs' (it has x, targets)": {"x": numbers, "targets": numbers},
        "inputs is int64 of shape (3,); give floating": {"inputs": np.arange(3), "targets": numbers},
        "targets holds NaN or infinity": {"inputs": numbers, "targets": np.full(3, np.nan)},
        "has 3 inputs and 2 targets": {"inputs": numbers, "targets": numbers[:2]},
        "has 0 inputs and 0 targets": {"inputs": numbers[:0], "targets": numbers[:0]},
        "inputs is object of shape (1,)": {"inputs": np.array([{}], dtype=object), "targets": numbers},
    }
    for number, (words, arrays) in enumerate(cases.items()):
        with pytest.raises(DataError) as raised:
            pathlens.open_arrays(written(tmp_path / f"{number}.npz", **arrays))
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
    (tmp_path / "text").write_text("no archive")
    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"
    for path, words in (
        (tmp_path / "text", "is no file of numpy.savez"),
        (tmp_path / "nowhere", "cannot be read"),
        (with_header(tmp_path / "huge.npz", huge), "more than the limit of 1,073,741,824 bytes"),
        (with_header(tmp_path / "odd.npz", b"{'descr': __import__('os')}\n"), "is no file of numpy.savez"),
        (with_header(tmp_path / "short.npz", huge.replace(b"1000000, 1000000", b"3,")), "is no file of numpy.savez"),
    ):
        with pytest.raises(DataError, match=words):
            pathlens.open_arrays(path)
    with pytest.raises(DataError, match="limit 0: give 1 or more"):
        pathlens.open_arrays(tmp_path / "0.npz", limit=0)
    with pytest.raises(DataError, match=r"is of numbers, and images are wanted here; pathlens\.open_arrays opens it"):
        pathlens.open_data("arrays:few.npz")
