"""Images with masks: pairs, classes, sizes, what is refused, and the scenes that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pathlens
from pathlens.data.images import NOT_COUNTED
from pathlens.errors import DataError


def write(folder: Path, kind: str, name: str, pixels: np.ndarray, mode: str | None = None) -> None:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode=mode).save(folder / kind / name)


def make(folder: Path, masks: list[np.ndarray], size: tuple[int, int] = (6, 8)) -> Path:
    rng = np.random.default_rng(0)
    for number, mask in enumerate(masks):
        write(folder, "images", f"{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        write(folder, "masks", f"{number}.png", mask)
    return folder


def random_masks(values: list[int], count: int = 5, size: tuple[int, int] = (6, 8)) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.choice(values, size).astype(np.uint8) for _ in range(count)]


def test_pairs_in_a_fixed_order_with_the_classes_that_are_written(tmp_path: Path) -> None:
    masks = random_masks([0, 1, 4, 255])
    data = pathlens.open_data(f"masks:{make(tmp_path / 'land', masks)}", limit=4)
    order = np.random.RandomState(0).permutation(5)
    assert (data.name, data.n, data.total, data.num_classes, data.split) == ("land", 4, 5, 5, "test")
    for row in range(4):
        mask = masks[order[row]].astype(int)
        assert np.array_equal(data.labels[row], np.where(mask == 255, NOT_COUNTED, mask))
        pixels = np.asarray(Image.open(tmp_path / "land" / "images" / f"{order[row]}.png"))
        assert np.array_equal(data.rows(torch.tensor([row]))[0][0], pixels.transpose(2, 0, 1))
    batch = data.batch(1, 3)
    assert (batch.images.shape, batch.labels.shape) == ((1, 3, 6, 8), (1, 6, 8))
    other = random_masks([0, 1, 4, 255])
    other[order[0]][0, 0] = 4 if masks[order[0]][0, 0] != 4 else 1
    assert pathlens.open_data(f"masks:{make(tmp_path / 'b', other)}", limit=4).fingerprint != data.fingerprint


@pytest.mark.parametrize("large", [255, 65535])
def test_two_values_are_binary_as_in_tgs_salt(tmp_path: Path, large: int) -> None:
    folder = tmp_path / "salt" / "train"
    masks = [mask.astype(np.uint16 if large > 255 else np.uint8) * large for mask in random_masks([0, 1])]
    masks[0][:] = 0  # no salt in it
    data = pathlens.open_data(f"masks:{make(folder, masks).parent}", split="train")
    order = np.random.RandomState(0).permutation(5)
    assert (data.num_classes, data.split, data.name) == (2, "train", "salt")
    assert all(np.array_equal(data.labels[row], masks[order[row]] > 0) for row in range(5))


def test_masks_are_resized_as_their_images_without_new_values(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:, 15:] = 3
    data = pathlens.open_data(f"masks:{make(tmp_path, [mask], (20, 30))}", image_size=8)
    assert data.labels.shape == (1, 8, 8)
    assert set(data.labels.unique().tolist()) == {0, 3}
    assert (data.labels[0, :, :4] == 0).all()
    assert (data.labels[0, :, 5:] == 3).all()


def _alone(folder: Path) -> None:
    (folder / "masks" / "1.png").unlink()


def _smaller(folder: Path) -> None:
    write(folder, "masks", "1.png", np.zeros((5, 8), dtype=np.uint8))


def _coloured(folder: Path) -> None:
    write(folder, "masks", "1.png", np.zeros((6, 8, 3), dtype=np.uint8))


def _too_large(folder: Path) -> None:
    write(folder, "masks", "1.png", np.full((6, 8), 300, dtype=np.uint16))


def _damaged(folder: Path) -> None:
    (folder / "masks" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def _cut(folder: Path) -> None:
    path = folder / "masks" / "1.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _blurred(folder: Path) -> None:
    (folder / "masks" / "1.png").unlink()
    write(folder, "masks", "1.jpg", np.zeros((6, 8), dtype=np.uint8))


def _twice(folder: Path) -> None:
    write(folder, "images", "1.jpg", np.zeros((6, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_alone, r"1 of 3 files in .*images have no mask of the same name \(the first: 1.png\)"),
        (_smaller, "1.png: the mask is 5x8 and its image 6x8; give masks of the size of their images"),
        (_coloured, "1.png: the mask has mode RGB; write class indices in one channel"),
        (_too_large, "have the class 300; give class indices below 255"),
        (_damaged, "1.png: "),
        (_cut, "1.png: the image cannot be decoded"),
        (_blurred, "1.jpg: a JPEG file, in which class indices are blurred; write masks as PNG"),
        (_twice, "images has two files of the name '1'; remove one"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: object, line: str) -> None:
    make(tmp_path, random_masks([0, 2], 3))
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=line):
        pathlens.open_data(f"masks:{tmp_path}")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give a folder with images/ and masks/"):
        pathlens.open_data(f"masks:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="has no folder images/"):
        pathlens.open_data(f"masks:{tmp_path}")
    make(tmp_path / "train", random_masks([0, 1], 2))
    with pytest.raises(DataError, match="has no folder for the split 'test', only for train"):
        pathlens.open_data(f"masks:{tmp_path}")
    with pytest.raises(DataError, match=f"write masks:{tmp_path / 'train'}"):
        pathlens.open_data(str(tmp_path / "train"))


def test_scenes_are_the_same_every_time_and_say_what_is_where() -> None:
    test = pathlens.open_data("digit-scenes")
    assert (test.n, test.num_classes, test.channels, test.height, test.width) == (500, 11, 3, 48, 48)
    assert test.labels.shape == (500, 48, 48)
    assert set(test.labels.unique().tolist()) == set(range(11))
    empty = (test.labels.flatten(1) == 0).all(1)
    assert 0.08 < float(empty.double().mean()) < 0.2
    # of a scene without digits every pixel is one of a photograph, and of a digit all have been changed
    sizes = [int((row > 0).sum()) for row in test.labels]
    assert max(sizes) < 3 * 24 * 24
    assert pathlens.open_data("digit-scenes", limit=7).fingerprint != test.fingerprint
    few = pathlens.open_data("digit-scenes", limit=7)
    assert torch.equal(few.labels, test.labels[:7])
    assert few.mean == test.mean
    with pytest.raises(DataError, match="48x48 pixels and are not resized"):
        pathlens.open_data("digit-scenes", image_size=24)
