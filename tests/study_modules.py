"""Studies run in the process of the tests: their modules have names of their own only for the length of a body."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@contextlib.contextmanager
def study(name: str, module: str = "run") -> Iterator[ModuleType]:
    """A module of a study; it and everything that it imports from ``studies/`` is forgotten afterwards."""
    path = list(sys.path)
    # tests have modules of the same names
    own = {file.stem for folder in (STUDIES, STUDIES / name) for file in folder.glob("*.py")}
    others = {other: sys.modules.pop(other) for other in own if other in sys.modules}
    sys.path[:0] = [str(STUDIES / name), str(STUDIES)]
    try:
        yield importlib.import_module(module)
    finally:
        sys.path[:] = path
        for found, loaded in list(sys.modules.items()):
            file = getattr(loaded, "__file__", None)
            if file is not None and STUDIES in Path(file).parents and found != "__main__":
                del sys.modules[found]
        sys.modules.update(others)


def run_study(name: str, *arguments: str) -> None:
    """Run a study to its end."""
    threads = torch.get_num_threads()
    try:
        with study(name) as run:
            assert run.main(list(arguments)) == 0
    finally:
        torch.set_num_threads(threads)
