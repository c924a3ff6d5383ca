"""Run a study's ``run.py`` in this process, with its own modules on the path and gone again afterwards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

STUDIES = Path(__file__).resolve().parents[1] / "studies"


def run_study(name: str, *arguments: str) -> None:
    """Run a study to its end."""
    path, modules, threads = list(sys.path), set(sys.modules), torch.get_num_threads()
    sys.path[:0] = [str(STUDIES / name), str(STUDIES)]
    try:
        spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / name / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.main(list(arguments)) == 0
    finally:
        sys.path[:] = path
        torch.set_num_threads(threads)
        for found in set(sys.modules) - modules:
            file = getattr(sys.modules[found], "__file__", None) or ""
            if file.startswith(str(STUDIES)):
                del sys.modules[found]
