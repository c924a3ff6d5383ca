"""Studies run in the process of the tests."""

from __future__ import annotations

import importlib

import pytest
import torch

from pathlens.data import ImageData
from pathlens.models import LoadedModel
from tests.helpers import ROOT

STUDIES = ROOT / "studies"


def run_study(name: str, *arguments: str) -> None:
    """Run a study to its end; the run folders of its trainings get no figures, which no study looks at."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlens.figures.files", lambda *_: {})
        try:
            assert importlib.import_module(f"studies.{name}.__main__").main(arguments) == 0
        finally:
            torch.set_num_threads(threads)


def is_right(loaded: LoadedModel, images: ImageData) -> torch.Tensor:
    """Whether a network classifies each image correctly, by one plain forward pass."""
    batch = images.batch(0, images.n, mean=loaded.mean, std=loaded.std)
    with torch.no_grad():
        return loaded.model.eval()(batch.images).argmax(1) == batch.labels
