"""The data room: what is read equals what independent readers read, and bad input is named in one line."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from pathlens.data import check_labels, images, open_data
from pathlens.errors import DataError
from tests.helpers.data_files import image_folder, noise, png, raw, refused, write

# digits


def test_digits_split_partitions_the_set():
    bunch = load_digits()
    everything = []
    for split, rows in (("train", 1257), ("validation", 180), ("test", 360)):
        data = open_data("digits", split=split)
        assert (data.n, data.total, data.num_classes, data.name, data.split) == (rows, rows, 10, "digits", split)
        assert (data.channels, data.height, data.width) == (1, 8, 8)
        shares = torch.bincount(data.labels) / rows
        assert torch.allclose(shares, torch.from_numpy(np.bincount(bunch.target) / 1797).float(), atol=0.005)
        pixels = (raw(data, 100) / 255 * 16).round()
        everything += [(*row.flatten().int().tolist(), int(y)) for row, y in zip(pixels, data.labels, strict=True)]
    wanted = [(*row.astype(int).tolist(), int(y)) for row, y in zip(bunch.data, bunch.target, strict=True)]
    assert sorted(everything) == sorted(wanted)


def test_digits_test_split_is_the_documented_one_in_mixed_order():
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    _, rows = train_test_split(np.arange(1797), test_size=360, random_state=0, stratify=bunch.target)
    data = open_data("digits")
    assert data.labels.tolist() == bunch.target[rows].tolist()
    assert len(set(data.labels[:30].tolist())) == 10
    batch = data.batch(1, 100)
    mean, std = (float(v) for v in (data.mean[0], data.std[0]))
    wanted = (bunch.images[rows[100:200]] / 16 - mean) / std
    assert np.allclose(batch.images[:, 0].numpy(), wanted, atol=1e-6)


def test_digits_are_normalised_by_their_training_split():
    train = raw(open_data("digits", split="train"), 500) / 255
    data = open_data("digits", limit=7)
    assert data.mean == pytest.approx((float(train.mean()),), abs=2e-3)
    exact = open_data("digits", split="train").batch(0, 2000, dtype=torch.float64).images
    assert abs(float(exact.mean())) < 1e-12
    assert float(exact.std(correction=0)) == pytest.approx(1, abs=1e-12)
    assert "training split" in data.normalisation_source


# batches


@pytest.mark.parametrize("keep", [2**30, 0])
def test_random_access_equals_iteration(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(images, "KEEP_BYTES", keep)
    pixels = noise(11, 6, 5, 3)
    data = open_data(write(tmp_path / "set" / "test.parquet", [png(p) for p in pixels]))
    assert data.in_memory == (keep > 0)
    listed = list(data.batches(4))
    assert [batch.index for batch in listed] == [0, 1, 2]
    assert [len(batch.labels) for batch in listed] == [4, 4, 3]
    assert data.num_batches(4) == 3
    for index in (2, 0, 1, 1):
        batch = data.batch(index, 4)
        assert torch.equal(batch.images, listed[index].images)
        assert torch.equal(batch.labels, listed[index].labels)
    assert [batch.index for batch in data.batches(4, start=2)] == [2]
    assert torch.equal(raw(data), torch.from_numpy(pixels).permute(0, 3, 1, 2).double())


def test_normalisation_equals_torchvision_to_the_bit(tmp_path):
    pixels = noise(3, 5, 4, 3)
    data = open_data(write(tmp_path / "cifar10" / "test.parquet", [png(p) for p in pixels]))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    oracle = Compose([ToTensor(), Normalize(mean, std)])
    batch = data.batch(0, 3, mean=mean, std=std)
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, torch.stack([oracle(p) for p in pixels]))
    assert torch.equal(data.batch(0, 3, mean=mean, std=std, dtype=torch.bfloat16).images, batch.images.bfloat16())


def test_a_batch_may_be_overwritten(tmp_path):
    data = open_data("digits", limit=4)
    before = data.batch(0, 4).images.clone()
    data.batch(0, 4).images.zero_()
    assert torch.equal(data.batch(0, 4).images, before)


def test_the_default_device_of_torch_does_not_count():
    wanted = open_data("digits", limit=8).batch(1, 4)
    with torch.device("meta"):
        found = open_data("digits", limit=8).batch(1, 4)
    assert torch.equal(found.images, wanted.images)
    assert torch.equal(found.labels, wanted.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_kept_set_is_copied_to_the_device_once():
    data = open_data("digits")
    on_device = data.batch(1, 100, device="cuda")
    held = torch.cuda.memory_allocated()
    again = data.batch(1, 100, device="cuda:0")
    assert torch.cuda.memory_allocated() - held < data.n * 64
    assert torch.equal(on_device.images, again.images)
    assert torch.allclose(on_device.images.cpu(), data.batch(1, 100).images, atol=1e-6)
    assert on_device.labels.device.type == "cuda"


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda d: d.batch(4, 100), "batch 4 does not exist; there are 4"),
        (lambda d: d.batch(-1, 100), "batch -1"),
        (lambda d: d.batch(0, 0), "batch size 0"),
        (lambda d: d.batch(0, 8, dtype=torch.int64), "floating"),
        (lambda d: d.batch(0, 8, mean=(0.5, 0.5, 0.5)), "mean has 3 numbers"),
        (lambda d: d.batch(0, 8, std=(0.0,)), "positive"),
        (lambda d: d.batch(0, 8, mean=(float("nan"),)), "finite"),
        (lambda d: d.batch(0, 8, mean=(1e39,)), "finite"),
        (lambda d: d.batch(0, 8, std=(1e-300,)), "positive"),
        (lambda d: check_labels(d, 9), "the model has 9 classes"),
    ],
)
def test_misuse_of_batches_is_one_line(call, part):
    with pytest.raises(DataError, match=part) as caught:
        call(open_data("digits"))
    assert "\n" not in str(caught.value)


def test_labels_inside_the_classes_pass():
    data = open_data("digits")
    check_labels(data, 10)
    nines = int((data.labels == 9).nonzero()[0])
    with pytest.raises(DataError, match=f"row {nines} has label 9"):
        check_labels(data, 9)


def test_opening_and_reading_leaves_the_random_state(rng_untouched, tmp_path):
    state = np.random.get_state()[1].copy()
    folder = image_folder(tmp_path / "set")
    assert open_data("digits").batch(0, 5).labels.shape == (5,)
    assert open_data(folder, image_size=8).batch(0, 5).labels.shape == (5,)
    assert (np.random.get_state()[1] == state).all()


# image folders


def test_image_folder_equals_torchvisions_own(tmp_path, monkeypatch):
    spec = image_folder(tmp_path / "zoo")
    Image.fromarray(noise(1, 9, 9)[0]).save(tmp_path / "zoo" / "ape" / "grey.png")
    transform = Compose([Resize(32), CenterCrop(28), ToTensor()])
    oracle = datasets.ImageFolder(str(tmp_path / "zoo"), transform)
    order = np.random.RandomState(0).permutation(37)
    for keep in (2**30, 0):
        monkeypatch.setattr(images, "KEEP_BYTES", keep)
        data = open_data(spec, image_size=28)
        batch = data.batch(0, 37, mean=[0] * 3, std=[1] * 3)
        assert torch.equal(batch.images, torch.stack([oracle[row][0] for row in order]))
        assert batch.labels.tolist() == [oracle.targets[row] for row in order]
        assert open_data(spec, image_size=28, limit=9).labels.unique().tolist() == [0, 1, 2]
        first = data.fingerprint
        assert first == open_data(spec, image_size=28).fingerprint
    assert (data.name, data.num_classes, data.class_names) == ("zoo", 3, ("ape", "bat", "cow"))
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.normalisation_source == "ImageNet constants"
    assert (open_data(spec, limit=1).height, open_data(spec, limit=1).width) == (224, 224)


def test_image_folder_finds_the_folder_of_the_split(tmp_path):
    image_folder(tmp_path / "zoo" / "train", {"ape": 3, "bat": 3})
    image_folder(tmp_path / "zoo" / "val", {"ape": 1, "bat": 1})
    spec = f"imagefolder:{tmp_path / 'zoo'}"
    data = open_data(spec, image_size=8)
    assert (data.name, data.split, data.n) == ("zoo", "validation", 2)  # stands in for the missing test folder
    assert open_data(spec, image_size=8, split="train").n == 6
    direct = open_data(f"{spec}/train", image_size=8)
    assert (direct.name, direct.split, direct.n) == ("zoo", "train", 6)
    image_folder(tmp_path / "zoo" / "test", {"ape": 2, "bat": 2})
    assert (open_data(spec, image_size=8).split, open_data(spec, image_size=8).n) == ("test", 4)
    vehicles = image_folder(tmp_path / "vehicles", {"car": 1, "train": 2})  # "train" is a class here
    assert open_data(vehicles, image_size=8).class_names == ("car", "train")


def test_a_class_has_one_number_in_all_splits(tmp_path):
    image_folder(tmp_path / "zoo" / "train", {"ape": 2, "bat": 2, "cow": 2})
    image_folder(tmp_path / "zoo" / "val", {"ape": 1, "cow": 1, "dog": 1})
    for split in ("train", "validation"):
        data = open_data(f"imagefolder:{tmp_path / 'zoo'}", image_size=8, split=split)
        assert data.class_names == ("ape", "bat", "cow", "dog")
        assert data.num_classes == 4
    assert sorted(data.labels.tolist()) == [0, 2, 3]
    # folders that are no classes, and splits without classes, count for nothing
    image_folder(tmp_path / "zoo" / "test", {"aardvark": 2})
    (tmp_path / "zoo" / "train" / ".hidden").mkdir()
    assert open_data(f"imagefolder:{tmp_path / 'zoo'}", image_size=8, split="validation").class_names == (
        "ape", "bat", "cow", "dog",
    )  # fmt: skip


def test_bad_image_folders(tmp_path):
    refused(f"imagefolder:{tmp_path / 'absent'}", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(f"imagefolder:{tmp_path / 'empty'}", "no class folders")
    (tmp_path / "empty" / "ape").mkdir()
    refused(f"imagefolder:{tmp_path / 'empty'}", "no images in 1 of its 1 class folders ('ape')")
    image_folder(tmp_path / "zoo")
    (tmp_path / "zoo" / "bat" / "5.png").write_text("no image")
    refused(f"imagefolder:{tmp_path / 'zoo'}", "bat/5.png", "not an image", image_size=8)
    refused(f"imagefolder:{tmp_path / 'zoo' / 'bat' / '4.png'}", "is a file")
    image_folder(tmp_path / "split" / "train")
    refused(f"imagefolder:{tmp_path / 'split'}", "split 'test'", "only for train")


def test_links_to_folders_are_followed_for_classes_alone(tmp_path):
    zoo = tmp_path / "zoo"
    spec = image_folder(zoo, {"ape": 1, "bat": 1})
    image_folder(tmp_path / "far", {"cow": 3})
    wanted = open_data(spec, image_size=8).fingerprint
    (zoo / "ape" / "self").symlink_to(zoo / "ape")
    (zoo / "ape" / "up").symlink_to("..")
    (zoo / "bat" / "far").symlink_to(tmp_path / "far")
    assert open_data(spec, image_size=8).fingerprint == wanted  # torchvision makes 82 images of these 2
    (zoo / "cow").symlink_to(tmp_path / "far" / "cow")
    (zoo / "bat" / "more.png").symlink_to(tmp_path / "far" / "cow" / "0.png")
    assert torch.bincount(open_data(spec, image_size=8).labels).tolist() == [1, 2, 3]
    (zoo / "dog").mkdir()
    (zoo / "dog" / "far").symlink_to(tmp_path / "far")
    refused(spec, "no images in 1 of its 4 class folders ('dog')", "links to folders inside a class are not followed")
    (zoo / "dog" / "far").unlink()
    (zoo / "dog").rmdir()
    (zoo / "dog").symlink_to(".")
    refused(spec, f"{zoo / 'dog'} is a link to a folder that it lies in")
    (zoo / "dog").unlink()
    (zoo / "dog").symlink_to("dog")
    refused(spec, "dog cannot be read", "Too many levels of symbolic links")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
    ],
)
def test_what_is_no_image_file_does_not_hang(tmp_path, make, part):
    spec = image_folder(tmp_path / "zoo", {"ape": 2})
    make(tmp_path / "zoo" / "ape" / "odd.png")
    refused(spec, "odd.png", part, image_size=8)


def test_names_of_files_do_not_break_the_line(tmp_path):
    spec = image_folder(tmp_path / "zoo", {"ape": 2})
    name = "two\nlines\x1b[31m\udcff.png"
    (tmp_path / "zoo" / "ape" / name).write_bytes(b"no image")
    refused(spec, "two\\nlines\\x1b[31m\\udcff.png: not an image", image_size=8)


def test_names_that_are_no_unicode_are_hashed(tmp_path, monkeypatch):
    spec = image_folder(tmp_path / "zoo", {"ape": 2})
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    before = open_data(spec, image_size=8).fingerprint
    (tmp_path / "zoo" / "ape" / "0.png").rename(tmp_path / "zoo" / "ape" / "\udcff.png")
    assert open_data(spec, image_size=8).fingerprint != before


def test_unusual_images_are_what_torchvision_makes_of_them(tmp_path):
    picture = Image.fromarray(noise(1, 16, 16, 3)[0])
    (tmp_path / "zoo" / "ape").mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "zoo" / "ape" / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "zoo" / "ape" / "cmyk.jpg")
    picture.save(tmp_path / "zoo" / "ape" / "moving.webp", save_all=True, append_images=[picture.rotate(90)])
    oracle = datasets.ImageFolder(str(tmp_path / "zoo"), Compose([Resize(9), CenterCrop(8), ToTensor()]))
    batch = open_data(f"imagefolder:{tmp_path / 'zoo'}", image_size=8).batch(0, 3, mean=[0] * 3, std=[1] * 3)
    order = np.random.RandomState(0).permutation(3)
    assert torch.equal(batch.images, torch.stack([oracle[row][0] for row in order]))


# CIFAR by torchvision


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, labels: list[int]) -> None:
    """Write files in CIFAR-10's own format, and let torchvision expect their hashes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents = {
        "test_batch": {"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), "labels": labels},
        "batches.meta": {"label_names": [f"class {k}" for k in range(10)]},
    }
    hashes = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        hashes[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": hashes["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def test_cifar10_is_read_from_torchvisions_files(tmp_path, monkeypatch, capsys):
    pixels, labels = noise(8, 32, 32, 3), [3, 8, 8, 0, 6, 6, 1, 6]
    fake_cifar(tmp_path, monkeypatch, pixels, labels)
    data = open_data("cifar10", root=tmp_path, limit=6)
    assert (data.name, data.n, data.total, data.num_classes) == ("cifar10", 6, 8, 10)
    assert data.labels.tolist() == labels[:6]
    assert torch.equal(raw(data), torch.from_numpy(pixels[:6]).permute(0, 3, 1, 2).double())
    assert data.mean == (0.4914, 0.4822, 0.4465)
    monkeypatch.setenv("PATHLENS_DATA", str(tmp_path))
    large = open_data("cifar10", image_size=64).batch(0, 2, mean=[0] * 3, std=[1] * 3)
    oracle = Compose([Resize(73), CenterCrop(64), ToTensor()])
    assert torch.equal(large.images, torch.stack([oracle(Image.fromarray(p)) for p in pixels[:2]]))
    assert capsys.readouterr().out == ""
    refused("cifar10", "no split 'validation'", split="validation")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_not_downloaded_unasked(tmp_path, monkeypatch, name):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *a, **k: pytest.fail("downloaded"))
    refused(name, name, str(tmp_path), "--download", root=tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "absent.tar.gz").as_uri())
    refused("cifar10", "could not be downloaded", str(tmp_path), root=tmp_path, download=True)


