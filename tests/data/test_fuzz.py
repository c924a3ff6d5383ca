"""Any folder, Parquet file or labels either open, or fail with one line: attacks that hypothesis thinks of."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathlens.analyses.sources import batch_source
from pathlens.data import images, open_data
from pathlens.errors import PathlensError
from pathlens.metrics import count_values
from pathlens.residual.losses import cross_entropy
from tests.helpers.data_files import noise, png

PIXELS = noise(1, 8, 8, 3)[0]
GOOD = {kind: png(PIXELS, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}


def odd_images() -> dict[str, bytes]:
    """Images that are unusual, and files that are none."""
    picture = Image.fromarray(PIXELS)
    moving, turned = io.BytesIO(), io.BytesIO()
    picture.save(moving, "GIF", save_all=True, append_images=[picture.rotate(90)])
    exif = Image.Exif()
    exif[274] = 6
    picture.save(turned, "JPEG", exif=exif)
    return {
        "moving": moving.getvalue(),
        "turned": turned.getvalue(),
        "cmyk": png(picture.convert("CMYK"), "JPEG"),
        "grey and alpha": png(picture.convert("LA")),
        "16 bits": png(np.full((8, 8), 40000, np.uint16)),
        "float": png(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "lab": png(picture.convert("LAB"), "TIFF"),
        "cut": GOOD["JPEG"][:-90],
        "empty": b"",
        "text": b"no image",
    }


IMAGES = [*GOOD.values(), *odd_images().values()]


def opens_or_says_why(call: Callable[[], object]) -> bool:
    """Whether ``call`` succeeds; where it does not, with one line that can be printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            call()
        except PathlensError as error:
            message = str(error)
        else:
            return True
    assert message
    assert message.isprintable()
    return False


def read_all(spec: str, kept: bool, **options: Any) -> None:
    limit, images.KEEP_BYTES = images.KEEP_BYTES, images.KEEP_BYTES if kept else 0
    try:
        data = open_data(spec, **options)
        seen = sum(len(batch.labels) for batch in data.batches(3))
        assert seen == data.n <= data.total
        assert data.labels.min() >= 0
        assert data.labels.max() < data.num_classes
        assert len(data.fingerprint) == 64
    finally:
        images.KEEP_BYTES = limit


# folders

NAMES = ["a", "b", "train", "test", "0.png", "1.JPG", ".png", "new\nline", "\x1b[31m", "\udcff.png", " "]
LINKS = [".", "..", "../..", "0.png", "/dev/zero", "/dev/null", "nowhere", "a"]


def make(path: Path, what: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, bytes):
        with path.open("xb") as stream:
            stream.write(what)
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(what)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
            st.sampled_from([*IMAGES[:3], *IMAGES, "folder", "pipe"]) | st.sampled_from(LINKS),
        ),
        max_size=7,
    ),
    st.booleans(),
    st.sampled_from(["test", "train"]),
)
@settings(max_examples=80)
def test_any_folder_opens_or_says_why(entries: list[tuple[list[str], Any]], kept: bool, split: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "u", "v", "w").resolve()  # deep enough that no link leads out of what was made
        folder.mkdir(parents=True)
        for names, what in entries:
            path = folder.joinpath(*names)
            with contextlib.suppress(OSError):  # two entries of one name, or one inside a file
                if os.path.realpath(path.parent) == str(
                    path.parent
                ):  # never by way of a link: what is outside is not ours
                    make(path, what)
        files = sum(path.is_file() for path in Path(made).rglob("*"))

        def call() -> None:
            read_all(f"imagefolder:{folder}", kept, split=split, image_size=4)
            classes = sum(path.is_dir() for path in Path(made).rglob("*"))
            assert open_data(f"imagefolder:{folder}", split=split, image_size=4).total <= files * max(1, classes)

        opens_or_says_why(call)
        opens_or_says_why(lambda: read_all(f"parquet:{folder}", kept, split=split))
        opens_or_says_why(lambda: open_data(str(folder)))


# Parquet

