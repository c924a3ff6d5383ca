"""The code of the gallery makes its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from pathlens import figures
from tests.helpers import ROOT

PAGE = ROOT / "docs" / "gallery.md"
PICTURES = PAGE.parent / "images" / "gallery"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def saved(code: str) -> list[str]:
    return [f"{stem}.png" for stem in re.findall(r'save\(figure, "gallery", "([\w-]+)"\)', code)]


def test_every_picture_stands_below_the_code_that_saves_it():
    for section in PAGE.read_text().split("\n## ")[2:]:
        title, _, rest = section.partition("\n")
        shown = re.findall(r'^<img src="images/gallery/([\w.-]+)" alt="([^"]+)"', rest, re.MULTILINE)
        assert shown == [(name, title) for name in saved(rest)]
        assert len(shown) == 1
    assert sorted(name for code in CODE for name in saved(code)) == sorted(path.name for path in PICTURES.iterdir())


def test_pictures_are_for_print_and_shown_at_one_scale():
    for name, width in re.findall(r'<img src="images/gallery/([\w.-]+)" .*width="(\d+)"', PAGE.read_text()):
        with Image.open(PICTURES / name) as picture:
            assert picture.format == "PNG"
            assert picture.info["dpi"] == pytest.approx((300, 300), rel=0.01)
            assert int(width) == round(0.4 * picture.width)  # letters are of one size in all pictures


def test_every_kind_of_figure_is_in_the_gallery():
    used = set(re.findall(r"= figures\.(\w+)\(", "".join(CODE)))
    drawing = {name for name in figures.__all__ if name[0].islower()} - {"draw", "files", "save"}
    assert used == drawing


@pytest.mark.slow
@pytest.mark.usefixtures("fine_figures")
@pytest.mark.parametrize("picture", ["deletion.png", "unraveled-tree.png"])
def test_examples_make_their_pictures(picture, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    (code,) = [code for code in CODE if picture in saved(code)]
    exec(compile(code, picture, "exec"), names)
    with Image.open(tmp_path / "gallery" / picture) as made, Image.open(PICTURES / picture) as kept:
        assert made.size == kept.size


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    """What the first code makes for all others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: dict[str, Any] = {"__name__": "gallery"}
    exec(compile(CODE[0], "gallery", "exec"), made)
    yield made
    torch.set_num_threads(threads)
