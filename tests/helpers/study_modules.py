"""Studies run in the process of the tests."""

from __future__ import annotations

import importlib

import pytest
import torch

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