SCALARS = st.sampled_from([0, 1, 2, -1, 255, 2**24, 2**31, 2**62, None, 0.5, True, "cat", b"x", [1], [], {"a": 1}])
TYPES = [
    None, pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.bool_(), pa.string(), pa.binary(), pa.large_binary(),
    pa.null(), pa.list_(pa.int8()), pa.struct({"bytes": pa.binary()}), pa.struct({"bytes": pa.list_(pa.binary())}),
    pa.struct({"bytes": pa.string(), "path": pa.int8()}), pa.map_(pa.string(), pa.int8()), pa.decimal128(5),
    pa.timestamp("s"), pa.dictionary(pa.int8(), pa.int64()), pa.dictionary(pa.int8(), pa.binary()), pa.binary(3),
]  # fmt: skip
COLUMNS = ["img", "image", "label", "labels", "fine_label", "a.b", "", "new\nline", "bytes"]
NOTES = [
    None, "", "{", "[" * 5000, '{"info": 1}', '{"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}',
    '{"info": {"features": {"label": {"names": [null, "\\n"]}}}}', '{"info": {"features": {"label": {"names": "ab"}}}}',
]  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table of one to five rows: mostly images and labels with something odd about them."""
    rows = draw(st.integers(0, 5))
    names, arrays = [], []

    def add(name: str, values: list[Any], kind: pa.DataType | None) -> None:
        try:
            arrays.append(pa.array(values, kind))
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            return
        names.append(name)

    for _ in range(draw(st.integers(0, 2))):
        values = draw(st.lists(SCALARS, min_size=rows, max_size=rows))
        add(draw(st.sampled_from(COLUMNS)), values, draw(st.sampled_from(TYPES)))
    if draw(st.integers(0, 5)):
        items = draw(
            st.lists(st.sampled_from(IMAGES[:2]) | st.sampled_from([None, *IMAGES]), min_size=rows, max_size=rows)
        )
        rest = draw(st.sampled_from([{}, {"path": "x"}, {"path": None, "more": [1] * 9}, {"bytes ": b"x"}]))
        struct = [None if item is None else {"bytes": item, **rest} for item in items]
        add(draw(st.sampled_from(COLUMNS)), draw(st.sampled_from([items, struct, struct, struct])), None)
    if draw(st.integers(0, 5)):
        values = draw(st.lists(st.integers(0, 2) | SCALARS, min_size=rows, max_size=rows))
        kind = draw(st.sampled_from([None, pa.int8(), pa.int64(), pa.uint64()]))
        add(draw(st.sampled_from(["label", "labels"])), values, kind)
    table = pa.Table.from_arrays(arrays, names=names)
    note = draw(st.sampled_from(NOTES))
    return table if note is None else table.replace_schema_metadata({"huggingface": note})


@given(
    tables(),
    st.sampled_from(["none", "snappy", "zstd"]),
    st.sampled_from([1, 2, 100]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    st.booleans(),
    st.sampled_from([None, 1, 4]),
)
@settings(max_examples=150)
def test_any_parquet_file_opens_or_says_why(
    table: pa.Table, packed: str, group: int, damage: list[tuple[float, int]], kept: bool, limit: int | None
) -> None:
    stream = io.BytesIO()
    try:
        pq.write_table(table, stream, compression=packed, row_group_size=group)
    except (pa.ArrowException, ValueError):  # types that Parquet does not have
        return
    content = bytearray(stream.getvalue())
    for place, value in damage:
        content[int(place * len(content))] = value
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "test.parquet").write_bytes(content)
        opens_or_says_why(lambda: read_all(f"parquet:{made}", kept, limit=limit))


# labels and batches of a caller

DTYPES = [
    torch.int64, torch.int32, torch.uint8, torch.int8, torch.uint16, torch.uint64, torch.bool, torch.float32,
    torch.bfloat16, torch.complex64,
]  # fmt: skip
SHAPES = [(4,), (4,), (4, 1), (3,), (0,), (), (1, 4), (4, 3), (4, 5)]


@st.composite
def labels(draw: st.DrawFn) -> Any:
    """Labels of four images in five classes, and all that is none."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape))
    values = draw(st.lists(st.integers(0, 4) | st.sampled_from([5, -1, -100, 2**62]), min_size=count, max_size=count))
    tensor = torch.tensor(values, dtype=torch.int64).reshape(shape).to(dtype)
    plain = st.sampled_from(
        [None, "abcd", ["a"] * 4, [0, 1, 2, 2**64], [[0], [1, 2]], [0.5] * 4, [None] * 4, 3, {}, object()]
    )
    return draw(st.just(tensor) | st.just(tensor) | st.just(tensor.tolist()) | plain)


@given(labels())
@settings(max_examples=80)
def test_any_labels_are_counted_or_refused(given_labels: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5)
    source = batch_source([(torch.zeros(4, 3, 2, 2), given_labels)], 4, None, None, torch.device("cpu"))

    def errors() -> None:
        ((_, _, found),) = source.batches()
        n, correct, loss, nonfinite, outside = count_values(logits, found).tolist()
        assert (n, nonfinite) == (4, 0)
        if not outside:
            assert loss > 0
            assert correct <= 4

    def losses() -> None:
        ((_, _, found),) = source.batches()
        assert cross_entropy(logits, found).isfinite().all()

    counted, has_losses = opens_or_says_why(errors), opens_or_says_why(losses)
    assert counted or not has_losses or np.shape(given_labels) == (4, 5)  # probabilities have a loss and no error


X, Y = torch.zeros(4, 3, 2, 2), [0] * 4
BATCHES = st.sampled_from(
    [
        None, 7, "digits", {}, {"image": X, "label": Y}, X, (), [], (X[:0], Y[:0]), (torch.tensor(1.0), 1), (X, None),
        (X.numpy(), Y), (X.to_sparse(), Y), (X,), (X.to("meta"), Y), (X, Y), (X[:, 0, 0, 0], Y, "more"), [X, Y],
    ]
)  # fmt: skip


@given(st.lists(BATCHES, max_size=3) | BATCHES)
@settings(max_examples=40)
def test_any_batches_are_read_or_refused(batches: Any) -> None:
    def call() -> None:
        source = batch_source(batches, 4, None, None, torch.device("cpu"))
        first = source.first()
        assert len(first)
        assert first.dim()
        for index, found, _ in source.batches():
            assert index >= 0
            assert found[:1].isfinite().all()

    opens_or_says_why(call)


@given(
    st.text(max_size=12) | st.sampled_from(["x" * 5000, "parquet:" + "x" * 5000, "imagefolder:\0", "parquet:~nobody/x"])
)
@settings(max_examples=40)
def test_any_spec_opens_or_says_why(spec: str) -> None:
    opens_or_says_why(lambda: open_data(spec))
    opens_or_says_why(lambda: open_data(f"parquet:{spec}/nowhere"))
    opens_or_says_why(lambda: open_data(f"imagefolder:{spec}/nowhere"))
