"""The gallery shows the code that makes its pictures."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import pathlens

DOCS = Path(pathlens.__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_gallery_is_not_stale(maker):
    text = (DOCS / "gallery.md").read_text()
    assert text == maker.page(), "run python docs/make_gallery.py"
    shown = re.findall(r"^```python\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for code in shown for line in code.splitlines() if line]
    examples = (DOCS / "gallery.py").read_text().partition("# %% ")[2].splitlines()
    assert lines == [line for line in examples[1:] if line and not line.startswith("#")]


def test_every_picture_is_shown_once_and_has_its_size(maker):
    named = [part.picture for part in maker.parts()[1:]]
    assert sorted(named) == sorted(path.name for path in maker.PICTURES.iterdir())
    text = (DOCS / "gallery.md").read_text()
    for name in named:
        assert text.count(f'<img src="images/gallery/{name}"') == 1
        with Image.open(maker.PICTURES / name) as picture:
            assert picture.format == "PNG"
            assert picture.info["dpi"] == pytest.approx((300, 300), rel=0.01)


def test_every_kind_of_figure_is_in_the_gallery(maker):
    used = set(re.findall(r"= figures\.(\w+)\(", "".join(part.code for part in maker.parts())))
    drawing = {name for name in pathlens.figures.__all__ if name[0].islower()} - {"draw", "files", "save", "placed"}
    assert used == drawing


@pytest.mark.slow
@pytest.mark.parametrize("picture", ["deletion.png", "unraveled-tree.png"])
def test_examples_make_their_pictures(maker, picture, tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    (code,) = [part.code for part in maker.parts() if part.picture == picture]
    exec(compile(code, picture, "exec"), names)
    made = Image.open(io.BytesIO((tmp_path / "gallery" / picture).read_bytes()))
    with Image.open(maker.PICTURES / picture) as kept:
        assert made.size == kept.size


@pytest.fixture(scope="module")
def names(maker: ModuleType) -> Iterator[dict[str, Any]]:
    """What the first part makes for all others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: dict[str, Any] = {"__name__": "gallery"}
    exec(compile(maker.parts()[0].code, "gallery", "exec"), made)
    yield made
    torch.set_num_threads(threads)
