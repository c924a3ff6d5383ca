"""Parquet image sets: equal to what pandas and Pillow write and read, and bad files are named in one line."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from pathlens.data import images, open_data, parquet
from pathlens.data.decode import image_warnings, to_pixels
from pathlens.errors import DataError
from tests.helpers.data_files import noise, png, raw, refused, write

# parquet


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("scan", "fine_label")])
def test_parquet_equals_the_pixels_it_was_written_from(tmp_path, image, label):
    pixels, labels = noise(5, 7, 9, 3), [4, 0, 2, 2, 1]
    spec = write(tmp_path / "birds" / "test.parquet", [png(p) for p in pixels], labels, image, label)
    data = open_data(spec)
    assert torch.equal(raw(data), torch.from_numpy(pixels).permute(0, 3, 1, 2).double())
    assert data.labels.tolist() == labels
    assert data.labels.dtype == torch.int64
    assert (data.name, data.split, data.n, data.total, data.num_classes) == ("birds", "test", 5, 5, 5)
    assert data.class_names is None
    unit = pixels / 255
    assert data.mean == pytest.approx(unit.mean((0, 1, 2)))
    assert data.std == pytest.approx(unit.std((0, 1, 2)))
    assert "computed from the first 5 images" in data.normalisation_source


def test_class_names_come_from_the_huggingface_metadata(tmp_path):
    names = ["ant", "bee", "cat"]
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    items = [{"bytes": png(p), "path": None} for p in noise(2, 4, 4, 3)]
    table = pa.table({"image": items, "label": pa.array([0, 1], pa.uint8())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "test.parquet")
    data = open_data(f"parquet:{tmp_path / 'test.parquet'}")
    assert data.class_names == ("ant", "bee", "cat")
    assert data.num_classes == 3
    bad = pa.table({"image": items, "label": [0, 3]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(bad, tmp_path / "bad.parquet")
    refused(f"parquet:{tmp_path / 'bad.parquet'}", "row 1", "label 3", "3 classes")


def test_other_image_modes_become_rgb(tmp_path):
    colour = Image.fromarray(noise(1, 4, 4, 3)[0])
    with_alpha = colour.convert("RGBA")
    with_alpha.putalpha(Image.fromarray(noise(1, 4, 4)[0]))
    palette = colour.quantize(8)
    see_through = Image.open(io.BytesIO(png(palette)))
    see_through.info["transparency"] = bytes(range(8))
    modes = [colour, with_alpha, palette, see_through, colour.convert("L"), colour.convert("CMYK"), colour.convert("1")]
    items = [png(image, "TIFF" if image.mode == "CMYK" else "PNG") for image in modes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(write(tmp_path / "test.parquet", items))
    for row, image in enumerate([colour, colour, palette, palette, colour.convert("L"), None, colour.convert("1")]):
        if image is not None:
            wanted = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
            assert torch.equal(raw(data)[row], wanted.double()), row
    assert (data.channels, data.n) == (3, 7)


def test_grey_images_stay_grey_only_where_all_are(tmp_path):
    grey = noise(300, 4, 4)
    data = open_data(write(tmp_path / "g" / "test.parquet", [png(p) for p in grey]))
    assert data.channels == 1
    assert torch.equal(raw(data, 64)[:, 0], torch.from_numpy(grey).double())
    late = [png(p) for p in grey] + [png(noise(1, 4, 4, 3)[0])]
    spec = write(tmp_path / "c" / "test.parquet", late)
    assert open_data(spec).channels == 3
    assert open_data(spec, limit=2).channels == 3  # a limit does not make another set of it


def test_limit_decodes_and_hashes_the_first_rows_only(tmp_path):
    pixels = noise(6, 4, 4, 3)
    spec = write(tmp_path / "cifar10-jpeg" / "test.parquet", [png(p) for p in pixels[:5]] + [b"damaged"])
    data = open_data(spec, limit=5)
    assert (data.n, data.total, len(data.labels)) == (5, 6, 5)
    assert torch.equal(raw(data), torch.from_numpy(pixels[:5]).permute(0, 3, 1, 2).double())
    refused(spec, "row 5", "test.parquet", "not an image")
    refused(spec, "row 5", limit=100)
    assert open_data("digits", limit=10**6).n == 360


def test_large_sets_are_read_across_shards_and_row_groups(tmp_path, monkeypatch):
    pixels = noise(700, 3, 3, 3)
    items = [{"bytes": png(p), "path": None} for p in pixels]
    edges = [0, 290, 290, 700]  # the middle shard is empty
    for shard in range(3):
        rows = slice(edges[shard], edges[shard + 1])
        table = pa.table(
            {
                "img": pa.array(items[rows], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "label": pa.array(np.arange(700)[rows]),
            }
        )
        path = tmp_path / "big" / "data" / f"test-{shard:05d}-of-00003.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=100 if shard == 0 else 400)
    kept = open_data(f"parquet:{tmp_path / 'big'}")
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    data = open_data(f"parquet:{tmp_path / 'big'}")
    assert (data.name, data.n, data.in_memory, kept.in_memory) == ("big", 700, False, True)
    assert data.labels.tolist() == list(range(700))
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    assert torch.equal(raw(data, 150), wanted)
    for index in (4, 0, 3, 1, 1, 2):  # back and forth
        batch = data.batch(index, 150, mean=[0] * 3, std=[1] * 3, dtype=torch.float64)
        assert torch.equal((batch.images * 255).round(), wanted[index * 150 : (index + 1) * 150])
    assert data.mean == kept.mean == pytest.approx((pixels / 255).mean((0, 1, 2)))
    (tmp_path / "big" / "data" / "test-00001-of-00003.parquet").unlink()
    refused(f"parquet:{tmp_path / 'big'}", "2 of the 3 shards")


def test_rows_that_threads_fetch_from_one_reader_are_their_own(tmp_path, monkeypatch):
    pixels = noise(240, 3, 3, 3)
    path = tmp_path / "test.parquet"
    write(path, [png(p) for p in pixels], list(range(240)))
    pq.write_table(pq.read_table(path), path, row_group_size=40)
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    monkeypatch.setattr(parquet, "_ROWS_AT_ONCE", 3)
    data = open_data(f"parquet:{path}")
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    filters = list(warnings.filters)
    for seed in range(4):
        order = torch.randperm(240, generator=torch.Generator().manual_seed(seed))
        found, labels = data.rows(order)
        assert torch.equal(labels, order)
        assert torch.equal(found, wanted[order])
    assert warnings.filters == filters


def test_memory_does_not_grow_with_the_row_group(tmp_path, monkeypatch):
    rows, size = 3000, 60
    items = [{"bytes": png(p, "BMP"), "path": None} for p in noise(rows, size, size, 3)]
    table = pa.table({"img": items, "label": [0] * rows})
    pq.write_table(table, tmp_path / "test.parquet", write_batch_size=64)
    assert pq.ParquetFile(tmp_path / "test.parquet").num_row_groups == 1
    del items, table
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    before = pa.total_allocated_bytes()
    held = []
    data = open_data(f"parquet:{tmp_path / 'test.parquet'}")
    for _ in data.batches(100):
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 30
    assert 0 < max(held) < rows * size * size * 3 / 4


def test_a_folder_is_searched_for_the_split(tmp_path):
    one = [png(noise(1, 4, 4, 3)[0])]
    for place in ("plain/test.parquet", "plain/train.parquet", "deep/data/val-00000-of-00001.parquet"):
        write(tmp_path / place, one)
    write(tmp_path / "hub" / "test" / "0000.parquet", one)
    plain = f"parquet:{tmp_path / 'plain'}"
    assert (open_data(plain).split, open_data(plain, split="train").split) == ("test", "train")
    deep = open_data(f"parquet:{tmp_path / 'deep'}", split="val")
    assert (deep.name, deep.split) == ("deep", "validation")
    assert open_data(f"parquet:{tmp_path / 'hub'}").name == "hub"
    assert open_data(f"{plain}/train.parquet").split == "train"  # a file says itself what it is
    refused(f"{plain}/test.parquet", "split 'test'", "'train' is asked for", split="train")
    refused(f"parquet:{tmp_path / 'deep'}", "split 'test'", "data/val-00000-of-00001.parquet")
    refused(plain, "split 'validation'", "test.parquet, train.parquet", split="validation")


def test_fingerprint_follows_content_and_nothing_else(tmp_path, monkeypatch):
    pixels = noise(4, 4, 4, 3)
    same = [write(tmp_path / name / "test.parquet", [png(p) for p in pixels]) for name in ("a", "b")]
    other_pixel, other_label = pixels.copy(), write(tmp_path / "l" / "test.parquet", [png(p) for p in pixels], [0] * 4)
    other_pixel[3, 1, 2, 0] ^= 1
    changed = write(tmp_path / "c" / "test.parquet", [png(p) for p in other_pixel])
    for keep in (2**30, 0):
        monkeypatch.setattr(images, "KEEP_BYTES", keep)
        prints = [open_data(spec).fingerprint for spec in (*same, other_label, changed)]
        prints += [open_data(same[0], limit=3).fingerprint, open_data(same[0], image_size=2).fingerprint]
        assert prints[0] == prints[1]
        assert len(set(prints)) == 5
        assert all(len(text) == 64 for text in prints)
        assert open_data(changed, limit=3).fingerprint == prints[4]


def test_image_size_is_torchvisions_resize_and_centre_crop(tmp_path):
    sizes = [(40, 61), (33, 20), (300, 290)]
    pictures = [Image.fromarray(noise(1, *size, 3)[0]) for size in sizes]
    data = open_data(write(tmp_path / "test.parquet", [png(p) for p in pictures]), image_size=28)
    oracle = Compose([Resize(32), CenterCrop(28), ToTensor()])
    assert torch.equal(data.batch(0, 3, mean=[0] * 3, std=[1] * 3).images, torch.stack([*map(oracle, pictures)]))
    refused(f"parquet:{tmp_path / 'test.parquet'}", "33x20", "40x61", "image_size", "row 1")


# bad parquet


def test_bad_parquet_files(tmp_path):
    good = [png(p) for p in noise(3, 4, 4, 3)]
    path = tmp_path / "bad" / "test.parquet"

    def bad(*parts: str, items: list[bytes | None] = good, labels: object = None, **columns: str) -> None:
        refused(write(path, items, labels, **columns), str(path), *parts)

    bad("no label column", "columns: img (", "digit (int64)", label="digit")
    bad("negative", "row 1", "-1", labels=[0, -1, 2])
    bad("type double", labels=[0.0, 1.5, 2.0])
    bad("row 2 has no label", labels=pd.array([0, 1, None], dtype="Int64"))
    bad("whole numbers", labels=["cat", "dog", "cat"])
    bad("row 1", "no image bytes", items=[good[0], None, good[2]])
    bad("row 0", "not an image", items=[b"", good[1], good[2]])
    bad("row 2", "cannot be decoded", items=[good[0], good[1], good[2][:60]])
    bad("row 0", "not an image", items=[png(noise(1, 9, 9, 3)[0], "EPS")])  # Pillow would start Ghostscript
    bad("row 0", "mode I", "8 bits", items=[png(np.full((4, 4), 40000, np.uint16))])
    empty = pa.schema({"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})
    pq.write_table(empty.empty_table(), path)
    refused(f"parquet:{path}", str(path), "no rows")
    pd.DataFrame({"text": ["a"], "label": [1]}).to_parquet(path)
    refused(f"parquet:{path}", "no column of images", "columns: text (", "label (int64)")
    pd.DataFrame({name: [{"bytes": good[0]}] for name in ("left", "right")} | {"label": [1]}).to_parquet(path)
    refused(f"parquet:{path}", "several columns of images", "left", "right")
    path.write_bytes(b"not parquet at all")
    refused(f"parquet:{path}", "not a readable parquet file")
    path.write_bytes(b"")
    refused(f"parquet:{path}", "not a readable parquet file")
    refused(f"parquet:{tmp_path / 'absent.parquet'}", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(f"parquet:{tmp_path / 'empty'}", "no parquet file at all")


def test_a_damaged_parquet_body_is_named(tmp_path):
    spec = write(tmp_path / "test.parquet", [png(p) for p in noise(50, 8, 8, 3)])
    content = bytearray((tmp_path / "test.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "test.parquet").write_bytes(content)
    refused(spec, "test.parquet", "cannot be read")


def test_files_that_are_none(tmp_path):
    for name in ("test.parquet", "test-0.parquet"):
        place = tmp_path / name.split(".")[0]
        place.mkdir()
        os.mkfifo(place / name)
    refused(f"parquet:{tmp_path / 'test' / 'test.parquet'}", "is no regular file")
    refused(f"parquet:{tmp_path / 'test-0'}", "is no regular file")
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards" / "test-0-of-9999999999.parquet", [png(noise(1, 4, 4, 3)[0])])
    refused(f"parquet:{tmp_path / 'shards'}", "1 of the 9999999999 shards")
    write(tmp_path / "digits" / "test-1\N{SUPERSCRIPT TWO}2.parquet", [png(noise(1, 4, 4, 3)[0])])
    assert open_data(f"parquet:{tmp_path / 'digits'}").n == 1


@pytest.mark.parametrize("label", [2**24, 2**62, 2**64 - 1])
def test_labels_that_no_network_has(tmp_path, label):
    items = [png(p) for p in noise(2, 4, 4, 3)]
    kind = pa.uint64() if label > 2**63 else pa.int64()
    table = pa.table({"image": items, "label": pa.array([0, label], kind)})
    pq.write_table(table, tmp_path / "test.parquet")
    refused(f"parquet:{tmp_path}", "row 1", "is outside the classes of any network (at most 16,777,216)")


def structs(items: list[bytes], **more: pa.Array) -> pa.Table:
    fields = {"bytes": pa.array(items, pa.binary()), **more}
    struct = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    return pa.table({"img": struct, "label": [0] * len(items)})


def test_two_columns_of_one_name(tmp_path):
    items, more = pa.array([png(noise(1, 4, 4, 3)[0])], pa.binary()), pa.array([0])
    for names in (["img", "img", "label"], ["label", "img", "label"]):
        arrays = [items if name == "img" else more for name in names]
        pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "test.parquet")
        refused(f"parquet:{tmp_path}", f"two columns called '{names[0]}'")


def test_nothing_beside_the_bytes_is_unpacked(tmp_path):
    """A list of a million zeros in each row is a few bytes on the disk."""
    rows, long = 20, 500_000
    edges = pa.array(np.arange(rows + 1, dtype=np.int32) * long)
    zeros = pa.ListArray.from_arrays(edges, pa.array(np.zeros(rows * long, np.int8)))
    pq.write_table(structs([png(noise(1, 4, 4, 3)[0])] * rows, zeros=zeros), tmp_path / "test.parquet")
    assert (tmp_path / "test.parquet").stat().st_size < 10_000
    held = peak_of(lambda: open_data(f"parquet:{tmp_path}"))
    assert held < rows * long / 4


def peak_of(call: Callable[[], object]) -> int:
    """The most that Arrow held at once, in bytes."""
    pool = pa.system_memory_pool()
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        call()
        return pool.max_memory()
    finally:
        pa.set_memory_pool(before)


def test_rows_that_a_dictionary_repeats_are_unpacked_a_few_at_a_time(tmp_path, monkeypatch):
    image = png(noise(1, 4, 4, 3)[0]) + bytes(100_000)
    pq.write_table(structs([image] * 200), tmp_path / "test.parquet")
    assert (tmp_path / "test.parquet").stat().st_size < 20_000
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 400_000)
    monkeypatch.setattr(parquet, "_LARGEST_RATIO", 10**6)
    data = []
    assert peak_of(lambda: data.append(open_data(f"parquet:{tmp_path}"))) < 2_000_000
    assert data[0].n == 200
    monkeypatch.setattr(parquet, "_LARGEST_FETCH", 10_000_000)
    refused(f"parquet:{tmp_path}", "row 0", "more than 10,000,000 bytes", "smaller batch size")


def test_more_rows_than_bytes_are_refused(tmp_path):
    table = pa.table({"img": pa.nulls(200_000, pa.binary()), "label": np.zeros(200_000, np.int8)})
    pq.write_table(table, tmp_path / "test.parquet")
    refused(f"parquet:{tmp_path}", "states 200,000 rows in row group 0", "bytes")


def test_images_that_shrink_too_far_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 2**20)
    pq.write_table(structs([bytes(2**21 + row) for row in range(2)]), tmp_path / "test.parquet", compression="zstd")
    refused(f"parquet:{tmp_path}", "bytes of images in row group 0", "check where it is from")


def test_class_names_that_are_nested_too_deeply_are_none(tmp_path):
    table = structs([png(p) for p in noise(2, 4, 4, 3)]).replace_schema_metadata({"huggingface": "[" * 100_000})
    pq.write_table(table, tmp_path / "test.parquet")
    assert open_data(f"parquet:{tmp_path}").class_names is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_randomly_damaged_images_end_in_one_line(kind):
    good = png(noise(1, 16, 16, 3)[0], kind)
    rng = np.random.default_rng(1)
    refusals = []
    for _ in range(150):
        item = bytearray(good[: rng.integers(len(good) // 2, len(good) + 1)])
        for position in rng.integers(0, min(len(item), 100), rng.integers(1, 4)):
            item[position] = rng.integers(256)
        try:
            with image_warnings():
                pixels = to_pixels(bytes(item), "row 7", 3, 8)
            assert pixels.shape == (3, 8, 8)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(message.startswith("row 7") and "\n" not in message for message in refusals)


def test_randomly_damaged_files_end_in_one_line(tmp_path):
    write(tmp_path / "good.parquet", [png(p) for p in noise(20, 4, 4, 3)])
    good = (tmp_path / "good.parquet").read_bytes()
    rng = np.random.default_rng(1)
    refusals = []
    for _ in range(300):
        content = bytearray(good)
        for back in rng.integers(1, 1500, 2):  # the footer, where the layout is described
            content[-min(back, len(content))] = rng.integers(256)
        (tmp_path / "test.parquet").write_bytes(content)
        try:
            assert len(open_data(f"parquet:{tmp_path / 'test.parquet'}").batch(0, 4).labels)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not any("\n" in message for message in refusals)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be ``width`` x ``height``."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000)])
def test_image_bombs_are_refused(tmp_path, width, height):
    good = png(noise(1, 4, 4, 3)[0])
    refused(write(tmp_path / "test.parquet", [good, bomb(width, height)]), "row 1", "pixels")
    thin = write(tmp_path / "thin" / "test.parquet", [png(np.zeros((1, 5000, 3), np.uint8))])
    refused(thin, "1x5000", "too narrow", image_size=224)
    refused(thin, "image_size 100000000", "give a smaller size", image_size=10**8)


def test_the_warning_filters_are_as_before():
    before = list(warnings.filters)
    with pytest.raises(DataError), image_warnings():
        raise DataError("any")
    assert warnings.filters == before


# the real thing


def test_the_real_cifar10_jpeg_files(shared_data):
    path = shared_data / "cifar10-jpeg" / "test.parquet"
    data = open_data(f"parquet:{path}")
    table = pq.read_table(path)
    assert (data.name, data.split, data.n, data.num_classes) == ("cifar10-jpeg", "test", 10_000, 10)
    assert data.labels.tolist() == table["label"].to_pylist()
    assert data.normalisation_source == "CIFAR-10 training-set constants"
    batch = data.batch(70, 128, mean=[0] * 3, std=[1] * 3)
    for row in range(5):
        with Image.open(io.BytesIO(table["img"][70 * 128 + row].as_py()["bytes"])) as image:
            assert torch.equal(batch.images[row], ToTensor()(image))
    assert open_data(f"parquet:{path.parent}", limit=1000).labels.tolist() == data.labels[:1000].tolist()