# specs


@pytest.mark.parametrize(
    ("spec", "options", "part"),
    [
        ("cifr10", {}, "did you mean cifar10"),
        ("parqet:x", {}, "did you mean parquet"),
        ("zzz", {}, "there are digits"),
        ("", {}, "there are digits"),
        ("parquet:", {}, "names no path"),
        ("digits:x", {}, "takes no path"),
        ("digits", {"limit": 0}, "limit 0"),
        ("digits", {"limit": -3}, "limit -3"),
        ("digits", {"limit": 2.5}, "limit 2.5"),
        ("digits", {"image_size": 0}, "image_size 0"),
        ("digits", {"image_size": 32}, "not resized"),
        ("digits", {"split": "tset"}, "split 'tset'"),
        (None, {}, "found a NoneType"),
        ("x" * 5000, {}, "there are digits"),
        ("parquet:" + "x" * 5000, {}, "File name too long"),
        ("imagefolder:a\0b", {}, "a\\x00b does not exist"),
    ],
)
def test_bad_specs(spec, options, part):
    refused(spec, part, **options)


def test_a_bare_path_is_told_how_to_be_written(tmp_path):
    write(tmp_path / "set" / "test.parquet", [png(noise(1, 4, 4, 3)[0])])
    refused(str(tmp_path / "set"), f"write parquet:{tmp_path / 'set'}")
    image_folder(tmp_path / "zoo")
    refused(str(tmp_path / "zoo"), f"write imagefolder:{tmp_path / 'zoo'}")
